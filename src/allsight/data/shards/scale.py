"""What many samples ask of disks, memory and network: the arithmetic of docs/data_at_scale.md."""

from __future__ import annotations

import math
from dataclasses import dataclass

from allsight.data.shards.index import ENTRY, HEADER_BYTES
from allsight.data.shards.members import BLOCK

CATALOGUE_BYTES = 41
"""Bytes of a shard's entry in `SPLIT.shards.json`, measured with 390,000 shards of 256 MB."""

CATALOGUE_MEMORY_BYTES = 48
"""Bytes of the same in memory: four columns and the name."""

CATALOGUE_SECONDS = 3e-6
"""Seconds to read a shard's entry (one core of an AMD EPYC beside other work, 390,000 shards)."""

_FIRST_READS = 4
"""Reads one after another until the first sample is there: list, class names, an index, the sample."""


@dataclass(frozen=True)
class ScaleEstimate:
    """The result of `scale_estimate`; bytes are totals unless the name says otherwise.

    Args:
        shards: Number of tars.
        samples_per_shard: In each.
        data_bytes: All tars.
        index_bytes: All indexes on disk; a node's cache comes to hold them.
        shard_index_bytes: The index of one shard: what is read the first time one of its samples is.
        catalogue_bytes: The list of shards, which each process reads at the start.
        process_bytes: Memory of a process for list and indexes, whatever the number of samples.
        processes_per_node: Ranks and their workers.
        startup_s: From the first request to the first sample, on a node whose processes all start together.
        startup_node_bytes: What a node fetches until then.
        cache_hit: Share of reads that the cache answers once it is full.
        cached: `all` data and indexes, `blocks` of the data as they come, or `indexes` alone, since keeping
            blocks would fetch more than it saves; `nothing` without a cache.
        node_requests_per_s: Requests of a node once its cache is as full as it gets.
        node_bytes_per_s: What a node then fetches.
        link_share: The same as a share of its link.
        filling_s: Seconds until the cache is full, at the link's speed if need be.
        total_requests_per_s: Of all nodes.
        total_bytes_per_s: Of all nodes.
        epoch_s: Seconds until each sample was used once.
    """

    shards: int
    samples_per_shard: int
    data_bytes: int
    index_bytes: int
    shard_index_bytes: int
    catalogue_bytes: int
    process_bytes: int
    processes_per_node: int
    startup_s: float
    startup_node_bytes: int
    cache_hit: float
    cached: str
    node_requests_per_s: float
    node_bytes_per_s: float
    link_share: float
    filling_s: float
    total_requests_per_s: float
    total_bytes_per_s: float
    epoch_s: float

    def lines(self) -> list[str]:
        """A line a quantity, for people."""
        rows = [
            ("shards", f"{self.shards:,} of {self.samples_per_shard:,} samples"),
            ("data", _bytes(self.data_bytes)),
            ("indexes", f"{_bytes(self.index_bytes)}, {_bytes(self.shard_index_bytes)} a shard"),
            ("list of shards", _bytes(self.catalogue_bytes)),
            ("memory of a process", f"{_bytes(self.process_bytes)} for list and indexes"),
            ("start", f"{self.startup_s:.1f} s, {_bytes(self.startup_node_bytes)} a node"),
            ("cache", f"{self.cached}, {self.cache_hit:.0%} of the data"),
            ("a node fetches", f"{_bytes(self.node_bytes_per_s)}/s, {self.link_share:.0%} of its link"),
            ("", f"{self.node_requests_per_s:,.0f} requests/s"),
            (
                "all nodes fetch",
                f"{_bytes(self.total_bytes_per_s)}/s, {self.total_requests_per_s:,.0f} requests/s",
            ),
            ("cache full after", f"{_time(self.filling_s)} at the earliest" if self.filling_s else "-"),
            ("an epoch", _time(self.epoch_s)),
        ]
        return [f"{name:<20} {text}" for name, text in rows]


