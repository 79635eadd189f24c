"""kill -9 at any moment costs the steps since the last checkpoint, and not one bit of the result."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killed_run import config
from rank_run import result_of

from allsight.engine.checkpoint import list_checkpoints
from allsight.engine.trainer import Trainer


def _start(folder: Path, workers: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "killed_run.py"), str(folder), str(workers)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _kill_somewhere(folder: Path, workers: int, rng: random.Random) -> bool:
    """Start the run, let it get past its last checkpoint, kill it; False if it had ended before."""
    known = {saved.step for saved in list_checkpoints(folder / "checkpoints")}
    process = _start(folder, workers)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if {saved.step for saved in list_checkpoints(folder / "checkpoints")} - known:
            time.sleep(rng.random() * 0.5)
            break
        time.sleep(0.01)
    was_running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    if not known and not list_checkpoints(folder / "checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)
    return was_running


def _undisturbed() -> Trainer:
    """The run without interruption, on one thread as the others: their number changes last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = Trainer(config(0))
        for _ in whole:
            pass
    finally:
        torch.set_num_threads(threads)
    return whole


def _check_kills(tmp_path: Path, kills: int, workers: int) -> None:
    rng = random.Random(kills * 10 + workers)
    whole = _undisturbed()
    folder = tmp_path / "run"
    killed = sum(_kill_somewhere(folder, workers, rng) for _ in range(kills))
    assert killed >= 1
    process = _start(folder, workers)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    expected, found = result_of(whole), torch.load(folder / "result.pt")
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    for line in (folder / "events.jsonl").read_text().splitlines():
        if line.endswith("}"):
            json.loads(line)


def test_killed_runs_end_with_the_same_bits(tmp_path):
    _check_kills(tmp_path, kills=2, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "workers"), [(100, 0), (20, 2)])
def test_a_hundred_kills_cost_not_one_bit(tmp_path, kills, workers):
    script = Path(__file__).parent / "many_kills.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills), str(workers)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["kills"] == kills and found["failed"] == 0
    # Weights after every step that any attempt ran, and after every restore.
    assert found["wrong"] == 0 and found["steps"] > kills
    assert found["resumed"] > kills // 4 and found["during_saves"] > 0 and found["completed"] > 0
