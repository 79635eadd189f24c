"""Evaluation sees each sample once."""

from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allsight.config.base import import_file
from allsight.data.evaluation import EvaluationOrder
from allsight.data.loader import EvaluationLoader, MetaDataloader

toy = import_file(Path(__file__).with_name("toy_loading.py"))


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(0, 60),
    batch_size=st.integers(1, 9),
    world=st.integers(1, 4),
    max_samples=st.none() | st.integers(1, 70),
)
def test_each_sample_is_judged_once_over_all_ranks(size, batch_size, world, max_samples):
    orders = [EvaluationOrder(size, batch_size, rank, world, max_samples) for rank in range(world)]
    batches = [rows for order in orders for rows in order]
    slots = [slot for rows in batches for slot in rows.slots.tolist()]
    indices = [index for rows in batches for index in rows.indices.tolist()]
    expected = size if max_samples is None else min(size, max_samples)
    assert slots == list(range(expected)) == list(range(orders[0].num_judged))
    assert len(set(indices)) == expected and set(indices) <= set(range(size))
    assert indices == sorted(indices)
    assert all(0 < len(rows.slots) <= batch_size for rows in batches)
    shown = orders[0].spread(5)
    assert len(shown) == min(5, expected) and shown <= set(slots)


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=9),
    batch_size=st.integers(1, 4),
    world=st.integers(1, 3),
)
def test_streams_are_judged_frame_by_frame_in_one_slot(lengths, batch_size, world):
    seen, total = [], sum(lengths)
    begins = {sum(lengths[:number]) for number in range(len(lengths))}
    for rank in range(world):
        last = {}
        for rows in EvaluationOrder(total, batch_size, rank, world, None, tuple(lengths)):
            assert len(set(rows.slots.tolist())) == len(rows.slots) <= batch_size
            for slot, index, start in zip(
                rows.slots.tolist(), rows.indices.tolist(), rows.starts, strict=True
            ):
                assert start == (index in begins)
                assert start or last[slot] == index - 1
                last[slot] = index
                seen.append(index)
    assert sorted(seen) == list(range(total))


def test_a_part_of_the_streams_is_whole_sequences():
    order = EvaluationOrder(100, 2, max_samples=50, sequences=(25,) * 4)
    indices = [index for rows in order for index in rows.indices.tolist()]
    assert sorted(indices) == [*range(25), *range(50, 75)]
    assert order.num_judged == 50


def test_frames_of_streams_have_numbers_of_their_own():
    """Slots recur in streams, so what is shown of them goes by the order in which they are judged."""
    numbers, shown = [], set()
    for rank in range(2):
        order, seen = EvaluationOrder(12, 2, rank, 2, sequences=(3, 3, 2, 4)), 0
        shown |= order.spread(4)
        for rows in order:
            numbers += order.positions(rows.slots.tolist(), seen)
            seen += len(rows.slots)
    assert len(set(numbers)) == len(numbers) == 12
    assert len(shown) == 4 and shown <= set(numbers)


def loader_of(task, **options):
    return EvaluationLoader(task, task.reader("val"), batch_size=4, **options)


def test_corrupt_samples_are_left_out_and_named():
    task = toy.Toy("a", toy.Settings(size=13, corrupt=(0, 4, 5, 6, 7, 12)))
    batches = list(loader_of(task))
    assert [batch.ids for batch in batches] == [("a/1", "a/2", "a/3"), (), ("a/8", "a/9", "a/10", "a/11"), ()]
    assert [batch.slots.tolist() for batch in batches] == [[1, 2, 3], [], [8, 9, 10, 11], []]
    assert [bad.id for batch in batches for bad in batch.corrupt] == [f"a/{i}" for i in (0, 4, 5, 6, 7, 12)]
    assert {bad.replacement for batch in batches for bad in batch.corrupt} == {""}


def test_a_stream_whose_first_frames_are_corrupt_starts_with_the_next():
    task = toy.Toy("a", toy.Settings(size=12, sequences=(3, 4, 5), corrupt=(3, 4)))
    rows = [
        (batch.ids[row], batch.starts[row].item())
        for batch in EvaluationLoader(task, task.reader("val"), batch_size=1)
        for row in range(len(batch))
    ]
    assert [name for name, start in rows if start] == ["a/0", "a/5", "a/7"]
    assert len(rows) == 10


def test_validation_is_not_random():
    task = toy.Toy("a", toy.Settings(size=9))
    first, second = list(loader_of(task)), list(loader_of(task))
    assert torch.equal(
        torch.cat([b.inputs["image"] for b in first]), torch.cat([b.inputs["image"] for b in second])
    )


def test_workers_of_the_training_loader_can_judge_in_between():
    tasks = {"a": toy.Settings(size=23, corrupt=(5,)), "b": toy.Settings(size=9, share=0.5)}
    plan = toy.toy_plan(tasks)
    expected_steps = [step.batches for step in islice(MetaDataloader(plan), 8)]
    expected = [
        (batch.ids, batch.slots.tolist(), batch.corrupt) for batch in loader_of(toy.Toy("a", tasks["a"]))
    ]
    with MetaDataloader(plan, num_workers=2) as loader:
        steps = [next(loader).batches for _ in range(3)]
        judge = loader_of(toy.Toy("a", tasks["a"]), workforce=loader.workforce)
        assert [(batch.ids, batch.slots.tolist(), batch.corrupt) for batch in judge] == expected
        steps.append(next(loader).batches)
        assert next(iter(judge)).ids == expected[0][0]
        steps += [next(loader).batches for _ in range(4)]
        for _ in range(8):
            next(loader)
        assert not loader.workforce._unwanted
        assert len(loader.workforce._done) <= 8
    for ours, theirs in zip(steps, expected_steps, strict=True):
        assert {task: [b.ids for b in ours[task]] for task in ours} == {
            task: [b.ids for b in theirs[task]] for task in theirs
        }


def test_a_part_of_the_samples_is_spread_evenly_over_the_set():
    indices = [index for rows in EvaluationOrder(1000, 8, max_samples=30) for index in rows.indices.tolist()]
    gaps = {after - before for before, after in pairwise(indices)}
    assert indices[0] == 0 and gaps <= {33, 34}


@pytest.mark.parametrize("max_samples", [None, 7])
def test_pictures_to_show_are_spread_over_what_is_judged(max_samples):
    task = toy.Toy("a", toy.Settings(size=20))
    loader = loader_of(task, max_samples=max_samples)
    slots = [slot for batch in loader for slot in batch.slots.tolist()]
    assert loader.num_judged == len(slots) == (max_samples or 20)
    assert loader.spread(4) == ({0, 5, 10, 15} if max_samples is None else {0, 1, 3, 5})
