"""Tars, their indexes and lists: what is found in them, and what is refused."""

import tarfile

import pytest
from data import shard_making as making

from allsight.data.shards.catalogue import Catalogue, expand
from allsight.data.shards.index import Index, IndexHeader, index_tar, write_whole
from allsight.data.shards.members import contents, spans, split_name
from allsight.types import DataError

write_tar = making.write_tar


def member(name, type=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, target
    return info


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_each_sample_is_found_as_tarfile_finds_it(tmp_path, format):
    long = "folder/" + "x" * 60 + "/" + "y" * 80
    files = [
        ("a.jpg", b"1" * 700),
        ("a.cls", b"7"),
        ("./b/c.000.jpg", b"2"),
        ("b/c.json", b""),
        ("d.e.txt", b"3"),
    ]
    if format != tarfile.USTAR_FORMAT:
        files += [(f"{long}.txt", b"4" * 513), (f"{long}.cls", b"2"), ("ünïcode/é.txt", b"5")]
    path = write_tar(tmp_path / "x.tar", files, format)
    index, data = index_tar(path), path.read_bytes()
    found = {}
    for offset, size, _, _ in index.entries.tolist():
        key, parts = contents(data[offset : offset + size], "x.tar")
        found |= {f"{key}.{ending}": part for ending, part in parts.items()}
    with tarfile.open(path) as archive:
        expected = {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive}
    assert found == expected
    assert index.entries["label"].tolist()[:3] == [7, -1, -1]


def test_folders_and_nameless_members_belong_to_no_sample(tmp_path):
    path = write_tar(
        tmp_path / "x.tar",
        [member("a", tarfile.DIRTYPE), ("a/1.txt", b"1"), ("a/README", b"?"), ("a/.hidden", b"?")],
    )
    assert [span.key for span in spans(path.read_bytes(), "x")] == ["a/1"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a/7.000.jpg", ("a/7", "000.jpg")),
        ("b.d/x.JPG", ("b.d/x", "jpg")),
        ("README", ("README", "")),
        (".x", (".x", "")),
    ],
)
def test_a_name_parts_at_the_first_dot_of_its_last_part(name, parts):
    assert split_name(name) == parts


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("../up.txt", b""), "leads outside"),
        (("a/../../up.txt", b""), "leads outside"),
        (("/etc/x.txt", b""), "leads outside"),
        (("C:x.txt", b""), "leads outside"),
        (("a\\b.txt", b""), "leads outside"),
        (member("a.txt", tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link"),
        (member("a.txt", tarfile.LNKTYPE, "b.txt"), "a hard link"),
        (member("a.txt", tarfile.CHRTYPE), "a device"),
        (member("a.txt", tarfile.BLKTYPE), "a device"),
        (member("a.txt", tarfile.FIFOTYPE), "a pipe"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_could_lead_outside_is_refused(tmp_path, entry, said):
    path = write_tar(tmp_path / "evil.tar", [("good.txt", b"1"), entry])
    with pytest.raises(DataError, match=rf"evil.tar: .*{said}"):
        index_tar(path)


def test_a_long_name_cannot_smuggle_a_path(tmp_path):
    path = write_tar(tmp_path / "evil.tar", [("x" * 120 + "/../../../etc/y.txt", b"")], tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match="leads outside"):
        index_tar(path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([("a.txt", b""), ("b.txt", b""), ("a.cls", b"")], "apart from the other files of 'a'"),
        ([("a.txt", b""), ("a.TXT", b"")], "two files that end in .txt"),
        ([("README", b"")], "no samples"),
    ],
)
def test_tars_whose_samples_are_unclear_are_refused(tmp_path, files, said):
    with pytest.raises(DataError, match=said):
        index_tar(write_tar(tmp_path / "x.tar", files))


def test_damaged_tars_are_refused_at_the_byte(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"1" * 2000), ("b.txt", b"2" * 2000)])
    data = path.read_bytes()
    for damaged, said in (
        (data[:3000], "cut short"),
        (data[:2700], "no tar header at byte 2560"),
        (data[:2600] + b"\xff" + data[2601:], "no tar header at byte 2560"),
        (b"\x1f\x8b" + data, "compressed"),
        (b"", "no samples"),
        (b"hello" * 200, "no tar header at byte 0"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=said):
            index_tar(path)


def test_an_index_is_what_its_page_says(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.cls", b"5"), ("b.txt", b"hello")])
    index = index_tar(path)
    data = index.pack()
    assert data[:8] == b"ALLSIDX\0" and data[8:12] == bytes([1, 0, 20, 0])
    assert int.from_bytes(data[16:24], "little") == 2 and len(data) == 64 + 2 * 20
    assert int.from_bytes(data[24:32], "little") == path.stat().st_size
    second = data[84:104]
    assert int.from_bytes(second[:8], "little") == 1024 and int.from_bytes(second[8:12], "little") == 1024
    assert int.from_bytes(second[16:20], "little", signed=True) == -1
    again = Index.unpack(data, "x")
    assert again.header == index.header and (again.entries == index.entries).all()


def test_each_damaged_bit_of_an_index_is_noticed(tmp_path):
    data = index_tar(write_tar(tmp_path / "x.tar", [("a.cls", b"5"), ("b.txt", b"hello")])).pack()
    for at in range(len(data)):
        broken = bytearray(data)
        broken[at] ^= 4
        with pytest.raises(DataError, match="allsight data index"):
            Index.unpack(bytes(broken), "x.tar.index")
    for size in range(len(data)):
        with pytest.raises(DataError, match="index"):
            Index.unpack(data[:size], "x.tar.index")


def test_a_list_of_shards_comes_back(tmp_path):
    headers = [IndexHeader(10 + n, 2**40 + n, 2**32 - 1, n) for n in range(3)]
    for names in (["t-00000.tar", "t-00001.tar", "t-00002.tar"], ["b.tar", "a.tar", "c.tar"]):
        data = Catalogue.of(names, headers, ("image",), why="test").pack()
        again = Catalogue.unpack(data, "x")
        assert list(again.names) == names and [again.header(n) for n in range(3)] == headers
        assert again.parts == ("image",) and again.facts == {"why": "test"}
    assert b"{00000..00002}" in Catalogue.of([f"t-{n:05}.tar" for n in range(3)], headers).pack()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "allsight-shards", "version": 9}', '{"format": "x", "version": 1}']
)
def test_another_file_is_no_list_of_shards(text):
    with pytest.raises(DataError, match=r"train.shards.json: .*allsight data index"):
        Catalogue.unpack(text.encode(), "train.shards.json")


def test_a_list_may_not_lead_outside_its_folder():
    data = Catalogue.of(["../x.tar"], [IndexHeader(1, 1, 1, 1)]).pack()
    with pytest.raises(DataError, match="leads outside"):
        Catalogue.unpack(data, "x")


def test_patterns_count_as_written():
    assert expand("a-{08..11}.tar", "") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand("{0..1}/{0..1}.tar", "") == ["0/0.tar", "0/1.tar", "1/0.tar", "1/1.tar"]
    for wrong in ("a-{3..1}.tar", "a-{0..999999999}.tar", "a-{x}.tar", "a-{0..9.tar"):
        with pytest.raises(DataError):
            expand(wrong, "place")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.index"
    write_whole(path, b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["x.index"]
