"""A small world and a run trained on it, shared by the tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from allsight.cli import main
from allsight.data.world import World, generate_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of a few pictures of 32 px."""
    config = World.Config(train=24, val=12, size_px=32, objects=(1, 2), clutter=0.0)
    return generate_world(tmp_path_factory.mktemp("cli") / "world", config)


@pytest.fixture(scope="session")
def trained(world: Path) -> Path:
    """The folder of `joint_smoke`, trained through the command line. Nothing may change it."""
    runs = world.parent / "runs"
    words = ["train", "joint_smoke", f"data.root={world}", "--runs", str(runs), "--name", "done", "--quiet"]
    assert main(words) == 0
    return runs / "done"
