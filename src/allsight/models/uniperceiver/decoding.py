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

    def pick(self, rows: Int64[Tensor, " more"]) -> None:
        """Row i becomes what row `rows[i]` was."""
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
    words = F.normalize(model.candidates(query.among, purpose), dim=-1) * scale
    before = (
        *query.inputs[:-1],
        replace(query.inputs[-1], content=query.inputs[-1].content[:, :0], mask=None),
    )
    reader = (Cached if cached else Anew)(model, before, purpose, begun.shape[1] + settings.max_tokens)

    def likelihoods(texts: Int64[Tensor, "rows t"]) -> Float[Tensor, "rows v"]:
        # As `boltzmann_logits`, with the candidates' part done once.
        return F.normalize(reader.next(texts), dim=-1) @ words.T

    return _search(reader, likelihoods, begun, settings)


class Cached:
    """Keeps keys and values of what has been seen."""

    def __init__(
        self, model: UniPerceiver, before: tuple[Segment, ...], purpose: Purpose, max_tokens: int
    ) -> None:
        self.encoder, self.purpose = model.encoder, purpose
        x, layout = self.encoder.embed(before)
        length = x.shape[1]
        # The <SPE> of a step lies where the next word will.
        self.memory = self.encoder.trunk.new_memory(len(x), length + max_tokens + 1, x)
        conditions = self.encoder.conditions(layout, purpose, x)
        self.encoder.trunk(x, layout.mask, conditions, self.memory, keep=length)
        self.real = layout.real
        self.segment = before[-1]
        self.conditions = {
            new: find_conditions([self.segment], [new], purpose, device=x.device) for new in (1, 2)
        }

    def next(self, words: Int64[Tensor, "rows t"]) -> Float[Tensor, "rows c"]:
        asking = words.new_full((len(words), 1), self.encoder.text.spe_id)
        ids = torch.cat([words[:, -1:], asking], dim=1)
        place = words.shape[1]
        new = ids.shape[1]
        x = self.encoder.text(ids, first=max(0, place - 1))
        seen = self.memory[0].seen.length + new
        mask = torch.ones(1, new, seen, dtype=torch.bool, device=words.device)
        mask[:, :-1, -1] = False
        if self.real is not None:
            mask = mask.repeat(len(words), 1, 1)
            mask[:, :, : self.real.shape[1]] &= self.real[:, None]
        x = self.encoder.trunk(x, mask, self.conditions[new], self.memory, keep=new - 1)
        return self.encoder.project(x[:, -1])

    def pick(self, rows: Int64[Tensor, " more"]) -> None:
        for memory in self.memory:
            memory.pick(rows)
        self.real = None if self.real is None else self.real[rows]


class Anew:
    """Encodes everything again for each word: slow and obvious."""

    def __init__(
        self, model: UniPerceiver, before: tuple[Segment, ...], purpose: Purpose, max_tokens: int
    ) -> None:
        self.encoder, self.purpose, self.before = model.encoder, purpose, before

    def next(self, words: Int64[Tensor, "rows t"]) -> Float[Tensor, "rows c"]:
        *others, text = self.before
        # The last of the copies of <SPE> asks for a word that does not matter: it is not seen.
        content = torch.cat([words, torch.zeros_like(text.content.new_empty(len(words), 1))], dim=1)
        read = len(others)
        return self.encoder((*others, replace(text, content=content)), self.purpose, read)[:, -1]

    def pick(self, rows: Int64[Tensor, " more"]) -> None:
        self.before = tuple(
            replace(s, content=s.content[rows], mask=None if s.mask is None else s.mask[rows])
            for s in self.before
        )


def _search(
    reader: Reader, likelihoods: Any, begun: Int64[Tensor, "b t"], settings: Continuation
) -> dict[str, Any]:
    rows, device = len(begun), begun.device
    beam, end = settings.beam, settings.end_id
    if beam > 1 and settings.temperature > 0:
        raise ValueError(f"continuation: words are drawn with beam 1, got beam={beam}")
    first = torch.arange(rows, device=device).repeat_interleave(beam)
    if beam > 1:
        reader.pick(first)
    words = begun[first]
    for length in range(begun.shape[1]):
        # Each step looks at one more word.
        reader.next(words[:, :length])
    finished = torch.zeros(rows, beam, dtype=torch.bool, device=device)
    # All followers are the same at first, so only one of them may be followed.
    scores = torch.zeros(rows, beam, device=device)
    scores[:, 1:] = float("-inf")
    forbidden = torch.tensor(settings.forbidden, dtype=torch.int64, device=device)
    for _ in range(settings.max_tokens):
        logits = likelihoods(words).index_fill(-1, forbidden, float("-inf"))
        log_p = logits.log_softmax(-1).unflatten(0, (rows, beam))  # [b, k, v]
        ended = torch.full_like(log_p[0, 0], float("-inf"))
        ended[end] = 0.0
        log_p = torch.where(finished[:, :, None], ended, log_p)
        if settings.temperature > 0:
            word = torch.multinomial((log_p[:, 0] / settings.temperature).softmax(-1), 1)
            parent = torch.zeros_like(word)
            scores = scores + log_p[:, 0].gather(1, word)
        else:
            scores, best = (scores[:, :, None] + log_p).flatten(1).topk(beam, dim=1)
            parent, word = best // log_p.shape[-1], best % log_p.shape[-1]
        finished = finished.gather(1, parent) | (word == end)
        if beam > 1:
            picked = (parent + beam * torch.arange(rows, device=device)[:, None]).flatten()
            reader.pick(picked)
            words = words[picked]
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
