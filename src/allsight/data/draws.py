"""Which task each draw of a mixture goes to: blocks with exact counts, so that history is a formula."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np

from allsight.config import ConfigError
from allsight.data.order import generator

Share = float | tuple[tuple[int, float], ...]
"""Share of the draws: a number, or knots ((step, share), ...) joined by straight lines."""

SMALLEST_SHARE = 1e-5
"""Normalised shares below this are refused: a block holds 1 / (smallest share) draws."""


@dataclass(frozen=True)
class _Segment:
    """Integrals of the shares from one knot on: at `start + d`, (constant + linear d + square d d) / unit."""

    start: int
    constant: tuple[int, ...]
    linear: tuple[int, ...]
    square: tuple[int, ...]
    unit: int


class Draws:
    """The endless sequence of draws of a mixture, one per stream of draws (lane).

    Draws are laid out in blocks of `block_length`. How often each task occurs in the first k blocks is given
    by rounding the integral of its share, and never off by more than 1; within a block the order is random.

    Args:
        seed: The run's.
        shares: Task -> share, in any unit; they are normalised at the knots.
        factors: Task -> factor on its share (`proportional`).
    Raises:
        ConfigError: A share is too small, or knots are out of order, or nothing has a share at some step.
    """

    def __init__(
        self, seed: int, shares: Mapping[str, Share], factors: Mapping[str, float] | None = None
    ) -> None:
        self._seed = seed
        self.tasks = tuple(shares)
        steps, table = _normalised(shares, factors or {})
        smallest = min(share for row in table for share in row if share > 0)
        self.block_length = math.ceil(1 / smallest)
        self._steps = steps
        self._table = table
        self._segments = _integrate(steps, table)
        self._blocks: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def counts_before(self, block: int) -> tuple[int, ...]:
        """How often each task occurs before block `block`, the same in every lane."""
        edges = self._edges(block * self.block_length)
        return tuple(high - low for low, high in zip((0, *edges), edges, strict=False))

    def task_at(self, step: int, lane: int = 0) -> int:
        """Index of the task that `lane` draws in step `step`."""
        block, offset = divmod(step, self.block_length)
        return int(self._block(lane, block)[offset])

    def number(self, task: int, step: int, lane: int = 0) -> int:
        """How often `lane` drew `task` before step `step`: the number of a draw of it in that step."""
        block, offset = divmod(step, self.block_length)
        inside = int(np.count_nonzero(self._block(lane, block)[:offset] == task))
        return self._count_before(block, task) + inside

    def check(self, steps: int | None = None) -> None:
        """Make sure that every block of a run of `steps` steps (None: of any length) can be laid out.

        Shares that rise from or sink to 0 pass below 1 / block_length, where rounding may ask for a negative
        count. Constant shares cannot: their count of a block is above share * block_length - 2 >= -1.

        Raises:
            ConfigError: Some block cannot.
        """
        last = self._steps[-1] if steps is None else min(steps, self._steps[-1])
        for at, (begin, end) in enumerate(pairwise(self._steps)):
            rows = zip(self._table[at], self._table[at + 1], strict=True)
            touching = [task for task, (low, high) in enumerate(rows) if (low == 0) != (high == 0)]
            if not touching or begin >= last:
                continue
            for block in range(begin // self.block_length, -(-min(end, last) // self.block_length)):
                self._check_block(block, touching)

    def _check_block(self, block: int, tasks: list[int]) -> None:
        for task in tasks:
            if self._count_before(block + 1, task) < self._count_before(block, task):
                raise ConfigError(
                    f"config.tasks.{self.tasks[task]}.share: near step {block * self.block_length} the "
                    "share is so "
                    f"close to 0 that its draws cannot be laid out beside the others; let it start or end at "
                    f"0.001 or so in place of 0, or put the task first or last in the mixture"
                )

    def _count_before(self, block: int, task: int) -> int:
        draw = block * self.block_length
        segment = self._segment(draw)
        low = _edge(segment, draw, task - 1) if task else 0
        return _edge(segment, draw, task) - low

    def _edges(self, draw: int) -> tuple[int, ...]:
        segment = self._segment(draw)
        return tuple(_edge(segment, draw, task) for task in range(len(self.tasks)))

    def _segment(self, draw: int) -> _Segment:
        at = bisect_right(self._segments, draw, key=lambda segment: segment.start) - 1
        return self._segments[at]

    def _block(self, lane: int, block: int) -> np.ndarray:
        key = (lane, block)
        if key not in self._blocks:
            before, after = self.counts_before(block), self.counts_before(block + 1)
            counts = [high - low for low, high in zip(before, after, strict=True)]
            assert min(counts) >= 0, "check() was not called"
            kind = np.uint16 if len(self.tasks) <= 2**16 else np.uint32
            names = np.repeat(np.arange(len(self.tasks), dtype=kind), counts)
            self._blocks[key] = generator(self._seed, "policy", lane, block).permutation(names)
            # Neighbouring steps ask for the same block of every lane, so all lanes must fit.
            while len(self._blocks) > 2 * (max(lane for lane, _ in self._blocks) + 1):
                self._blocks.popitem(last=False)
        return self._blocks[key]


def _edge(segment: _Segment, draw: int, task: int) -> int:
    """Draws of tasks 0 ... task among the first `draw`, rounded; halves up."""
    d = draw - segment.start
    exact = segment.constant[task] + d * (segment.linear[task] + d * segment.square[task])
    return (2 * exact + segment.unit) // (2 * segment.unit)


def _normalised(
    shares: Mapping[str, Share], factors: Mapping[str, float]
) -> tuple[list[int], list[list[Fraction]]]:
    """Steps at which any share has a knot, and the shares there, which sum to 1 exactly."""
    knots = {name: _knots(name, share) for name, share in shares.items()}
    steps = sorted({0, *(step for points in knots.values() for step, _ in points)})
    table = []
    for step in steps:
        raw = [_interpolated(points, step) * _exact(factors.get(name, 1.0)) for name, points in knots.items()]
        total = sum(raw, Fraction(0))
        if total == 0:
            raise ConfigError(f"config.tasks: all shares are 0 at step {step}; some task must be drawn")
        row = [share / total for share in raw]
        for name, share in zip(knots, row, strict=True):
            if 0 < share < Fraction(str(SMALLEST_SHARE)):
                raise ConfigError(
                    f"config.tasks.{name}.share: {float(share):.2g} of all draws at step {step}, expected "
                    "0 or at "
                    f"least {SMALLEST_SHARE:g}; raise the share, or lower the others"
                )
        table.append(row)
    return steps, table


def _knots(name: str, share: Share) -> list[tuple[int, Fraction]]:
    points = [(0, share)] if isinstance(share, int | float) else list(share)
    steps = [step for step, _ in points]
    if not steps or steps[0] < 0 or any(b <= a for a, b in pairwise(steps)):
        raise ConfigError(
            f"config.tasks.{name}.share: expected knots ((step, share), ...), steps rising, got {share}"
        )
    if min(value for _, value in points) < 0 or max(value for _, value in points) <= 0:
        raise ConfigError(
            f"config.tasks.{name}.share: expected a share above 0 (knots: not all 0), got {share}"
        )
    return [(step, _exact(value)) for step, value in points]


def _exact(value: float) -> Fraction:
    # The number as people wrote it: three times 0.333 are exact thirds.
    return Fraction(str(value))


def _interpolated(points: list[tuple[int, Fraction]], step: int) -> Fraction:
    if step <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if step <= x1:
            return y0 + (y1 - y0) * Fraction(step - x0, x1 - x0)
    return points[-1][1]


def _integrate(steps: list[int], table: list[list[Fraction]]) -> list[_Segment]:
    """Integrals of the cumulative shares, as polynomials with whole coefficients between the knots."""
    cumulative = [_running_sum(row) for row in table]
    flat = [Fraction(0)] * len(table[0])
    constant, segments = flat, []
    for at, start in enumerate(steps):
        linear, square, span = cumulative[at], flat, 0
        if at + 1 < len(steps):
            span = steps[at + 1] - start
            square = [(b - a) / (2 * span) for a, b in zip(cumulative[at], cumulative[at + 1], strict=True)]
        unit = math.lcm(*(f.denominator for f in (*constant, *linear, *square)))
        whole = [tuple(int(f * unit) for f in row) for row in (constant, linear, square)]
        segments.append(_Segment(start, whole[0], whole[1], whole[2], unit))
        constant = [c + span * (a + span * s) for c, a, s in zip(constant, linear, square, strict=True)]
    return segments


def _running_sum(row: list[Fraction]) -> list[Fraction]:
    sums, total = [], Fraction(0)
    for share in row:
        total += share
        sums.append(total)
    return sums
