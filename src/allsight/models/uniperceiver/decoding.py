"""Writing a text word by word: greedy, with a beam, or by drawing.

What comes before the text sees nothing of it, so its keys and values are computed once; then each word costs
two tokens: the word before, whose keys and values stay, and the <SPE> that asks for the next, and leaves.

Letters: b rows, k texts followed at a time (beam), v words, c channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from allsight.models.uniperceiver.conditions import Purpose, find_conditions
from allsight.types import Continuation, Query, Segment, Vocabulary

if TYPE_CHECKING:
    from allsight.models.uniperceiver.model import UniPerceiver


@runtime_checkable
class Reader(Protocol):
    """What asks the model for the next word of texts that grow."""

    def next(self, words: Int64[Tensor, "rows t"]) -> Float[Tensor, "rows c"]:
        """Features that ask for the word after `words`."""
        ...

    def spread(self, times: int) -> None:
        """Each row becomes `times` rows, which lie side by side and follow texts that begin alike."""
        ...

    def pick(self, rows: Int64[Tensor, " rows"]) -> None:
        """Row i becomes what row `rows[i]` was, which comes from the same row as i."""
        ...


def write(
    model: UniPerceiver, query: Query, purpose: Purpose, scale: Tensor, *, cached: bool = True
) -> dict[str, Any]:
    """Write the causal segment that `query` reads.

    Args:
        cached: Keep keys and values; else everything is encoded again for each word, which gives the same.
    Returns:
        `tokens` [b, t], without those it begins with and filled up with the end; `lengths` [b] without it;
        `log_probability` [b] of the words and the end; `is_cut` [b], True where no end was reached.
    Raises:
        ValueError: What is read is not a causal text at the end of the query, or candidates are not words.
    """
    settings, read = query.continuation, query.read
    assert settings is not None
    if read is None or read != len(query.inputs) - 1 or not query.inputs[read].causal:
        raise ValueError("continuation: expected query.read to name a causal text that is the last input")
    if not isinstance(query.among, Vocabulary):
        raise ValueError("continuation: the candidates must be the vocabulary")
    begun = query.inputs[read].content if settings.goes_on else query.inputs[read].content[:, :0]
    words = model.candidates(query.among, purpose) * scale
    before = (*query.inputs[:-1], replace(query.inputs[-1], content=begun, mask=None))
    reader = (Cached if cached else Anew)(model, before, purpose, begun.shape[1] + settings.max_tokens)
    return _search(reader, words, begun, settings)


class Cached:
    """Keeps keys and values of what has been seen.

    Args:
        before: What the query shows, and last the words that the text begins with.
        max_tokens: Words of the longest text, with these.
    """

    def __init__(
        self, model: UniPerceiver, before: tuple[Segment, ...], purpose: Purpose, max_tokens: int
    ) -> None:
        self.encoder = model.encoder
        *others, text = before
        self.begun = text.content.shape[1]
        x, layout = self.encoder.embed((*others, _asking_next(text, text.content)), len(others))
        # Behind what stays are a word that does not matter and as many copies of <SPE> as there are words.
        self.begins = x.shape[1] - self.begun - 2
        # The <SPE> of a step lies where the next word will.
        longest = max(x.shape[1], self.begins - self.begun + max_tokens + 1)
        self.memory = self.encoder.trunk.new_memory(len(x), longest, x)
        conditions = self.encoder.conditions(layout, purpose, x)
        last = self.encoder.trunk(x, layout.mask, conditions, self.memory, keep=self.begins, asks=1)
        self.first = self.encoder.project(last[:, 0])
        self.conditions = find_conditions([text], [2], purpose, device=x.device)
        # What is added to scores, made for the longest text: of [word, <SPE>] the word does not see <SPE>,
        # which comes last whatever the length, and padding comes first.
        self.last = x.new_zeros(1, 2, longest)
        self.last[:, 0, -1] = float("-inf")
        self.padding = None
        if layout.real is not None:
            self.padding = x.new_zeros(len(x), 1, longest)
            self.padding[:, 0, : x.shape[1]].masked_fill_(~layout.real, float("-inf"))

    def next(self, words: Int64[Tensor, "rows t"]) -> Float[Tensor, "rows c"]:
        if words.shape[1] == self.begun:
            return self.first
        asking = words.new_full((len(words), 1), self.encoder.text.spe_id)
        x = self.encoder.text(torch.cat([words[:, -1:], asking], dim=1), first=words.shape[1] - 1)
        seen = self.memory[0].seen.length + 2
        mask = self.last[:, :, -seen:]
        if self.padding is not None:
            mask = mask + self.padding[:, :, :seen]
        x = self.encoder.trunk(x, mask, self.conditions, self.memory, keep=1, asks=1)
        return self.encoder.project(x[:, 0])

    def spread(self, times: int) -> None:
        for memory in self.memory:
            memory.spread(times)
        self.first = self.first.repeat_interleave(times, dim=0)
        if self.padding is not None:
            self.padding = self.padding.repeat_interleave(times, dim=0)

    def pick(self, rows: Int64[Tensor, " rows"]) -> None:
        for memory in self.memory:
            memory.seen.pick(rows, since=self.begins)


class Anew:
    """Encodes everything again for each word: slow and obvious."""

    def __init__(
        self, model: UniPerceiver, before: tuple[Segment, ...], purpose: Purpose, max_tokens: int
    ) -> None:
        self.encoder, self.purpose, self.before = model.encoder, purpose, before

    def next(self, words: Int64[Tensor, "rows t"]) -> Float[Tensor, "rows c"]:
        *others, text = self.before
        return self.encoder((*others, _asking_next(text, words)), self.purpose, len(others))[:, -1]

    def spread(self, times: int) -> None:
        def longer(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.repeat_interleave(times, dim=0)

        self.before = tuple(replace(s, content=longer(s.content), mask=longer(s.mask)) for s in self.before)

    def pick(self, rows: Int64[Tensor, " rows"]) -> None:
        """Nothing is kept but what rows have in common."""


def _asking_next(text: Segment, words: Int64[Tensor, "b t"]) -> Segment:
    """The text with these words and one more that nobody sees: the copy of <SPE> in its place asks for it."""
    return replace(text, content=F.pad(words, (0, 1)))


def _search(
    reader: Reader, candidates: Float[Tensor, "v c"], begun: Int64[Tensor, "b t"], settings: Continuation
) -> dict[str, Any]:
    rows, device = len(begun), begun.device
    beam, end = settings.beam, settings.end_id
    if beam > 1 and settings.temperature > 0:
        raise ValueError(f"continuation: words are drawn with beam 1, got beam={beam}")
    if beam > 1:
        reader.spread(beam)
    words = begun.repeat_interleave(beam, dim=0)
    firsts = beam * torch.arange(rows, device=device)[:, None]
    finished = torch.zeros(rows, beam, dtype=torch.bool, device=device)
    # All followers are the same at first, so only one of them may be followed.
    scores = torch.zeros(rows, beam, device=device)
    scores[:, 1:] = float("-inf")
    allowed = candidates.new_zeros(len(candidates))
    allowed[list(settings.forbidden)] = float("-inf")
    ended = torch.full_like(allowed, float("-inf"))
    ended[end] = 0.0
    for _ in range(settings.max_tokens):
        # As `boltzmann_logits`, with the candidates' part done once.
        logits = torch.addmm(allowed, F.normalize(reader.next(words), dim=-1), candidates.T)
        log_p = logits.log_softmax(-1).unflatten(0, (rows, beam))  # [b, k, v]
        log_p = torch.where(finished[:, :, None], ended, log_p)
        if beam == 1:
            likely = log_p[:, 0]
            if settings.temperature > 0:
                word = torch.multinomial((likely / settings.temperature).softmax(-1), 1)
            else:
                word = likely.argmax(-1, keepdim=True)
            scores = scores + likely.gather(1, word)
        else:
            scores, best = (scores[:, :, None] + log_p).flatten(1).topk(beam, dim=1)
            parent, word = best // log_p.shape[-1], best % log_p.shape[-1]
            finished = finished.gather(1, parent)
            picked = (parent + firsts).flatten()
            reader.pick(picked)
            words = words[picked]
        finished = finished | (word == end)
        words = torch.cat([words, word.flatten()[:, None]], dim=1)
        if bool(finished.all()):
            break
    texts = words[:, begun.shape[1] :].unflatten(0, (rows, beam))
    lengths = (texts != end).sum(-1)
    # The end counts as a word, so that no length is 0.
    best = (scores / (lengths + 1).to(scores) ** settings.length_penalty).argmax(1)
    take = torch.arange(rows, device=device), best
    return {
        "tokens": texts[take],
        "lengths": lengths[take],
        "log_probability": scores[take],
        "is_cut": ~finished[take],
    }
