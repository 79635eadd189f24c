"""Several machines, as network namespaces of one: they meet, agree, lose one, and take it back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from allsight.engine.trainer import Trainer

pytestmark = pytest.mark.slow
ENGINE_TESTS = Path(__file__).parents[1] / "engine"
RECIPES = Path(__file__).with_name("small_recipe.py")
NAMES = ("allsight-a", "allsight-b")
FIRST = "10.83.7.1"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine makes no network namespaces: {done.stderr.strip()}")


@pytest.fixture
def machines() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Function: number of a machine (0 or 1), words -> `allsight train` on it. A cable joins the two."""
    try:
        for name in NAMES:
            _ip("netns", "add", name)
        _ip("link", "add", "cable-a", "netns", NAMES[0], "type", "veth", "peer", "cable-b", "netns", NAMES[1])
        for number, name in enumerate(NAMES):
            _ip("-n", name, "addr", "add", f"10.83.7.{number + 1}/24", "dev", f"cable-{'ab'[number]}")
            for device in (f"cable-{'ab'[number]}", "lo"):
                _ip("-n", name, "link", "set", device, "up")
    except FileNotFoundError:
        pytest.skip("this machine has no ip command to make network namespaces with")
    running: list[subprocess.Popen[str]] = []

    def start(number: int, *words: str) -> subprocess.Popen[str]:
        command = [
            "ip",
            "netns",
            "exec",
            NAMES[number],
            sys.executable,
            "-m",
            "allsight.cli",
            "train",
            *words,
        ]
        paths = [*sys.path, str(ENGINE_TESTS), str(ENGINE_TESTS.parent / "contracts")]
        running.append(
            subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return running[-1]

    yield start
    for name in NAMES:
        # Ranks have sessions of their own.
        found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
        for process in found.stdout.split():
            os.kill(int(process), signal.SIGKILL)
    for process in running:
        process.communicate()
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _words(recipe: str, runs: Path, port: int, nodes: str = "2") -> list[str]:
    words = [
        f"{RECIPES}:{recipe}",
        "parallel.timeout_s=60",
        "--runs",
        str(runs),
        "--quiet",
        "--processes",
        "1",
    ]
    return [*words, "--nodes", nodes, "--rendezvous", f"{FIRST}:{port}"]


def _losses(folder: Path) -> dict[int, set[float]]:
    """Step -> the losses that were noted for it; several where it was run again."""
    found: dict[int, set[float]] = {}
    for event in _events(folder, "train"):
        if event["task"] is None:
            found.setdefault(event["step"], set()).add(event["values"]["loss"])
    return found


def _events(folder: Path, kind: str) -> list[dict]:
    if not (folder / "events.jsonl").exists():
        return []
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for line in lines if line.endswith("}") and (event := json.loads(line))["kind"] == kind]


def _worlds(folder: Path) -> list[int]:
    """Numbers of ranks that the run had, one after the other."""
    return [e["values"]["world_size"] for e in _events(folder, "system") if "world_size" in e["values"]]


def _wait_for(reached: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)


def _alone(recipe: str) -> list[float]:
    """The losses of one process, as the diary rounds them."""
    import small_recipe

    from allsight.config import replace

    config = getattr(small_recipe, recipe)()
    changes = {"model.step_s": 0.0} if recipe == "slow" else {}
    return [float(f"{step.loss:.7g}") for step in Trainer(replace(config, changes))]


def _assert_same(folder: Path, losses: list[float]) -> None:
    found = _losses(folder)
    assert sorted(found) == list(range(len(losses)))
    for step, loss in enumerate(losses):
        assert all(other == pytest.approx(loss, rel=1e-6) for other in found[step]), step


def test_two_machines_train_as_one_process(machines, tmp_path):
    both = [machines(number, *_words("small", tmp_path, 29431)) for number in (0, 1)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    _assert_same(tmp_path / "small", _alone("small"))
    assert "strategy: ddp" in (tmp_path / "small" / "resolved.yaml").read_text()


def test_machines_with_different_commands_are_refused(machines, tmp_path):
    words = _words("small", tmp_path, 29432)
    both = [machines(0, *words), machines(1, *words, "optim.lr=0.5")]
    said = "".join(process.communicate(timeout=240)[0] for process in both)
    assert {process.returncode for process in both} <= {1, 2}
    assert "ranks disagree on settings: config.optim.lr is " in said
    assert "Traceback" not in said


def test_a_run_goes_on_without_a_machine_that_died_and_with_it_when_it_is_back(machines, tmp_path):
    words = [*_words("slow", tmp_path, 29433, nodes="1:2"), "--max-restarts", "5"]
    folder = tmp_path / "small"
    first, second = machines(0, *words), machines(1, *words)
    _wait_for(lambda: len(_losses(folder)) > 12)
    found = subprocess.run(["ip", "netns", "pids", NAMES[1]], capture_output=True, text=True, check=True)
    for process in found.stdout.split():
        os.kill(int(process), signal.SIGKILL)
    steps = len(_losses(folder))
    _wait_for(lambda: _worlds(folder)[-1] == 1 and len(_losses(folder)) > steps + 6)
    again = machines(1, *words)
    said = [process.communicate(timeout=480)[0] for process in (first, again)]
    assert second.wait() != 0 and [first.returncode, again.returncode] == [0, 0], said
    worlds = _worlds(folder)
    assert worlds[0] == 2 and 1 in worlds and worlds[-1] == 2, worlds
    _assert_same(folder, _alone("slow"))
