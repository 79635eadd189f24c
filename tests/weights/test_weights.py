"""Reading files of weights."""

import pytest
import torch
from torch import nn

from allsight.types import CheckpointError
from allsight.weights import (
    LoadReport,
    Mismatch,
    in_words,
    load_mapped,
    read_weights,
    select_part,
    write_weights,
)

TENSORS = {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.safetensors"])
def test_what_is_written_is_read(tmp_path, name):
    write_weights(TENSORS, tmp_path / name)
    assert {k: v.tolist() for k, v in read_weights(tmp_path / name).items()} == {
        k: v.tolist() for k, v in TENSORS.items()
    }


@pytest.mark.parametrize("container", ["model", "state_dict", "module", None])
def test_containers_are_opened(container):
    content = {container: TENSORS, "epoch": 3} if container else TENSORS
    assert read_weights(content).keys() == TENSORS.keys()


def test_files_that_hold_no_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such file"):
        read_weights(tmp_path / "absent.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.safetensors: not a safetensors file"):
        read_weights(tmp_path / "text.safetensors")
    for content in (b"", b"hello", b"<html>", bytes(range(256)), b"PK\x03\x04 cut short", b"\x80\x02\xff"):
        (tmp_path / "text.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"text\.pth: "):
            read_weights(tmp_path / "text.pth")
    (tmp_path / "text.pth").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match=r"text\.pth: not a torch file nor .*; give a file of weights"):
        read_weights(tmp_path / "text.pth")
    torch.save({"epoch": 3}, tmp_path / "bare.pth")
    with pytest.raises(
        CheckpointError, match=r"bare\.pth: no tensors at the top nor under model.*it has epoch"
    ):
        read_weights(tmp_path / "bare.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: expected a mapping of tensors, got list"):
        read_weights(tmp_path / "list.pth")


def test_a_part_is_selected_by_its_prefix():
    weights = {"module.net.a": torch.ones(1), "module.head.b": torch.ones(1)}
    part, outside = select_part(weights, "net.")
    assert list(part) == ["a"]
    assert outside == ("head.b",)
    assert select_part(TENSORS, "net.") == (TENSORS, ())


def test_nothing_is_loaded_where_something_does_not_fit():
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(CheckpointError, match=r"toy: weights do not fit the model: 1 missing: b"):
        load_mapped(module, {"w": torch.zeros(2, 3)}, {"weight": "w", "bias": "b"}, what="toy")
    assert torch.equal(module.weight, before)


def test_a_module_on_the_meta_device_receives_real_parameters():
    module = nn.Linear(3, 2, device="meta", dtype=torch.float64)
    report = load_mapped(
        module, {"w": torch.ones(2, 3), "b": torch.ones(2)}, {"weight": "w", "bias": "b"}, what="toy"
    )
    assert module.weight.dtype == torch.float64
    assert module.weight.requires_grad
    assert module(torch.ones(1, 3, dtype=torch.float64)).tolist() == [[4.0, 4.0]]
    assert report == LoadReport(("w", "b"))


def test_of_many_names_those_alike_are_drawn_together():
    names = [f"levels.{i}.blocks.{j}.norm1.0.weight" for i in range(3) for j in range(4)]
    assert in_words(names) == "levels.0-2.blocks.0-3.norm1.0.weight (12)"
    assert in_words([*names, "head.bias"]) == "levels.0-2.blocks.0-3.norm1.0.weight (12), head.bias"
    assert in_words([f"name_{letter}" for letter in "abcdefgh"]).endswith("name_f and 2 more")


def test_a_mismatch_names_every_tensor_on_request():
    weights = {"w": torch.zeros(2, 4)} | {f"layer.{i}.x": torch.zeros(1) for i in range(9)}
    with pytest.raises(Mismatch) as caught:
        load_mapped(nn.Linear(3, 2), weights, {"weight": "w", "bias": "b"}, what="toy", hint="try again")
    error = caught.value
    assert "9 unexpected: layer.0-8.x (9)" in str(error) and ": try again; 1 missing" in str(error)
    assert "w: (2, 4) in the file, (2, 3) in the model" in str(error) and "\n" not in str(error)
    assert len(error.full().splitlines()) == 11 and "unexpected  layer.7.x" in error.full()
    assert error.missing == ("b",) and error.reshaped == {"w": ((2, 4), (2, 3))}


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_infinities_are_refused(value):
    weights = {"w": torch.zeros(2, 3).half(), "b": torch.tensor([0.0, value]).half()}
    module = nn.Linear(3, 2)
    before = module.weight.clone()
    with pytest.raises(
        CheckpointError, match=r"1 tensors \(float16\) hold infinities or NaN: b; values over"
    ):
        load_mapped(module, weights, {"weight": "w", "bias": "b"}, what="toy")
    assert torch.equal(module.weight, before)


def test_values_that_change_nothing_may_be_missing_and_are_reported():
    module = nn.Linear(3, 2)
    neutral = {"b": torch.zeros(2)}
    report = load_mapped(
        module, {"w": torch.ones(2, 3)}, {"weight": "w", "bias": "b"}, what="", neutral=neutral
    )
    assert (report.matched, report.missing) == (("w",), ("b",))
    assert module.bias.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_tied_weights_and_views_are_written_as_they_are(tmp_path, name):
    large = torch.arange(1000.0)
    tied = torch.ones(2)
    write_weights({"a": large[:3], "b": large[:3], "c": large[2:4], "d": tied, "e": tied}, tmp_path / name)
    found = read_weights(tmp_path / name)
    assert found["d"].tolist() == found["e"].tolist() == [1, 1]
    assert (found["a"].tolist(), found["b"].tolist(), found["c"].tolist()) == ([0, 1, 2], [0, 1, 2], [2, 3])
    assert (tmp_path / name).stat().st_size < 3000


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path):
    write_weights(TENSORS, tmp_path / "w.safetensors")
    with pytest.raises(Exception):  # noqa: B017
        write_weights({"a": torch.zeros(1).to_sparse()}, tmp_path / "w.safetensors")
    assert read_weights(tmp_path / "w.safetensors").keys() == TENSORS.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_report_reads_as_a_sentence():
    report = LoadReport(("a", "b"), skipped=("head.weight",))
    assert str(report) == "2 tensors matched, 0 missing, 0 unexpected, 1 skipped by rule: head.weight"