def scale_estimate(
    *,
    samples: int,
    bytes_per_sample: float,
    ranks: int,
    ranks_per_node: int = 8,
    workers_per_rank: int = 8,
    samples_per_s_per_rank: float = 500.0,
    files_per_sample: int = 2,
    shard_bytes: int = 256 * 2**20,
    link_bytes_per_s: float = 25e9 / 8,
    latency_s: float = 0.03,
    cache_bytes: int = 0,
    block_bytes: int = 2**20,
    kept_index_bytes: int = 64 * 2**20,
) -> ScaleEstimate:
    """What reading a data set in a fully random order asks of each node, by arithmetic alone.

    Args:
        samples: In the data set.
        bytes_per_sample: Of its files together, without the tar's headers.
        ranks: GPUs.
        ranks_per_node: GPUs of one machine, which share a link and a cache.
        workers_per_rank: Processes that read for a GPU, beside its own.
        samples_per_s_per_rank: What a GPU takes.
        files_per_sample: Each costs a header of 512 bytes and on average half a block of padding.
        shard_bytes: Size of a tar.
        link_bytes_per_s: From the store to a node.
        latency_s: From a request to its first byte.
        cache_bytes: Of a node; 0 is none.
        block_bytes: `cache_block_kb`.
        kept_index_bytes: `index_mb`.
    """
    size = bytes_per_sample + files_per_sample * 1.5 * BLOCK
    per_shard = max(1, int(shard_bytes // size))
    shards = math.ceil(samples / per_shard)
    data, shard_index = size * samples, HEADER_BYTES + per_shard * ENTRY.itemsize
    index = shards * HEADER_BYTES + samples * ENTRY.itemsize
    catalogue = shards * CATALOGUE_BYTES
    nodes = math.ceil(ranks / ranks_per_node)
    processes = min(ranks, ranks_per_node) * (1 + workers_per_rank)
    first = processes * (catalogue + shard_index + size)

    room = max(0.0, cache_bytes - index)
    hit = min(1.0, room / data)
    factor = fetched_factor(size, block_bytes)
    if cache_bytes == 0:
        cached, hit, fetched = "nothing", 0.0, size
    elif hit == 1.0:
        cached, fetched = "all", 0.0
    elif worth_keeping(room, data, size, block_bytes):
        cached, fetched = "blocks", (1 - hit) * factor * size
    else:
        cached, hit, fetched = "indexes", 0.0, size
    rate = min(ranks, ranks_per_node) * samples_per_s_per_rank
    requests = 0.0 if cached == "all" else rate * (1 - hit)
    if cached == "nothing":
        # The indexes of few shards fit into memory, and a random order soon asks for another one.
        absent = 1 - min(1.0, kept_index_bytes / index)
        fetched, requests = fetched + absent * shard_index, requests + absent * rate
    to_fill = {"all": data + index, "blocks": cache_bytes, "indexes": index, "nothing": 0}[cached]
    filling_rate = min(link_bytes_per_s, rate * (shard_index if cached == "indexes" else factor * size))
    return ScaleEstimate(
        shards=shards,
        samples_per_shard=per_shard,
        data_bytes=round(data),
        index_bytes=index,
        shard_index_bytes=shard_index,
        catalogue_bytes=catalogue,
        process_bytes=shards * CATALOGUE_MEMORY_BYTES + min(index, max(kept_index_bytes, shard_index)),
        processes_per_node=processes,
        startup_s=_FIRST_READS * latency_s + first / link_bytes_per_s + shards * CATALOGUE_SECONDS,
        startup_node_bytes=round(first),
        cache_hit=hit,
        cached=cached,
        node_requests_per_s=requests,
        node_bytes_per_s=rate * fetched,
        link_share=rate * fetched / link_bytes_per_s,
        filling_s=to_fill / filling_rate,
        total_requests_per_s=nodes * requests,
        total_bytes_per_s=nodes * rate * fetched,
        epoch_s=samples / (ranks * samples_per_s_per_rank),
    )


def fetched_factor(sample_bytes: float, block_bytes: int) -> float:
    """How much more is fetched for one sample when whole blocks are: it touches 1 + (s - 1) / b of them."""
    return block_bytes * (1 + (sample_bytes - 1) / block_bytes) / sample_bytes


def worth_keeping(cache_bytes: float, data_bytes: float, sample_bytes: float, block_bytes: int) -> bool:
    """Whether keeping blocks of data fetches less, in a random order, than fetching each sample alone."""
    return (1 - min(1.0, cache_bytes / data_bytes)) * fetched_factor(sample_bytes, block_bytes) < 1


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} PB"
