"""The benchmarks of the engine's cost run on the trainer as it is; a turn of them, not timed."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_cost_of_the_engine_can_be_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import engine_overhead

    milliseconds, ratio, bound = engine_overhead.measure(2, 32, tmp_path / "run", turns=2, steps=1)
    assert milliseconds > 0
    assert 0 < ratio <= bound
