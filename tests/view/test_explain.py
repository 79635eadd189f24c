"""What a backbone sees: numbers that are known beforehand, files, the report's section, and refusals."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from allsight.backbones import InternImage
from allsight.backbones.internimage_scaling import costs
from allsight.cli import main
from allsight.config import ConfigError
from allsight.engine import predictor as predictors
from allsight.layers import DCNv4, prepare_for_inference
from allsight.recipes import find_config
from allsight.view import write_report
from allsight.view.explain import (
    effective_receptive_field,
    explain,
    read_explanation,
    sample_layers,
    seen_from,
    statistics,
    time_parts,
)
from allsight.view.explain.field import _sides

SMALL = dict(channels=8, depths=(1, 2), groups=(1, 2), out_stages=(0, 1))


def fresh(**changes):
    """A backbone whose offsets are zero and whose weights are equal."""
    torch.manual_seed(0)
    return InternImage(InternImage.Config(**{**SMALL, **changes})).eval()


def images(count=1, height=32, width=48):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_a_fresh_layer_reads_the_regular_grid_with_equal_weights():
    layers = sample_layers(fresh(), images())
    assert [(layer.stage, layer.stride) for layer in layers] == [(1, 4), (2, 8), (2, 8)]
    points = layers[0].points_px()[0, 3, 5, 0]
    expected = {(20 + 4 * dx, 12 + 4 * dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)}
    assert {tuple(point) for point in points.round().tolist()} == expected
    for each in statistics(layers):
        assert each.displacement_px == pytest.approx((0, 0, 0), abs=1e-5)
        assert each.points_used == pytest.approx(9)
    # A cell at the rim has a third of its samples outside, a corner five of nine.
    rows, columns = layers[0].points_px().shape[1:3]
    lost = (2 * (rows - 2) * 3 + 2 * (columns - 2) * 3 + 4 * 5) / (9 * rows * columns)
    assert statistics(layers)[0].outside == pytest.approx(lost)


@pytest.mark.parametrize("prepare", [False, True])
def test_offsets_and_uneven_weights_are_told(prepare):
    model = fresh(offset_scale=2.0)
    dcn = model.stages[1].blocks[1].dcn
    with torch.no_grad():
        dcn.offset.bias.view(-1, 2)[:] = torch.tensor([0.3, 0.4])
        dcn.mask.bias.view(-1, 9)[:, 4] = 50.0
    told = statistics(sample_layers(prepare_for_inference(model) if prepare else model, images()))[2]
    assert told.displacement_px == pytest.approx((8, 8, 8), rel=1e-4)  # 8 px * 2 * 0.5
    assert told.points_used == pytest.approx(1, abs=1e-3)
    assert told.reach_px == pytest.approx(8, rel=1e-3)


def test_paths_through_layers_stay_within_reach_and_follow_weights():
    model = fresh()
    layers = sample_layers(model, images())
    seen = seen_from(layers[1:], (2, 3), paths=500)
    assert set(np.unique(seen[:, 0])) <= {8.0 * x for x in range(1, 6)}
    assert len(np.unique(seen, axis=0)) > 15
    through_stages = seen_from(layers, (2, 3), paths=500)
    assert abs(through_stages - np.array([24, 16])).max() <= 2 * 8 + 4 + 4
    with torch.no_grad():
        for block in model.stages[1].blocks:
            block.dcn.mask.bias.view(-1, 9)[:, 4] = 50.0
    assert set(map(tuple, seen_from(sample_layers(model, images())[1:], (2, 3)).round())) == {(24.0, 16.0)}


def test_a_layer_of_the_fourth_kind_is_looked_at_too():
    layer = DCNv4(16, 2).eval()
    with torch.no_grad():
        layer.offset_mask.bias[:] = torch.arange(56.0)
    found = layer.sampling(torch.zeros(1, 4, 5, 16))
    assert found.points_xy.shape == (1, 4, 5, 2, 9, 2)
    # Per group: 18 offsets, then 9 weights.
    assert found.weights[0, 0, 0].tolist() == [list(range(18, 27)), list(range(45, 54))]
    assert found.points_xy[0, 2, 2, 1, 4].tolist() == [2 + 35, 2 + 36]


def test_the_field_lies_around_its_center_and_within_what_convolutions_reach():
    model = fresh(depths=(1, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        for stage in model.stages:
            for linear in (stage.blocks[0].dcn.offset, stage.blocks[0].dcn.mask):
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
    fields = effective_receptive_field(model, list(images(3, 64, 64)), probes=2)
    y, x = np.nonzero(fields[0].strength > 1e-12)
    assert fields[0].center_yx_px == (32, 32)
    # One cell beyond its own to either side, each 3 + 2 * 2 = 7 px wide around its center.
    assert (y.min(), y.max(), x.min(), x.max()) == (32 - 7, 32 + 7, 32 - 7, 32 + 7)
    assert fields[1].side_px[0.9] > fields[0].side_px[0.9] > fields[0].side_px[0.5]


def test_sides_hold_the_share():
    strength = np.zeros((9, 9))
    strength[4, 4], strength[4, 6] = 0.6, 0.4
    assert _sides(strength, (4, 4)) == {0.5: 1, 0.9: 5}
    assert _sides(np.zeros((3, 3)), (1, 1)) == {0.5: 0, 0.9: 0}


def test_work_of_parts_is_that_of_the_analysis():
    config = InternImage.Config(**SMALL, center_feature_scale=True, dw_kernel_size=5)
    _, parts = time_parts(InternImage(config).eval(), (40, 56), pairs=1)
    by_name = {part.name: part for part in parts}
    for cost in costs(config, (40, 56)):
        part = by_name[cost.name if cost.name in by_name else f"{cost.name}: block"]
        assert part.flops * part.count == 2 * cost.macs
    core = by_name["stage 1: sampling"]
    assert core.bytes == 4 * 10 * 14 * (2 * 8 + 3 * 9)  # as in the cost model: 2 C + 3 P G numbers a pixel
    assert {"stage 2: operator", "stage 2: MLP"} <= by_name.keys() and by_name["stage 2: block"].count == 2
    assert all(part.seconds > 0 for part in parts)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Pictures, and a predictor whose backbone has moved offsets."""
    folder = tmp_path_factory.mktemp("explain")
    for name in ("a", "b"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    config, _ = find_config("internimage_micro_tiny20")
    model = config.model.model_copy(update={"backbone": InternImage.Config(**SMALL)})
    config = config.model_copy(update={"model": model})
    return folder, predictors.load(config, "random", {"tiny20": ("fox", "owl")}, device="cpu")


def test_an_explanation_is_pictures_numbers_and_a_page(run):
    folder, predictor = run
    out = folder / "out"
    made = explain(predictor, [folder / "a.png", folder / "b.png"], out, at=(0.25, 1.0))
    assert read_explanation(out) == json_like(made)
    for files in (*made.pictures.values(), {"field": made.field}):
        for file in files.values():
            assert np.array(Image.open(out / file)).std() > 5
    page = (out / "index.html").read_text()
    assert page.count("data:image/png") == 5 and "stages.1.blocks.1.dcn" in page and "stage 2: MLP" in page


def test_a_report_shows_it_again_without_the_model(run, tmp_path, fake_run_class):
    folder, predictor = run
    whole = fake_run_class(tmp_path / "run").whole()
    assert "What the backbone sees" not in write_report(whole).read_text()
    explain(predictor, [folder / "a.png"], whole / "explained")
    (whole / "explained" / "a-displacement.png").unlink()
    text = write_report(whole).read_text()
    assert "What the backbone sees" in text and "stage 2: sampling" in text
    assert "a-displacement.png cannot be read: No such file or directory" in text
    (whole / "explained" / "explain.json").write_text("{")
    text = write_report(whole).read_text()
    assert "What the backbone sees" not in text and "explain.json: cannot be read" in text


def json_like(made):
    """As it comes back from JSON: lists, and names of shares."""
    sides = [dict(each) for each in made.sides_px]
    return type(made)(**{**made.__dict__, "sides_px": sides})


@pytest.mark.parametrize(
    ("pictures", "options", "said"),
    [
        ([], {}, "expected pictures"),
        (["a.png"], {"at": (0.5, 1.5)}, "a place from 0 to 1"),
        (["a.png"], {"task": "cats"}, "no task 'cats'"),
    ],
)
def test_what_cannot_be_explained_is_said(run, tmp_path, pictures, options, said):
    folder, predictor = run
    with pytest.raises(ConfigError, match=said):
        explain(predictor, [folder / name for name in pictures], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_named(tmp_path):
    assert read_explanation(tmp_path) is None
    (tmp_path / "explain.json").write_text(json.dumps({"weights": "x"}))
    with pytest.raises(ValueError, match=r"explain.json: cannot be read: 'task'"):
        read_explanation(tmp_path)


def test_a_recipe_needs_a_folder_to_write_into(run, capsys):
    folder, _ = run
    classes = folder / "names.txt"
    classes.write_text("fox\nowl\n")
    words = ["predict", "internimage_micro_tiny20", str(folder / "a.png"), "--weights", "random"]
    assert main([*words, "--classes", str(classes), "--explain"]) == 2
    assert "is no run folder to write into; give --out DIR" in capsys.readouterr().err
