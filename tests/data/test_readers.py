"""Readers find what data sets hold however they are packed, and say what is wrong with them."""

import io
import json
import pickle
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from allsight.config import ConfigError
from allsight.data.readers import open_reader
from allsight.data.readers.packed import PackedStrings
from allsight.types import DataError, LabelMap

COLOURS = {"cat": (200, 30, 40), "dog": (20, 180, 60), "emu": (10, 40, 220)}


def picture(colour: tuple[int, int, int], format: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    PillowImage.new("RGB", size, colour).save(buffer, format)
    return buffer.getvalue()


def pets(per_class: int = 3) -> dict[str, bytes]:
    return {f"{name}/{n}.png": picture(colour) for name, colour in COLOURS.items() for n in range(per_class)}


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def zipped(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def assert_is_pets(reader, per_class: int = 3) -> None:
    assert reader.classes == ("cat", "dog", "emu") and len(reader) == 3 * per_class
    for index in range(len(reader)):
        sample = reader[index]
        split, name, _ = sample.id.split("/")
        assert split == "train" and sample.targets == {"label": reader.classes.index(name)}
        assert sample.image.pixels[:, 0, 0].tolist() == list(COLOURS[name])
    assert reader.labels.tolist() == sorted(list(range(3)) * per_class)


def in_folders(root: Path) -> None:
    write(root / "train", pets())


def in_zip(root: Path) -> None:
    zipped(root / "train.zip", pets())


def in_deflated_zip(root: Path) -> None:
    zipped(root / "train.zip", pets(), zipfile.ZIP_DEFLATED)


def in_wrapped_zip(root: Path) -> None:
    zipped(root / "train.zip", {f"train/{name}": data for name, data in pets().items()})


def in_tar(root: Path) -> None:
    tarred(root / "train.tar", {f"./{name}": data for name, data in pets().items()})


def in_shards(root: Path) -> None:
    files = list(pets().items())
    for number in range(3):
        tarred(root / f"train-{number:05}.tar", dict(files[number * 3 : number * 3 + 3]))


@pytest.mark.parametrize("pack", [in_folders, in_zip, in_deflated_zip, in_wrapped_zip, in_tar, in_shards])
def test_imagefolder_reads_the_same_from_all_packings(tmp_path, pack):
    (tmp_path / "pets").mkdir()
    pack(tmp_path / "pets")
    reader = open_reader("imagefolder:pets", tmp_path, "train")
    assert reader.name == "imagefolder:pets" and reader.split == "train" and reader.notes == ()
    assert_is_pets(reader)
    assert_is_pets(pickle.loads(pickle.dumps(reader)))
    with ThreadPoolExecutor(4) as threads:
        read = list(threads.map(lambda index: reader[index % 9].id, range(90)))
    assert read == [reader[index % 9].id for index in range(90)]


@pytest.mark.parametrize("make", [zipped, tarred])
def test_imagefolder_reads_splits_inside_one_archive(tmp_path, make):
    files = {f"train/{name}": data for name, data in pets().items()} | {"val/cat/9.png": picture((1, 2, 3))}
    make(tmp_path / f"pets.{'zip' if make is zipped else 'tar'}", files)
    name = next(tmp_path.iterdir()).name
    assert_is_pets(open_reader(f"imagefolder:{name}", tmp_path, "train"))
    val = open_reader(f"imagefolder:{name}", tmp_path, "val")
    assert [s.id for s in map(val.__getitem__, range(len(val)))] == ["val/cat/9.png"]
    with pytest.raises(DataError, match=r"no split 'test'; there are: train, val"):
        open_reader(f"imagefolder:{name}", tmp_path, "test")


def test_labels_come_from_the_prefix_of_the_name(tmp_path):
    files = {name.replace("/", "_"): data for name, data in pets().items()}
    tarred(tmp_path / "train.tar", files)
    reader = open_reader(f"imagefolder:{tmp_path}", None, "train")
    assert [reader[k].targets["label"] for k in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert reader[0].id == "train/cat_0.png"


@pytest.mark.parametrize("kind", ["json", "csv", "txt"])
def test_labels_come_from_a_file(tmp_path, kind):
    names = [name.replace("/", "") for name in pets()]
    write(tmp_path / "train", dict(zip(names, pets().values(), strict=True)))
    table = {name: name[:3] for name in names}
    text = {
        "json": json.dumps(table),
        "csv": "\n".join(f"{name},{key}" for name, key in table.items()),
        "txt": "\n".join(f"{name} {key}" for name, key in table.items()) + "\n\n",
    }[kind]
    (tmp_path / f"train_labels.{kind}").write_text(text)
    reader = open_reader(f"imagefolder:{tmp_path}", None, "train", labels=f"file:{{split}}_labels.{kind}")
    assert reader.classes == ("cat", "dog", "emu") and reader.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    with pytest.raises(DataError, match=r"nothing\.txt: the file of labels cannot be read"):
        open_reader(f"imagefolder:{tmp_path}", None, "train", labels="file:nothing.txt")


def test_numbers_in_a_label_file_are_the_labels(tmp_path):
    write(tmp_path / "train", {f"{n}.png": picture((n, n, n)) for n in range(12)})
    (tmp_path / "labels.txt").write_text("".join(f"{n}.png {11 - n}\n" for n in range(12)))
    reader = open_reader(f"imagefolder:{tmp_path}", None, labels="file:labels.txt")
    assert reader.classes == tuple(map(str, range(12)))
    assert all(reader[k].targets["label"] == 11 - int(reader[k].image.pixels[0, 0, 0]) for k in range(12))
    (tmp_path / "classes.json").write_text(json.dumps([f"kind {n}" for n in range(12)]))
    named = open_reader(f"imagefolder:{tmp_path}", None, labels="file:labels.txt")
    assert named.labels.tolist() == reader.labels.tolist() and named.classes[11] == "kind 11"


def test_class_names_come_from_classes_json_in_its_order(tmp_path):
    write(tmp_path / "train", pets(1))
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["emu", "dog", "cat", "yak"]))
    reader = open_reader(f"imagefolder:{tmp_path}", None)
    assert reader.classes == ("emu", "dog", "cat", "yak") and reader.labels.tolist() == [2, 1, 0]
    items = [
        {"wnid": "emu", "index": 1, "synonyms": ["Emu", "Dromaius"]},
        {"wnid": "cat", "index": 0, "name": "tomcat"},
        {"key": "dog", "index": 2, "name": "hound"},
    ]
    path.write_text(json.dumps({"classes": items}))
    reader = open_reader(f"imagefolder:{tmp_path}", None)
    assert reader.classes == ("tomcat", "Emu", "hound") and reader.labels.tolist() == [0, 2, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("{}", "expected a list of classes"),
        ('["a", "a"]', "class 'a' occurs twice"),
        ('[{"name": "a", "index": 1}]', "expected 0 to 0"),
        ('[{"name": "a", "index": "x"}, {"name": "b", "index": 0}]', "expected 0 to 1, each once"),
        ('{"classes": ["a"], "ignore": 300}', "'ignore' is 300; expected"),
        ('{"classes": ["a"], "ignore": "void"}', "'ignore' is 'void'; expected"),
        ("[3]", "class 3 has no name"),
        ('["cat", "dog", "emo"]', r"train/emu/0\.png: class 'emu' is none .* did you mean 'emo'"),
    ],
)
def test_a_wrong_classes_json_is_refused_with_the_reason(tmp_path, text, reason):
    write(tmp_path / "train", pets(1))
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=reason):
        open_reader(f"imagefolder:{tmp_path}", None)


