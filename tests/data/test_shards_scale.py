"""The arithmetic of large data sets agrees with what the code does, and the page with the arithmetic."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from data import shard_making as making

from allsight.data.readers import open_reader
from allsight.data.shards.catalogue import Catalogue, catalogue_name
from allsight.data.shards.checking import index_place
from allsight.data.shards.index import ENTRY, HEADER_BYTES, Index, IndexHeader, write_whole
from allsight.data.shards.pack import pack
from allsight.data.shards.scale import fetched_factor, scale_estimate, worth_keeping

PAGE = Path(__file__).parents[2] / "docs" / "data_at_scale.md"


def test_sizes_are_those_of_real_shards(tmp_path):
    folder = making.class_shards(tmp_path / "a", shards=1, each=80)
    packed = pack(f"webdataset:{folder}", tmp_path / "b", shard_bytes=24_000)
    files = [sum(map(len, open_reader(f"webdataset:{folder}").originals(n).values())) + 1 for n in range(80)]
    estimate = scale_estimate(samples=80, bytes_per_sample=float(np.mean(files)), ranks=1, shard_bytes=24_000)
    tars = list((tmp_path / "b").glob("*.tar"))
    assert abs(estimate.shards - len(tars)) <= 0.2 * len(tars)
    assert estimate.data_bytes == pytest.approx(sum(tar.stat().st_size for tar in tars), rel=0.2)
    index_bytes = sum(path.stat().st_size for path in (tmp_path / "b").glob("*.index"))
    assert index_bytes == len(tars) * HEADER_BYTES + 80 * ENTRY.itemsize
    assert packed.catalogue.samples.sum() == 80


def test_a_list_of_many_shards_takes_what_is_said():
    headers = [IndexHeader(2560, 268_000_000 + n, 2**31 + n, 2**31 + n) for n in range(5000)]
    catalogue = Catalogue.of([f"train-{n:06}.tar" for n in range(5000)], headers)
    estimate = scale_estimate(samples=5000, bytes_per_sample=1e3, ranks=1, shard_bytes=1)
    assert len(catalogue.pack()) == pytest.approx(estimate.catalogue_bytes, rel=0.1)


@pytest.mark.parametrize(
    ("cache_bytes", "cached"),
    [(0, "nothing"), (2 * 10**9, "indexes"), (99 * 10**9, "blocks"), (10**12, "all")],
)
def test_a_cache_is_used_for_what_it_can_hold(cache_bytes, cached):
    estimate = scale_estimate(samples=10**6, bytes_per_sample=1e5, ranks=16, cache_bytes=cache_bytes)
    assert estimate.cached == cached
    alone = scale_estimate(samples=10**6, bytes_per_sample=1e5, ranks=16)
    assert estimate.node_bytes_per_s <= alone.node_bytes_per_s
    assert estimate.total_bytes_per_s == pytest.approx(2 * estimate.node_bytes_per_s)


def test_blocks_are_worth_keeping_only_if_they_save_bytes():
    assert fetched_factor(1e5, 1) == pytest.approx(1) and fetched_factor(1e5, 10**6) == pytest.approx(
        11, rel=1e-3
    )
    assert worth_keeping(100, 100, 10, 1000) and not worth_keeping(50, 100, 10, 1000)
    assert worth_keeping(50, 100, 1000, 10)


def test_a_cache_that_is_too_small_keeps_indexes_only_and_says_so(tmp_path):
    folder = tmp_path / "far"
    folder.mkdir()
    for shard in range(3):
        files = [(f"{shard}{n}.txt", bytes([n]) * 300_000) for n in range(8)]
        making.write_tar(folder / f"train-{shard:05}.tar", files)
    index_place(folder)
    with making.serving(folder) as server:
        options = {"cache": tmp_path / "cache", "cache_mb": 5, "cache_block_kb": 1024}
        reader = open_reader(f"webdataset:{server.url}", **options)
        assert "only indexes are kept" in reader.notes[0]
        before = reader.counts.received
        assert reader[9].inputs["text"].string == "\1" * 300_000
        assert reader.counts.received - before < 310_000
        server.requests.clear()
        _ = open_reader(f"webdataset:{server.url}", **options)[9]
        assert not any(name.endswith(".index") for name in server.requests)


def test_a_process_holds_little_of_a_very_large_index(tmp_path):
    per_shard, shards = 10_000, 1000
    entries = np.zeros(per_shard, dtype=ENTRY)
    entries["size"] = 1024
    entries["offset"] = np.arange(per_shard) * 1024
    first = making.write_tar(tmp_path / "train-00000.tar", [("a.txt", b"x")]).read_bytes()
    entries["crc32"] = zlib.crc32(first[:1024])
    index = Index.of(entries, len(first), 0)
    names = [f"train-{n:05}.tar" for n in range(shards)]
    write_whole(
        tmp_path / catalogue_name("train"), Catalogue.of(names, [index.header] * shards, ("text",)).pack()
    )
    write_whole(tmp_path / "train-00000.tar.index", index.pack())
    reader = open_reader(f"webdataset:{tmp_path}", index_mb=1)
    assert len(reader) == 10**7 and reader[0].inputs["text"].string == "x"
    assert reader.index_bytes == 20 * per_shard


def test_the_page_shows_what_the_function_says():
    estimates = {
        "nothing": scale_estimate(samples=10**9, bytes_per_sample=1e5, ranks=1000),
        "indexes": scale_estimate(samples=10**9, bytes_per_sample=1e5, ranks=1000, cache_bytes=2 * 10**12),
        "all": scale_estimate(samples=10**7, bytes_per_sample=1e5, ranks=1000, cache_bytes=2 * 10**12),
    }
    page = PAGE.read_text(encoding="utf-8")
    for cached, estimate in estimates.items():
        assert estimate.cached == cached
        assert "\n".join(estimate.lines()) in page
