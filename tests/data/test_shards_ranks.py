"""Two processes that read one mixture from a server see what one process sees, each row once."""

import json
from pathlib import Path

import pytest
from data import shard_making as making
from data import shard_rank
from rank_processes import run_ranks

from allsight.data.loader import MetaDataloader
from allsight.data.making import LoadingError
from allsight.data.shards.checking import index_place
from allsight.data.shards.stores import RemoteError


@pytest.fixture
def server(tmp_path):
    """A server of two data sets: 24 pictures with classes, 12 with captions."""
    making.class_shards(tmp_path / "far/classes")
    for shard in range(2):
        files = [
            entry
            for number in range(shard * 6, shard * 6 + 6)
            for entry in ((f"{number}.jpg", making.jpeg(number)), (f"{number}.txt", b"word " * number))
        ]
        folder = tmp_path / "far/captions"
        folder.mkdir(exist_ok=True)
        making.write_tar(folder / f"train-{shard:05}.tar", files)
    for name in ("classes", "captions"):
        index_place(tmp_path / "far" / name)
    with making.serving(tmp_path / "far") as server:
        yield server


@pytest.mark.dist
def test_two_ranks_see_what_one_process_sees(server, tmp_path):
    alone = shard_rank.seen(shard_rank.mixture(server.url, None, 0, 1))
    out, cache = tmp_path / "rows.json", tmp_path / "cache"
    # Some requests fail on the way; nothing of that may show.
    server.faulty = ".tar"
    server.faults.extend(["503", None, None, "short", None, "damage", None, None, "500"])
    run_ranks(Path(__file__).with_name("shard_rank.py"), server.url, cache, out, timeout_s=120)
    of_ranks = json.loads(out.read_text())
    assert of_ranks[0] and of_ranks[1] and not server.faults
    assert sorted(of_ranks[0] + of_ranks[1]) == sorted(alone)
    assert len({tuple(row[:3]) for row in alone}) == len(alone)


def test_a_micro_batch_is_fetched_side_by_side(server):
    plan = shard_rank.mixture(server.url, None, 0, 1)
    server.delay_s, server.most_at_once = 0.02, 0
    with MetaDataloader(plan) as loader:
        next(loader)
    assert server.most_at_once >= 3


def test_an_outage_ends_the_run_and_replaces_no_sample(server):
    plan = shard_rank.mixture(server.url, None, 0, 1)
    with MetaDataloader(plan) as loader:
        next(loader)
        server.faults.extend(["503"] * 10_000)
        with pytest.raises(RemoteError, match=r"no answer in 4 tries .*HTTP 503"):
            for _ in loader:
                pass


def test_a_damaged_sample_is_replaced_and_named(server, tmp_path):
    tar = tmp_path / "far/classes/train-00001.tar"
    data = bytearray(tar.read_bytes())
    data[1100] ^= 255
    tar.write_bytes(data)
    plan = shard_rank.mixture(server.url, None, 0, 1)
    with MetaDataloader(plan) as loader:
        corrupt = {
            bad.id for step in loader for b in step.batches.values() for batch in b for bad in batch.corrupt
        }
    assert corrupt == {"train-00001/#0"}


def test_an_error_of_ours_is_still_an_error_of_ours(server, monkeypatch):
    plan = shard_rank.mixture(server.url, None, 0, 1)
    monkeypatch.setattr("allsight.data.shards.shelf.contents", lambda *_: 1 / 0)
    with pytest.raises(LoadingError, match="ZeroDivisionError"), MetaDataloader(plan) as loader:
        next(loader)
