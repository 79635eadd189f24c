"""A profile in figures: where the time of each rank went, which operators took it, who was waited for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.profiler import profile

from allsight.engine.profiler.clock import RANGE
from allsight.engine.profiler.timeline import Timeline, length, minus

_MOST_OPERATORS = 12
_NO_OPERATORS = (RANGE, "gloo:", "nccl:", "[memory]", "ProfilerStep")
_NOTABLE = 1.1
"""A rank with this many times the usual own work is named."""


@dataclass(frozen=True)
class RankProfile:
    """Seconds of one rank; those in `parts` do not overlap.

    Args:
        seconds: Of the whole profile.
        parts: `data` (waiting for it), `forward`, `backward`, `optimiser`, `communication` (exchanges that
            nothing ran beside, waiting for slower ranks included), `other`.
        communication_s: Exchanges in all, those beside computation included.
        peak_bytes: Most memory above what was there at the beginning.
    """

    rank: int
    seconds: float
    parts: dict[str, float]
    communication_s: float
    peak_bytes: int

    @property
    def own_s(self) -> float:
        """Without what was spent on exchanges and on waiting for others in them."""
        return self.seconds - self.parts["communication"]


@dataclass(frozen=True)
class Operator:
    """One kind of operator on the first rank.

    Args:
        seconds: Own time on the device, without operators that it called.
    """

    name: str
    calls: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What a profile says.

    Args:
        first, last: Steps looked at.
        samples: Of these steps, over all ranks.
        operators: Of the first rank, those that took most time first.
        memory: (seconds, bytes) of the first rank, above what was there at the beginning.
        lanes: (phase, begin, end) of the first rank, in seconds.
    """

    first: int
    last: int
    device: str
    samples: int
    ranks: tuple[RankProfile, ...]
    operators: tuple[Operator, ...]
    memory: Sequence[tuple[float, int]]
    lanes: Sequence[tuple[str, float, float]]

    @property
    def data_share(self) -> float:
        """Of all ranks' time."""
        return self._share("data")

    @property
    def communication_share(self) -> float:
        """Of all ranks' time; only what nothing ran beside."""
        return self._share("communication")

    @property
    def straggler(self) -> tuple[RankProfile, float] | None:
        """The rank that others waited for, and how many times the usual own work it had; None if none is."""
        if len(self.ranks) < 2:
            return None
        slowest = max(self.ranks, key=lambda each: each.own_s)
        usual = median(each.own_s for each in self.ranks if each is not slowest)
        excess = slowest.own_s / max(usual, 1e-9)
        return (slowest, excess) if excess >= _NOTABLE else None

    @property
    def gist(self) -> str:
        """What matters, in a sentence."""
        steps = f"step {self.first}" if self.first == self.last else f"steps {self.first} to {self.last}"
        text = f"profile of {steps}: {self.data_share:.0%} waiting for data"
        if len(self.ranks) > 1:
            text += f", {self.communication_share:.0%} communication that nothing ran beside"
            found = self.straggler
            text += "; no rank lags" if found is None else f"; others wait for rank {found[0].rank}"
            text += "" if found is None else f" ({found[1]:.2f} times their work)"
        return text

    def to_text(self) -> str:
        """Tables to be read in a terminal."""
        number = self.last - self.first + 1
        longest = max(each.seconds for each in self.ranks)
        lines = [
            self.gist,
            f"{number} steps in {longest:.3f} s under the profiler, {self.samples / longest:.1f} samples/s, "
            f"{len(self.ranks)} x {self.device}",
            "",
            "milliseconds a step:",
        ]
        names = list(self.ranks[0].parts)
        rows = [["rank", *names, "all", "exchanges in all", "own work"]]
        for each in self.ranks:
            values = [*each.parts.values(), each.seconds, each.communication_s, each.own_s]
            rows.append([str(each.rank), *(f"{1e3 * value / number:.1f}" for value in values)])
        lines += _columns(rows)
        lines += ["", "operators of rank 0 by own time:"]
        total = sum(each.seconds for each in self.operators) or 1.0
        table = [["operator", "calls a step", "ms a step", "of these"]]
        table += [
            [each.name, f"{each.calls / number:g}", f"{1e3 * each.seconds / number:.2f}",
             f"{each.seconds / total:.0%}"]
            for each in self.operators
        ]  # fmt: skip
        lines += _columns(table)
        peaks = ", ".join(f"{each.peak_bytes / 2**20:,.0f} MiB" for each in self.ranks)
        lines += ["", f"memory above what was there at the beginning, at most, by rank: {peaks}"]
        return "\n".join(lines)

    def _share(self, part: str) -> float:
        return sum(each.parts[part] for each in self.ranks) / sum(each.seconds for each in self.ranks)


def rank_profile(rank: int, timeline: Timeline, *, data_s: float) -> RankProfile:
    """What one rank's timeline says.

    Args:
        data_s: How long it waited for data, as the loader says.
    """
    exposed = timeline.exposed()
    parts = {"data": data_s}
    for name in ("forward", "backward", "optimiser"):
        spans = timeline.phases.get(name)
        parts[name] = 0.0 if spans is None else length(minus(spans, exposed))
    data = timeline.phases.get("data")
    if data is not None:
        exposed = minus(exposed, data)
    parts["communication"] = length(exposed)
    parts["other"] = max(0.0, timeline.seconds - sum(parts.values()))
    peak = max((size for _, size in timeline.memory()), default=0)
    return RankProfile(rank, timeline.seconds, parts, length(timeline.communication), max(0, peak))


def operators_of(seen: profile, device: torch.device) -> tuple[Operator, ...]:
    """The operators that took most of their own time."""
    on_gpu = device.type == "cuda"
    own_time = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    found = [
        Operator(each.key, each.count, getattr(each, own_time) / 1e6)
        for each in seen.key_averages()
        if not each.key.startswith(_NO_OPERATORS) and not (on_gpu and each.is_user_annotation)
    ]
    found.sort(key=lambda each: -each.seconds)
    return tuple(each for each in found[:_MOST_OPERATORS] if each.seconds > 0)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(["", first.ljust(widths[0]), *cells]))
    return lines
