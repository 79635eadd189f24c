"""Finding out which format a folder has, and saying so when it cannot be found out."""

import json
import shutil

import pytest
from data.shard_making import class_shards, serving
from data.toy_sets import WRITERS, picture, put

from allsight.config import ConfigError
from allsight.data.readers import candidates_of, detect_format, open_reader
from allsight.types import DataError


def test_several_formats_are_an_error_that_names_them(tmp_path):
    WRITERS["coco"](tmp_path)
    WRITERS["coco_captions"](tmp_path)
    with pytest.raises(
        DataError, match=r"several formats fit: coco \(.*\), coco_captions \(.*\); say which: coco:"
    ):
        open_reader(str(tmp_path))
    assert [c.format for c in detect_format(tmp_path)] == ["coco", "coco_captions"]
    path, (candidate,) = candidates_of(f"coco_captions:{tmp_path}")
    assert path == tmp_path and candidate.format == "coco_captions" and candidate.splits == ("train", "val")


def test_no_format_is_an_error_that_names_data_sets_one_level_below(tmp_path):
    with pytest.raises(
        DataError, match=r"no format fits what is there; formats are ade20k, .*; say format:path"
    ):
        open_reader(str(tmp_path))
    WRITERS["yolo"](tmp_path / "mine")
    with pytest.raises(DataError, match=r"its folders are data sets: mine \(yolo\)"):
        open_reader(str(tmp_path))
    with pytest.raises(DataError, match="nothing that voc could read; what fits is yolo"):
        candidates_of(f"voc:{tmp_path / 'mine'}")


def test_a_name_alone_is_looked_up_below_the_root(tmp_path, monkeypatch):
    WRITERS["yolo"](tmp_path / "set")
    assert len(open_reader("set", tmp_path)) == len(open_reader("auto:set", tmp_path)) == 3
    monkeypatch.setenv("ALLSIGHT_DATA", str(tmp_path))
    assert len(open_reader("set", split="val")) == 2
    with pytest.raises(DataError, match=r"other does not exist; set data\.root"):
        open_reader("other")
    with pytest.raises(ConfigError, match="no option 'mask'; did you mean 'masks'"):
        open_reader("set", mask=True)


def test_paths_with_a_colon_are_paths(tmp_path):
    WRITERS["imagefolder"](tmp_path / "a:b")
    assert len(open_reader(str(tmp_path / "a:b"))) == 3


def test_splits_in_archives_are_found(tmp_path):
    WRITERS["imagefolder"](tmp_path / "set")
    for split in ("train", "val"):
        shutil.make_archive(str(tmp_path / f"set/{split}"), "zip", tmp_path / "set", split)
        shutil.rmtree(tmp_path / f"set/{split}")
    (candidate,) = detect_format(tmp_path / "set")
    assert candidate.format == "imagefolder" and candidate.splits == ("train", "val")


def test_coco_pictures_may_lie_in_an_archive(tmp_path):
    WRITERS["coco"](tmp_path)
    shutil.make_archive(str(tmp_path / "train2017"), "zip", tmp_path / "images/train", ".")
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "annotations/instances_train.json").rename(tmp_path / "annotations/instances_train2017.json")
    assert open_reader(f"coco:{tmp_path}")[2].id == "train/2.png"


def test_pictures_beside_texts_in_shards_are_no_class_folders(tmp_path):
    put(tmp_path / "raw/train/a.png", picture())
    put(tmp_path / "raw/train/a.txt", "a caption")
    shutil.make_archive(str(tmp_path / "train-00000"), "tar", tmp_path / "raw/train", ".")
    shutil.rmtree(tmp_path / "raw")
    put(tmp_path / "classes.json", json.dumps(["a"]))
    assert "imagefolder" not in {c.format for c in detect_format(tmp_path)}


def test_tars_of_samples_side_by_side_are_shards(tmp_path):
    for split in ("train", "val"):
        class_shards(tmp_path / "set", shards=2, each=2, split=split)
    (candidate,) = detect_format(tmp_path / "set")
    assert candidate.format == "webdataset" and candidate.splits == ("train", "val")
    assert len(open_reader(str(tmp_path / "set"), split="val")) == 4
    (candidate,) = detect_format(tmp_path / "set/val-00001.tar")
    assert candidate.format == "webdataset" and candidate.splits == ("val",)


def test_tars_of_pictures_alone_are_no_shards(tmp_path):
    WRITERS["imagefolder"](tmp_path / "raw")
    for split in ("train", "val"):
        (tmp_path / "set").mkdir(exist_ok=True)
        shutil.make_archive(str(tmp_path / f"set/{split}-00000"), "tar", tmp_path / f"raw/{split}", ".")
    assert [c.format for c in detect_format(tmp_path / "set")] == ["imagefolder"]


def test_listed_shards_are_not_opened_to_be_recognised(tmp_path):
    WRITERS["webdataset"](tmp_path)
    for tar in tmp_path.glob("*.tar"):
        tar.unlink()
    (candidate,) = detect_format(tmp_path)
    assert candidate.format == "webdataset" and candidate.splits == ("train", "val")


def test_a_url_is_one_of_shards_and_other_formats_refuse_it(tmp_path):
    WRITERS["webdataset"](tmp_path / "set")
    with serving(tmp_path) as server:
        for name in (f"{server.url}/set", f"auto:{server.url}/set"):
            assert len(open_reader(name, split="val")) == 2
        path, (candidate,) = candidates_of(f"webdataset:{server.url}/set")
    assert path == f"{server.url}/set" and candidate.splits == ("train",)
    with pytest.raises(ConfigError, match=r"yolo reads from disks, not from URLs; .* pack it into shards"):
        open_reader("yolo:http://data.lab/pets")
