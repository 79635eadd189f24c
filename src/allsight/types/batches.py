"""What leaves the loader: micro-batches of one task, and the optimiser step they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

State = dict[str, Tensor] | None
"""Temporal memory of a model between steps: tensors whose rows are the batch's rows, detached."""

Outputs = Any
"""What `forward` returns: tensors in dicts, tuples or dataclasses registered with
`torch.export.register_dataclass`, so that DDP and export see every tensor."""


@dataclass(frozen=True)
class CorruptSample:
    """A sample that could not be used: why, and the id of the one that took its place ("" in evaluation)."""

    task: str
    id: str
    reason: str
    replacement: str = ""


@dataclass(frozen=True)
class Costs:
    """What data took to make, and what was waited for; sums over samples and batches.

    Args:
        samples: Samples made, those of a neighbour's group included.
        read_s: Seconds of reading and decoding them.
        transform_s: Seconds of transforming them.
        collate_s: Seconds of mixing and collating.
        bytes: Size of the tensors that came of it.
        wait_s: Seconds that the training loop waited.
        texts_cut: Texts that were cut, since there was no room for all of them (`long_texts=cut`).
    """

    samples: int = 0
    read_s: float = 0.0
    transform_s: float = 0.0
    collate_s: float = 0.0
    bytes: int = 0
    wait_s: float = 0.0
    texts_cut: int = 0

    def __add__(self, other: Costs) -> Costs:
        # Field by field: this runs for each sample, and `astuple` copies deeply.
        return Costs(
            self.samples + other.samples,
            self.read_s + other.read_s,
            self.transform_s + other.transform_s,
            self.collate_s + other.collate_s,
            self.bytes + other.bytes,
            self.wait_s + other.wait_s,
            self.texts_cut + other.texts_cut,
        )


@dataclass(frozen=True)
class Batch:
    """A micro-batch: rows of one task, collated.

    Args:
        task: Name of the task in the run's mixture.
        ids: Sample ids, one a row.
        inputs: Tensors, or dataclasses and tuples of tensors, by name; first axis is the row.
        targets: The same; may be empty when predicting.
        slots: Row -> slot of the global batch. Randomness and temporal state belong to slots, not to ranks.
        starts: True where a stream begins, so that its temporal state must be forgotten.
        group_size: How many consecutive slots see each other (mixup, in-batch negatives).
        group_ranks: Over how many ranks one group is spread; 1 means each micro-batch holds whole groups.
        corrupt: Samples that were replaced (training) or skipped (evaluation) while making this batch.
        costs: What it took to make.
    """

    task: str
    ids: tuple[str, ...]
    inputs: dict[str, Any]
    targets: dict[str, Any] = field(default_factory=dict)
    slots: Int64[Tensor, " b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    starts: Bool[Tensor, " b"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    group_size: int = 1
    group_ranks: int = 1
    corrupt: tuple[CorruptSample, ...] = ()
    costs: Costs = field(default=Costs(), compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def __post_init__(self) -> None:
        # A task's collate knows ids, inputs and targets; the loader fills in the slots.
        if self.slots.numel() == 0 and self.ids:
            object.__setattr__(self, "slots", torch.arange(len(self.ids)))
        if self.starts.numel() == 0 and self.ids:
            object.__setattr__(self, "starts", torch.ones(len(self.ids), dtype=torch.bool))

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return replace(
            self,
            inputs=map_tensors(move, self.inputs),
            targets=map_tensors(move, self.targets),
            slots=move(self.slots),
            starts=move(self.starts),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for copies to a GPU that do not block."""
        return replace(
            self,
            inputs=map_tensors(Tensor.pin_memory, self.inputs),
            targets=map_tensors(Tensor.pin_memory, self.targets),
        )


@dataclass(frozen=True)
class Step:
    """Everything one rank does in one optimiser step.

    Args:
        number: Step number, from 0.
        tasks: Tasks drawn in this step by any rank, in the mixture's order. Equal on all ranks.
        weights: Task -> its share of the step's loss: (lanes that drew it) / lanes. Equal on all ranks.
        sizes: Task -> rows of its global batch in this step. Equal on all ranks.
        batches: Task -> this rank's micro-batches; empty for a task drawn only elsewhere.
        wait_s: Seconds the training loop waited for this step's data.
    """

    number: int
    tasks: tuple[str, ...]
    weights: Mapping[str, float]
    sizes: Mapping[str, int]
    batches: Mapping[str, tuple[Batch, ...]]
    wait_s: float = 0.0


def bytes_of(tree: Any) -> int:
    """Size of all tensors in nested dicts, lists, tuples and dataclasses."""
    total = 0

    def add(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    map_tensors(add, tree)
    return total


def map_tensors(function: Any, tree: Any) -> Any:
    """Apply `function` to each tensor in nested dicts, lists, tuples and dataclasses; the rest stays."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        mapped = [map_tensors(function, value) for value in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else type(tree)(mapped)
    if is_dataclass(tree) and not isinstance(tree, type):
        return replace(tree, **{f.name: map_tensors(function, getattr(tree, f.name)) for f in fields(tree)})
    return tree
