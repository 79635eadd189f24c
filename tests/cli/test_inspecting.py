"""`allsight data inspect` and `allsight data scan` as people call them."""

import json
from pathlib import Path

import pytest
from data.toy_sets import WRITERS, damage, picture, put

from allsight.cli import main


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    WRITERS["imagefolder"](tmp_path / "pets")
    return tmp_path / "pets"


def test_inspect_says_format_splits_classes_and_faults(pets, capsys):
    put(pets / "val/cat/leak.png", picture(0))
    damage(pets / "train/dog/1.png")
    assert main(["data", "inspect", str(pets)]) == 0
    said = capsys.readouterr().out
    assert "format      imagefolder: pictures in class folders for train, val" in said
    assert "train: 3 samples" in said and "samples of 2 classes" in said
    assert "! 1 pictures are in both train, val, such as train/cat/0.png and val/cat/leak.png" in said
    assert "! 1 samples cannot be used:" in said and "train/dog/1.png: not a picture" in said


def test_inspect_writes_a_picture_and_json(pets, tmp_path, capsys):
    out = tmp_path / "look.png"
    assert main(["data", "inspect", str(pets), "--json", "--split", "val", "--picture", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "imagefolder" and list(found["splits"]) == ["val"]
    assert found["splits"]["val"]["counted"] == {"samples": {"cat": 1, "dog": 1}}
    assert out.read_bytes()[1:4] == b"PNG"


def test_options_of_the_format_are_passed_on(tmp_path, capsys):
    WRITERS["label_maps"](tmp_path)
    (tmp_path / "classes.json").unlink()
    # Who looks at a set for the first time cannot name its classes yet.
    assert main(["data", "inspect", str(tmp_path)]) == 0
    assert "values that nothing names, called by their numbers" in capsys.readouterr().out
    assert main(["data", "inspect", str(tmp_path), "classes=[sky, sea]", "ignore=9"]) == 0
    assert "pixels of 2 classes\n" in capsys.readouterr().out


def test_classes_that_do_not_occur_are_counted_and_named_where_they_are_few(tmp_path, capsys):
    WRITERS["label_maps"](tmp_path)
    (tmp_path / "classes.json").unlink()
    assert main(["data", "inspect", str(tmp_path), "--split", "train"]) == 0
    said = capsys.readouterr().out
    assert "pixels of 3 classes; 252 more do not occur\n" in said
    assert {line.split()[0] for line in said.partition("pixels of")[2].splitlines()[1:4]} == {"0", "1", "9"}
    assert "with 0" not in said
    words = ["data", "inspect", str(tmp_path), "classes=[sky, sea, sand]", "ignore=9", "--split", "train"]
    assert main(words) == 0
    assert "pixels of 2 classes; 1 more does not occur: sand\n" in capsys.readouterr().out


def test_inspect_takes_the_first_of_several_formats_and_says_so(tmp_path, capsys):
    WRITERS["coco"](tmp_path)
    WRITERS["coco_captions"](tmp_path)
    assert main(["data", "inspect", str(tmp_path)]) == 0
    assert "also fits   coco_captions:" in capsys.readouterr().out


def test_scan_lists_what_cannot_be_used_and_fails(pets, tmp_path, capsys):
    out = tmp_path / "bad.jsonl"
    words = ["data", "scan", str(pets), "--out", str(out), "--processes", "1", "--quiet"]
    assert main(words) == 0 and not out.exists()
    assert capsys.readouterr().out == "5 samples read, 0 cannot be used\n"
    damage(pets / "val/dog/1.png")
    assert main(words) == 1
    assert capsys.readouterr().out == f"5 samples read, 1 cannot be used; see {out}\n"
    (line,) = map(json.loads, out.read_text().splitlines())
    assert line["split"] == "val" and line["id"] == "val/dog/1.png"
    assert line["reason"].startswith("val/dog/1.png: ")


@pytest.mark.parametrize("verb", ["inspect", "scan"])
def test_faults_of_the_user_are_one_line(verb, pets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place, reason in [
        ("nowhere", "nowhere"),
        (str(tmp_path), r"its folders are data sets: pets (imagefolder)"),
        (f"yolo:{pets}", "nothing that yolo could read; what fits is imagefolder"),
        (f"imagefoldr:{pets}", "did you mean 'imagefolder'"),
    ]:
        assert main(["data", verb, place]) == 2
        said = capsys.readouterr().err
        assert reason in said and said.count("\n") == 1
    assert main(["data", verb, str(pets), "--split", "dev"]) == 2
    assert "no split 'dev'; there are: train, val" in capsys.readouterr().err
