"""Axes: from data to pixels, and where the ticks go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Scale:
    """A straight or logarithmic map of `low..high` to pixels `start..end`."""

    low: float | int
    high: float | int
    start: float | int
    end: float | int
    log: bool = False

    def __call__(self, values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.where(values > 0, np.log10(values), np.nan)
        low, high = self._ends()
        return self.start + (values - low) / (high - low) * (self.end - self.start)

    def one(self, value: float) -> float:
        """The place of one value."""
        return float(self(np.array([value], dtype=np.float64))[0])

    def _ends(self) -> tuple[float, float]:
        return (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within `low..high`, `about` so many."""
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if k == 0 else k * step for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within `low..high`, with 2 and 5 times them where there would be few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    decades = last - first
    factors: Sequence[float] = (1, 2, 5) if decades <= 2 else (1,)
    stride = max(1, math.ceil(decades / 5))
    ticks = [f * 10.0**k for k in range(first, last + 1, stride) for f in factors]
    return [tick for tick in ticks if low * 0.999 <= tick <= high * 1.001]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """All ticks with the same number of digits: `0.00 0.25 0.50`, `0 2k 4k`, `1e-05`."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    smallest = min((abs(tick) for tick in ticks if tick), default=0.0)
    if largest >= 1e7 or 0 < largest < 1e-2:
        return [_scientific(tick) for tick in ticks]
    if largest >= 10_000:
        digits = _digits([tick / 1000 for tick in ticks])
        return ["0" if tick == 0 else f"{tick / 1000:.{digits}f}k" for tick in ticks]
    if smallest < 1e-3 and largest < 1e4 and smallest > 0 and largest / smallest > 1e3:
        return [_scientific(tick) if abs(tick) < 1e-2 else f"{tick:g}" for tick in ticks]
    digits = _digits(ticks)
    return [f"{tick:,.{digits}f}" for tick in ticks]


def _digits(ticks: Sequence[float]) -> int:
    for digits in range(5):
        if all(abs(round(tick, digits) - tick) < 1e-9 * max(1.0, abs(tick)) for tick in ticks):
            return digits
    return 5


def _scientific(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
