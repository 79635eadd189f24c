"""Packing: the same bytes always, whatever happens on the way, and everything read back."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from data import shard_making as making
from data.toy_sets import WRITERS

from allsight.cli import main
from allsight.config import ConfigError
from allsight.data.readers import open_reader
from allsight.data.shards.checking import index_place, verify_place
from allsight.data.shards.pack import pack
from allsight.data.shards.packing import key_of
from allsight.data.world import World, generate_world
from allsight.types import DataError


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Data sets of three formats, 24 training samples each."""
    return generate_world(
        tmp_path_factory.mktemp("pack") / "world", World.Config(train=24, val=12, size_px=32, objects=(1, 2))
    )


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """An imagefolder of 30 pictures of different sizes."""
    root = tmp_path_factory.mktemp("pets")
    for number in range(30):
        folder = root / "train" / ("cat", "dog.big")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.v{number % 3}.jpg").write_bytes(making.jpeg(number, 16 + number))
    return root


def files_in(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("format", ["imagefolder:imagefolder", "coco:coco", "label_maps:label_maps"])
def test_each_format_comes_back_from_its_shards_bit_for_bit(world, tmp_path, format):
    source = open_reader(format, world)
    packed = pack(format, tmp_path, root=world, shard_bytes=20_000)
    data = open_reader(f"webdataset:{tmp_path}")
    assert len(packed.catalogue.names) > 1 and len(data) == len(source) and data.classes == source.classes
    for index in range(len(source)):
        one, other = source[index], data[index]
        assert torch.equal(one.image.pixels, other.image.pixels)
        assert source.originals(index) == data.originals(index)
        assert str(one.targets) == str(other.targets)
        assert other.id.endswith("/" + key_of(one.id, "train"))
    assert not packed.notes


def test_the_bytes_do_not_depend_on_processes_or_on_a_second_run(pets, tmp_path):
    for name, processes in (("a", 1), ("b", 2)):
        packed = pack(
            "imagefolder:.", tmp_path / name, root=pets, shard_bytes=10_000, shuffle=5, processes=processes
        )
    first = files_in(tmp_path / "a")
    assert first == files_in(tmp_path / "b") and len(packed.catalogue.names) >= 4
    again = pack("imagefolder:.", tmp_path / "a", root=pets, shard_bytes=10_000, shuffle=5)
    assert again.kept == len(packed.catalogue.names) and files_in(tmp_path / "a") == first


def test_a_shuffled_pack_holds_the_same_samples_in_another_order(pets, tmp_path):
    pack("imagefolder:.", tmp_path / "plain", root=pets)
    pack("imagefolder:.", tmp_path / "mixed", root=pets, shuffle=1)
    plain, mixed = (open_reader(f"webdataset:{tmp_path / name}") for name in ("plain", "mixed"))
    ids = [[data[index].id for index in range(30)] for data in (plain, mixed)]
    assert ids[0] != ids[1] and sorted(ids[0]) == sorted(ids[1])
    assert set(plain.labels[:15]) == {0} and set(mixed.labels[:15]) == {0, 1}


@pytest.mark.parametrize("fault", ["tar cut", "tar changed", "index cut", "index gone", "tar gone"])
def test_after_a_kill_whole_shards_are_kept_and_others_written_anew(pets, tmp_path, fault):
    options = {"root": pets, "shard_bytes": 10_000}
    whole = pack("imagefolder:.", tmp_path / "x", **options)
    expected = files_in(tmp_path / "x")
    (tmp_path / "x/train.shards.json").unlink()
    (tmp_path / "x/train-00001.tar.99999.part").write_bytes(b"half")
    victim = tmp_path / "x" / ("train-00002.tar" + ".index" * fault.startswith("index"))
    data = victim.read_bytes()
    if "gone" in fault:
        victim.unlink()
    else:
        victim.write_bytes(data[:-1] if "cut" in fault else data[:900] + b"?" + data[901:])
    again = pack("imagefolder:.", tmp_path / "x", **options)
    assert files_in(tmp_path / "x") == expected and again.kept == len(whole.catalogue.names) - 1


@pytest.mark.dist
@pytest.mark.slow
def test_a_killed_pack_goes_on_and_leaves_no_process(pets, tmp_path):
    words = ["data", "pack", "imagefolder:.", str(tmp_path / "x"), "--root", str(pets), "--shard-mb", "0.002"]
    code = "import sys; from allsight.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--processes", "2", "--quiet"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    try:
        while process.poll() is None and not list((tmp_path / "x").glob("train-*.index")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # Another pack may not begin before the workers of the killed one are gone.
        for _ in range(500):
            if not _alive(process.pid):
                break
            time.sleep(0.02)
        assert not _alive(process.pid)
    finally:
        if _alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    assert main([*words, "--processes", "1", "--verify", "--quiet"]) == 0
    pack("imagefolder:.", tmp_path / "y", root=pets, shard_bytes=int(0.002 * 2**20))
    assert files_in(tmp_path / "x") == files_in(tmp_path / "y")


def _alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_full_disk_leaves_nothing_half_named(pets, tmp_path, monkeypatch, capsys):
    real, calls = os.fsync, []

    def fills_up(handle):
        calls.append(handle)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr("os.fsync", fills_up)
    words = ["data", "pack", "imagefolder:.", str(tmp_path), "--root", str(pets), "--shard-mb", "0.01"]
    assert main([*words, "--processes", "1", "--quiet"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "train-00001.tar: no space left" in said
    assert {"classes.json", "train.packing.json", "train-00000.tar", "train-00000.tar.index"} <= set(
        files_in(tmp_path)
    )
    assert not list(tmp_path.glob("*.part")) and not (tmp_path / "train.shards.json").exists()
    monkeypatch.setattr("os.fsync", real)
    assert main([*words, "--processes", "1", "--quiet", "--verify"]) == 0


def test_a_folder_with_another_pack_is_refused(pets, world, tmp_path):
    pack("imagefolder:.", tmp_path, root=pets)
    for changed, said in (
        ({"shuffle": 3}, "shuffle was None, is 3"),
        ({"data": "imagefolder:imagefolder", "root": world}, "data was 'imagefolder:.'"),
        ({"split": "val", "data": "imagefolder:imagefolder", "root": world}, "other class names"),
    ):
        given = {"data": "imagefolder:.", "root": pets, **changed}
        with pytest.raises(ConfigError, match=said):
            pack(given.pop("data"), tmp_path, **given)
    (tmp_path / "train.shards.json").unlink()
    index_place(tmp_path)
    with pytest.raises(ConfigError, match="of another pack"):
        pack("imagefolder:.", tmp_path, root=pets)


def test_two_packs_do_not_write_into_one_folder(pets, tmp_path):
    from allsight.data.shards.pack import _alone

    with _alone(tmp_path), pytest.raises(ConfigError, match="another pack is writing into it"):
        pack("imagefolder:.", tmp_path, root=pets)
    assert pack("imagefolder:.", tmp_path, root=pets).left_out == 0


def test_broken_samples_stop_a_pack_or_are_left_out_and_counted(tmp_path, capsys):
    for number in range(12):
        folder = tmp_path / "pets/train" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(making.jpeg(number)[: 200 if number == 7 else None])
    words = [
        "data",
        "pack",
        "imagefolder:pets",
        str(tmp_path / "out"),
        "--root",
        str(tmp_path),
        "--processes",
        "1",
    ]
    assert main([*words, "--quiet"]) == 2
    assert "train/b/7.jpg: " in (said := capsys.readouterr().err) and "use --leave-out-broken" in said
    assert main([*words, "--quiet", "--leave-out-broken"]) == 0
    said = capsys.readouterr().out
    assert "11 samples of train" in said and "1 samples left out" in said and "train/b/7.jpg: " in said
    data = open_reader(f"webdataset:{tmp_path / 'out'}")
    assert len(data) == 11 and data.notes == ("1 broken samples left out when it was packed",)


def test_readers_without_files_are_packed_as_png_and_that_is_said(pets, tmp_path, monkeypatch):
    monkeypatch.delattr("allsight.data.readers.imagefolder.ImageFolder.originals")
    packed = pack("imagefolder:.", tmp_path, root=pets)
    assert packed.notes == ("imagefolder gives pixels, not files: pictures were written as PNG",)
    source, data = open_reader("imagefolder:.", pets), open_reader(f"webdataset:{tmp_path}")
    assert all(torch.equal(source[n].image.pixels, data[n].image.pixels) for n in range(30))


def test_shards_can_be_packed_again(pets, tmp_path):
    pack("imagefolder:.", tmp_path / "a", root=pets)
    pack(f"webdataset:{tmp_path / 'a'}", tmp_path / "b", shard_bytes=20_000)
    a, b = (open_reader(f"webdataset:{tmp_path / name}") for name in "ab")
    assert [a.originals(n) for n in range(30)] == [b.originals(n) for n in range(30)]


@pytest.mark.parametrize(
    ("id", "key"),
    [
        ("train/cat/0012.jpg", "cat/0012"),
        ("train/a.b/c.d.jpeg", "a_b/c_d"),
        ("other/7", "other/7"),
        ("train/.hidden.png", "_hidden"),
        ("train/../../etc/x.png", "__/__/etc/x"),
        ("train/C:\\x.png", "C__x"),
        ("/abs/x.png", "abs/x"),
        ("train/...", "__"),
    ],
)
def test_keys_never_lead_outside_or_end_early(id, key):
    assert key_of(id, "train") == key


def test_equal_keys_become_different_ones(tmp_path):
    for name in ("a.b.jpg", "a_b.jpg", "a_b.png"):
        path = tmp_path / "x/train/cat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(making.jpeg(len(name)))
    pack("imagefolder:x", tmp_path / "out", root=tmp_path)
    data = open_reader(f"webdataset:{tmp_path / 'out'}")
    assert [data[n].id for n in range(3)] == [f"train-00000/cat/{key}" for key in ("a_b", "a_b_2", "a_b_3")]


def test_verify_names_each_fault(pets, tmp_path, capsys):
    pack("imagefolder:.", tmp_path, root=pets, shard_bytes=10_000)
    assert verify_place(tmp_path) == 30
    assert main(["data", "verify", str(tmp_path), "--processes", "1", "--quiet"]) == 0
    assert "30 samples, all as they were written" in capsys.readouterr().out
    zero, one, two, three = sorted(tmp_path.glob("*.tar"))[:4]
    zero.write_bytes(zero.read_bytes()[:-600])
    one.write_bytes(one.read_bytes().replace(b"\xff\xd9", b"\xff\xd8", 1))
    two.with_name("train-00002.tar.index").unlink()
    three.write_bytes(two.read_bytes())
    three.with_name("train-00003.tar.index").unlink()
    index_place(three)
    with pytest.raises(DataError) as caught:
        verify_place(tmp_path)
    lines = str(caught.value).split("\n")
    for name, said in (
        ("train-00000.tar", "damaged: .* bytes instead of"),
        ("train-00001.tar", "damaged: its checksum differs"),
        ("train-00002.tar.index", "no such index"),
        ("train-00003.tar", "another tar than the one in train.shards.json"),
    ):
        assert any(name in line and re.search(said, line) for line in lines), (said, lines)
    assert main(["data", "verify", str(tmp_path), "--processes", "1", "--quiet"]) == 2


def test_index_makes_foreign_tars_readable_from_anywhere(tmp_path, capsys):
    folder = making.class_shards(tmp_path / "x")
    making.class_shards(tmp_path / "x", shards=1, split="val")
    assert main(["data", "index", str(folder), "--processes", "1", "--quiet"]) == 0
    assert "train: 24 samples in 3 tars" in capsys.readouterr().out
    tree = json.loads((folder / "train.shards.json").read_text())
    assert tree["names"] == "train-{00000..00002}.tar" and tree["samples"] == [8, 8, 8]
    assert len(open_reader(f"webdataset:{folder}", split="val")) == 8
    assert main(["data", "index", str(folder / "classes.json"), "--processes", "1", "--quiet"]) == 2
    assert main(["data", "index", str(tmp_path / "none"), "--processes", "1", "--quiet"]) == 2


def test_pack_takes_a_path_alone_from_here_and_options_of_its_format(tmp_path, monkeypatch, capsys):
    WRITERS["label_maps"](tmp_path / "sea")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALLSIGHT_DATA", raising=False)
    words = ["data", "pack", "sea", "out", "--processes", "1", "--quiet"]
    assert main([*words, "classes=[air, water]"]) == 0
    assert open_reader(f"webdataset:{tmp_path / 'out'}").classes == ("air", "water")
    assert main([*words, "clases=[air]"]) == 2 and main([*words, "air"]) == 2
    said = capsys.readouterr().err
    assert "no option 'clases'; did you mean 'classes'" in said and "expected KEY=VALUE, got 'air'" in said
