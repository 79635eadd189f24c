"""Timing that can be trusted on a machine that others use too: ways of doing the same take turns.

Absolute times drift by a third between runs, ratios of neighbouring samples hardly do. With one thread the
clock is that thread's CPU time, which others cannot lengthen much; with several only the wall clock is left,
and rounds during which the rest of the machine worked are made again.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
from jaxtyping import Float64

Clock = Literal["cpu", "wall"]

_LEAST_S = {"cpu": 0.003, "wall": 0.06}
"""Length of a sample; a call that takes less is repeated. /proc/stat counts in steps of 10 ms."""
_MOST_CALLS = 100_000
_BUSY = 0.1
"""Cores that others may use during a clean round."""
_TRIES = 3


@dataclass(frozen=True)
class Samples:
    """Seconds a call of every way, one number a round; samples of one round were taken one after the other.

    Args:
        seconds: Way -> its samples.
        disturbed: Rounds among them during which others used the machine (always 0 by CPU time).
    """

    seconds: Mapping[str, tuple[float, ...]]
    disturbed: int = 0

    def median(self, way: str) -> float:
        """Seconds a call."""
        return median(self.seconds[way])

    def ratios(self, way: str, base: str) -> Float64[np.ndarray, " rounds"]:
        """How many times as long `way` took as `base`, round by round."""
        return np.array(self.seconds[way]) / np.array(self.seconds[base])

    def ratio(self, way: str, base: str) -> float:
        """The median of `ratios`."""
        return float(np.median(self.ratios(way, base)))


def interleave(
    ways: Mapping[str, Callable[[], object]],
    *,
    pairs: int = 20,
    clock: Clock = "cpu",
    calls: int | None = None,
) -> Samples:
    """Let the ways take turns, `pairs` times each; in every second round in the reverse order.

    Args:
        ways: What to time; each is called at least twice beforehand.
        pairs: Samples of each way.
        clock: `cpu` is the CPU time of this thread alone.
        calls: Calls a sample; by default as many as make it long enough to be measured.
    """
    timer = time.thread_time if clock == "cpu" else time.perf_counter
    names = list(ways)
    repeats = {name: _repeats(ways[name], timer, _LEAST_S[clock], calls) for name in names}
    rounds: list[tuple[float, dict[str, float]]] = []
    gc.collect()
    while len(rounds) < pairs * (1 if clock == "cpu" else _TRIES):
        watch = _OthersWatch()
        turn = {
            name: _sample(ways[name], timer, repeats[name])
            for name in (names[::-1] if len(rounds) % 2 else names)
        }
        rounds.append((0.0 if clock == "cpu" else watch.cores(), turn))
        if sum(others <= _BUSY for others, _ in rounds) == pairs:
            break
    quietest = sorted(range(len(rounds)), key=lambda i: (max(rounds[i][0], _BUSY), i))[:pairs]
    kept = [rounds[i] for i in sorted(quietest)]
    seconds = {name: tuple(turn[name] for _, turn in kept) for name in names}
    return Samples(seconds, sum(others > _BUSY for others, _ in kept))


def upper_bound(values: Float64[np.ndarray, " n"]) -> float:
    """Upper end of the 95 % bootstrap interval of the median."""
    rng = np.random.default_rng(0)
    resampled = np.median(rng.choice(values, (2000, len(values))), axis=1)
    return float(np.quantile(resampled, 0.975))


def _repeats(way: Callable[[], object], timer: Callable[[], float], least_s: float, calls: int | None) -> int:
    """Calls a sample."""
    way()
    one = max(_sample(way, timer, 1), 1e-7)
    return calls or min(_MOST_CALLS, math.ceil(least_s / one))


def _sample(way: Callable[[], object], timer: Callable[[], float], calls: int) -> float:
    """Seconds a call."""
    begun = timer()
    for _ in range(calls):
        way()
    return (timer() - begun) / calls


class _OthersWatch:
    """Cores that other processes (and other guests of the host) use from now on."""

    def __init__(self) -> None:
        self._begun = self._now()

    def cores(self) -> float:
        (wall, own, busy), now = self._begun, self._now()
        if busy is None or now[2] is None:
            return 0.0
        return (now[2] - busy - (now[1] - own)) / max(now[0] - wall, 1e-9)

    @staticmethod
    def _now() -> tuple[float, float, float | None]:
        try:
            line = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
            user, nice, system, _, _, irq, softirq, steal = map(int, line)
            busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError):
            busy = None
        return time.perf_counter(), time.process_time(), busy
