"""What holds for the reader of every registered format."""

import pickle
import re
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data.toy_sets import SPLITS, WRITERS, damage

from allsight.data.listings import ListsClasses, ListsLengths, ListsSizes
from allsight.data.readers import FORMATS, NamedReader, detect_format, open_reader
from allsight.data.shards.pack import pack
from allsight.types import DataError, Sample

# These have an archive for each split, or none.
ARCHIVED = sorted(
    set(FORMATS)
    - {"hf_datasets", "imagefolder", "manifest", "nuscenes", "parquet", "text", "video", "webdataset"}
)

every_format = pytest.mark.parametrize("format", sorted(FORMATS))


@pytest.fixture
def toy(format: str, tmp_path: Path) -> tuple[str, Path]:
    """Name of a tiny data set of this format, and the file of its first training sample."""
    if format not in WRITERS:
        pytest.fail(f"write a tiny data set of the format {format} in tests/data/toy_sets.py")
    first = WRITERS[format](tmp_path / "set")
    return f"{format}:{tmp_path / 'set'}", first


def samples(reader: NamedReader) -> list[Sample]:
    return [reader[index] for index in range(len(reader))]


def plain(value: Any) -> Any:
    """Anything in a sample as values that can be compared."""
    if isinstance(value, torch.Tensor):
        # As text, in which nan equals nan.
        return str(value.dtype), str(value.tolist())
    if isinstance(value, tuple):
        return tuple(plain(part) for part in value)
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return {name: plain(part) for name, part in value.items()} if isinstance(value, dict) else value


@every_format
def test_samples_have_ids_of_their_own_that_stay(format, toy):
    for split, count in SPLITS.items():
        reader = open_reader(toy[0], split=split)
        assert isinstance(reader, NamedReader) and reader.split == split and reader.name == f"{format}:set"
        assert len(reader) == count
        ids = [sample.id for sample in samples(reader)]
        assert len(set(ids)) == count and all(re.match(rf"{split}(-\d+)?/", id) for id in ids)
        assert ids == [sample.id for sample in samples(open_reader(toy[0], split=split))]


@every_format
def test_classes_are_the_same_in_all_splits_and_targets_are_among_them(format, toy):
    train, val = open_reader(toy[0]), open_reader(toy[0], split="val")
    assert train.classes == val.classes and all(isinstance(name, str) for name in train.classes)
    assert isinstance(train.notes, tuple) and all(isinstance(note, str) for note in train.notes)
    for sample in samples(train):
        assert sample.inputs
        for name, target in sample.targets.items():
            if name == "label":
                assert 0 <= target < len(train.classes)
            if name in ("objects", "panoptic"):
                assert len(target) and int(target.labels.max()) < len(train.classes)
            if name == "label_map":
                known = target.pixels[target.pixels != target.ignore]
                assert len(known) and int(known.max()) < len(train.classes)
            if name in ("captions", "answers"):
                assert target and all(isinstance(text, str) for text in target)


@every_format
def test_readers_survive_pickling(format, toy):
    reader = open_reader(toy[0])
    again = pickle.loads(pickle.dumps(reader))
    assert [plain(sample) for sample in samples(again)] == [plain(sample) for sample in samples(reader)]


@every_format
def test_an_index_beyond_the_end_is_an_error(format, toy):
    with pytest.raises(IndexError):
        open_reader(toy[0])[SPLITS["train"]]


@every_format
def test_a_split_that_is_not_there_is_an_error_that_lists_those_that_are(format, toy):
    with pytest.raises(DataError, match=r"no split 'dev'; there are: .*train.*val") as caught:
        open_reader(toy[0], split="dev")
    assert "\n" not in str(caught.value)


@every_format
def test_a_damaged_sample_is_an_error_with_its_id_and_the_others_can_be_read(format, toy):
    name, first = toy
    id = open_reader(name)[0].id
    damage(first)
    # A sample's key stands among its own bytes; where these are damaged it is called after its place.
    id = "train-00000/#0" if format == "webdataset" else id
    reader = open_reader(name)
    with pytest.raises(DataError, match=rf"^{id}: ") as caught:
        reader[0]
    assert caught.value.sample_id == id and "\n" not in str(caught.value)
    assert reader[1].id != id


