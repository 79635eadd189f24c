"""Which answered boxes find a true one: greedily by score, by distance on the ground.

All samples and classes advance together, one answer each a round, so that millions of boxes need no loop over
them. Letters in shapes: a answers, g true boxes, p pairs, t thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float64, Int64

_PAIRS_AT_ONCE = 4_000_000


def match(
    groups: Int64[np.ndarray, " a"],
    centers_m: Float64[np.ndarray, "a 2"],
    true_groups: Int64[np.ndarray, " g"],
    true_centers_m: Float64[np.ndarray, "g 2"],
    thresholds_m: Sequence[float],
) -> Int64[np.ndarray, "t a"]:
    """The true box that each answer takes at each threshold, -1 for none.

    An answer takes the nearest box of its group that no better answer took, if that is nearer than the
    threshold.

    Args:
        groups: (Sample, class) of each answer as a number. Answers come best first.
        true_groups: The same of each true box.
    Source: nutonomy/nuscenes-devkit:python-sdk/nuscenes/eval/detection/algo.py, `accumulate`.
    """
    taken_by = np.full((len(thresholds_m), len(groups)), -1, dtype=np.int64)
    answer, truth, distance = _near_pairs(groups, centers_m, true_groups, true_centers_m, max(thresholds_m))
    if not len(answer):
        return taken_by
    # Rank among the answers of a group that have anything near; equal ranks do not see each other.
    near, number = np.unique(answer, return_inverse=True)
    rank = _rank_in_group(groups[near])[number]
    order = np.lexsort((truth, answer, rank))
    answer, truth, distance, rank = answer[order], truth[order], distance[order], rank[order]
    rounds = np.searchsorted(rank, np.arange(int(rank[-1]) + 2))
    is_taken = np.zeros((len(thresholds_m), len(true_groups)), dtype=bool)
    for begin, end in zip(rounds[:-1].tolist(), rounds[1:].tolist(), strict=True):
        own, boxes, apart = answer[begin:end], truth[begin:end], distance[begin:end]
        starts = np.flatnonzero(np.diff(own, prepend=-1))
        counts = np.diff(np.append(starts, end - begin))
        for row, threshold in enumerate(thresholds_m):
            free = np.where(is_taken[row, boxes], np.inf, apart)
            least = np.minimum.reduceat(free, starts)
            is_least = free == np.repeat(least, counts)
            first = np.minimum.reduceat(np.where(is_least, np.arange(end - begin), end - begin), starts)
            hits = least < threshold
            taken = boxes[first[hits]]
            is_taken[row, taken] = True
            taken_by[row, own[starts[hits]]] = taken
    return taken_by


def _near_pairs(
    groups: Int64[np.ndarray, " a"],
    centers_m: Float64[np.ndarray, "a 2"],
    true_groups: Int64[np.ndarray, " g"],
    true_centers_m: Float64[np.ndarray, "g 2"],
    most_m: float,
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """(answer, true box, distance) of those of one group that are nearer than `most_m`."""
    by_group = np.argsort(true_groups, kind="stable")
    ordered = true_groups[by_group]
    begin = np.searchsorted(ordered, groups, side="left")
    counts = np.searchsorted(ordered, groups, side="right") - begin
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(0, int(counts.sum()), _PAIRS_AT_ONCE), side="right")
    # What comes before the first cut has no pairs; nor has anything where there is no cut.
    for first, last in pairwise([*cuts.tolist(), len(groups)]):
        some = counts[first:last]
        answer = np.repeat(np.arange(first, last), some)
        within = np.arange(len(answer)) - np.repeat(np.cumsum(some) - some, some)
        truth = by_group[np.repeat(begin[first:last], some) + within]
        way = centers_m[answer] - true_centers_m[truth]
        distance = np.sqrt((way * way).sum(axis=1))
        near: Bool[np.ndarray, " n"] = distance < most_m
        parts.append((answer[near], truth[near], distance[near]))
    if not parts:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0)
    answers, truths, distances = (np.concatenate(column) for column in zip(*parts, strict=True))
    return answers, truths, distances


def _rank_in_group(groups: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """How many of the same group come before each."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    rank = np.empty(len(groups), dtype=np.int64)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return rank
