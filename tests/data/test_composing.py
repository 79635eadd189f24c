"""Composed pictures: what is said of them is in them, and validation is new."""

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from pydantic import ValidationError
from typer.testing import CliRunner

from allsight.cli.app import app
from allsight.config import ConfigError
from allsight.data.composing import Composing, compose, read_cutouts
from allsight.data.readers import open_reader
from allsight.data.text import Tokenizer
from allsight.types import DataError

COLOURS = {
    "train": {"a ruby": (255, 0, 0), "an emerald": (0, 255, 0), "a sapphire": (0, 0, 255)},
    "val": {"a topaz": (255, 255, 0), "a pearl": (255, 255, 255)},
}
GERMAN = {
    "a ruby": "ein Rubin",
    "an emerald": "ein Smaragd",
    "a sapphire": "ein Saphir",
    "a topaz": "ein Topas",
    "a pearl": "eine Perle",
}
SMALL = Composing.Config(seed=5, train=60, val=24, unseen=12)


def png(pixels: np.ndarray) -> bytes:
    file = BytesIO()
    PillowImage.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def disc(colour: tuple[int, int, int], hidden: tuple[int, int, int] = (255, 0, 255)) -> bytes:
    """An opaque disc on pixels that are transparent, and magenta where nobody sees it."""
    rows, columns = np.mgrid[:60, :48]
    inside = (rows - 29.5) ** 2 / 900 + (columns - 23.5) ** 2 / 576 < 0.95
    pixels = np.zeros((60, 48, 4), np.uint8)
    pixels[..., :3] = np.where(inside[..., None], colour, hidden)
    pixels[..., 3] = 255 * inside
    return png(pixels)


