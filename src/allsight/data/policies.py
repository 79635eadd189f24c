"""Sampling policies of a task: how often its samples occur, and which of them may meet in a batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, Real, UInt16
from pydantic import Field, model_validator

from allsight.config import Config, ConfigError
from allsight.data.draws import SMALLEST_SHARE
from allsight.data.listings import ListsClasses, ListsLengths, ListsSizes, classes_listed, name_of
from allsight.data.rates import Rates, class_balanced, repeat_factors


class Policy(Config):
    """What decides which samples of a task an epoch holds and which meet in a batch."""

    balance: Literal["none", "classes", "repeat_factor"] = "none"
    """Each sample once an epoch; all classes equally often; or samples of rare classes repeated."""
    repeat_threshold: float = Field(default=0.001, gt=0, le=1)
    """With `repeat_factor`: classes in a smaller share of the samples than this are repeated."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the training samples that is used (few-shot), the same classes in it as in all where the data
    set lists them. Smaller shares are part of larger ones; `fraction_seed` picks others. At least one."""
    fraction_seed: int = Field(default=0, ge=0)
    block: int = Field(default=0, ge=0)
    """Each row of the batches reads so many neighbours of the data set one after another, in a random order,
    before it goes on to another place; for sets on servers that are much larger than the cache. 0 shuffles
    single samples."""
    bucket_by: Literal["none", "aspect", "length"] = "none"
    """Batches hold samples of like height / width, or of like length (words, frames)."""
    bucket_edges: tuple[float, ...] = ()
    """Rising upper edges of the buckets; what is above the last has a bucket of its own."""

    @model_validator(mode="after")
    def _edges_fit(self) -> Policy:
        edges = self.bucket_edges
        if self.fraction < 1 and self.balance != "none":
            raise ValueError(
                f"fraction={self.fraction:g} and balance={self.balance} both say how often samples occur; "
                "set one of them"
            )
        if (self.bucket_by == "none") != (not edges):
            raise ValueError(
                "bucket_by and bucket_edges go together; set both, such as length and (16, 32, 64)"
            )
        if any(b <= a for a, b in pairwise(edges)) or min(edges, default=1) <= 0:
            raise ValueError(f"bucket_edges: expected rising numbers above 0, got {edges}")
        return self


def bucket_of(values: Real[np.ndarray, " n"], edges: tuple[float, ...]) -> UInt16[np.ndarray, " n"]:
    """The bucket of each value: the first whose upper edge is not below it, or the one above all edges.

    A task that pads samples to the edge of their bucket takes it from here: the size follows from the sample
    alone, and all rows of a batch have the same.
    """
    # Two bytes a sample: the buckets of a data set stay in memory.
    return np.searchsorted(np.asarray(edges, dtype=np.float64), values, side="left").astype(np.uint16)


def rates_of(policy: Policy, reader: Any, *, path: str) -> Rates | None:
    """How often the samples of a reader occur under a policy; None: each once.

    Args:
        path: Of the policy's settings, for errors.
    Raises:
        ConfigError: The reader does not know its samples' classes.
    """
    if policy.fraction < 1:
        kept = few_of(reader, policy.fraction, seed=policy.fraction_seed)
        return Rates(np.isin(np.arange(len(reader)), kept).astype(np.float64))
    if policy.balance == "none":
        return None
    classes = classes_listed(reader, setting=f"{path}.balance: '{policy.balance}'", instead="set none")
    if policy.balance == "classes":
        return class_balanced(classes)
    return repeat_factors(classes, policy.repeat_threshold)


def few_of(reader: Any, fraction: float, *, seed: int) -> Int64[np.ndarray, " k"]:
    """The samples of a few-shot subset, in rising order; a function of the arguments alone.

    Samples stand in a line in which each class is spread evenly, and the first ones are taken: each class
    keeps its share, and a smaller subset lies in a larger one.

    Args:
        reader: The samples; those whose classes are not listed are of one class.
        fraction: Share that is kept; at least one sample.
        seed: Of the line.
    """
    size = len(reader)
    draw = np.random.Generator(np.random.Philox(seed)).random
    labels = np.zeros(size, dtype=np.int64)
    if isinstance(reader, ListsClasses):
        samples, listed = reader.sample_classes().pairs()
        # Of several classes the last one counts, and those without any are a class of their own.
        labels[samples] = listed + 1
    order = np.lexsort((draw(size), labels))
    first, count = np.unique(labels[order], return_index=True, return_counts=True)[1:]
    rank = np.arange(size) - np.repeat(first, count)
    place = (rank + draw(size)) / np.repeat(count, count)
    kept = order[np.argsort(place, kind="stable")[: max(1, round(fraction * size))]]
    return np.sort(kept)


def buckets_of(policy: Policy, reader: Any, *, path: str) -> UInt16[np.ndarray, " n"] | None:
    """The bucket of each sample of a reader; None: there are no buckets.

    Raises:
        ConfigError: The reader does not know sizes or lengths, or a bucket is too small to be drawn.
    """
    if policy.bucket_by == "none":
        return None
    if policy.bucket_by == "aspect":
        if not isinstance(reader, ListsSizes):
            raise ConfigError(
                f"{path}.bucket_by: 'aspect' needs the sizes of all pictures, which {name_of(reader)} cannot "
                f"tell without reading them; take data that lists them (coco), give the reader an attribute "
                f"sizes_hw_px, or set none"
            )
        values = reader.sizes_hw_px[:, 0] / reader.sizes_hw_px[:, 1]
    else:
        if not isinstance(reader, ListsLengths):
            raise ConfigError(
                f"{path}.bucket_by: 'length' needs the lengths of all samples, which {name_of(reader)} "
                f"cannot tell without reading them; give the reader an attribute lengths, or set none"
            )
        values = np.asarray(reader.lengths, dtype=np.float64)
    buckets = bucket_of(values, policy.bucket_edges)
    counts = np.bincount(buckets)
    for bucket in np.flatnonzero((counts > 0) & (counts < SMALLEST_SHARE * len(buckets))).tolist():
        raise ConfigError(
            f"{path}.bucket_edges: {counts[bucket]} of {len(buckets)} samples are {_span(policy, bucket)}, "
            f"too few for batches of their own; move or leave out an edge"
        )
    return buckets


def _span(policy: Policy, bucket: int) -> str:
    edges = policy.bucket_edges
    return f"above {edges[-1]:g}" if bucket == len(edges) else f"in the bucket up to {edges[bucket]:g}"
