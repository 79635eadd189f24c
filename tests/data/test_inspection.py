"""Looking at data sets: surveys, looks in several processes, and pictures of samples."""

import json

import numpy as np
import pytest
import torch
from data.toy_sets import WRITERS, damage, picture, put

from allsight.data.inspection import draw_sample, look_at_all, mosaic, survey
from allsight.data.readers import FORMATS, open_reader
from allsight.types import Objects, Panoptic, Sample


def both(name: str, **options):
    return [open_reader(name, split=split, **options) for split in ("train", "val")]


@pytest.fixture
def pets(tmp_path):
    WRITERS["imagefolder"](tmp_path)
    return tmp_path


def test_a_survey_counts_classes_and_sizes_of_each_split(pets):
    put(pets / "train/cat/wide.png", picture_of(600, 10))
    found = survey(both(f"imagefolder:{pets}"))
    train = found.splits["train"]
    assert (train.samples, train.looked_at) == (4, 4) and found.splits["val"].samples == 2
    assert train.counted == {"samples": {"cat": 3, "dog": 1}}
    assert train.sizes == {"up to 32 px": 3, "513 to 1024 px": 1} and train.size_wh_px == (8, 6)
    assert not train.unusable and not train.duplicates and not found.overlaps
    json.dumps(found.to_json())


def picture_of(width: int, height: int) -> bytes:
    import io

    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    PillowImage.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def test_duplicates_leaks_and_broken_files_are_named(pets):
    put(pets / "train/dog/again.png", picture(0))
    put(pets / "val/cat/leak.png", picture(2))
    damage(pets / "val/cat/0.png")
    found = survey(both(f"imagefolder:{pets}"))
    assert found.splits["train"].duplicates == [["train/cat/0.png", "train/dog/again.png"]]
    assert found.overlaps == {"train, val": [("train/cat/2.png", "val/cat/leak.png")]}
    assert list(found.splits["val"].unusable) == ["val/cat/0.png"]


def test_a_survey_reads_at_most_its_limit_evenly_spread(pets):
    for n in range(20):
        put(pets / f"train/emu/{n:02}.png", picture(n % 6))
    train = survey([open_reader(f"imagefolder:{pets}")], limit=3).splits["train"]
    assert (train.samples, train.looked_at) == (23, 3)
    assert train.counted["samples"]["cat"] == 1 and train.counted["samples"]["emu"] == 2
    assert survey([open_reader(f"imagefolder:{pets}")], limit=0).splits["train"].looked_at == 23


def test_questions_about_one_picture_are_no_duplicates(tmp_path):
    WRITERS["coco_vqa"](tmp_path)
    for split in ("train", "val"):
        for file in (tmp_path / f"{split}2014").iterdir():
            file.write_bytes(picture(1))
    file = tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json"
    tree = json.loads(file.read_text())
    tree["questions"][1]["question"] = "another?"
    file.write_text(json.dumps(tree))
    found = survey(both(f"coco_vqa:{tmp_path}"))
    assert (
        found.splits["train"].duplicates == [["train/10", "train/12"]]
        and len(found.overlaps["train, val"]) == 2
    )


@pytest.mark.dist
def test_several_processes_see_what_one_sees(pets):
    for n in range(70):
        put(pets / f"train/emu/{n:02}.png", picture(n % 6))
    damage(pets / "train/emu/50.png")
    reader = open_reader(f"imagefolder:{pets}")
    said = []
    alone = list(look_at_all(reader, range(len(reader))))
    many = list(look_at_all(reader, range(len(reader)), processes=2, on_progress=lambda *n: said.append(n)))
    assert many == alone and [look.id for look in many if look.fault] == ["train/emu/50.png"]
    assert said == [(32, 73), (64, 73), (73, 73)]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_samples_of_every_format_can_be_drawn(format, tmp_path):
    WRITERS[format](tmp_path)
    reader = open_reader(f"{format}:{tmp_path}")
    sheet = mosaic(reader, 2)
    assert sheet.dtype == np.uint8 and sheet.shape[1] > 2 * 320
    drawn = draw_sample(reader[0], reader.classes)
    if format in ("coco", "coco_panoptic", "label_maps", "voc", "yolo"):
        plain = draw_sample(Sample(reader[0].id, {"image": reader[0].image}), ())
        assert drawn.shape == plain.shape == (240, 320, 3) and (drawn != plain).any()


def test_samples_that_cannot_be_read_have_their_place_in_the_mosaic(pets):
    damage(pets / "train/cat/0.png")
    reader = open_reader(f"imagefolder:{pets}")
    assert mosaic(reader).shape[0] > 320


def test_keypoints_and_empty_targets_are_drawn(tmp_path):
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    points = torch.tensor([[[8.0, 8.0, 2.0], [0.0, 0.0, 0.0]]])
    one = Objects(torch.tensor([[2.0, 2.0, 30.0, 30.0]]), torch.tensor([0]), keypoints=points)
    with_points = draw_sample(Sample.of_image("a", pixels, {"objects": one}), ("cat",))
    assert with_points[80, 80].tolist() == [0, 114, 178] and with_points[40, 120].tolist() == [0, 0, 0]
    none = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    nobody = torch.zeros(0, dtype=torch.bool)
    empty = Panoptic(
        torch.full((32, 32), -1, dtype=torch.int32), torch.zeros(0, dtype=torch.int64), nobody, nobody
    )
    assert not draw_sample(Sample.of_image("a", pixels, {"objects": none, "panoptic": empty}), ("cat",)).any()
