"""Kills a run again and again: `python many_kills.py FOLDER KILLS WORKERS` prints what came of it as JSON.

Runs are forked from this process, which has loaded everything and trained nothing, so a kill costs as long as
the run lived and no start of Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch
from killed_run import config
from rank_run import result_of

from allsight.config import replace
from allsight.engine.trainer import Trainer

STEPS = 60


def digest(trainer: Trainer) -> str:
    """Of all weights and averages, to the last bit."""
    found = hashlib.sha256()
    for name, tensor in sorted(result_of(trainer).items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def run(folder: Path | None, workers: int, asynchronous: bool, out: Path) -> None:
    """Train as far as the process lives; a line for each step: how many are done, and the weights then."""
    torch.set_num_threads(1)
    changes = {"schedule.steps": STEPS, "checkpoint.every_steps": 2, "checkpoint.asynchronous": asynchronous}
    trainer = Trainer(
        replace(config(workers), changes), folder=folder, resume="if saved" if folder else False
    )
    with out.open("a") as lines:
        print(trainer.step, digest(trainer), file=lines, flush=True)
        for _ in trainer:
            print(trainer.step, digest(trainer), file=lines, flush=True)
    trainer.close()


def fork(*arguments) -> int:
    """`run` in a process with a group of its own; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        run(*arguments)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(status)


def read(out: Path) -> list[tuple[int, str]]:
    """Whole lines of a run that may have been killed while it wrote one."""
    text = out.read_text() if out.exists() else ""
    words = [line.split() for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [(int(step), weights) for step, weights in words]


def saves_begun(place: Path) -> set[tuple[str, int]]:
    """Checkpoints that are being written, or were when a kill came."""
    found = set()
    for path in place.glob("checkpoints/.tmp-*"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def main(folder: Path, kills: int, workers: int) -> dict[str, int]:
    rng = random.Random(kills + workers)
    begun = time.monotonic()
    child = fork(None, 0, True, folder / "undisturbed")
    assert os.waitpid(child, 0)[1] == 0, "the undisturbed run failed"
    pace_s = 4 * (time.monotonic() - begun) / STEPS
    expected = dict(read(folder / "undisturbed"))
    found = dict.fromkeys(("kills", "during_saves", "resumed", "steps", "wrong", "completed", "failed"), 0)
    number = attempt = 0
    while found["kills"] < kills and not found["failed"]:
        attempt += 1
        place, out = folder / f"run-{number}", folder / f"attempt-{attempt}"
        child = fork(place, workers, bool(number % 2), out)
        before = saves_begun(place)
        lines, ended = rng.randrange(16), 0
        while not ended and len(read(out)) < lines:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.002)
        # Somewhere in what follows a step: the next one, a save, or an evaluation.
        time.sleep(rng.random() * pace_s)
        if not ended:
            os.killpg(child, signal.SIGKILL) if _has_group(child) else os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found["kills"] += 1
            found["during_saves"] += bool(saves_begun(place) - before)
        lines = read(out)
        found["resumed"] += bool(lines) and lines[0][0] > 0
        found["steps"] += len(lines)
        found["wrong"] += sum(expected[step] != weights for step, weights in lines)
        if ended:
            found["completed" if status == 0 else "failed"] += 1
            number += 1
    return found


def _has_group(child: int) -> bool:
    try:
        return os.getpgid(child) == child
    except ProcessLookupError:
        return False


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
