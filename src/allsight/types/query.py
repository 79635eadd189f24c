"""Every task of a generalist as one sentence: a query, and the candidates it is compared with.

P(target | query) ~ exp(similarity / temperature). Tasks build queries (`Task.cast`), models read them.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Shaped
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A run of tokens of one modality.

    Args:
        modality: `text` (token ids [b, t]), `image` (pixels [b, 3, h, w]), `video`, ...
        content: What the model's tokenizer of that modality takes.
        mask: True where `content` is real; padding is False.
        causal: Tokens that only later causal tokens may see, in one pass.
    """

    modality: str
    content: Shaped[Tensor, " b *rest"]
    mask: Bool[Tensor, "b t"] | None = None
    causal: bool = False


@dataclass(frozen=True)
class Closed:
    """One set of candidates for all rows; `key` names it, so that its features can be cached."""

    key: str
    candidates: tuple[Segment, ...]


@dataclass(frozen=True)
class InBatch:
    """Row i's target; the targets of the rest of its group are its negatives, and those of earlier steps
    where the model keeps a queue for the task."""

    targets: tuple[Segment, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The candidates are the words: the model compares with its own word embeddings."""


Among = Closed | InBatch | Vocabulary


@dataclass(frozen=True)
class Continuation:
    """How to write the causal segment that is read, word by word, where nobody gives its words.

    Args:
        end_id: Word that ends a text.
        max_tokens: A text ends here at the latest.
        beam: Texts that are followed at a time; 1 takes the likeliest word each time.
        length_penalty: The best text is that of the highest log-probability / length ** length_penalty.
        temperature: Above 0 words are drawn (beam 1), from probabilities ** (1 / temperature).
        forbidden: Words that are never written.
        goes_on: The words of inputs[read], of which all rows have equally many, are how the text begins.
    """

    end_id: int
    max_tokens: int
    beam: int = 1
    length_penalty: float = 0.0
    temperature: float = 0.0
    forbidden: tuple[int, ...] = ()
    goes_on: bool = False


@dataclass(frozen=True)
class Query:
    """What is asked of a generalist for a whole batch.

    Args:
        inputs: Segments that are encoded together.
        among: The candidates.
        read: None compares the <SPE> vector, giving [b, set]; k compares every position of inputs[k],
            giving [b, t, set]. Of a causal segment position i is asked for its word from what comes before.
        labels: Index of the right candidate, [b] or [b, t], or soft weights over the set; -100 is ignored.
            None when predicting and for `InBatch` (row i's target is target i).
        temperature: Name of the learnt temperature; empty takes the task's own.
        continuation: In evaluation, write inputs[read] in place of reading it.
    """

    inputs: tuple[Segment, ...]
    among: Among
    read: int | None = None
    labels: Shaped[Tensor, " b *rest"] | None = None
    temperature: str = ""
    continuation: Continuation | None = None
