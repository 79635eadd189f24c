"""The examples of docs/features.md run as they stand and say what the page says."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "features.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


def printed_as_said(code, capsys):
    """Run a block and compare what it prints with the comment after the last print."""
    names = {}
    exec(compile(code, PAGE.name, "exec"), names)
    said = re.findall(r"# (\[\(.*\)\])$", code, flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said and said
    return names


def test_a_backbone_announces_its_maps(capsys):
    names = printed_as_said(blocks()[0], capsys)
    assert [tuple(m.shape[-2:]) for m in names["maps"]] == [(10, 14), (5, 7), (3, 4)]


def test_a_pyramid_on_top_takes_any_size_and_trains(capsys):
    names = printed_as_said(blocks()[1], capsys)
    pyramid = names["pyramid"]
    sum(m.square().mean() for m in pyramid(names["torch"].rand(1, 3, 33, 50))).backward()
    assert all(p.grad is not None for p in pyramid.parameters())


def test_features_can_be_judged_in_python(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 2)):
        for name, colour in (("blue", (20, 40, 220)), ("red", (220, 30, 30))):
            place = tmp_path / "colours" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                noisy = np.array(colour) + rng.integers(-20, 20, (16, 16, 3))
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")
    names = {}
    exec(compile(blocks()[2], PAGE.name, "exec"), names)
    assert names["judge"](tmp_path) == pytest.approx(1.0)
    assert "[12, 128]" in capsys.readouterr().out
