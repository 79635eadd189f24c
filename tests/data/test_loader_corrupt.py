"""Samples that cannot be used: replaced, counted, and in the end too many."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from allsight.config.base import import_file
from allsight.data.corrupt import Ledger, replacements
from allsight.data.loader import MetaDataloader
from allsight.types import CorruptSample

toy = import_file(Path(__file__).with_name("toy_loading.py"))


def bad(number, task="a"):
    return CorruptSample(task, f"{task}/{number}", "cut short", f"{task}/0")


def test_a_corrupt_sample_is_replaced_and_named():
    plan = toy.toy_plan({"a": toy.Settings(size=10, batch_size=10, corrupt=(4, 7))})
    batches = [step.batches["a"][0] for step in islice(MetaDataloader(plan), 20)]
    for batch in batches:
        assert len(batch) == 10
        assert not {"a/4", "a/7"} & set(batch.ids)
        assert {item.id for item in batch.corrupt} == {"a/4", "a/7"}
        for item in batch.corrupt:
            assert item.task == "a"
            assert item.reason == "cut short"
            assert item.replacement in batch.ids
    # Not always the same stand-in, which would be seen far too often.
    assert len({item.replacement for batch in batches for item in batch.corrupt}) > 4


def test_the_replacement_of_a_frame_is_the_nearest_of_its_sequence():
    def in_order(index):
        return list(replacements(0, "a", 0, 0, index, 20, (6, 4, 10)))

    assert in_order(7) == [6, 8, 9]
    assert in_order(0) == [1, 2, 3, 4, 5]
    assert in_order(12)[:5] == [11, 13, 10, 14, 15]


def test_replacements_depend_on_the_place_alone():
    def tried(*place):
        return list(islice(replacements(0, "a", *place, 5, 1000, None), 5))

    assert tried(1, 2) == tried(1, 2)
    assert tried(1, 2) != tried(2, 1)
    assert all(0 <= index < 1000 for index in tried(1, 2))


def test_the_ledger_counts_each_sample_once():
    ledger = Ledger()
    assert [ledger.add(bad(1)), ledger.add(bad(1)), ledger.add(bad(2)), ledger.add(bad(1, "b"))] == [
        True,
        False,
        True,
        True,
    ]
    assert (ledger.count("a"), ledger.count("b"), ledger.count("c")) == (2, 1, 0)


def test_the_ledger_comes_back_from_a_checkpoint_as_it_was():
    ledger = Ledger()
    ledger.see({"a": 64, "b": 8})
    for number in (5, 3, 9):
        ledger.add(bad(number))
    other = Ledger()
    other.see({"z": 1})
    other.restore(ledger.to_tensor())
    assert torch.equal(other.to_tensor(), ledger.to_tensor())
    assert (other.count("a"), other.seen("a"), other.seen("b"), other.seen("z")) == (3, 64, 8, 0)
    assert not other.add(bad(3))
    empty = Ledger()
    empty.restore(Ledger().to_tensor())
    assert empty.count("a") == 0


@pytest.mark.parametrize(
    ("size", "seen", "corrupt", "is_too_much"),
    [
        (500, 64, 5, False),
        (500, 64, 6, True),
        (500, 10**6, 5, False),
        (50, 50, 1, True),
        (10**9, 64, 10, False),
        (10**9, 64, 11, True),
        (10**9, 10_000, 100, False),
        (10**9, 10_000, 101, True),
    ],
)
def test_too_many_corrupt_samples_are_those_above_the_share_of_the_set(size, seen, corrupt, is_too_much):
    ledger = Ledger()
    ledger.see({"a": seen})
    for number in range(corrupt):
        ledger.add(bad(number))
    message = ledger.excess({"b": 10, "a": size}, 0.01)
    assert (message is not None) == is_too_much
    if message is not None:
        assert message.startswith(f"task 'a': {corrupt} of ")
        assert "'a/0'" in message and "raise data.max_corrupt_fraction" in message and "\n" not in message
