"""Checks of what comes before the model: settings, readers, transforms, mixing, collating."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from allsight.config import build, dump
from allsight.tasks.base import Split, Task
from allsight.tasks.checking.comparing import difference
from allsight.tasks.checking.subject import Fault, NotApplicable, Subject, named
from allsight.types import Batch, Sample

_LOOKED_AT = 64


def settings_survive(subject: Subject) -> None:
    config = subject.task.config
    again = build(Task.Config, dump(config), trust=True)
    if again != config:
        raise Fault(f"written and read again they are {again!r}, not {config!r}")


def splits_can_be_read(subject: Subject) -> None:
    for split in ("train", "val"):
        reader = subject.reader(split)
        if len(reader) < 1:
            raise Fault(f"reader('{split}') has no samples")
        for index in (0, len(reader) - 1):
            sample = reader[index]
            if not isinstance(sample, Sample):
                raise Fault(f"reader('{split}')[{index}] is {named(sample)}, not a Sample")
            if not isinstance(sample.id, str) or not sample.id:
                raise Fault(f"reader('{split}')[{index}] has the id {sample.id!r}; expected a text")


def readings_repeat(subject: Subject) -> None:
    for split in ("train", "val"):
        index = len(subject.reader(split)) - 1
        found = difference(subject.reader(split)[index], subject.reader(split)[index], "sample")
        if found:
            raise Fault(f"reader('{split}')[{index}] read twice differs in {found}")


def ids_differ(subject: Subject) -> None:
    for split in ("train", "val"):
        reader = subject.reader(split)
        seen: dict[str, int] = {}
        for index in range(min(len(reader), _LOOKED_AT)):
            id = reader[index].id
            if id in seen:
                raise Fault(f"samples {seen[id]} and {index} of '{split}' are both called {id!r}")
            seen[id] = index


def streams_add_up(subject: Subject) -> None:
    for split in ("train", "val"):
        reader = subject.reader(split)
        sequences: Any = getattr(reader, "sequences", None)
        if sequences is None:
            raise NotApplicable("its readers have no streams")
        if min(sequences, default=0) < 1 or sum(sequences) != len(reader):
            raise Fault(f"reader('{split}').sequences hold {sum(sequences)} frames, the reader {len(reader)}")


def training_is_random_through_its_generator(subject: Subject) -> None:
    raw, transform = subject.reader("train")[0], subject.task.transform("train")
    results = []
    for seed in (1, 2):
        random.seed(seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            results.append(_with_numpy_seed(seed, lambda: transform(raw, np.random.default_rng(0))))
    found = difference(results[0], results[1], "sample")
    if found:
        raise Fault(
            f"with the same generator two results differ in {found}; draw all randomness from the generator "
            f"that the transform is given"
        )


def evaluation_is_not_random(subject: Subject) -> None:
    raw, transform = subject.reader("val")[0], subject.task.transform("val")
    results = [transform(raw, np.random.default_rng(seed)) for seed in (0, 1)]
    found = difference(results[0], results[1], "sample")
    if found:
        raise Fault(f"two generators give results that differ in {found}")


def transforms_leave_their_input(subject: Subject) -> None:
    for split in get_args(Split):
        raw = subject.reader("train" if split == "train" else "val")[0]
        before = copy.deepcopy(raw)
        subject.task.transform(split)(raw, np.random.default_rng(0))
        found = difference(before, raw, "sample")
        if found:
            raise Fault(f"transform('{split}') changed the sample it was given in {found}; make a new one")


def transforms_travel(subject: Subject) -> None:
    for split in get_args(Split):
        try:
            pickle.loads(pickle.dumps(subject.task.transform(split)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Fault(
                f"transform('{split}') cannot be sent to a worker: {error}; use a class or function"
            ) from None


def mixing_repeats(subject: Subject) -> None:
    task = subject.task
    if type(task).mix is Task.mix or task.config.group_size == 1:
        raise NotApplicable("it mixes nothing (group_size 1, or no mix)")
    group = subject.train[: task.config.group_size]
    before = copy.deepcopy(group)
    mixed = [list(task.mix(group, np.random.default_rng(0))) for _ in range(2)]
    if len(mixed[0]) != len(group):
        raise Fault(f"mix gave {len(mixed[0])} samples for a group of {len(group)}")
    if found := difference(mixed[0], mixed[1], "samples"):
        raise Fault(f"with the same generator two results differ in {found}")
    if found := difference(before, group, "samples"):
        raise Fault(f"mix changed the samples it was given in {found}; make new ones")


def batches_hold_their_samples(subject: Subject) -> None:
    for split, samples in (("train", subject.train), ("val", subject.val)):
        before = copy.deepcopy(samples)
        batch = subject.task.collate(samples)
        if not isinstance(batch, Batch):
            raise Fault(f"collate gave {named(batch)}, not a Batch")
        if batch.task != subject.task.name:
            raise Fault(f"the batch's task is {batch.task!r}, not the task's name {subject.task.name!r}")
        if batch.ids != tuple(sample.id for sample in samples):
            raise Fault(f"the batch's ids are {batch.ids}, not those of its samples in their order")
        for part in ("inputs", "targets"):
            for name, value in getattr(batch, part).items():
                if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != len(samples)):
                    raise Fault(
                        f"{part}[{name!r}] is {list(value.shape)}; expected {len(samples)} rows ({split})"
                    )
        if found := difference(before, samples, "samples"):
            raise Fault(f"collate changed the samples it was given in {found}")


def rows_do_not_depend_on_the_batch(subject: Subject) -> None:
    whole = subject.task.collate(subject.train)
    for begin, end in ((0, subject.cut), (subject.cut, subject.rows)):
        part = subject.task.collate(subject.train[begin:end])
        for side in ("inputs", "targets"):
            for name, value in getattr(whole, side).items():
                if not isinstance(value, Tensor):
                    continue
                if found := difference(value[begin:end], getattr(part, side)[name], f"{side}[{name!r}]"):
                    raise Fault(
                        f"rows {begin} to {end - 1} collated alone differ in {found}; pad to a size that "
                        f"follows from the settings or the sample"
                    )


def predictions_need_no_targets(subject: Subject) -> None:
    collated(subject, subject.val[: subject.cut])


def collated(subject: Subject, samples: Sequence[Sample]) -> Batch:
    """Samples as `predict` has them: without targets."""
    bare = [replace(sample, targets={}) for sample in samples]
    transform = subject.task.transform("predict")
    raw = subject.reader("val")[0]
    transform(Sample(raw.id, raw.inputs), np.random.default_rng(0))
    batch = subject.batch(bare)
    if len(batch) != len(bare):
        raise Fault(f"collate made {len(batch)} rows of {len(bare)} samples without targets")
    return batch


def _with_numpy_seed(seed: int, action: Any) -> Any:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        return action()
    finally:
        np.random.set_state(state)
