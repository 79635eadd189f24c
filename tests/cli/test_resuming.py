"""Which run a `train` command means, where there may be one already."""

from __future__ import annotations

from pathlib import Path

import pytest

from allsight.cli.resuming import config_for
from allsight.config import ConfigError, dump, dump_yaml, replace
from allsight.recipes import find_config

RECIPE = "joint_smoke"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folder of runs with one that two ranks began."""
    config = replace(find_config(RECIPE)[0], {"parallel.strategy": "ddp"})
    (tmp_path / RECIPE).mkdir()
    (tmp_path / RECIPE / "resolved.yaml").write_text(f"format: 1\n{dump_yaml(dump(config))}")
    return tmp_path


def _mean(runs: Path, *changes: str, **options):
    fields = {"resume": False, "name": None, "runs": runs, "trust": False}
    return config_for(RECIPE, list(changes), **{**fields, **options})


def test_a_strategy_that_nobody_chooses_stays_that_of_the_run(runs: Path) -> None:
    folder, config, notes = _mean(runs, resume="if saved")
    assert (folder, config.parallel.strategy, notes) == (runs / RECIPE, "ddp", [])
    _, config, notes = _mean(runs, "parallel.strategy=single", resume="if saved")
    assert config.parallel.strategy == "single"
    assert notes == ["resumed with parallel.strategy=single (was ddp)"]


def test_a_run_of_the_name_is_refused_unless_told_to_go_on_or_asked_on_several_machines(runs: Path) -> None:
    with pytest.raises(ConfigError, match="a run of this name exists"):
        _mean(runs)
    # There the ranks find out together, since another machine may have begun it a moment ago.
    assert _mean(runs, is_looked_at=False)[0] == runs / RECIPE


def test_going_on_if_saved_begins_under_a_new_name(runs: Path) -> None:
    folder, config, notes = _mean(runs, resume="if saved", name="other")
    assert (folder, config.name, notes) == (runs / "other", "other", [])


def test_going_on_with_other_settings_is_refused(runs: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.optim\.lr: the run was started with"):
        _mean(runs, "optim.lr=0.5", resume="if saved")
