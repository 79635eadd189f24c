import math

import pytest

from allsight.view.figures import clock, compact, percent, short, size
from allsight.view.scales import log_ticks, nice_ticks, tick_labels


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.61234, "0.6123"), (1.5, "1.500"), (12.345, "12.35"), (812.4, "812.4"), (4120.0, "4,120"),
     (1.9e-5, "1.9e-05"), (3e8, "3e+08"), (math.nan, "nan"), (-math.inf, "-inf"), (-0.25, "-0.2500")],
)  # fmt: skip
def test_short_numbers(value: float, text: str):
    assert short(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999.9, "1k"), (12_300, "12.3k"), (2_013_456, "2.01M"), (1.25e8, "125M"),
     (1e9, "1G"), (100_000, "100k")],
)  # fmt: skip
def test_compact_numbers(value: float, text: str):
    assert compact(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.8, "0.8s"), (9.99, "10s"), (59.6, "1m00s"), (192, "3m12s"), (3599.7, "1h00m"), (7500, "2h05m"),
     (273_600, "3d04h"), (math.nan, "?"), (-1, "?")],
)  # fmt: skip
def test_clocks(seconds: float, text: str):
    assert clock(seconds) == text


def test_percents_and_sizes():
    assert [percent(x) for x in (0.0, 0.612, 1.0, math.nan)] == ["0 %", "61.2 %", "100 %", "–"]
    assert [size(x) for x in (512, 24_513_000, 812_000)] == ["512 B", "24.5 MB", "812 kB"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.33), (-4, 900), (1e-5, 2e-5), (0, 123_456)])
def test_ticks_are_few_within_and_told_apart(low: float, high: float):
    ticks = nice_ticks(low, high, 4)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    assert len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize(("low", "high"), [(0.02, 30), (1e-6, 1e4), (0.9, 3)])
def test_logarithmic_ticks_are_few_and_within(low: float, high: float):
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 9
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
