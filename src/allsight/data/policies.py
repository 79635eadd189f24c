"""Sampling policies of a task: how often its samples occur, and which of them may meet in a batch."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Real, UInt16
from pydantic import Field, model_validator

from allsight.config import Config, ConfigError
from allsight.data.draws import SMALLEST_SHARE
from allsight.data.listings import ListsClasses, ListsLengths, ListsSizes
from allsight.data.rates import Rates, class_balanced, repeat_factors


class Policy(Config):
    """What decides which samples of a task an epoch holds and which meet in a batch."""

    balance: Literal["none", "classes", "repeat_factor"] = "none"
    """Each sample once an epoch; all classes equally often; or samples of rare classes repeated."""
    repeat_threshold: float = Field(default=0.001, gt=0, le=1)
    """With `repeat_factor`: classes in a smaller share of the samples than this are repeated."""
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
    if policy.balance == "none":
        return None
    if not isinstance(reader, ListsClasses):
        raise ConfigError(
            f"{path}.balance: '{policy.balance}' needs the classes of all samples, which {_named(reader)} "
            f"cannot tell without reading them; take data that lists them (imagefolder, coco), give the "
            f"reader a method sample_classes(), or set none"
        )
    classes = reader.sample_classes()
    if not len(classes.labels):
        raise ConfigError(
            f"{path}.balance: '{policy.balance}' needs the classes of all samples, and in {_named(reader)} "
            f"none has one; set none"
        )
    if policy.balance == "classes":
        return class_balanced(classes)
    return repeat_factors(classes, policy.repeat_threshold)


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
                f"{path}.bucket_by: 'aspect' needs the sizes of all pictures, which {_named(reader)} cannot "
                f"tell without reading them; take data that lists them (coco), give the reader an attribute "
                f"sizes_hw_px, or set none"
            )
        values = reader.sizes_hw_px[:, 0] / reader.sizes_hw_px[:, 1]
    else:
        if not isinstance(reader, ListsLengths):
            raise ConfigError(
                f"{path}.bucket_by: 'length' needs the lengths of all samples, which {_named(reader)} cannot "
                f"tell without reading them; give the reader an attribute lengths, or set none"
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


def _named(reader: Any) -> str:
    return str(getattr(reader, "name", "") or type(reader).__name__)
