"""Files and folders of weights: containers, averages, parts of weights, objects, attacks."""

import argparse
import io
import json
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from allsight.types import CheckpointError
from allsight.weights import open_weights, read_weights, write_weights

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.zeros(2)}
OTHERS = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2)}


class Settings(dict):
    """What the official training code saves beside its weights: a dictionary of a class of its own."""


class Attack:
    """Runs a command where its pickle is loaded."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("path", "wrap"),
    [
        ("model", lambda w: {"model": w, "epoch": 3}),
        ("model/state_dict", lambda w: {"model": {"state_dict": w}}),
        ("module", lambda w: {"module": w, "ds_version": "0.8.3"}),
        ("model_state_dict", lambda w: {"model_state_dict": w}),
    ],
)
def test_nested_containers_are_opened_and_named(tmp_path, path, wrap):
    torch.save(wrap(TENSORS), tmp_path / "w.pth")
    opened = open_weights(tmp_path / "w.pth")
    assert same(opened.tensors, TENSORS) and opened.container == f"torch file, under {path}"


def test_averages_are_taken_when_asked_for_only(tmp_path):
    torch.save({"model": TENSORS, "model_ema": OTHERS}, tmp_path / "w.pth")
    plain = open_weights(tmp_path / "w.pth")
    assert same(plain.tensors, TENSORS) and "model_ema; take them with ema=True" in plain.notes[0]
    assert same(open_weights(tmp_path / "w.pth", ema=True).tensors, OTHERS)
    with pytest.raises(CheckpointError, match="keeps no averaged weights"):
        open_weights({"model": TENSORS}, ema=True)


def test_averages_of_deepspeed_get_their_dots_back():
    bare = {name.replace(".", ""): tensor for name, tensor in OTHERS.items()}
    assert same(open_weights({"module": TENSORS, "model_ema": bare}, ema=True).tensors, OTHERS)


def test_objects_beside_the_weights_are_dropped_and_named(tmp_path):
    net = nn.BatchNorm2d(3)
    half = {
        "h": torch.ones(2).half(),
        "b": torch.ones(2).bfloat16(),
        "t": torch.arange(6.0).reshape(2, 3).t(),
    }
    weights = (
        OrderedDict(net.state_dict()) | half | {"p": nn.Parameter(torch.ones(2)), "none": torch.zeros(0, 3)}
    )
    content = {
        "model": weights,
        "config": Settings(lr=1, more=[Settings()]),
        "args": argparse.Namespace(x={1, 2}),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}},
    }
    torch.save(content, tmp_path / "w.pth")
    opened = open_weights(tmp_path / "w.pth")
    assert same(opened.tensors, weights)
    assert all(opened.tensors[name].dtype == tensor.dtype for name, tensor in weights.items())
    assert "test_opening.Settings" in opened.notes[0] and "argparse.Namespace" in opened.notes[0]


@pytest.mark.parametrize("place", ["beside", "inside", "as a method", "old form"])
def test_code_in_a_file_is_never_run(tmp_path, place):
    """Whatever is thought of the file, what it names is not called."""
    mark = tmp_path / "ran"
    attack = Attack(open, str(mark), "w")
    content = {
        "beside": {"model": TENSORS, "x": attack},
        "inside": {"model": {**TENSORS, "x": attack}},
        "as a method": {"model": TENSORS, "x": Attack(getattr, mark, "touch")},
        "old form": {"model": TENSORS, "x": attack},
    }[place]
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=place != "old form")
    with pytest.raises(CheckpointError, match=r"w\.pth: (would call|holds more than tensors)") as caught:
        read_weights(tmp_path / "w.pth")
    assert "\n" not in str(caught.value) and not mark.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch ran'\no.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
        b"cbuiltins\neval\n(S'1'\ntRR.",
        b"cnumpy.testing\nrunstring\n(S'x'\ntR}b.",
        b"cos\nsystem\n}S'__setstate__'\ncos\nsystem\nsbS'touch ran'\nb.",
    ],
)
def test_programs_of_attackers_are_refused(tmp_path, program, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("w.pth", "w") as archive:
        archive.writestr("w/data.pkl", program)
    with pytest.raises(CheckpointError, match=r"w\.pth"):
        read_weights("w.pth")
    assert not (tmp_path / "ran").exists()


def test_damaged_files_are_one_line(tmp_path):
    """Cut and overwritten at many places, with and without objects in them."""
    for content in ({"model": TENSORS}, {"model": TENSORS, "config": Settings()}):
        whole = io.BytesIO()
        torch.save(content, whole)
        data = whole.getvalue()
        for cut in range(0, len(data), 97):
            for damaged in (data[:cut], data[:cut] + b"\xff\x00R." + data[cut + 4 :]):
                (tmp_path / "w.pth").write_bytes(damaged)
                try:
                    read_weights(tmp_path / "w.pth")
                except CheckpointError as error:
                    assert str(error).startswith(str(tmp_path / "w.pth")) and "\n" not in str(error)


def test_a_view_that_repeats_its_numbers_is_refused(tmp_path):
    """A few bytes could ask for any amount of memory."""
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({"model": {"x": huge}, "config": Settings()}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="on 1 numbers"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"", "an empty file"),
    ],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_what_is_no_weights_is_said(tmp_path, content, said, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_weights(tmp_path / name)


def test_a_cut_safetensors_file_is_refused(tmp_path):
    write_weights(TENSORS, tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    for cut in (data[:-5], data[:40], data[:4]):
        (tmp_path / "w.safetensors").write_bytes(cut)
        with pytest.raises(CheckpointError) as caught:
            read_weights(tmp_path / "w.safetensors")
        said = "not a safetensors file: cut short or damaged; fetch it again"
        assert str(caught.value) == f"{tmp_path / 'w.safetensors'}: {said}"


def test_safetensors_in_a_folder_are_preferred(tmp_path):
    write_weights(TENSORS, tmp_path / "model.safetensors")
    torch.save(OTHERS, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "x"}))
    opened = open_weights(tmp_path)
    assert same(opened.tensors, TENSORS) and opened.settings == {"model_type": "x"}
    (tmp_path / "model.safetensors").unlink()
    assert same(open_weights(tmp_path).tensors, OTHERS)


def test_several_files_of_hugging_face_add_up(tmp_path):
    names = {"a.weight": "model-1.safetensors", "a.bias": "model-2.safetensors"}
    for name, file in names.items():
        write_weights({name: TENSORS[name]}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert same(open_weights(tmp_path).tensors, TENSORS)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-2\.safetensors: no such file, but"):
        open_weights(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"expected names of \.safetensors files beside it"):
        open_weights(tmp_path)


def test_deepspeed_folders_are_opened_and_partitions_refused(tmp_path):
    tag = tmp_path / "global_step9"
    tag.mkdir()
    (tmp_path / "latest").write_text("global_step9")
    torch.save({"module": TENSORS, "args": argparse.Namespace()}, tag / "mp_rank_00_model_states.pt")
    for folder in (tmp_path, tag):
        assert same(open_weights(folder).tensors, TENSORS)
    shard = tag / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": {"a.weight": torch.zeros(0)}, "param_shapes": []}, shard)
    for place in (tmp_path, shard):
        with pytest.raises(CheckpointError, match=r"ZeRO.*python zero_to_fp32\.py"):
            open_weights(place)
    shard.rename(tag / "renamed.pt")
    with pytest.raises(CheckpointError, match=r"ZeRO stage 3"):
        open_weights(tag / "renamed.pt")
    (tag / "mp_rank_01_model_states.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match="split over 2 ranks"):
        open_weights(tmp_path)


def test_folders_without_weights_say_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors.*found none"):
        open_weights(tmp_path)
    for name in ("a.pth", "b.pth"):
        torch.save(TENSORS, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"found several: a\.pth, b\.pth; name one"):
        open_weights(tmp_path)
    (tmp_path / "resolved.yaml").write_text("")
    with pytest.raises(CheckpointError, match="a run folder of allsight; `allsight weights export"):
        open_weights(tmp_path)


def test_protocols_of_pickle_are_understood(tmp_path):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        content = {
            "model": TENSORS,
            "config": Settings(a=(1, 2, 3, 4), b=True, c=None, d=b"x", e=1.5, f=1 << 70),
        }
        torch.save(content, tmp_path / "w.pth", pickle_protocol=protocol)
        assert same(read_weights(tmp_path / "w.pth"), TENSORS)