def test_other_splits_use_the_classes_of_train(tmp_path):
    write(tmp_path / "train", pets())
    write(tmp_path / "val", {"emu/1.png": picture(COLOURS["emu"])})
    (tmp_path / "val" / "cat").mkdir()
    val = open_reader(f"imagefolder:{tmp_path}", None, "val")
    assert val.classes == ("cat", "dog", "emu") and val.labels.tolist() == [2]
    assert val.notes == ("1 class folders without pictures",)
    write(tmp_path / "val", {"gnu/1.png": picture((0, 0, 0))})
    with pytest.raises(DataError, match=r"val/gnu/1\.png: class 'gnu' is none of the 3 classes"):
        open_reader(f"imagefolder:{tmp_path}", None, "val")


def test_an_empty_class_folder_is_refused_by_name(tmp_path):
    write(tmp_path / "train", pets())
    (tmp_path / "train" / "fox").mkdir()
    with pytest.raises(DataError, match=r"train/fox: class folder without pictures; fill or remove it"):
        open_reader(f"imagefolder:{tmp_path}", None)


def test_files_that_are_no_pictures_are_counted_and_hidden_ones_passed_over(tmp_path):
    write(tmp_path / "train", pets() | {"cat/notes.md": b"x", "dog/._1.png": b"x", "__MACOSX/1.png": b"x"})
    reader = open_reader(f"imagefolder:{tmp_path}", None)
    assert len(reader) == 9 and reader.notes == ("1 files that are no pictures passed over",)


