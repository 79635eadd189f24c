"""The reader of shards on disk: what their files mean, and what is said of those that mean nothing."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from data import shard_making as making
from data.toy_sets import clip

from allsight.config import ConfigError
from allsight.data.readers import open_reader
from allsight.data.shards.catalogue import index_name
from allsight.data.shards.content import Meaning, to_files, to_sample
from allsight.types import DataError, Image, LabelMap, Objects, Sample, Text, Video

jpeg, write_tar = making.jpeg, making.write_tar


def reader(tmp_path, files, **options):
    tmp_path.mkdir(exist_ok=True)
    write_tar(tmp_path / "train-00000.tar", files)
    return open_reader(f"webdataset:{tmp_path}", **options)


def test_pictures_with_classes(tmp_path):
    data = open_reader(f"webdataset:{making.class_shards(tmp_path)}")
    assert len(data) == 24 and data.parts == ("image", "label") and data.classes == ("a", "b", "c")
    assert data.labels.tolist() == [n % 3 for n in range(24)]
    sample = data[9]
    assert sample.id == "train-00001/00009" and sample.targets == {"label": 0}
    assert sample.image.hw_px == (16, 24)
    assert data.index_bytes <= 24 * len(data)


def test_pictures_with_texts_whatever_lies_beside_them(tmp_path):
    files = [
        ("7.jpg", jpeg(7)),
        ("7.json", b'{"url": "x", "width": 24}'),
        ("7.md5", b"?"),
        ("7.txt", "ünï".encode()),
    ]
    data = reader(tmp_path, files)
    assert data[0].targets == {"captions": ("ünï",), "json": {"url": "x", "width": 24}}
    assert data.notes == ("1 tars without an index read through once", "files ending in .md5 are passed over")
    assert reader(tmp_path, files, kind="image-text").parts == ("image", "captions")


def test_texts_alone(tmp_path):
    data = reader(tmp_path, [("a.txt", b"one"), ("b.txt", b"two")])
    assert data.parts == ("text",) and data[1].inputs["text"] == Text("two") and data[1].targets == {}


def test_frames_of_a_video_come_in_order_with_their_times(tmp_path):
    files = [(f"v.{n}.jpg", jpeg(n)) for n in (10, 9, 8)] + [("v.json", b'{"fps": 4}'), ("v.txt", b"a car")]
    data = reader(tmp_path, files)
    video = data[0].inputs["video"]
    assert data.parts == ("video", "captions") and video.times_s.tolist() == [0.0, 0.25, 0.5]
    single = to_sample("x", {"jpg": jpeg(8)}, Meaning())
    assert video.frames.shape == (3, 3, 16, 24) and torch.equal(video.frames[0], single.image.pixels)


def test_a_video_without_times_is_refused_unless_its_rate_is_given(tmp_path):
    files = [("v.000.jpg", jpeg(0)), ("v.001.jpg", jpeg(1))]
    with pytest.raises(DataError, match=r"train-00000/v: no times for its 2 frames; .* or set fps"):
        reader(tmp_path, files)[0]
    assert reader(tmp_path, files, fps=10.0)[0].inputs["video"].times_s.tolist() == pytest.approx([0, 0.1])


def test_so_many_frames_of_a_video_file_are_taken_as_are_asked_for(tmp_path):
    data = reader(tmp_path, [("1.mkv", clip(0)), ("1.txt", b"it grows brighter")], frames=3)
    sample = data[0]
    assert sample.inputs["video"].frames.shape == (3, 3, 16, 32) and list(data.originals(0)) == ["mkv"]
    assert sample.inputs["video"].times_s.tolist() == pytest.approx([0.1, 0.3, 0.5])
    assert sample.targets == {"captions": ("it grows brighter",)}
    two = [("1.000.jpg", jpeg(0)), ("1.mkv", clip(0)), ("1.json", b'{"fps": 5}')]
    with pytest.raises(DataError, match=r"several videos \(.mkv\); expected one"):
        reader(tmp_path / "two", two)[0]


def test_classes_may_be_named(tmp_path):
    data = reader(tmp_path, [("1.cls", b"dog\n"), ("1.jpg", jpeg(1))], classes=("cat", "dog"))
    assert data[0].targets == {"label": 1}
    with pytest.raises(DataError, match=r"no file .cls with a number"):
        _ = data.labels


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"cls": b"3", "jpg": jpeg(0)},
            "its .cls holds '3'; expected a number below 2 or one of the 2 class names",
        ),
        ({"cls": b"\xff", "jpg": jpeg(0)}, "its .cls is not UTF-8"),
        ({"cls": b"1", "jpg": jpeg(0)[:300]}, "2: "),
        ({"jpg": jpeg(0)}, "no label; expected a file .cls"),
        ({"cls": b"1"}, "no image; expected a file .jpg"),
        ({"cls": b"1", "jpg": jpeg(0), "png": b""}, "several pictures .*expected one"),
        ({"cls": b"1", "jpg": jpeg(0), "json": b"{"}, "its .json cannot be read"),
        ({"cls": b"1", "jpg": jpeg(0), "json": b"[" * 100000}, "its .json cannot be read"),
        (
            {"cls": b"1", "jpg": jpeg(0), "json": b'{"allsight": {"targets": {"a": {"type": "Path"}}}}'},
            "unknown type",
        ),
        ({"cls": b"1", "jpg": jpeg(0), "txt": b"\xff\xfe"}, "not UTF-8"),
    ],
)
def test_a_sample_that_makes_no_sense_is_named(tmp_path, files, said):
    bad = [(f"2.{ending}", data) for ending, data in files.items()]
    data = reader(tmp_path, [("1.cls", b"0"), ("1.jpg", jpeg(1)), *bad], classes=("a", "b"))
    assert data[0].targets == {"label": 0}
    with pytest.raises(DataError, match=said) as caught:
        data[1]
    assert caught.value.sample_id == "train-00000/2" and str(caught.value).startswith("train-00000/2")


def test_the_last_ending_of_a_file_says_what_it_is(tmp_path):
    files = [("1.left.cls", b"1"), ("1.left.jpg", jpeg(1)), ("2.cls", b"0"), ("2.jpg", jpeg(2))]
    data = reader(
        tmp_path,
        [*files, ("2.mask.png", b"?"), ("3.a.jpg", jpeg(3)), ("3.b.jpg", jpeg(3))],
        classes=("a", "b"),
    )
    assert data[0].targets == {"label": 1} and list(data.originals(0)) == ["jpg"]
    assert data[1].targets == {"label": 0} and "files ending in .mask.png are passed over" in data.notes
    with pytest.raises(DataError, match=r"^train-00000/3: several files of one kind \(.a.jpg, .b.jpg\)"):
        data[2]


def test_a_damaged_first_sample_is_refused_alone(tmp_path):
    bad = [("1.jpg", jpeg(1)), ("1.json", b"{bad"), ("1.txt", b"x")]
    for name, others in (("alone", []), ("first", [("2.jpg", jpeg(2)), ("2.txt", b"y")])):
        data = reader(tmp_path / name, [*bad, *others])
        with pytest.raises(DataError, match=r"^train-00000/1: its .json cannot be read") as caught:
            data[0]
        assert caught.value.sample_id == "train-00000/1"
    assert data[1].targets == {"captions": ("y",)}


def test_a_first_sample_without_what_the_others_have_is_the_one_refused(tmp_path):
    files = [("1.jpg", jpeg(1)), ("2.cls", b"1"), ("2.jpg", jpeg(2)), ("3.cls", b"1"), ("3.jpg", jpeg(3))]
    data = reader(tmp_path, files, classes=("a", "b"))
    assert data.parts == ("image", "label") and data[1].targets == data[2].targets == {"label": 1}
    with pytest.raises(DataError, match=r"^train-00000/1: no label; expected a file .cls"):
        data[0]


def test_a_sample_without_inputs_is_refused(tmp_path):
    data = reader(tmp_path, [("1.cls", b"0"), ("1.weird", b"?")], classes=("a", "b"))
    with pytest.raises(DataError, match=r"^train-00000/1: no picture, video or text"):
        data[0]


def test_labels_need_class_names(tmp_path):
    with pytest.raises(DataError, match=r"put classes.json beside the shards, or set classes"):
        reader(tmp_path, making.class_files(0, 2))


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"kind 'image-txt': .*did you mean 'image-text'"):
        reader(tmp_path, [("a.txt", b"")], kind="image-txt")


def test_the_index_is_written_once_and_again_when_the_tar_is_another(tmp_path):
    data = reader(tmp_path, [("a.txt", b"one")])
    assert data.notes and (tmp_path / "train-00000.tar.index").exists()
    assert open_reader(f"webdataset:{tmp_path}").notes == ()
    again = reader(tmp_path, [("a.txt", b"one"), ("b.txt", b"x" * 20000)])
    assert len(again) == 2 and again.notes


def test_another_tar_of_the_same_size_gets_an_index_of_its_own(tmp_path):
    """Tars are padded: a sample more does not show in the size."""
    reader(tmp_path, [("a.txt", b"one")])
    tar, index = tmp_path / "train-00000.tar", tmp_path / "train-00000.tar.index"
    before = tar.stat().st_size
    again = reader(tmp_path, [("a.txt", b"two"), ("b.txt", b"more")])
    assert tar.stat().st_size == before and len(again) == 2
    assert again[0].inputs["text"].string == "two"
    # One that was copied after its index is looked at once, and the index stays.
    old, late = index.read_bytes(), index.stat().st_mtime + 60
    os.utime(tar, (late, late))
    assert len(open_reader(f"webdataset:{tmp_path}")) == 2
    assert index.read_bytes() == old


def test_labels_of_dotted_names_are_in_the_index(tmp_path):
    files = [("1.left.cls", b"1"), ("1.left.jpg", jpeg(1)), ("2.cls", b"0"), ("2.jpg", jpeg(2))]
    data = reader(tmp_path, files, classes=("a", "b"))
    assert data.labels.tolist() == [1, 0]


def test_a_folder_of_others_is_read_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("allsight.data.shards.opening.write_whole", refused)
    data = reader(tmp_path, [("a.txt", b"one")])
    assert data[0].inputs["text"].string == "one" and "kept in memory" in data.notes[1]
    assert not (tmp_path / "train-00000.tar.index").exists()


def test_a_damaged_index_or_tar_is_said(tmp_path):
    making.class_shards(tmp_path, shards=1)
    tar = tmp_path / "train-00000.tar"
    data = open_reader(f"webdataset:{tmp_path}")
    whole = tar.read_bytes()
    tar.write_bytes(whole[:5000] + b"?" + whole[5001:])
    broken = [index for index in range(8) if _fails(data, index)]
    assert len(broken) == 1
    tar.write_bytes(whole)
    beside = tmp_path / index_name(tar.name)
    beside.write_bytes(beside.read_bytes()[:-3] + b"abc")
    with pytest.raises(DataError, match=r"damaged index: .*allsight data index"):
        open_reader(f"webdataset:{tmp_path}")


def _fails(data, index):
    try:
        data[index]
    except DataError as error:
        assert "other bytes than its index says" in str(error)
        return True
    return False


def test_places_are_found_or_said_to_be_missing(tmp_path):
    making.class_shards(tmp_path / "set")
    shutil.copy(tmp_path / "set/train-00000.tar", tmp_path / "set/val.tar")
    names = (tmp_path / "set", tmp_path / "set/{split}-{00000..00002}.tar", f"file://{tmp_path}/set")
    assert [len(open_reader(f"webdataset:{name}")) for name in names] == [24, 24, 24]
    assert len(open_reader("webdataset:set/train-{00001..00002}.tar", tmp_path)) == 16
    assert len(open_reader(f"webdataset:{tmp_path}/set", split="val")) == 8
    assert len(open_reader(f"webdataset:{tmp_path}/set/val.tar", split="val")) == 8
    for name, split, said in (
        ("set", "test", r"no split 'test'; there are: train, val; expected test.shards.json"),
        ("set/train-{00000..00005}.tar", "train", r"train-00003.tar: no such shard .3 of 6 are missing"),
        ("set/train-00000.tar", "val", "which of its samples are split 'val' is not said"),
        ("set/classes.json", "train", r"expected a folder, a .tar, or a pattern"),
    ):
        with pytest.raises(DataError, match=said):
            open_reader(f"webdataset:{name}", tmp_path, split)
    (tmp_path / "set/train-00001.tar").unlink()
    with pytest.raises(DataError, match=r"shard 1 of train is missing"):
        open_reader(f"webdataset:{tmp_path}/set")


def records():
    """A sample for each kind of target that readers give."""
    pixels = torch.arange(3 * 8 * 6, dtype=torch.uint8).reshape(3, 8, 6)
    masks = torch.rand(3, 40, 30, generator=torch.Generator().manual_seed(0)) > 0.7
    objects = Objects(
        torch.rand(3, 4) * 1e3, torch.tensor([4, 0, 2]), masks, torch.tensor([True, False, False])
    )
    none = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    map_ = LabelMap(torch.randint(0, 255, (8, 6), dtype=torch.uint8))
    video = Video(torch.stack([pixels, pixels + 1]), torch.tensor([0.1, 0.3]))
    of_image = {"image": Image(pixels)}
    yield Sample("objects", of_image, {"objects": objects})
    yield Sample("nothing", of_image, {"objects": none, "captions": ()})
    yield Sample("map", of_image, {"label_map": map_, "label": 3})
    yield Sample("soft", of_image, {"label": torch.rand(300), "score": float("inf"), "flag": True})
    yield Sample("one", of_image, {"captions": ("a\nb",)})
    yield Sample("two", of_image, {"captions": ("a", "ünï\ud800"), "answers": (("x", 1), ("y", 2))})
    yield Sample("asked", {**of_image, "text": Text("what?")}, {"answers": ("a car",)})
    yield Sample("text", {"text": Text("")}, {"facts": {"a": None, "b": [1.5, -2]}})
    yield Sample("video", {"video": video}, {"captions": ("go",), "empty": torch.zeros(2, 0)})


@pytest.mark.parametrize("sample", list(records()), ids=lambda sample: sample.id)
def test_a_sample_comes_back_from_its_files_bit_for_bit(sample):
    files = to_files(sample, {})
    assert list(files) == sorted(files) and files == to_files(sample, {})
    assert _said(to_sample(sample.id, files, Meaning())) == _said(sample)


def _said(value):
    """Everything in a sample, as text."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.tolist()}"
    if isinstance(value, Sample):
        return f"{value.id} {_said(value.inputs)} {_said(value.targets)}"
    if isinstance(value, Image):
        return _said(value.pixels)
    if isinstance(value, dict):
        return str({key: _said(item) for key, item in sorted(value.items())})
    if isinstance(value, tuple | list):
        return str([_said(item) for item in value])
    return str({k: _said(v) for k, v in vars(value).items()}) if hasattr(value, "__dict__") else repr(value)


def test_what_cannot_be_written_is_said():
    with pytest.raises(DataError, match=r"x: target 'path': PosixPath cannot be written as JSON"):
        to_files(Sample("x", {"text": Text("")}, {"path": Path("x")}), {})


def test_a_bomb_in_a_tensor_is_refused():
    import base64
    import zlib

    bomb = base64.b64encode(zlib.compress(bytes(10**7))).decode()
    for tensor in (
        {"dtype": "uint8", "shape": [10], "zlib": bomb},
        {"dtype": "uint8", "shape": [10**12], "zlib": bomb},
        {"dtype": "bool", "shape": [4], "runs": [1, -1, 4]},
        {"dtype": "float32", "shape": [2], "values": [1]},
        {"dtype": "object", "shape": [1], "values": [1]},
    ):
        record = {"allsight": {"targets": {"t": tensor}}}
        with pytest.raises(DataError, match=r"x: its .json holds (a tensor|runs)"):
            to_sample("x", {"txt": b"", "json": json.dumps(record).encode()}, Meaning())