# A shard that vanishes is no fault of one sample: it ends the run (`test_shards_remote.py`).
@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"webdataset"}))
def test_a_file_that_vanishes_is_an_error_of_its_sample(format, toy):
    name, first = toy
    id = open_reader(name)[0].id
    # Another process has none of the files open that this one may keep.
    reader = pickle.loads(pickle.dumps(open_reader(name)))
    first.unlink()
    with pytest.raises(DataError, match=rf"^{id}: ") as caught:
        reader[0]
    assert caught.value.sample_id == id


@every_format
def test_the_folder_tells_the_format(format, toy):
    path = Path(toy[0].partition(":")[2])
    (candidate,) = detect_format(path)
    assert candidate.format == format and candidate.splits == tuple(SPLITS) and candidate.reason
    for name in (str(path), f"auto:{path}"):
        assert [s.id for s in samples(open_reader(name))] == [s.id for s in samples(open_reader(toy[0]))]


@every_format
def test_samples_come_back_from_shards_and_pictures_keep_their_files(format, toy, tmp_path):
    packed = pack(toy[0], tmp_path / "shards")
    source, shards = open_reader(toy[0]), open_reader(f"webdataset:{tmp_path / 'shards'}")
    assert shards.classes == source.classes and len(shards) == len(source)
    for index, sample in enumerate(samples(source)):
        again = shards[index]
        assert plain(again.inputs) == plain(sample.inputs) and plain(again.targets) == plain(sample.targets)
        if "image" in sample.inputs:
            (file,) = source.originals(index).values()
            assert file.startswith(b"\x89PNG")
        if "text" not in sample.inputs:
            assert shards.originals(index) == source.originals(index)
    assert packed.notes == source.notes
    (candidate,) = detect_format(tmp_path / "shards")
    assert candidate.format == "webdataset" and candidate.splits == ("train",)


@pytest.mark.parametrize("format", ARCHIVED)
@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_one_archive_of_all_is_read_as_the_folder_is(format, suffix, toy):
    path = Path(toy[0].partition(":")[2])
    expected = samples(open_reader(toy[0]))
    shutil.make_archive(str(path), suffix, path.parent, path.name)
    reader = open_reader(f"{format}:{path}.{suffix}")
    assert [s.id for s in samples(reader)] == [s.id for s in expected]
    assert {c.format for c in detect_format(path.with_suffix(f".{suffix}"))} == {format}


@every_format
def test_what_a_reader_lists_without_reading_is_what_its_samples_have(format, toy):
    reader = open_reader(toy[0])
    found = [_classes(sample) for sample in samples(reader)]
    assert isinstance(reader, ListsClasses) or not any(found)
    if any(found):
        listed = reader.sample_classes()
        pairs = np.stack(listed.pairs(), 1).tolist()
        assert len(listed) == len(reader)
        assert pairs == [[index, label] for index, labels in enumerate(found) for label in sorted(labels)]
    if isinstance(reader, ListsSizes):
        assert reader.sizes_hw_px.tolist() == [[*sample.image.hw_px] for sample in samples(reader)]
    if isinstance(reader, ListsLengths):
        letters = [len(sample.inputs["text"].string) for sample in samples(reader)]
        assert (abs(reader.lengths - letters) <= 1).all()
    assert isinstance(reader, ListsSizes) or format not in ("coco", "coco_captions", "coco_panoptic", "voc")
    assert isinstance(reader, ListsLengths) or format != "text"


def _classes(sample: Sample) -> set[int]:
    found = {sample.targets["label"]} if "label" in sample.targets else set()
    for name in ("objects", "panoptic"):
        if name in sample.targets:
            found |= set(sample.targets[name].labels.tolist())
    return found


def test_values_of_cityscapes_become_the_classes_that_are_scored(tmp_path):
    WRITERS["cityscapes"](tmp_path)
    reader = open_reader(f"cityscapes:{tmp_path}")
    labels = reader[0].targets["label_map"].pixels.flatten()
    names = {value: reader.classes[labels[value]] for value in range(34) if labels[value] != 255}
    assert names[7] == "road" and names[11] == "building" and names[17] == "pole" and names[24] == "person"
    assert names[26] == "car" and names[33] == "bicycle" and list(names.values()) == list(reader.classes)
    assert len(names) == 19


def test_values_of_ade20k_count_from_one_and_nought_is_nobodys(tmp_path):
    WRITERS["ade20k"](tmp_path)
    reader = open_reader(f"ade20k:{tmp_path}", split="val")
    assert reader[0].targets["label_map"].pixels.flatten()[:4].tolist() == [255, 0, 1, 2]
    assert (
        len(set(reader.classes)) == 150 and reader.classes[12] == "person" and reader.classes[149] == "flag"
    )