def test_pictures_can_be_left_out_by_the_beginning_of_their_id(tmp_path):
    write(tmp_path / "train", pets())
    reader = open_reader(f"imagefolder:{tmp_path}", None, leave_out=("train/cat/1", "val/cat", "train/emu"))
    assert [reader[k].id for k in range(len(reader))] == [
        "train/cat/0.png", "train/cat/2.png", "train/dog/0.png", "train/dog/1.png", "train/dog/2.png",
    ]  # fmt: skip
    assert reader.notes == ("4 pictures left out",)
    with pytest.raises(DataError, match="no sample begins with 'train/cow'"):
        open_reader(f"imagefolder:{tmp_path}", None, leave_out=("train/cow",))
    with pytest.raises(DataError, match="leaves nothing"):
        open_reader(f"imagefolder:{tmp_path}", None, leave_out=("train/",))


def test_wrong_settings_are_refused_with_the_nearest_right_one(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"unknown format 'imagefoldr' .*did you mean 'imagefolder'"):
        open_reader("imagefoldr:pets", tmp_path)
    with pytest.raises(ConfigError, match="expected 'format:path'"):
        open_reader("imagefolder:", tmp_path)
    write(tmp_path / "pets" / "train", pets())
    with pytest.raises(ConfigError, match=r"no option 'label'; did you mean 'labels'"):
        open_reader("imagefolder:pets", tmp_path, label="folder")
    monkeypatch.delenv("ALLSIGHT_DATA", raising=False)
    with pytest.raises(ConfigError, match=r"set data\.root or the environment variable ALLSIGHT_DATA"):
        open_reader("imagefolder:pets")
    monkeypatch.setenv("ALLSIGHT_DATA", str(tmp_path))
    assert_is_pets(open_reader("imagefolder:pets"))


def test_what_is_not_there_is_named_with_its_full_path_and_what_is(tmp_path):
    with pytest.raises(DataError, match=rf"{tmp_path}/pets does not exist; set data\.root or ALLSIGHT_DATA"):
        open_reader("imagefolder:pets", tmp_path)
    write(tmp_path / "train", pets())
    zipped(tmp_path / "test.zip", pets())
    tarred(tmp_path / "extra-00000.tar", pets())
    with pytest.raises(
        DataError, match=r"no split 'val'; there are: extra, test, train; expected a folder val/"
    ):
        open_reader(f"imagefolder:{tmp_path}", None, "val")


