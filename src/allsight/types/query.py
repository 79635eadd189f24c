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
    """Row i's target; the targets of the rest of its group are its negatives."""

    targets: tuple[Segment, ...]


@dataclass(frozen=True)
class Vocabulary:
    """The candidates are the words: the model compares with its own word embeddings."""


Among = Closed | InBatch | Vocabulary


@dataclass(frozen=True)
class Query:
    """What is asked of a generalist for a whole batch.

    Args:
        inputs: Segments that are encoded together.
        among: The candidates.
        read: None compares the <SPE> vector, giving [b, set]; k compares every position of inputs[k],
            giving [b, t, set].
        labels: Index of the right candidate, [b] or [b, t], or soft weights over the set; -100 is ignored.
            None when predicting and for `InBatch` (row i's target is target i).
        temperature: Name of the learnt temperature; empty takes the task's own.
    """

    inputs: tuple[Segment, ...]
    among: Among
    read: int | None = None
    labels: Shaped[Tensor, " b *rest"] | None = None
    temperature: str = ""