def write_cutouts(folder: Path, split: str, entries: list[dict], files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.json").write_text(json.dumps(entries))
    with zipfile.ZipFile(folder / f"{split}.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def entry(name: str) -> dict:
    captions = {"en": f"{name[0].upper()}{name[1:]}.", "de": f"{GERMAN[name].capitalize()}."}
    captions["de"] = f"{GERMAN[name][0].upper()}{GERMAN[name][1:]}."
    return {"file": f"{name.split()[-1]}.png", "captions": captions}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    for split, colours in COLOURS.items():
        files = {f"{name.split()[-1]}.png": disc(colour) for name, colour in colours.items()}
        write_cutouts(root / "cutouts", split, [entry(name) for name in colours], files)
        folder = root / "grounds" / split / "grey"
        folder.mkdir(parents=True)
        for number in range(3):
            grey = np.full((40, 70, 3), (90 if split == "train" else 150) + number, np.uint8)
            PillowImage.fromarray(grey).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def composed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "composed"
    assert not compose(out, sources / "cutouts", f"imagefolder:{sources / 'grounds'}", SMALL)
    return out


def shown(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, list[int]]:
    """How many pixels have a colour, about, and in which quarters they are."""
    near = (np.abs(pixels.astype(int) - np.array(colour)[:, None, None]) < 70).all(0)
    rows, columns = np.nonzero(near)
    half = pixels.shape[1] / 2
    quarters = 2 * (rows >= half) + (columns >= half)
    return int(near.sum()), sorted({int(q) for q in quarters if (quarters == q).sum() > 20})


@pytest.mark.parametrize("split", ["train", "val", "unseen"])
def test_captions_say_what_is_where(composed: Path, split: str):
    reader = open_reader("coco_captions:composed", root=composed.parent, split=split)
    assert len(reader) == getattr(SMALL, split)
    colours = COLOURS["val" if split == "unseen" else "train"]
    places = ["at the top left", "at the top right", "at the bottom left", "at the bottom right"]
    for number in range(len(reader)):
        sample = reader[number]
        (caption,) = sample.targets["captions"]
        said = [part.split(" at the ") for part in caption.split(" and ")]
        pixels = sample.image.pixels.numpy()
        assert pixels.shape == (3, 64, 64)
        for name, colour in colours.items():
            quarters = [places.index(f"at the {place}") for one, place in said if one == name]
            assert shown(pixels, colour)[1] == sorted(quarters)


def test_questions_are_answered_by_the_caption(composed: Path):
    captions = open_reader("coco_captions:composed", root=composed.parent, split="val")
    questions = open_reader("coco_vqa:composed", root=composed.parent, split="val")
    said = {
        s.id.split("/")[-1]: s.targets["captions"][0] for s in (captions[k] for k in range(len(captions)))
    }
    entries = json.loads((composed / "annotations" / "vqa_val.json").read_text())["questions"]
    assert len(questions) == len(entries) == 2 * SMALL.val
    german = {"oben links": "top left", "oben rechts": "top right"}
    german |= {"unten links": "bottom left", "unten rechts": "bottom right"}
    asked = set()
    for one in entries:
        parts = said[one["image"].split("/")[-1]].split(" and ")
        words, answer = one["question"].removesuffix("?"), one["multiple_choice_answer"]
        asked.add(words)
        if one["question_type"] == "count":
            assert answer == str(len(parts))
        elif words.startswith("what is "):
            assert f"{answer} {words.removeprefix('what is ')}" in parts
        else:
            place = german[words.removeprefix("was ist ")]
            (name,) = [english for english, other in GERMAN.items() if other == answer]
            assert f"{name} at the {place}" in parts
    assert len(asked) == 10
    lines = (composed / "texts" / "val.txt").read_text().splitlines()
    assert len(lines) == 2 * SMALL.val and lines[0] in said.values()
    assert all(" und " in line or line.split(" ")[0] in ("ein", "eine") for line in lines[1::2])


def test_validation_is_arranged_as_never_in_training_and_unseen_shows_other_things(composed: Path):
    texts = {
        split: (composed / "texts" / f"{split}.txt").read_text().splitlines()[::2]
        for split in ("train", "val", "unseen")
    }
    assert all(len(set(lines)) == len(lines) for lines in texts.values())
    assert not set(texts["train"]) & set(texts["val"])
    assert not any(name in line for line in texts["unseen"] for name in COLOURS["train"])
    for split, low in (("train", 90), ("val", 150), ("unseen", 150)):
        corner = np.array(PillowImage.open(composed / "images" / split / "000000.jpg"))[31:33, 31:33]
        assert abs(int(np.median(corner)) - low - 1) < 8


@pytest.mark.slow
def test_the_bytes_follow_from_the_seed_whatever_the_number_of_workers(
    composed: Path, sources: Path, tmp_path: Path
):
    grounds = f"imagefolder:{sources / 'grounds'}"
    compose(tmp_path / "two", sources / "cutouts", grounds, SMALL, workers=2)
    compose(tmp_path / "other", sources / "cutouts", grounds, SMALL.model_copy(update={"seed": 6}))
    files = [p.relative_to(composed) for p in sorted(composed.rglob("*")) if p.is_file()]
    assert all((tmp_path / "two" / f).read_bytes() == (composed / f).read_bytes() for f in files)
    assert (tmp_path / "other/texts/val.txt").read_text() != (composed / "texts/val.txt").read_text()


def test_names_that_are_too_long_or_missing_are_left_out_and_said(tmp_path: Path):
    entries = [entry("a ruby"), {"file": "b.png", "captions": {"en": "A very old brass lamp."}}]
    entries += [{"file": "c.png", "captions": {"en": "A very old brass lamp.", "de": "Eine Lampe."}}]
    entries += [{"file": "ruby.png", "captions": {"en": "A gem (a red one)!", "de": "Ein Stein."}}]
    write_cutouts(tmp_path, "train", entries, {"ruby.png": disc((255, 0, 0))})
    found, notes = read_cutouts(tmp_path, "train", ("en", "de"), 3)
    assert [cutout.names["en"] for cutout in found] == ["a ruby", "a gem"]
    assert notes == (
        "train: 1 cut-outs without a name in every language left out",
        "train: 1 cut-outs with names of over 3 words left out",
    )


@pytest.mark.parametrize(
    ("entries", "files", "said"),
    [
        ("{", {}, "train.json: not JSON"),
        ("{}", {}, "entry 0: expected an object with `file` and `captions`"),
        ([{"file": "a.png"}], {}, "entry 0: expected an object with `file` and `captions`"),
        ([{"file": "a.png", "captions": {"en": 3}}], {}, "entry 0: expected"),
        ([entry("a ruby")], {}, "ruby.png"),
        ([entry("a ruby")], {"ruby.png": b"no picture"}, "ruby.png: cannot identify"),
        ([entry("a ruby")], {"ruby.png": disc((255, 0, 0))[:300]}, "ruby.png: "),
        ([entry("a ruby")], {"ruby.png": png(np.zeros((8, 8, 3), np.uint8))}, "has no transparency"),
        ([entry("a ruby")], {"ruby.png": png(np.zeros((8, 8, 4), np.uint8))}, "no pixel is visible"),
        ([{"file": "../ruby.png", "captions": entry("a ruby")["captions"]}], {}, r"\.\./ruby\.png"),
        ([], {}, "no cut-out with a name of at most 3 words in en, de"),
    ],
)
def test_bad_cutouts_are_refused_in_one_line(tmp_path: Path, entries, files: dict, said: str):
    write_cutouts(tmp_path, "train", [], files or {"other.png": disc((0, 0, 0))})
    (tmp_path / "train.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    with pytest.raises(DataError, match=said) as caught:
        read_cutouts(tmp_path, "train", ("en", "de"), 3)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"train\.json: no such file"):
        read_cutouts(tmp_path, "train", ("en",), 3)
    (tmp_path / "train.json").write_text(json.dumps([entry("a ruby")]))
    with pytest.raises(DataError, match=r"expected the pictures in train\.zip or in the folder train"):
        read_cutouts(tmp_path, "train", ("en",), 3)


def test_impossible_options_are_refused(sources: Path, tmp_path: Path):
    for wrong in ({"objects": (0, 2)}, {"objects": (2, 5)}, {"languages": ("en", "xx")}, {"languages": ()}):
        with pytest.raises((ConfigError, ValidationError)):
            Composing.Config(**wrong)
    few = Composing.Config(train=30, val=30, unseen=2, objects=(1, 1))
    with pytest.raises(ConfigError, match=r"config\.train: expected about \d+ pictures, .*got 30"):
        compose(tmp_path / "out", sources / "cutouts", f"imagefolder:{sources / 'grounds'}", few)
    assert not (tmp_path / "out").exists()


def test_the_command_composes_and_refuses(sources: Path, tmp_path: Path):
    given = ["--cutouts", str(sources / "cutouts"), "--backgrounds", f"imagefolder:{sources / 'grounds'}"]
    size = ["--pictures", "20", "--val", "8", "--unseen", "4", "--processes", "1", "--quiet"]
    out = tmp_path / "composed"
    done = CliRunner().invoke(app, ["data", "compose", str(out), *given, *size])
    assert done.exit_code == 0 and "32 pictures of 64 px" in done.output
    words = (out / "texts" / "train.txt").read_text().splitlines()
    assert Tokenizer.train(words, vocab_size=400).vocab_size > 256
    for extra, said in (
        ([], "exists and is not an empty folder"),
        (["--languages", "en,xx"], "expected some of en, de"),
        (["--cutouts", str(tmp_path)], "no such file"),
    ):
        where = str(out) if not extra else str(tmp_path / "new")
        failed = CliRunner().invoke(app, ["data", "compose", where, *given, *size, *extra])
        assert failed.exit_code != 0 and said in (failed.output + str(failed.exception)), said
