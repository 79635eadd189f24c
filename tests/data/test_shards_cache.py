"""What is kept on a node, and what is fetched ahead: always within its limits, never wrong."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from data import shard_making as making

from allsight.config import ConfigError
from allsight.data.order import Shuffles
from allsight.data.readers import open_reader
from allsight.data.shards.cache import BlockCache, read_through
from allsight.data.shards.checking import index_place
from allsight.data.shards.opening import find_shards
from allsight.data.shards.readahead import ReadAhead
from allsight.data.shards.shelf import Shelf
from allsight.data.shards.stores import Counts
from allsight.data.task_order import TaskOrder

DATA = bytes(range(256)) * 10


class Far:
    """A file of 2560 bytes whose reads are written down."""

    def __init__(self, data=DATA):
        self.data, self.reads, self.counts = data, [], Counts()

    def where(self, name):
        return f"far://{name}"

    def read(self, name, start=0, size=None):
        self.reads.append((start, size))
        return self.data[start : start + size]


def through(cache, far, start, size, version="1", fresh=False):
    return read_through(
        cache, far, "x.tar", version=version, total=len(far.data), start=start, size=size, fresh=fresh
    )


def blocks(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def test_what_was_fetched_is_not_fetched_again(tmp_path):
    cache, far = BlockCache(tmp_path, 10_000, 256), Far()
    assert through(cache, far, 300, 600) == DATA[300:900]
    assert through(BlockCache(tmp_path, 10_000, 256), far, 256, 700) == DATA[256:956]
    assert through(cache, far, 2500, 60) == DATA[2500:] and through(cache, far, 0, 2560) == DATA
    assert far.reads == [(256, 768), (2304, 256), (0, 256), (1024, 1280)]
    assert through(cache, far, 0, 2560) == DATA and len(far.reads) == 4


def test_another_version_of_a_file_is_another_file(tmp_path):
    cache, far = BlockCache(tmp_path, 10_000, 256), Far()
    through(cache, far, 0, 100)
    far.data = bytes(2560)
    assert through(cache, far, 0, 100, version="2") == bytes(100)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_block_is_fetched_anew(tmp_path, damage):
    cache, far = BlockCache(tmp_path, 10_000, 256), Far()
    through(cache, far, 0, 256)
    (path,) = blocks(tmp_path)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[:50]), "empty": b""}[damage])
    assert through(cache, far, 0, 256) == DATA[:256] and len(far.reads) == 2
    assert through(cache, far, 0, 256) == DATA[:256] and len(far.reads) == 2


def test_the_limit_holds_and_what_was_used_last_stays(tmp_path):
    cache = BlockCache(tmp_path, 12 * 300, 256)
    for number in range(10):
        cache.put("f", number, bytes([number]) * 256)
        for path in blocks(tmp_path):
            facts = path.stat()
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns - 10**9))
    assert cache.get("f", 0) == bytes(256)
    for number in range(10, 20):
        cache.put("f", number, bytes([number]) * 256)
        assert sum(path.stat().st_size for path in blocks(tmp_path)) <= 12 * 300
    assert cache.get("f", 0) is not None and cache.get("f", 1) is None and cache.get("f", 19) is not None


def test_many_drawers_keep_the_limit_too(tmp_path):
    cache = BlockCache(tmp_path, 200 * 256, 256)
    for number in range(400):
        cache.put("f", number, bytes(240))
    kept = blocks(tmp_path)
    assert len({path.parent for path in kept}) == 3
    assert 100 * 256 < sum(path.stat().st_size for path in kept) <= 200 * 256


def test_a_limit_of_less_than_four_blocks_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="fewer than four blocks"):
        BlockCache(tmp_path, 1000, 256)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_means_no_cache_and_one_note(tmp_path, monkeypatch, code):
    cache, far = BlockCache(tmp_path, 10_000, 256), Far()
    through(cache, far, 0, 256)

    def full(self, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.warns(UserWarning, match=f"{os.strerror(code)}; this process goes on without") as said:
        assert through(cache, far, 256, 512) == DATA[256:768]
        assert through(cache, far, 1024, 256) == DATA[1024:1280]
    assert len(said) == 1 and len(blocks(tmp_path)) == 1
    assert through(cache, far, 0, 256) == DATA[:256] and len(far.reads) == 3


def test_what_a_killed_process_left_is_removed_in_time(tmp_path):
    cache = BlockCache(tmp_path, 10_000, 256)
    cache.put("f", 0, bytes(10))
    (path,) = blocks(tmp_path)
    old, young = path.with_name("1-0.part"), path.with_name("2-0.part")
    for part in (old, young):
        part.write_bytes(b"x")
    os.utime(old, (0, 0))
    cache.put("f", 1, bytes(10))
    assert not old.exists() and young.exists()


def test_several_threads_share_a_cache_that_is_too_small(tmp_path):
    far, wrong = Far(), []

    def reads(seed):
        cache = BlockCache(tmp_path, 5 * 300, 256)
        for turn in range(60):
            start = (seed * 977 + turn * 331) % 2300
            if through(cache, far, start, 200) != DATA[start : start + 200]:
                wrong.append(start)

    threads = [threading.Thread(target=reads, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and sum(path.stat().st_size for path in blocks(tmp_path)) <= 5 * 300


def test_a_reader_with_a_cache_asks_the_server_once_and_recovers_from_damage(tmp_path):
    folder = making.class_shards(tmp_path / "far", shards=2)
    index_place(folder)
    with making.serving(folder) as server:
        options = {"cache": tmp_path / "cache", "cache_mb": 8, "cache_block_kb": 4}
        first = open_reader(f"webdataset:{server.url}", **options)
        expected = [first[index].targets for index in range(16)]
        again = open_reader(f"webdataset:{server.url}", **options)
        server.requests.clear()
        assert [again[index].targets for index in range(16)] == expected and server.requests == []
        # Whole blocks with a right checksum of wrong bytes: only the sample's own checksum can tell.
        cache = BlockCache(tmp_path / "cache", 8 * 2**20, 4 * 2**10)
        crc32 = again._shelf.catalogue.header(0).tar_crc32
        cache.put(f"{server.url}/train-00000.tar\0{crc32:08x}", 0, bytes(4096))
        assert again[0].targets == expected[0] and server.requests == ["train-00000.tar"]


def test_what_is_held_ahead_stays_within_its_bytes():
    held, most = [], 0
    gate = threading.Semaphore(0)

    def fetch(item):
        gate.acquire()
        return bytes(100)

    ahead = ReadAhead(fetch, 350, threads=8)
    ahead.announce(range(10), [100] * 10)
    for _ in range(20):
        gate.release()
    for item in range(10):
        most = max(most, ahead.held_bytes)
        held.append(ahead.take(item))
    assert len(held) == 10 and most <= 350 and ahead.held_bytes == 0


def test_what_is_not_announced_or_fetched_twice_still_comes():
    ahead = ReadAhead(lambda item: bytes([item]), 10, threads=2)
    ahead.announce([1, 2, 2, 3], [1, 1, 1, 1])
    assert [ahead.take(item) for item in (2, 2, 9, 1)] == [b"\2", b"\2", b"\x09", b"\1"]
    ahead.announce([4], [1])
    assert ahead.take(3) == b"\3" and ahead.take(4) == b"\4"


def test_what_failed_ahead_fails_when_it_is_asked_for():
    def fetch(item):
        raise KeyError(item)

    ahead = ReadAhead(fetch, 100)
    ahead.announce([1, 2], [1, 1])
    for item in (2, 1):
        with pytest.raises(KeyError):
            ahead.take(item)
    assert ahead.held_bytes == 0


def test_rows_that_read_in_blocks_need_few_requests_though_little_fits_into_the_cache(tmp_path):
    folder = making.class_shards(tmp_path / "shards", shards=4, each=64)
    index_place(folder)
    requests = {}
    for block in (0, 8):
        with making.serving(folder) as server:
            found = find_shards(server.url, "train")
            cache = BlockCache(tmp_path / f"cache {block}", 128 * 1024, 16 * 1024)
            shelf = Shelf(found.store, found.catalogue, cache=cache, in_blocks=block > 0)
            order = TaskOrder(0, Shuffles(0), "t", len(shelf), 2, block=block)
            draws, places = np.divmod(np.arange(len(shelf)), 2)
            names = {shelf.read(index)[0] for index in order.samples(draws, places).tolist()}
            requests[block] = shelf.counts.requests
    assert len(names) == len(shelf) == 256
    assert requests[0] > 256 and requests[8] < 256 / 2, requests
