"""Starting ranks: what they get to know, and how their end is reported."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from allsight.cli import main
from allsight.data.world import World, generate_world
from allsight.launch.run import in_group, usable_cores, with_strategy
from allsight.recipes import find_config


def test_the_strategy_becomes_ddp_only_among_several_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    config, _ = find_config("joint_smoke")
    assert not in_group() and with_strategy(config, set_by_user=False) == config
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert with_strategy(config, set_by_user=False).parallel.strategy == "ddp"
    assert with_strategy(config, set_by_user=True) == config
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not in_group()


def test_there_is_a_core_to_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_a_contradicting_strategy_is_refused_before_ranks_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "joint_smoke", "parallel.strategy=single", "--processes", "2", "--runs", str(tmp_path)]
    assert main(words) == 2
    assert capsys.readouterr().err.startswith("config.parallel.strategy: 'single' uses one process, not 2")


@pytest.mark.dist
def test_two_processes_train_one_run_and_its_failure_is_theirs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    world = generate_world(tmp_path / "world", World.Config(train=24, val=12, size_px=32, objects=(1, 2)))
    words = [
        "train",
        "joint_smoke",
        f"data.root={world}",
        "--runs",
        str(tmp_path),
        "--quiet",
        "--processes",
        "2",
    ]
    assert main(words) == 0
    folder = tmp_path / "joint_smoke"
    assert f"run folder: {folder}\n" in capfd.readouterr().out
    assert "strategy: ddp" in (folder / "resolved.yaml").read_text()
    for rank in (0, 1):
        lines = (folder / "events" / f"rank-{rank}.jsonl").read_text().splitlines()
        assert {json.loads(line)["rank"] for line in lines} == {rank}
    assert main([*words, "--name", "b", "parallel.strategy=ddp", "parallel.expert_ranks=2"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("config.parallel.expert_ranks: the model has no experts") and said.count("\n") == 1