def test_ambiguous_or_missing_classes_are_refused(tmp_path):
    write(tmp_path / "train", pets() | {"stray.png": picture((0, 0, 0))})
    with pytest.raises(DataError, match=r"cat/0\.png lies in a folder and stray\.png in none"):
        open_reader(f"imagefolder:{tmp_path}", None)
    with pytest.raises(DataError, match=r"stray\.png has no class in its name; expected CLASS/PICTURE"):
        open_reader(f"imagefolder:{tmp_path}", None, labels="folder")
    with pytest.raises(DataError, match=r"expected CLASS_NUMBER"):
        open_reader(f"imagefolder:{tmp_path}", None, labels="prefix")
    with pytest.raises(DataError, match="expected auto, folder, prefix or file:NAME"):
        open_reader(f"imagefolder:{tmp_path}", None, labels="magic")


def test_damaged_archives_are_refused(tmp_path):
    data = zipped(tmp_path / "train.zip", pets()).read_bytes()
    (tmp_path / "train.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"train\.zip: not a zip, or cut short"):
        open_reader(f"imagefolder:{tmp_path}", None)
    (tmp_path / "train.zip").unlink()
    data = tarred(tmp_path / "train.tar", pets()).read_bytes()
    (tmp_path / "train.tar").write_bytes(data[: 512 * 3 + 100])
    with pytest.raises(DataError, match=r"train\.tar: not an uncompressed tar, or cut short"):
        open_reader(f"imagefolder:{tmp_path}", None)


def test_a_missing_shard_and_a_picture_in_two_shards_are_refused(tmp_path):
    in_shards(tmp_path)
    (tmp_path / "train-00001.tar").rename(tmp_path / "train-00003.tar")
    with pytest.raises(DataError, match="shard 1 of train is missing"):
        open_reader(f"imagefolder:{tmp_path}", None)
    (tmp_path / "train-00003.tar").unlink()
    tarred(tmp_path / "train-00001.tar", {"cat/0.png": picture((0, 0, 0))})
    with pytest.raises(DataError, match=r"picture cat/0\.png occurs twice, again in .*train-00001\.tar"):
        open_reader(f"imagefolder:{tmp_path}", None)


@pytest.mark.parametrize("pack", [in_folders, in_zip, in_tar])
def test_broken_pictures_are_errors_of_their_sample_when_they_are_read(tmp_path, pack):
    pack(tmp_path)
    reader = open_reader(f"imagefolder:{tmp_path}", None)
    good = reader[8].id
    if pack is in_folders:
        (tmp_path / "train/cat/1.png").write_bytes(b"")
        (tmp_path / "train/cat/2.png").unlink()
    else:
        path = next(tmp_path.glob("train.*"))
        data = bytearray(path.read_bytes())
        second = data.index(b"\x89PNG", data.index(b"\x89PNG") + 4)
        data[second + 40 : second + 60] = bytes(20)
        path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"^train/cat/1\.png: [^\n]+$") as caught:
        reader[1]
    assert caught.value.sample_id == "train/cat/1.png"
    if pack is in_folders:
        with pytest.raises(DataError, match=r"^train/cat/2\.png: no such file"):
            reader[2]
    assert reader[8].id == good


def test_large_pictures_can_be_read_smaller_and_huge_ones_refused(tmp_path):
    write(tmp_path / "train", {"cat/1.jpg": picture((9, 9, 9), "JPEG", (400, 200))})
    assert open_reader(f"imagefolder:{tmp_path}", None)[0].image.hw_px == (200, 400)
    small = open_reader(f"imagefolder:{tmp_path}", None, min_side_px=60)[0].image
    assert 60 <= small.hw_px[0] < 200 and small.original_hw_px == (200, 400)
    with pytest.raises(DataError, match="expected at most 1000"):
        open_reader(f"imagefolder:{tmp_path}", None, max_pixels=1000)[0]


# Label maps


def streets(root: Path, **classes) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for n, sequence in enumerate(("a", "a", "b")):
            values = rng.integers(0, 4, (5, 7)).astype(np.uint8)
            values[values == 3] = 11
            buffer = io.BytesIO()
            PillowImage.fromarray(values).save(buffer, "PNG")
            write(
                root,
                {
                    f"{split}/{sequence}_{n}.jpg": picture((n, 90, 90), "JPEG", (7, 5)),
                    f"{split}_labels/{sequence}_{n}.png": buffer.getvalue(),
                },
            )
    if classes:
        (root / "classes.json").write_text(json.dumps(classes))
    return root


