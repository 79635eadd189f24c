"""What a token is and what it is for: the conditions that experts are chosen by.

The attributes follow from the query, so a task that nobody has thought of has them too.

Source: fundamentalvision/Uni-Perceiver:uniperceiver/datasets/moe_embeddings.py (the eight bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allsight.types import InBatch, Query, Segment

NUM_ATTRIBUTES = 8
TEXT = "text"
MODALITIES = ("text", "image", "video")


@dataclass(frozen=True)
class Purpose:
    """What a sequence is encoded for.

    Args:
        task: Name of the task; empty for none in particular.
        inputs: Modalities of the task's query.
        targets: Modalities of its candidates.
        is_target: Whether the sequence is one of the candidates.
    """

    task: str
    inputs: frozenset[str]
    targets: frozenset[str]
    is_target: bool = False

    def attributes(self, modality: str, *, causal: bool) -> tuple[int, ...]:
        """The eight bits of a token of this sequence.

        1 the task sees something, 2 it reads text, 3 its target is seen, 4 its target is text; this token
        5 is seen, 6 is text, 7 belongs to a target, 8 sees only what comes before it.
        """
        sees, reads = any(m != TEXT for m in self.inputs), TEXT in self.inputs
        if self.is_target and reads:
            # Words that are candidates of tasks with text are one set for all such tasks, as published.
            sees = True
        return (
            int(sees),
            int(reads),
            int(any(m != TEXT for m in self.targets)),
            int(TEXT in self.targets),
            int(modality != TEXT),
            int(modality == TEXT),
            int(self.is_target),
            int(causal),
        )


@dataclass(frozen=True)
class Conditions:
    """Runs of neighbouring tokens that are alike, and what they are.

    Args:
        runs: First token and the one after the last of each run.
        attributes: The bits of each run.
        modalities: Number of each run's modality in `MODALITIES`.
        purpose: What the sequence is encoded for.
        is_open: Tokens that all others see, which is what a summary of the sequence is made of; None: all.
        is_real: Tokens that are no padding; None: all.
    """

    runs: tuple[tuple[int, int], ...]
    attributes: Float[Tensor, "m bits"]
    modalities: tuple[int, ...]
    purpose: Purpose
    is_open: Bool[Tensor, "b t"] | None = None
    is_real: Bool[Tensor, "b t"] | None = None

    @cached_property
    def attribute_names(self) -> tuple[str, ...]:
        """The attributes of each run as text, such as 10011000; read from the device once for all layers."""
        return tuple("".join(str(int(bit)) for bit in row) for row in self.attributes.tolist())


def purpose_of(query: Query, task: str) -> Purpose:
    """What the query of a task is encoded for."""
    targets = query.among.targets if isinstance(query.among, InBatch) else ()
    names = frozenset(segment.modality for segment in targets) or frozenset({TEXT})
    return Purpose(task, frozenset(segment.modality for segment in query.inputs), names)


def conditions_of_prompts(purpose: Purpose, length: int, *, device: torch.device | str = "cpu") -> Conditions:
    """Those of prompts in front of a sequence: as of what it shows, else of its text.

    They follow from the purpose alone, so that prompts are the same however much of a sequence is at hand.
    """
    among = purpose.targets if purpose.is_target else purpose.inputs
    modality = next((name for name in MODALITIES[1:] if name in among), TEXT)
    bits = torch.tensor([purpose.attributes(modality, causal=False)], dtype=torch.float32, device=device)
    return Conditions(((0, length),), bits, (MODALITIES.index(modality),), purpose)


def find_conditions(
    segments: Sequence[Segment],
    lengths: Sequence[int],
    purpose: Purpose,
    *,
    is_open: Bool[Tensor, "b t"] | None = None,
    is_real: Bool[Tensor, "b t"] | None = None,
    device: torch.device | str = "cpu",
) -> Conditions:
    """The runs of a sequence whose first part also holds the <SPE> in front.

    Args:
        segments: The parts.
        lengths: Tokens of each, the first one's with the <SPE>.
        purpose: What they are encoded for.
        is_open, is_real: As in `Conditions`.
        device: Where the attributes are needed.
    """
    runs: list[tuple[int, int]] = []
    kinds: list[tuple[int, tuple[int, ...]]] = []
    end = 0
    for segment, length in zip(segments, lengths, strict=True):
        kind = MODALITIES.index(segment.modality) if segment.modality in MODALITIES else len(MODALITIES) - 1
        found = (kind, purpose.attributes(segment.modality, causal=segment.causal))
        if kinds and kinds[-1] == found:
            runs[-1] = (runs[-1][0], end + length)
        else:
            runs.append((end, end + length))
            kinds.append(found)
        end += length
    bits = torch.tensor([attributes for _, attributes in kinds], dtype=torch.float32, device=device)
    return Conditions(tuple(runs), bits, tuple(kind for kind, _ in kinds), purpose, is_open, is_real)
