"""Folders and archives that are made to hang, to fill the memory, or to reach outside."""

import io
import json
import os
import tarfile
import zipfile
import zlib

import pytest
from data.toy_sets import WRITERS, picture, put

from allsight.data.readers import files, open_reader
from allsight.types import DataError


def pets(root):
    for name in ("cat/1.png", "dog/1.png"):
        put(root / "train" / name, picture())
    return f"imagefolder:{root}"


def ids(reader):
    return [reader[n].id for n in range(len(reader))]


def test_a_compressed_member_that_unpacks_to_too_much_is_an_unusable_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 1000)
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", picture())
        archive.writestr("cat/2.png", bytes(1001))
        archive.writestr("cat/3.png", os.urandom(1001), zipfile.ZIP_STORED)
    reader = open_reader(f"imagefolder:{tmp_path}")
    assert reader[0].id == "train/cat/1.png"
    with pytest.raises(DataError, match=r"^train/cat/2\.png: .*1001 bytes; expected at most 1000") as caught:
        reader[1]
    assert caught.value.sample_id == "train/cat/2.png"
    with pytest.raises(DataError, match=r"^train/cat/3\.png: not a picture"):
        reader[2]


def test_a_member_is_unpacked_no_further_than_the_zip_says(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", bytes(10**6))
    data = (tmp_path / "train.zip").read_bytes()
    (tmp_path / "train.zip").write_bytes(data.replace((10**6).to_bytes(4, "little"), bytes([9, 0, 0, 0])))
    most, unpacker = [], zlib.decompressobj

    class Spy:
        def __init__(self, wbits):
            self._inner = unpacker(wbits)

        def decompress(self, data, length):
            out = self._inner.decompress(data, length)
            most.append(len(out))
            return out

    monkeypatch.setattr(files.zlib, "decompressobj", Spy)
    with pytest.raises(DataError, match=r"^train/cat/1\.png: .*other than the 9 bytes that the zip says"):
        open_reader(f"imagefolder:{tmp_path}")[0]
    assert most == [10]


@pytest.mark.parametrize("name", ["../cat/2.png", "/cat/2.png", "cat/../../2.png", "C:\\cat\\2.png", ".."])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_names_that_lead_outside_an_archive_are_refused_before_anything_is_read(tmp_path, kind, name):
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
            archive.writestr("cat/1.png", picture())
            archive.writestr(name, picture())
    else:
        with tarfile.open(tmp_path / "train.tar", "w") as archive:
            for each in ("cat/1.png", name):
                archive.addfile(tarfile.TarInfo(each), io.BytesIO())
    with pytest.raises(DataError, match=rf"train\.{kind}: the name .* leads outside the archive"):
        open_reader(f"imagefolder:{tmp_path}")


SPECIAL = {
    "symlink": tarfile.SYMTYPE,
    "link": tarfile.LNKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "chr": tarfile.CHRTYPE,
}


@pytest.mark.parametrize("kind", [*SPECIAL, "zip"])
def test_links_and_devices_in_an_archive_are_refused(tmp_path, kind):
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "train.zip", "w") as archive:
            archive.writestr("cat/1.png", picture())
            link = zipfile.ZipInfo("cat/2.png")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
    else:
        with tarfile.open(tmp_path / "train.tar", "w") as archive:
            archive.addfile(tarfile.TarInfo("cat/1.png"))
            member = tarfile.TarInfo("cat/2.png")
            member.type, member.linkname = SPECIAL[kind], "cat/1.png"
            archive.addfile(member)
    with pytest.raises(DataError, match=r"'cat/2\.png' is a link, device or sparse file"):
        open_reader(f"imagefolder:{tmp_path}")


def test_a_pipe_among_the_pictures_is_never_opened(tmp_path):
    place = pets(tmp_path)
    os.mkfifo(tmp_path / "train/cat/2.png")
    reader = open_reader(place)
    with pytest.raises(DataError, match=r"^train/cat/2\.png: .*not a regular file") as caught:
        reader[1]
    assert caught.value.sample_id == "train/cat/2.png" and reader[2].id == "train/dog/1.png"


@pytest.mark.parametrize("name", ["pictures/1.png", "train.zip"])
def test_a_pipe_is_not_opened_where_a_file_is_named_either(tmp_path, name):
    (tmp_path / "pictures").mkdir()
    os.mkfifo(tmp_path / name)
    put(tmp_path / "train.jsonl", '{"image": "pictures/1.png"}')
    with pytest.raises(DataError, match="not a regular file"):
        if name == "train.zip":
            files.open_archive(tmp_path / name)
        open_reader(f"manifest:{tmp_path}")[0]


def test_a_picture_that_a_json_names_and_that_never_was_there_is_called_missing(tmp_path):
    question = {"question_id": 1, "image_id": 1, "question": "q", "image": "none.png"}
    put(tmp_path / "annotations/vqa_train.json", json.dumps({"questions": [question]}))
    with pytest.raises(DataError, match=rf"^train/1: no such file: {tmp_path}/none\.png$"):
        open_reader(f"coco_vqa:{tmp_path}")[0]


def test_each_folder_is_visited_once_however_many_links_lead_to_it(tmp_path):
    place = pets(tmp_path)
    os.symlink(tmp_path / "train", tmp_path / "train/again")
    os.symlink("../cat", tmp_path / "train/cat/deeper")
    os.symlink("cat", tmp_path / "train/a_cat")
    reader = open_reader(place)
    assert ids(reader) == ["train/cat/1.png", "train/dog/1.png"] and reader.classes == ("cat", "dog")
    assert reader.notes == ("3 links to folders that were visited already passed over",)


def test_a_folder_that_cannot_be_listed_is_not_passed_over_in_silence(tmp_path, monkeypatch):
    place = pets(tmp_path)
    put(tmp_path / "train/lost+found/1.png", picture())
    assert open_reader(place).classes == ("cat", "dog")  # what a disk keeps for itself
    scandir = os.scandir

    def refused(path):
        if str(path).endswith(("train/cat", "lost+found")):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    said = rf"^{tmp_path}/train/cat: the folder cannot be listed \(Permission denied\)"
    with pytest.raises(DataError, match=said):
        open_reader(place)


@pytest.mark.parametrize("format", ["ade20k", "cityscapes", "label_maps", "yolo"])
def test_links_are_counted_in_formats_of_several_folders_too(tmp_path, format):
    first = WRITERS[format](tmp_path / "set")
    first.rename(tmp_path / "far")
    os.symlink(tmp_path / "far", first)
    os.symlink(first.parent, first.parent / "loop")
    reader = open_reader(f"{format}:{tmp_path / 'set'}")
    assert "1 links lead outside the data set's folder; they are followed" in reader.notes
    assert "1 links to folders that were visited already passed over" in reader.notes
    assert "image" in reader[0].inputs


def test_links_that_lead_outside_are_followed_and_counted(tmp_path):
    place = pets(tmp_path / "set")
    for name in ("far/1.png", "set/pool/2.png"):
        put(tmp_path / name, picture())
    os.symlink(tmp_path / "far", tmp_path / "set/train/emu")
    os.symlink("../../../far/1.png", tmp_path / "set/train/cat/3.png")
    os.symlink("../../pool/2.png", tmp_path / "set/train/cat/2.png")
    reader = open_reader(place)
    assert ids(reader) == [f"train/{n}.png" for n in ("cat/1", "cat/2", "cat/3", "dog/1", "emu/1")]
    assert reader.notes == ("2 links lead outside the data set's folder; they are followed",)