def test_label_maps_are_read_beside_their_pictures_with_unlabelled_pixels_at_255(tmp_path):
    streets(tmp_path, classes=["sky", "road", "car"], ignore=11)
    reader = open_reader(f"label_maps:{tmp_path}", None, "train")
    assert reader.classes == ("sky", "road", "car") and len(reader) == 3 and reader.ignore == 11
    sample = reader[2]
    assert sample.id == "train/b_2.jpg"
    label_map = sample.targets["label_map"]
    assert isinstance(label_map, LabelMap) and label_map.ignore == 255
    stored = np.asarray(PillowImage.open(tmp_path / "train_labels/b_2.png"))
    np.testing.assert_array_equal(label_map.pixels.numpy(), np.where(stored == 11, 255, stored))
    again = pickle.loads(pickle.dumps(reader))[2]
    assert torch.equal(again.targets["label_map"].pixels, label_map.pixels)


def test_label_maps_take_classes_and_ignore_as_options_and_leave_sequences_out(tmp_path):
    streets(tmp_path)
    with pytest.raises(DataError, match=r"no class names; write .*classes\.json, or set classes="):
        open_reader(f"label_maps:{tmp_path}", None)
    with pytest.raises(DataError, match="256 classes; label maps of 8 bits hold at most 255"):
        open_reader(f"label_maps:{tmp_path}", None, classes=tuple(f"kind {n}" for n in range(256)))
    options = {"classes": ("sky", "road", "car"), "ignore": 11, "leave_out": ("train/a",)}
    train = open_reader(f"label_maps:{tmp_path}", None, "train", **options)
    assert [train[k].id for k in range(len(train))] == ["train/b_2.jpg"]
    assert train.notes == ("2 pictures left out",)
    assert len(open_reader(f"label_maps:{tmp_path}", None, "val", **options)) == 3


def test_label_values_that_are_no_class_are_refused_when_read(tmp_path):
    streets(tmp_path)
    reader = open_reader(f"label_maps:{tmp_path}", None, classes=("sky", "road"), ignore=11)
    with pytest.raises(
        DataError, match=r"^train/a_0\.jpg: the label map holds the value 2 \(\d+ pixels"
    ) as caught:
        reader[0]
    assert caught.value.sample_id == "train/a_0.jpg"


def test_label_maps_that_do_not_belong_are_refused(tmp_path):
    streets(tmp_path, classes=["sky", "road", "car"], ignore=11)
    small = np.zeros((3, 3), np.uint8)
    PillowImage.fromarray(small).save(tmp_path / "train_labels/a_0.png")
    with pytest.raises(DataError, match=r"train/a_0\.jpg: the label map is 3 x 3, the picture 7 x 5"):
        open_reader(f"label_maps:{tmp_path}", None)[0]
    (tmp_path / "train_labels/a_1.png").unlink()
    with pytest.raises(DataError, match=r"train/a_1\.jpg: no label map .*1 of 3 pictures have none"):
        open_reader(f"label_maps:{tmp_path}", None)
    (tmp_path / "val/a_1.jpg").unlink()
    val = open_reader(f"label_maps:{tmp_path}", None, "val")
    assert len(val) == 2 and val.notes == ("1 label maps without a picture passed over",)
    with pytest.raises(DataError, match=r"no split 'test'; there are: train, val"):
        open_reader(f"label_maps:{tmp_path}", None, "test")


def test_packed_strings_are_the_strings():
    strings = ["", "cat", "Grüße", "", "a/b"]
    packed = PackedStrings(strings)
    assert list(packed) == strings and len(packed) == 5 and packed[2] == "Grüße"
    with pytest.raises(IndexError):
        packed[5]
    assert len(pickle.dumps(PackedStrings(f"class/{n:06}.jpg" for n in range(10_000)))) < 300_000
