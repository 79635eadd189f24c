"""`allsight weights` as people call it."""

import json
from pathlib import Path

import pytest
import torch

import allsight
from allsight.backbones import InternImage
from allsight.cli import main
from allsight.models import Classifier
from allsight.weights import read_weights, write_weights


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Official weights of a small classifier."""
    torch.manual_seed(0)
    config = Classifier.Config(backbone=InternImage.Config.variant("nano"), num_classes=5)
    Classifier(config).save_official(tmp_path / "nano.pth")
    return tmp_path / "nano.pth"


def test_inspect_says_what_there_is(weights, capsys):
    assert main(["weights", "inspect", str(weights)]) == 0
    said = capsys.readouterr().out
    assert f"{weights}: torch file, under model, official names\n" in said
    assert "network     InternImage nano\n" in said and "head        conv, 5 classes\n" in said
    assert "float32 (" in said and "sha256      " in said and "!" not in said


def test_inspect_names_surprises_and_every_tensor(tmp_path, capsys):
    tensors = {f"backbone.{k}": v for k, v in read_weights_of_nano().items()}
    tensors["backbone.stem_extra"] = torch.tensor([float("nan")])
    tensors["decode_head.psp_modules.0.1.conv.weight"] = torch.zeros(1)
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    assert main(["weights", "inspect", str(tmp_path / "w.pth"), "--names"]) == 0
    said = capsys.readouterr().out
    assert "! the backbone of UperNet; the rest is left out" in said
    assert "! 1 tensors hold infinities or NaN: backbone.stem_extra" in said
    assert "  backbone.patch_embed.conv1.weight  (8, 3, 3, 3)" in said
    assert main(["weights", "inspect", str(tmp_path / "w.pth"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["variant"] == "nano" and found["head"] is None and found["types"]["float32"] > 50


def test_inspect_looks_at_weights_of_anything(tmp_path, capsys):
    write_weights({"layer1.0.conv1.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    assert main(["weights", "inspect", str(tmp_path / "w.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "tensors     1, 4 numbers" in said and "! no InternImage weights" in said and "a ResNet" in said


@pytest.mark.parametrize(
    ("to", "out"), [("official", "w.safetensors"), ("huggingface", "folder"), ("allsight", "w.safetensors")]
)
def test_converted_weights_are_equal_to_the_first(weights, to, out, tmp_path, capsys):
    out = tmp_path / out
    assert main(["weights", "convert", str(weights), str(out), "--to", to]) == 0
    assert f"-> {out} ({to})" in capsys.readouterr().out
    assert main(["weights", "verify", str(out), "--variant", "nano", "--against", str(weights)]) == 0
    assert f"equal to {weights}" in capsys.readouterr().out
    assert main(["weights", "convert", str(weights), str(out), "--to", to]) == 2
    assert "exists already" in capsys.readouterr().err


def test_classes_are_chosen_while_converting(weights, tmp_path):
    (tmp_path / "map.txt").write_text("3\n1\n")
    words = ["--head-rows", str(tmp_path / "map.txt")]
    assert main(["weights", "convert", str(weights), str(tmp_path / "two.pth"), *words]) == 0
    assert read_weights(tmp_path / "two.pth")["head.weight"].shape[0] == 2


def test_verify_tells_what_differs(weights, tmp_path, capsys):
    tensors = read_weights(weights)
    tensors["head.bias"] = tensors["head.bias"] + 0.5
    write_weights(tensors, tmp_path / "other.safetensors")
    assert main(["weights", "verify", str(tmp_path / "other.safetensors"), "--against", str(weights)]) == 1
    said = capsys.readouterr()
    assert "head.bias: differs by up to 0.5" in said.out and "1 tensors differ" in said.err


def test_verify_lists_every_tensor_that_does_not_fit(weights, tmp_path, capsys):
    tensors = {k: v for k, v in read_weights(weights).items() if ".norm2." not in k}
    write_weights(tensors, tmp_path / "other.safetensors")
    assert main(["weights", "verify", str(tmp_path / "other.safetensors")]) == 2
    said = capsys.readouterr()
    assert said.out.count("missing     levels.") == 10 and said.err.count("\n") == 1


def test_verify_finds_a_byte_that_changed(weights, tmp_path, capsys):
    """A number that is another and still finite is found by the checksum of its record alone."""
    data = bytearray(weights.read_bytes())
    place = data.index(read_weights(weights)["patch_embed.conv2.weight"].numpy().tobytes())
    data[place] ^= 1
    (tmp_path / "flip.pth").write_bytes(data)
    assert main(["weights", "verify", str(tmp_path / "flip.pth")]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'flip.pth'}: " in error and "data/" in error and error.count("\n") == 1
    assert main(["weights", "verify", str(weights), "--against", str(tmp_path / "flip.pth")]) == 2
    assert main(["weights", "inspect", str(tmp_path / "flip.pth")]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["inspect", "absent.pth"], "absent.pth: no such file"),
        (["convert", "absent.pth", "out.pth"], "absent.pth: no such file"),
        (["convert", "nano.pth", "out.bin"], "expected a name ending in .safetensors, .pth or .pt"),
        (["convert", "nano.pth", "no/out.pth"], "there is no folder"),
        (["convert", "nano.pth", "out.pth", "--to", "hugingface"], "did you mean 'huggingface'"),
        (["verify", "nano.pth", "--variant", "tinny"], "did you mean 'tiny'"),
        (["verify", "nano.pth", "--variant", "tiny"], "is nano, expected tiny"),
        (["verify", "nano.pth", "--sha256", "00"], "expected 00"),
        (["export", "nowhere", "out.pth"], "nowhere"),
    ],
)
def test_faults_of_the_user_are_one_line(weights, words, said, capsys, monkeypatch):
    monkeypatch.chdir(weights.parent)
    assert main(["weights", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_trained_run_is_exported(trained, tmp_path, capsys):
    out = tmp_path / "whole.safetensors"
    assert main(["weights", "export", str(trained), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    of_run, of_file = (allsight.load(trained, file).model.state_dict() for file in (None, out))
    assert all(torch.equal(of_run[name], of_file[name]) for name in of_run)
    backbone = tmp_path / "backbone.pth"
    words = ["--part", "backbone", "--to", "official"]
    assert main(["weights", "export", str(trained), str(backbone), *words]) == 0
    loaded = InternImage.from_official(backbone)
    weights = read_weights(out)
    name = "stem.conv1.weight"
    assert torch.equal(loaded.state_dict()[name], weights[f"backbone.{name}"])
    assert main(["weights", "export", str(trained), str(tmp_path / "x.pth"), "--part", "bakbone"]) == 2
    assert "did you mean 'backbone'" in capsys.readouterr().err


def read_weights_of_nano():
    return InternImage(InternImage.Config.variant("nano")).official_state_dict()
