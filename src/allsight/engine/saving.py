"""Checkpoints of a run while it trains: copied aside at once, written by a thread, kept by rule."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor

from allsight.engine.checkpoint import (
    Tensors,
    copy_checkpoint,
    prune,
    read_best,
    save_checkpoint,
    write_best,
)
from allsight.engine.config import CheckpointConfig
from allsight.engine.distributed import Ranks
from allsight.engine.events import EventLog
from allsight.engine.parallel.shards import local_part


@dataclass(frozen=True)
class _Outcome:
    """What came of one save."""

    step: int
    seconds: float = 0.0
    bytes: int = 0
    problem: str = ""
    alarms: tuple[str, ...] = ()


class Saving:
    """Saves checkpoints, one at a time. What cannot be written is an alarm, no error: training goes on.

    Args:
        folder: `checkpoints/` of the run; None saves nothing.
        config: Settings.
        ranks: All ranks make one, at the same time.
        events: Where results are noted.
    """

    def __init__(self, folder: Path | None, config: CheckpointConfig, ranks: Ranks, events: EventLog) -> None:
        self._folder, self._config, self._events = folder, config, events
        # The thread must not speak into the conversation of the training.
        self._ranks = ranks.apart() if folder is not None and config.asynchronous else ranks
        self._thread: ThreadPoolExecutor | None = None
        self._staged: Tensors = {}
        self._pending: tuple[Future[_Outcome], float] | None = None
        self.saved_step: int | None = None
        """Steps done when the newest checkpoint was written; None while there is none."""

    def save(self, step: int, tensors: Tensors, *, score: float | None = None) -> None:
        """Begin to write a checkpoint; every rank calls this. The tensors may change when this returns.

        Args:
            score: Of the weights, where they were judged just now; the best checkpoint is kept.
        """
        if self._folder is None:
            return
        self.finish()
        begun = time.perf_counter()
        own = _dealt(tensors, self._ranks)
        if not self._config.asynchronous:
            self._settle(self._write(step, own, score), time.perf_counter() - begun)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        future = self._thread.submit(self._write, step, self._stage(own), score)
        self._pending = (future, time.perf_counter() - begun)

    def poll(self) -> None:
        """Note the result of a save that has ended meanwhile."""
        if self._pending is not None and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait for a save that is being written, and note its result."""
        if self._pending is not None:
            (future, blocked), self._pending = self._pending, None
            self._settle(future.result(), blocked)

    def close(self) -> None:
        """End the thread, after what it is writing."""
        self.finish()
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

    def _stage(self, tensors: Tensors) -> Tensors:
        """Copies on the CPU, in the memory of the copies before."""
        copies: Tensors = {}
        for key, tensor in tensors.items():
            room = self._staged.get(key)
            if room is None or room.shape != tensor.shape or room.dtype != tensor.dtype:
                room = BlockingAsyncStager().stage({key: tensor})[key]
            else:
                local_part(room).copy_(local_part(tensor.detach()), non_blocking=True)
            copies[key] = room
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._staged = copies
        return copies

    def _write(self, step: int, tensors: Tensors, score: float | None) -> _Outcome:
        """Write, copy elsewhere, throw older ones away; in the thread."""
        assert self._folder is not None
        begun, alarms = time.perf_counter(), []
        best = self._note_best(step, score, alarms)
        try:
            path = save_checkpoint(self._folder, step, tensors, self._ranks).path
        except OSError as error:
            if best is not None:
                self._write_best(*best, alarms)
            return _Outcome(step, problem=str(error), alarms=tuple(alarms))
        size = sum(file.stat().st_size for file in path.iterdir())
        try:
            if self._config.copy_to:
                copy_checkpoint(path, self._config.copy_to, self._ranks)
        except OSError as error:
            alarms.append(f"checkpoint not copied to {self._config.copy_to}: {error}; it is whole here")
        if self._ranks.is_first:
            try:
                newest_best = read_best(self._folder)
                keep = {newest_best[0]} if newest_best else set()
                prune(self._folder, self._config.keep_last, keep=keep, every=self._config.keep_every)
            except OSError as error:
                alarms.append(f"old checkpoints not removed: {error}")
        return _Outcome(step, time.perf_counter() - begun, size, alarms=tuple(alarms))

    def _note_best(
        self, step: int, score: float | None, alarms: list[str]
    ) -> tuple[int | None, float] | None:
        """Note these weights as the best if they are; what was noted before, to go back to, if they are."""
        assert self._folder is not None
        if score is None or not self._ranks.is_first:
            return None
        best = read_best(self._folder)
        # A value that is not a number never counts as best.
        if not score > (best[1] if best else float("-inf")):
            return None
        # Before the checkpoint: a kill between the two is made good when the step is run again.
        self._write_best(step, score, alarms)
        return best or (None, 0.0)

    def _write_best(self, step: int | None, value: float, alarms: list[str]) -> None:
        """Write down which checkpoint is best; None: none is any more."""
        assert self._folder is not None
        try:
            if step is None:
                (self._folder / "best.json").unlink(missing_ok=True)
            else:
                write_best(self._folder, step, "main", value)
        except OSError as error:
            alarms.append(f"best checkpoint not noted: {error}")

    def _settle(self, outcome: _Outcome, blocked: float) -> None:
        assert self._folder is not None
        for text in outcome.alarms:
            self._events.write("alarm", outcome.step, text=f"step {outcome.step}: {text}")
        if outcome.problem:
            text = f"step {outcome.step}: checkpoint not written: {outcome.problem}"
            self._events.write("alarm", outcome.step, text=f"{text}; older ones stay, training goes on")
            return
        self.saved_step = outcome.step
        values = {"seconds": outcome.seconds, "blocked_s": blocked, "bytes": outcome.bytes}
        name = f"{self._folder.name}/step-{outcome.step:08d}"
        self._events.write("checkpoint", outcome.step, values=values, text=name)


def _dealt(tensors: Tensors, ranks: Ranks) -> Tensors:
    """Of what all ranks hold alike, this rank's share to write; of the rest, all it has."""
    if ranks.world == 1:
        return tensors
    alike = [
        key
        for key, tensor in tensors.items()
        if not isinstance(tensor, DTensor) and not key.startswith("memory/")
    ]
    # By size, so that shares are about equally large; the order is the same on all ranks.
    alike.sort(key=lambda key: (-tensors[key].numel() * tensors[key].element_size(), key))
    others = {key for place, key in enumerate(alike) if place % ranks.world != ranks.rank}
    return {key: tensor for key, tensor in tensors.items() if key not in others}
