"""A deep narrow net that a stabiliser saves: the strongest case of benchmarks/stability.py, made smaller."""

from pathlib import Path

import pytest

from allsight.config import replace

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_adaptive_clipping_trains_a_net_that_fails_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import stability

    smaller = {
        "model.backbone.depths": (1, 7),
        "model.backbone.residual_init": "zero",
        "model.backbone.stem_stride": 4,
        "tasks.stripes.batch_size": 16,
        "optim.lr": 1.0,
    }
    failing = replace(stability.failing_run(), smaller)
    assert stability.verdict(stability.losses(failing)) == "diverged"
    saved = stability.losses(replace(failing, {"optim.clip_adaptive": 0.02}))
    assert stability.verdict(saved) == "trained"
