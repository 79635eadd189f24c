"""Batches arrive from another process with the same bits."""

from multiprocessing import Pipe
from threading import Thread

import pytest
import torch

from allsight.data import parcel
from allsight.data.parcel import Inbox, Outbox
from allsight.types import Batch

TENSORS = {
    "pixels": torch.arange(2 * 3 * 5 * 7, dtype=torch.uint8).view(2, 3, 5, 7),
    "channels_last": torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last),
    "half": torch.randn(3, 3).to(torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "part": torch.arange(12).view(3, 4)[:, 1:3],
    "expanded": torch.ones(1, 3).expand(4, 3),
    "transposed": torch.arange(6.0).view(2, 3).T,
}


class Line:
    """Both ends of a pipe, in one process."""

    def __init__(self):
        self.ours, self.theirs = Pipe()
        self.inbox, self.outbox = Inbox(self.ours), Outbox(self.theirs)

    def sent(self, value):
        self.outbox.reuse(self.inbox.done())
        thread = Thread(target=self.outbox.send, args=(value,))
        thread.start()
        try:
            return self.inbox.receive()
        finally:
            thread.join()

    def blocks(self):
        """Sizes of the blocks at the receiver; what the sender has is the same."""
        sizes = {number: len(block) for number, block in self.inbox._blocks.items()}
        assert sizes == {number: len(block) for number, block in self.outbox._blocks.items()}
        return list(sizes.values())

    def close(self):
        self.ours.close()
        self.theirs.close()


def sent(value):
    line = Line()
    try:
        return line.sent(value)
    finally:
        line.close()


@pytest.fixture(params=[True, False], ids=["shared_file", "pipe"])
def either_way(request, monkeypatch):
    if request.param and not parcel.HAS_SHARED_FILES:
        pytest.skip("this system has no memfd_create")
    monkeypatch.setattr(parcel, "HAS_SHARED_FILES", request.param)


def test_what_arrives_during_an_evaluation_can_be_trained_on(either_way):
    with torch.inference_mode():
        arrived = sent({"pixels": TENSORS["half"], "nothing": TENSORS["empty"]})
    weight = torch.ones(3, 3, dtype=torch.bfloat16, requires_grad=True)
    (arrived["pixels"] * weight).sum().backward()
    assert not arrived["nothing"].is_inference()


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_arrive_as_they_were(either_way, name):
    tensor = TENSORS[name]
    arrived = sent(tensor)
    assert arrived.dtype is tensor.dtype and arrived.shape == tensor.shape
    assert torch.equal(arrived, tensor)
    if name not in ("part", "expanded"):
        assert arrived.stride() == tensor.stride()


def test_batches_arrive_with_all_that_is_in_them(either_way):
    batch = Batch("a", ("x", "y"), {"image": TENSORS["pixels"]}, {"words": [["a"], ["b"]], **TENSORS})
    arrived = sent(batch)
    assert isinstance(arrived, Batch)
    assert (arrived.ids, arrived.targets["words"]) == (batch.ids, batch.targets["words"])
    for name, tensor in TENSORS.items():
        assert torch.equal(arrived.targets[name], tensor)
    assert torch.equal(arrived.slots, batch.slots)


def test_what_arrives_can_be_written_to_and_outlives_the_rest(either_way):
    batch = sent({"a": torch.zeros(1000), "b": torch.ones(1000)})
    b = batch.pop("b")
    batch["a"].fill_(7)
    del batch
    assert b.add_(1).sum() == 2000


def test_values_without_tensors_arrive(either_way):
    assert sent(("text", 3, None)) == ("text", 3, None)
    error = sent(ValueError("no"))
    assert isinstance(error, ValueError) and str(error) == "no"


@pytest.fixture
def line():
    if not parcel.HAS_SHARED_FILES:
        pytest.skip("this system has no memfd_create")
    line = Line()
    yield line
    line.close()


def test_memory_is_used_again_when_all_that_lies_in_it_is_gone(line):
    one = line.sent({"a": torch.zeros(1000), "b": torch.zeros(1000)})
    kept, view = one.pop("b"), one["a"][10:20].numpy()
    del one
    assert line.sent(torch.ones(2000)).sum() == 2000
    assert (kept == 0).all() and (view == 0).all() and len(line.blocks()) == 2
    del kept
    other = line.sent(torch.full((2000,), 2.0))
    assert (view == 0).all() and len(line.blocks()) == 2
    del view, other
    assert (line.sent(torch.full((2000,), 3.0)) == 3).all() and len(line.blocks()) == 2


def test_a_batch_takes_the_smallest_memory_that_fits(line):
    big, small = line.sent(torch.zeros(9000)), line.sent(torch.zeros(500))
    del big, small
    kept = line.sent(torch.zeros(100)), line.sent(torch.ones(1000))
    assert sorted(line.blocks()) == [4096, 36864] and kept[0].sum() == 0 and kept[1].sum() == 1000


def test_many_sizes_take_as_much_memory_as_the_largest(line):
    for count in range(1000, 40_000, 1000):
        assert line.sent(torch.zeros(count)).numel() == count
    assert line.blocks() == [39_000 * 4 // 4096 * 4096 + 4096]


def test_memory_that_nothing_takes_any_more_is_given_up(line):
    both = line.sent(torch.zeros(10)), line.sent(torch.zeros(100_000))
    del both
    assert sorted(line.blocks()) == [4096, 401_408]
    for _ in range(40):
        line.sent(torch.zeros(10))
    assert line.blocks() == [4096]
