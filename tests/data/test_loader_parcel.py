"""Batches arrive from another process with the same bits."""

from multiprocessing import Pipe
from threading import Thread

import pytest
import torch

from allsight.data import parcel
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


def sent(value):
    ours, theirs = Pipe()
    thread = Thread(target=parcel.send, args=(theirs, value))
    thread.start()
    try:
        return parcel.receive(ours)
    finally:
        thread.join()
        ours.close()
        theirs.close()


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
