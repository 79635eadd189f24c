"""Shards on servers: ranges, patience, and what ends at once."""

import itertools
import pickle

import pytest
import torch
from data import shard_making as making

from allsight.config import ConfigError
from allsight.data.readers import open_reader
from allsight.data.shards.checking import index_place
from allsight.data.shards.remote import HttpStore, Patience, RemoteError
from allsight.types import DataError

serving = making.serving


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A folder of indexed shards: 24 samples in 3 tars."""
    folder = making.class_shards(tmp_path_factory.mktemp("far") / "set")
    index_place(folder)
    return folder


@pytest.fixture
def server(shards):
    with serving(shards) as server:
        yield server


def quick(tries=4, timeout_s=0.3):
    """Patience for tests, and the pauses it made."""
    pauses = []
    return Patience(tries=tries, timeout_s=timeout_s, sleep=pauses.append), pauses


def same(one, other):
    return (
        one.id == other.id
        and one.targets == other.targets
        and torch.equal(one.image.pixels, other.image.pixels)
    )


@pytest.mark.parametrize("place", ["", "/train-{00000..00002}.tar", "/{split}-{00000..00002}.tar?token=1"])
def test_samples_are_those_of_the_disk(server, shards, place):
    near, far = open_reader(f"webdataset:{shards}"), open_reader(f"webdataset:{server.url}{place}")
    assert len(near) == len(far) == 24 and near.classes == far.classes
    assert all(same(near[index], far[index]) for index in (23, 0, 8, 7))
    assert (far.labels == near.labels).all()


def test_only_the_bytes_of_a_sample_are_fetched(server, shards):
    reader = open_reader(f"webdataset:{server.url}")
    reader[9]
    before = reader.counts.received
    reader[10]
    tar = (shards / "train-00001.tar").stat().st_size
    assert 1024 <= reader.counts.received - before < tar / 4


@pytest.mark.parametrize("fault", ["500", "503", "429", "408", "hang", "short", "lie"])
def test_what_may_pass_is_tried_again(server, shards, fault):
    patience, pauses = quick()
    store = HttpStore(server.url, patience=patience)
    server.faults.extend([fault, fault])
    tar = (shards / "train-00000.tar").read_bytes()
    assert store.read("train-00000.tar", 512, 1000) == tar[512:1512]
    assert len(server.requests) == 3 and store.counts.retries == 2
    first, second = pauses
    assert 0.125 <= first <= 0.375 and 0.25 <= second <= 0.75


def test_a_whole_file_is_whole_or_asked_for_again(server, shards):
    store = HttpStore(server.url, patience=quick()[0])
    server.faults.append("short")
    assert store.read("classes.json") == (shards / "classes.json").read_bytes()
    assert len(server.requests) == 2


def test_patience_ends_with_one_line(server):
    store = HttpStore(server.url, patience=quick(tries=3)[0])
    server.faults.extend(["500"] * 9)
    with pytest.raises(
        RemoteError, match=r"train-00000.tar: no answer in 3 tries .*HTTP 500.*check the network"
    ) as caught:
        store.read("train-00000.tar", 0, 10)
    assert len(server.requests) == 3 and "\n" not in str(caught.value)


def test_no_server_at_all_is_one_line(server):
    server.close()
    with pytest.raises(RemoteError, match=r"no answer in 2 tries .* refused"):
        HttpStore(server.url, patience=quick(tries=2)[0]).read("x.tar", 0, 10)
    server.close = lambda: None


def test_a_server_that_asks_for_time_gets_it(server):
    patience, pauses = quick()
    server.headers["Retry-After"] = "7"
    server.faults.append("429")
    HttpStore(server.url, patience=patience).read("train-00000.tar", 0, 10)
    assert pauses == [7.0]


@pytest.mark.parametrize("status", ["400", "401", "403", "416"])
def test_what_cannot_succeed_is_not_tried_again(server, status):
    server.faults.extend([status] * 5)
    with pytest.raises(ConfigError, match=f"train-00000.tar: HTTP {status}"):
        HttpStore(server.url, patience=quick()[0]).read("train-00000.tar", 0, 10)
    assert len(server.requests) == 1


def test_a_slow_server_is_waited_for(server, shards):
    server.faults.append("slow")
    size = (shards / "train-00000.tar").stat().st_size
    data = HttpStore(server.url, patience=quick(timeout_s=0.2)[0]).read("train-00000.tar", 0, size)
    assert len(data) == size and len(server.requests) == 1


def test_a_server_without_ranges_is_refused(shards):
    with (
        serving(shards, ranges=False) as server,
        pytest.raises(ConfigError, match=r"does not serve ranges of files .status 200 instead of 206"),
    ):
        open_reader(f"webdataset:{server.url}")


def test_damage_on_the_way_is_fetched_anew_and_damage_at_the_source_named(server, shards):
    far = open_reader(f"webdataset:{server.url}")
    near = open_reader(f"webdataset:{shards}")
    far[1]
    server.faults.append("damage")
    assert same(far[0], near[0])
    server.faults.extend(["damage", "damage"])
    with pytest.raises(
        DataError, match=r"train-00000/#3: .*other bytes than its index says .their checksum"
    ) as caught:
        far[3]
    assert caught.value.sample_id == "train-00000/#3"


def test_an_index_damaged_on_the_way_is_fetched_anew(server):
    server.faults.extend([None, None, "damage"])
    reader = open_reader(f"webdataset:{server.url}")
    assert reader[0].id == "train-00000/00000"


def test_what_is_missing_is_said_with_the_command_that_helps(server, shards, tmp_path):
    with pytest.raises(DataError, match=r"val.shards.json: no such file.*allsight data index"):
        open_reader(f"webdataset:{server.url}", split="val")
    with pytest.raises(DataError, match=r"read by its index: run `allsight data index`"):
        open_reader(f"webdataset:{server.url}/train-{{00000..00007}}.tar")
    with pytest.raises(DataError, match=r"which of its samples are split 'val'"):
        open_reader(f"webdataset:{server.url}/train-00000.tar", split="val")
    with pytest.raises(ConfigError, match=r"imagefolder reads from disks, not from URLs"):
        open_reader(f"imagefolder:{server.url}")


def test_announced_samples_are_fetched_side_by_side(server):
    reader = open_reader(f"webdataset:{server.url}")
    expected = [reader[index].id for index in range(8, 16)]
    server.delay_s, server.most_at_once = 0.05, 0
    reader.ahead(range(8, 16))
    assert [reader[index].id for index in range(8, 16)] == expected
    assert server.most_at_once >= 4


def test_an_open_reader_can_be_sent_to_another_process(server):
    reader = open_reader(f"webdataset:{server.url}")
    reader.ahead([1, 2])
    again = pickle.loads(pickle.dumps(reader))
    assert same(again[5], reader[5])


def test_other_schemes_are_read_through_fsspec(shards):
    import fsspec

    files = fsspec.filesystem("memory")
    for path in shards.iterdir():
        files.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    near = open_reader(f"webdataset:{shards}")
    for place in ("memory://bucket", "memory://bucket/{split}-{00000..00002}.tar"):
        far = open_reader(f"webdataset:{place}")
        assert all(same(near[index], far[index]) for index in (0, 23))
    files.rm("/bucket/train-00001.tar")
    with pytest.raises(ConfigError, match=r"memory://bucket/train-00001.tar: no such shard"):
        far[9]


def test_an_unknown_scheme_or_a_missing_package_is_one_line():
    with pytest.raises(ConfigError, match=r"nosuch"):
        open_reader("webdataset:nosuch://bucket/a-{0..3}.tar")


class Failing:
    """An s3-like file system whose reads fail now and then."""

    def __init__(self, files, failures):
        self.files, self.failures = files, itertools.chain(failures, itertools.repeat(None))

    def cat_file(self, path, start=None, end=None):
        match next(self.failures):
            case None:
                return self.files[path][start:end]
            case "short":
                return self.files[path][start:end][:-1]
            case error:
                raise error


def test_failures_below_fsspec_are_tried_again_or_final(monkeypatch):
    from allsight.data.shards.remote import FsspecStore

    files = Failing(
        {"b/x.tar": bytes(range(100))}, [OSError("reset"), "short", RuntimeError("SlowDown"), None]
    )
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url: (files, url.removeprefix("s3://")))
    store = FsspecStore("s3://b", quick()[0])
    assert store.read("x.tar", 10, 20) == bytes(range(10, 30)) and store.counts.retries == 3
    files.failures = iter([PermissionError("no rights")])
    with pytest.raises(ConfigError, match=r"no rights; check the address and your rights"):
        store.read("x.tar", 10, 20)
    nobody = type("NoCredentialsError", (Exception,), {})
    files.failures = iter(
        [nobody("Unable to locate credentials"), OSError("Requested range not satisfiable")]
    )
    with pytest.raises(ConfigError, match=r"s3://b/x.tar: NoCredentialsError: .*; check .* your keys"):
        store.read("x.tar", 10, 20)
    with pytest.raises(ConfigError, match=r"not satisfiable: the file is shorter than its index says"):
        store.read("x.tar", 10, 20)
    assert store.counts.retries == 3
