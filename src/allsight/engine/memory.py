"""Temporal state between steps, kept per task and slot: the engine stores it, only models understand it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from allsight.engine.distributed import Ranks
from allsight.types import Batch, State

Rows = dict[str, Tensor]


class TemporalMemory:
    """{task: {slot: {name: row}}}. A slot that has no memory starts anew."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[int, Rows]] = {}
        self._touched: set[tuple[str, int]] = set()

    def recall(self, batch: Batch) -> tuple[Batch, State]:
        """The state of the batch's rows; rows without any are marked as starts.

        Without memory of any row the state is None, which models take as all rows starting.
        """
        known = self._rows.get(batch.task, {})
        slots = batch.slots.tolist()
        found = [known.get(slot) for slot in slots]
        example = next((rows for rows in found if rows is not None), None)
        if example is None:
            return batch, None
        missing = torch.tensor([rows is None for rows in found], device=batch.starts.device)
        state = {
            name: torch.stack([torch.zeros_like(row) if rows is None else rows[name] for rows in found])
            for name, row in example.items()
        }
        return replace(batch, starts=batch.starts | missing), state

    def keep(self, batch: Batch, state: State) -> None:
        """Remember the state that a forward pass returned for the batch's rows."""
        if state is None:
            return
        known = self._rows.setdefault(batch.task, {})
        for row, slot in enumerate(batch.slots.tolist()):
            known[slot] = {name: tensor[row].detach().clone() for name, tensor in state.items()}
            self._touched.add((batch.task, slot))

    def forget(self, batches: Iterable[Batch]) -> None:
        """Drop the memory of these rows: their step did not count."""
        for batch in batches:
            known = self._rows.get(batch.task, {})
            for slot in batch.slots.tolist():
                known.pop(slot, None)
                self._touched.add((batch.task, slot))

    def tensors(self, ranks: Ranks) -> dict[str, Tensor]:
        """One tensor a key `task/slot/name`, for checkpoints that are read by other numbers of ranks.

        A slot is written by the rank that works on it; one that was restored but not used since, by rank 0.
        """
        elsewhere: set[tuple[str, int]] = set()
        for rank, touched in enumerate(ranks.gather(self._touched)):
            elsewhere |= touched if rank != ranks.rank else set()
        return {
            f"{task}/{slot}/{name}": row
            for task, slots in self._rows.items()
            for slot, rows in slots.items()
            for name, row in rows.items()
            if (task, slot) in self._touched or (ranks.is_first and (task, slot) not in elsewhere)
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self._rows, self._touched = {}, set()
        for key, row in tensors.items():
            task, slot, name = key.split("/", 2)
            self._rows.setdefault(task, {}).setdefault(int(slot), {})[name] = row
