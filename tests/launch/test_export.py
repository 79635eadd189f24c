"""Exported files: what they give, where they say what they are, and what is refused."""

import json
import subprocess
import sys
from unittest import mock

import pytest
import torch
from torch import nn

from allsight.backbones import InternImage
from allsight.config import ConfigError
from allsight.engine import predictor as predictors
from allsight.launch.export import export, onnx_file, programs
from allsight.launch.export.subject import subject_of
from allsight.layers import DCNv4
from allsight.models import Classifier
from allsight.recipes import find_config

ONE_STAGE = dict(channels=8, depths=(1,), groups=(2,), out_stages=(0,))
TWO_STAGES = dict(channels=8, depths=(1, 1), groups=(1, 2), out_stages=(0, 1))


def awake(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def backbone(**changes):
    return awake(InternImage(InternImage.Config(**{**ONE_STAGE, **changes})))


def classifier(**changes):
    config = InternImage.Config(**{**TWO_STAGES, **changes})
    return awake(Classifier(Classifier.Config(backbone=config, num_classes=3)))


@pytest.fixture
def onnx():
    """The package, where the extra `export` is installed."""
    pytest.importorskip("onnxscript", reason="the extra 'export' is not installed")
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    return pytest.importorskip("onnx", reason="the extra 'export' is not installed")


def relative(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


OPEN = """
import importlib.util, sys
from pathlib import Path

import torch
from torch import nn

from allsight.backbones import InternImage
from allsight.launch.export import export, onnx_file, programs

folder, suffix = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
config = InternImage.Config(channels=8, depths=(1,), groups=(2,), out_stages=(0,), layer_scale=0.5)
model = InternImage(config).eval()
for parameter in model.parameters():
    nn.init.normal_(parameter, std=0.3)
done = export(model, folder / f"net{suffix}", size=(24, 32), dynamic=True)
assert done.outputs == ("stride_4",) and len({check.shape for check in done.checks}) == 3
assert all(check.difference < 1e-5 for check in done.checks), done.checks
run = (onnx_file if suffix == ".onnx" else programs).runner(done.files[0])
for size in ((1, 3, 9, 50), (5, 3, 33, 8)):
    images = torch.randn(*size)
    with torch.no_grad():
        (expected,) = model(images)
    assert (run(images)[0] - expected).abs().max() / expected.abs().max() < 1e-5
"""


def export_with_open_sizes(folder, suffix):
    # In a process of its own: the type checks of the test run take no sizes that are open.
    result = subprocess.run([sys.executable, "-c", OPEN, str(folder), suffix], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / f"net{suffix}"


@pytest.mark.slow
def test_a_program_with_open_sizes_gives_the_same_at_all_of_them(tmp_path):
    export_with_open_sizes(tmp_path, ".pt2")


def test_a_program_holds_no_operator_of_ours(tmp_path):
    program = programs.trace(subject_of(classifier(), size=32), dynamic=False)
    names = {str(node.target) for node in program.graph.nodes}
    assert any("grid_sampler" in name for name in names)
    assert not any("allsight" in name for name in names)


def test_a_file_of_onnx_gives_the_same(onnx, tmp_path):
    model = classifier(block_norm="post", layer_scale=0.1, center_feature_scale=True)
    done = export(model, tmp_path / "net.onnx", size=(20, 32), input="uint8")
    assert done.files == (tmp_path / "net.onnx",) and list(tmp_path.iterdir()) == [tmp_path / "net.onnx"]
    images = torch.randint(0, 256, (1, 3, 20, 32), dtype=torch.uint8)
    (logits,) = onnx_file.runner(done.files[0])(images)
    with torch.no_grad():
        assert relative(logits, model(images)) < 1e-4
    stored = onnx.load(str(done.files[0]))
    onnx.checker.check_model(stored)
    assert {op.version for op in stored.opset_import if op.domain == ""} == {20}
    assert sum(node.op_type == "GridSample" for node in stored.graph.node) == 2


@pytest.mark.slow
def test_open_sizes_of_onnx_have_names_and_are_free(onnx, tmp_path):
    graph = onnx.load(str(export_with_open_sizes(tmp_path, ".onnx"))).graph
    sides = [side.dim_param or side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


class ConvThenDCNv4(nn.Module):
    """A user's own network from pictures to a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv, self.deformable = nn.Conv2d(3, 16, 3), DCNv4(16, 1)

    def forward(self, images):
        return {"features": self.deformable(self.conv(images).permute(0, 2, 3, 1))}


def test_own_modules_with_other_operators_can_be_exported(tmp_path):
    done = export(awake(ConvThenDCNv4()), tmp_path / "own.pt2", size=12)
    assert done.outputs == ("features",)


@pytest.fixture
def predictor():
    config, _ = find_config("internimage_micro_tiny20")
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"backbone": InternImage.Config(**TWO_STAGES)})}
    )
    return predictors.load(config, "random", {"tiny20": ("fox", "häse")}, device="cpu")


def test_metadata_says_what_a_user_must_know(predictor, tmp_path):
    done = export(predictor, tmp_path / "net.pt2", check=False)
    extra = {"allsight.json": ""}
    torch.export.load(done.files[0], extra_files=extra)
    told = json.loads(extra["allsight.json"])
    assert json.loads(told["classes"]) == ["fox", "häse"]
    assert json.loads(told["mean"]) == pytest.approx([0.485, 0.456, 0.406])
    assert (
        told["task"] == "tiny20" and told["weights"] == "random" and "(value / 255 - mean)" in told["input"]
    )
    assert done.outputs == ("logits",) and done.checks == ()
    assert "kind: multi_head" in told["config"]


def test_the_backbone_of_a_model_has_no_class_names(predictor):
    subject = subject_of(predictor, part="backbone")
    assert subject.outputs == ("stride_4", "stride_8") and "classes" not in subject.metadata


def test_a_head_that_needs_whole_cells_keeps_its_sizes_whole():
    config = Classifier.Config(backbone=InternImage.Config(**TWO_STAGES), head="attention", num_classes=2)
    with pytest.raises(ConfigError, match="multiples of 8, got \\(20, 24\\)"):
        subject_of(Classifier(config), size=(20, 24))
    assert subject_of(Classifier(config), size=(16, 24)).multiple == 8


def test_a_file_that_gives_something_else_is_not_written(tmp_path):
    with (
        mock.patch.object(programs, "runner", lambda file: lambda images: (torch.zeros(1, 8, 6, 6),)),
        pytest.raises(ConfigError, match=r"differ from PyTorch's by 1.0e\+00 .*nothing was written"),
    ):
        export(backbone(), tmp_path / "net.pt2", size=24)
    assert list(tmp_path.iterdir()) == []


class AsksForValues(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


@pytest.mark.parametrize(
    ("source", "out", "options", "said"),
    [
        (backbone(), "net.bin", {}, "format: cannot tell from 'net.bin'"),
        (backbone(), "net.onnx", {"opset": 17}, "opset: expected at least 20"),
        (backbone(), "net.pt2", {"size": (4, 64), "dynamic": True}, "sides of at least 5"),
        (backbone(), "net.pt2", {"task": "a"}, "only a predictor"),
        (nn.Conv2d(3, 1, 1), "net.pt2", {"part": "backbone"}, "Conv2d has no backbone"),
        (nn.LSTM(8, 2), "net.pt2", {"size": 8}, "only tensors"),
        (AsksForValues(), "net.pt2", {"size": 8}, "cannot be traced: .*"),
    ],
)
def test_what_cannot_be_is_said_on_one_line(tmp_path, source, out, options, said):
    if isinstance(source, nn.LSTM):
        source = nn.Sequential(nn.Flatten(0, 2), source)
    with pytest.raises(ConfigError, match=said) as caught:
        export(source, tmp_path / out, **options)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_without_the_extra_its_name_is_said(tmp_path):
    def missing(name):
        raise ImportError(f"No module named '{name}'")

    with (
        mock.patch.object(onnx_file, "import_module", missing),
        pytest.raises(ConfigError, match=r"needs the package onnx .*pip install 'allsight\[export\]'"),
    ):
        export(backbone(), tmp_path / "net.onnx")
