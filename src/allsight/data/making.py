"""From an order ("micro-batch 1 of task cats in step 7") to a Batch: read, transform, mix, collate."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int64

from allsight.config import ConfigError
from allsight.data.corrupt import replacements
from allsight.data.decode import LeastSize
from allsight.data.order import generator
from allsight.data.sampler import BatchSource, Plan, Sampler, SampleReader
from allsight.data.shards.stores import RemoteError
from allsight.data.transforms.compose import Fresh, Shrinks
from allsight.types import Batch, CorruptSample, Costs, DataError, Sample, Text
from allsight.types.batches import bytes_of


@runtime_checkable
class Reduces(Protocol):
    """A reader whose pictures can be decoded at a smaller size; what else is measured in pixels follows."""

    def reduced(self, index: int, least: LeastSize) -> Sample:
        """The sample, its picture perhaps smaller, never below `least(height, width)`."""
        ...


class LoadingError(RuntimeError):
    """Code of a task failed, or a worker process died, while a batch was made; names task and sample."""


@dataclass(frozen=True)
class TrainOrder:
    """Micro-batch `micro` of `task` in `step`; `deadly` are samples not to be touched, and why."""

    step: int
    task: str
    micro: int
    deadly: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeOrder:
    """Validation samples `indices` of `task`; slots and starts as in Batch, `deadly` as in TrainOrder."""

    task: str
    slots: Int64[np.ndarray, " n"]
    indices: Int64[np.ndarray, " n"]
    starts: Bool[np.ndarray, " n"]
    deadly: Mapping[int, str] = field(default_factory=dict)


Order = TrainOrder | JudgeOrder


class BatchMaker:
    """Makes the batches that are ordered. Holds open readers, but nothing that changes what it makes.

    Args:
        plan: The run's plan; None can only judge.
        sources: Task -> task; default those of the plan.
        val_readers: Task -> its open validation reader; others are opened when first used.
        on_read: Called with (task, index) before a sample is read, with (task, None) after a batch's last.
    """

    def __init__(
        self,
        plan: Plan | None,
        sources: Mapping[str, BatchSource] | None = None,
        val_readers: Mapping[str, SampleReader] | None = None,
        on_read: Callable[[str, int | None], None] | None = None,
    ) -> None:
        self._plan = plan
        self._sampler = Sampler(plan) if plan is not None else None
        self._sources = dict(sources if sources is not None else plan.sources if plan is not None else {})
        self._readers: dict[tuple[str, str], Any] = {}
        for split, readers in (("train", plan.readers if plan else {}), ("val", val_readers or {})):
            self._readers |= {(task, split): reader for task, reader in readers.items()}
        self._transforms: dict[tuple[str, str], Any] = {}
        self._reducing: set[tuple[str, str]] = set()
        self._on_read = on_read
        self._spent = _Spent()
        self._deadly: Mapping[int, str] = {}

    def make(self, order: Order) -> Batch:
        """The batch that was ordered.

        Raises:
            DataError: Too many samples cannot be used, or a task refuses what it was given.
            LoadingError: Code of a task failed.
        """
        self._spent, self._deadly = _Spent(), order.deadly
        batch = self._train(order) if isinstance(order, TrainOrder) else self._judge(order)
        size = bytes_of((batch.inputs, batch.targets))
        return replace(batch, costs=Costs(**vars(self._spent), bytes=size))

    def _train(self, order: TrainOrder) -> Batch:
        assert self._plan is not None and self._sampler is not None
        task, where = self._plan.tasks[order.task], f"step {order.step}"
        numbers = self._sampler.micro_rows(order.step, order.task, order.micro)
        rows, own = numbers.rows, numbers.own
        self._announce(order.task, "train", rows.indices)
        samples: list[Sample] = []
        corrupt: list[list[CorruptSample]] = []
        begun, places = rows.begun.tolist(), rows.places.tolist()
        # All frames of a stream are changed alike: a memory could make nothing of a past that was turned or
        # mirrored another way.
        keys = [(self._plan.seed, "augment", order.task, *key) for key in zip(begun, places, strict=True)]
        # Made together: between two pictures, whose pixels drive all else out of the caches, each would take
        # several times as long.
        generators = [_Generators(key) for key in keys]
        for draw, place, index, fresh in zip(
            rows.draws.tolist(), places, rows.indices.tolist(), generators, strict=True
        ):
            sample, bad = self._usable(order.task, draw, place, index, fresh, where)
            samples.append(sample)
            corrupt.append(bad)
        self._note_all_read(order.task)
        if task.mixes:
            for begin in range(0, len(samples), task.group_size):
                group = slice(begin, begin + task.group_size)
                place = int(rows.places[begin]) // task.group_size
                rng = generator(self._plan.seed, "mix", order.task, int(rows.draws[begin]), place)
                samples[group] = self._mixed(order.task, samples[group], rng, where)
        batch = self._collated(order.task, samples[own], where)
        return replace(
            batch,
            task=order.task,
            slots=torch.from_numpy(rows.slots[own].copy()),
            starts=torch.from_numpy(rows.starts[own].copy()),
            group_size=task.group_size,
            group_ranks=numbers.group_ranks,
            corrupt=tuple(bad for of_row in corrupt[own] for bad in of_row),
        )

    def _judge(self, order: JudgeOrder) -> Batch:
        self._announce(order.task, "val", order.indices)
        samples, kept, corrupt = [], [], []
        for row, index in enumerate(order.indices.tolist()):
            try:
                # Validation is not random; transforms get a generator since their signature has one.
                samples.append(
                    self._sample(order.task, "val", index, partial(generator, 0, "val", index), "evaluation")
                )
                kept.append(row)
            except DataError as error:
                name = _id(error, order.task, index)
                corrupt.append(CorruptSample(order.task, name, _reason(error, name)))
        self._note_all_read(order.task)
        slots, starts = torch.from_numpy(order.slots[kept]), torch.from_numpy(order.starts[kept])
        if not samples:
            return Batch(order.task, (), {}, corrupt=tuple(corrupt))
        batch = self._collated(order.task, samples, "evaluation")
        return replace(batch, task=order.task, slots=slots, starts=starts, corrupt=tuple(corrupt))

    def _usable(
        self, task: str, draw: int, place: int, index: int, fresh: _Generators, where: str
    ) -> tuple[Sample, list[CorruptSample]]:
        """The sample of a row, or the first usable one in its place, and those that were not usable."""
        assert self._plan is not None and self._sampler is not None
        seed, plan = self._plan.seed, self._plan.tasks[task]
        peers = self._sampler.peers(task, index)
        others = replacements(seed, task, draw, place, index, plan.size, plan.sequences, peers)
        faults: list[tuple[str, str]] = []
        while True:
            own = _Generators((*fresh.key, len(faults))) if faults else fresh
            try:
                sample = self._sample(task, "train", index, own, where)
            except DataError as error:
                name = _id(error, task, index)
                faults.append((name, _reason(error, name)))
                following = next(others, None)
                if following is None:
                    raise DataError(
                        f"task '{task}', {where}: sample '{faults[0][0]}' and all {len(faults) - 1} tried in "
                        f"its place cannot be used, the last because: {faults[-1][1]}",
                        faults[0][0],
                    ) from error
                index = following
            else:
                return sample, [CorruptSample(task, name, reason, sample.id) for name, reason in faults]

    def _sample(self, task: str, split: str, index: int, fresh: Fresh, where: str) -> Sample:
        if index in self._deadly:
            raise DataError(self._deadly[index])
        if self._on_read is not None:
            self._on_read(task, index)
        name = f"index {index}"
        begun, read, spent = time.perf_counter(), None, self._spent
        try:
            reader, transform = self._reader(task, split), self._transform(task, split)
            if (task, split) in self._reducing:
                sample = reader.reduced(index, lambda h, w: transform.least_hw_px(h, w, fresh))
            else:
                sample = reader[index]
            name = f"'{sample.id}' (index {index})"
            read = time.perf_counter()
            sample = transform(sample, fresh())
            spent.texts_cut += sum(isinstance(each, Text) and each.cut > 0 for each in sample.inputs.values())
            return sample
        except (DataError, ConfigError, RemoteError):
            raise
        except Exception as error:
            raise LoadingError(f"task '{task}', sample {name}, {where}: {_said(error)}") from error
        finally:
            end = time.perf_counter()
            read = read or end
            spent.samples += 1
            spent.read_s += read - begun
            spent.transform_s += end - read

    def _mixed(
        self, task: str, samples: Sequence[Sample], rng: np.random.Generator, where: str
    ) -> Sequence[Sample]:
        begun = time.perf_counter()
        try:
            mixed = self._sources[task].mix(samples, rng)
        except (DataError, ConfigError):
            raise
        except Exception as error:
            names = _names(samples)
            raise LoadingError(f"task '{task}', mixing samples {names}, {where}: {_said(error)}") from error
        finally:
            self._spent.collate_s += time.perf_counter() - begun
        if len(mixed) != len(samples):
            raise LoadingError(
                f"task '{task}', {where}: mix() returned {len(mixed)} samples for a group of {len(samples)}"
            )
        return mixed

    def _collated(self, task: str, samples: Sequence[Sample], where: str) -> Batch:
        begun = time.perf_counter()
        try:
            batch = self._sources[task].collate(samples)
        except (DataError, ConfigError):
            raise
        except Exception as error:
            names = _names(samples)
            raise LoadingError(
                f"task '{task}', collating samples {names}, {where}: {_said(error)}"
            ) from error
        finally:
            self._spent.collate_s += time.perf_counter() - begun
        if len(batch) != len(samples):
            raise LoadingError(
                f"task '{task}', {where}: collate() made {len(batch)} rows (ids) of {len(samples)} samples"
            )
        return batch

    def _note_all_read(self, task: str) -> None:
        if self._on_read is not None:
            self._on_read(task, None)

    def _announce(self, task: str, split: str, indices: Int64[np.ndarray, " n"]) -> None:
        """Tell a reader of distant samples what it will be asked for, so that it can fetch side by side."""
        ahead = getattr(self._reader(task, split), "ahead", None)
        if ahead is not None:
            ahead(indices.tolist())

    def _reader(self, task: str, split: str) -> Any:
        key = (task, split)
        if key not in self._readers:
            self._readers[key] = self._sources[task].reader(split)
        return self._readers[key]

    def _transform(self, task: str, split: str) -> Any:
        key = (task, split)
        if key not in self._transforms:
            transform = self._transforms[key] = self._sources[task].transform(split)
            # Asked once: such a check costs as much as a small transform. Evaluation sees pictures whole.
            can_shrink = split == "train" and isinstance(transform, Shrinks)
            if can_shrink and isinstance(self._reader(*key), Reduces):
                self._reducing.add(key)
        return self._transforms[key]


class _Generators:
    """Makes the generator of a place anew at each call; the first one is ready beforehand."""

    def __init__(self, key: tuple[Any, ...]) -> None:
        self.key = key
        self._ready: np.random.Generator | None = generator(*key)

    def __call__(self) -> np.random.Generator:
        ready, self._ready = self._ready, None
        return generator(*self.key) if ready is None else ready


@dataclass
class _Spent:
    """What a batch has taken so far, as in `Costs`, which is frozen: one a sample would itself cost time."""

    samples: int = 0
    read_s: float = 0.0
    transform_s: float = 0.0
    collate_s: float = 0.0
    texts_cut: int = 0


def _id(error: DataError, task: str, index: int) -> str:
    return error.sample_id or f"{task}[{index}]"


def _reason(error: DataError, name: str) -> str:
    """What is wrong, without the sample's name in front, which is noted beside it."""
    return str(error).removeprefix(f"{name}: ")


def _names(samples: Sequence[Sample]) -> str:
    shown = ", ".join(f"'{sample.id}'" for sample in samples[:4])
    return shown + (f" and {len(samples) - 4} more" if len(samples) > 4 else "")


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
