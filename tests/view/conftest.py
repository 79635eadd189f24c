"""A run folder as the engine writes it, made in a moment: two tasks, pictures of coloured blobs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ANIMALS = ("cat", "dog", "goldfish", "tabby cat", "golden retriever")
STREET = ("sky", "building", "road")
START = 1_790_000_000.0

RESOLVED = """format: 1
name: {name}
model:
  kind: multi_head
  backbone:
    kind: internimage
    channels: 32
tasks:
{tasks}seed: 7
schedule:
  kind: cosine
  steps: {planned}
"""


class FakeRun:
    """Writes a run folder; every method can be left out to get one that was cut off earlier."""

    def __init__(
        self,
        folder: Path,
        *,
        planned: int = 200,
        tasks: dict[str, tuple[str, ...]] | None = None,
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        self.folder, self.planned = folder, planned
        self.tasks = tasks if tasks is not None else {"tiny20": ANIMALS, "camvid": STREET}
        self.rng = np.random.default_rng(seed)
        self.time = START
        self.lines: list[str] = []
        folder.mkdir(parents=True)
        described = "".join(
            f"  {task}:\n    kind: {'classification' if 'camvid' not in task else 'segmentation'}\n"
            f"    data: imagefolder:{task}\n    batch_size: {self.batch(task)}\n    share: 1.0\n"
            f"    loss_weight: 1.0\n"
            for task in self.tasks
        )
        text = RESOLVED.format(name=name or folder.name, tasks=described, planned=planned)
        (folder / "resolved.yaml").write_text(text)
        environment = {
            "allsight": "0.1.0", "python": "3.11.9", "torch": "2.13.0+cpu", "numpy": "2.4.6",
            "platform": "Linux-6.1-x86_64", "cpu": "AMD EPYC 7B13", "cores": 2, "gpus": [],
            "command": ["allsight", "train", "joint_tiny20_camvid", "optim.lr=2e-3"],
            "git": "0123456789abcdef0123", "started": "2026-09-21T14:13:20+00:00",
            "ops": {"dcnv3": {"backend": "reference", "reason": "no kernel built"}},
        }  # fmt: skip
        (folder / "environment.json").write_text(json.dumps(environment))
        (folder / "classes.json").write_text(json.dumps({k: list(v) for k, v in self.tasks.items()}))

    def batch(self, task: str) -> int:
        return 8 if "camvid" in task else 64

    def event(
        self,
        kind: str,
        step: int,
        values: dict[str, Any] | None = None,
        task: str | None = None,
        text: str = "",
    ) -> FakeRun:
        """Append one event."""
        plain = {
            k: v if isinstance(v, str) or math.isfinite(v) else str(v) for k, v in (values or {}).items()
        }
        event = {
            "time": round(self.time, 3), "step": step, "rank": 0, "kind": kind, "task": task,
            "values": plain, "text": text,
        }  # fmt: skip
        self.lines.append(json.dumps(event))
        return self

    def begin(self) -> FakeRun:
        facts = {"parameters": 2_013_456, "steps": self.planned, "world_size": 1, "threads": 2}
        return self.event("system", 0, facts, text="cpu")

    def train(self, first: int, last: int, *, slow: tuple[int, ...] = ()) -> FakeRun:
        """Steps first..last-1, each of one task."""
        names = list(self.tasks)
        for step in range(first, last):
            task = names[int(self.rng.integers(len(names)))]
            done = step / max(self.planned, 1)
            loss = (2.6 if task != "camvid" else 1.6) * math.exp(-2.2 * done) + 0.25
            loss *= math.exp(0.16 * self.rng.standard_normal())
            seconds = (0.09 if task != "camvid" else 0.21) * (1 + 0.08 * abs(self.rng.standard_normal()))
            seconds *= 9 if step in slow else 1
            wait = seconds * (0.7 if step in slow else 0.06 * self.rng.random())
            rate = 2e-3 * min(1, step / (0.05 * self.planned)) * 0.5 * (1 + math.cos(math.pi * done))
            norm = 1.4 * math.exp(-done) * math.exp(0.35 * self.rng.standard_normal())
            self.time += seconds
            self.event("train", step, {
                "loss": round(loss, 5), "lr": round(rate, 8), "grad_norm": round(norm, 5),
                "seconds": round(seconds, 5), "wait_s": round(wait, 5), "samples": self.batch(task),
            })  # fmt: skip
            self.event("train", step, {
                "loss": round(loss, 5), "cross_entropy": round(loss, 5), "samples": self.batch(task),
            }, task)  # fmt: skip
        return self

    def evaluate(self, step: int, *, weights: str = "ema", gain: float = 1.0) -> FakeRun:
        """Metrics of all tasks, rising over the run."""
        done, mains = step / max(self.planned, 1), []
        for task in self.tasks:
            self.time += 3
            main = gain * (0.68 if task != "camvid" else 0.52) * (1 - math.exp(-3 * done))
            main += 0.01 * self.rng.standard_normal()
            names = ("top1", "top5") if task != "camvid" else ("miou", "pixel_accuracy")
            mains.append(main)
            values = {
                names[0]: main, names[1]: main + 0.25 * (1 - main), "loss": 2.2 * (1 - main) + 0.2,
                "seconds": 3.0, "samples": 1000, "corrupt": 0,
            }  # fmt: skip
            self.event("eval", step, values, task, weights)
        return self.event("eval", step, {"main": sum(mains) / len(mains)})

    def checkpoint(self, step: int) -> FakeRun:
        self.time += 0.4
        values = {"seconds": 0.4, "bytes": 24_513_000}
        return self.event("checkpoint", step, values, text=f"checkpoints/step-{step:08d}")

    def keep_classified(
        self, step: int, task: str = "tiny20", *, pictures: list[np.ndarray] | None = None,
        truths: list[int] | None = None, number: int = 12,
    ) -> FakeRun:  # fmt: skip
        """Pictures with truth and answer, every third wrong, and a confusion table."""
        classes = self.tasks[task]
        folder = self._predictions(step, task)
        rows = []
        for index in range(number if pictures is None else len(pictures)):
            truth = truths[index] if truths else index % len(classes)
            picture = pictures[index] if pictures else self.blob(64, 64, truth)
            Image.fromarray(picture).save(folder / f"{index:06d}.png")
            scores = self.rng.dirichlet(np.full(len(classes), 0.3)) * 0.5
            scores[(truth + 1) % len(classes) if index % 3 == 2 else truth] += 0.5
            order = np.argsort(-scores)[:5]
            rows.append({
                "id": f"val/{task}_{index}.JPEG", "position": index, "image": f"{index:06d}.png",
                "truth": self._scores(task, [(classes[truth], 1.0)]),
                "answer": self._scores(task, [(classes[i], round(float(scores[i]), 6)) for i in order]),
            })  # fmt: skip
        confusion = self.rng.integers(0, 5, (len(classes), len(classes))) + np.diag([30] * len(classes))
        return self._index(folder, rows, confusion, classes)

    def keep_segmented(
        self, step: int, task: str = "camvid", *, samples: list[tuple[np.ndarray, ...]] | None = None
    ) -> FakeRun:
        """Pictures with label maps (truth has unlabelled pixels), and a confusion table."""
        classes = self.tasks[task]
        folder = self._predictions(step, task)
        rows = []
        for index, (picture, truth, answer) in enumerate(samples or [self._street() for _ in range(3)]):
            row: dict[str, Any] = {
                "id": f"val/{task}_{index}.png",
                "position": index,
                "image": f"{index:06d}.png",
            }
            Image.fromarray(picture).save(folder / row["image"])
            for term, labels in (("truth", truth), ("answer", answer)):
                name = f"{index:06d}-{term}-label_map.png"
                Image.fromarray(labels).save(folder / name)
                row[term] = {
                    "kind": "label_map", "id": row["id"], "task": task, "size_hw_px": list(labels.shape),
                    "shares": {}, "files": {"label_map": name},
                }  # fmt: skip
            rows.append(row)
        confusion = self.rng.integers(0, 4000, (len(classes), len(classes))) + np.diag(
            [90_000] * len(classes)
        )
        return self._index(folder, rows, confusion, classes)

    def finish(self) -> FakeRun:
        return self.event("system", self.planned, {"seconds": self.time - START}, text="finished")

    def write(self, *, torn: str = "") -> Path:
        """Write `events.jsonl`, and what a kill left of a last line."""
        (self.folder / "events.jsonl").write_text("".join(line + "\n" for line in self.lines) + torn)
        return self.folder

    def whole(self) -> Path:
        """A finished run with all there is."""
        self.begin()
        for stop in range(self.planned // 4, self.planned + 1, self.planned // 4):
            self.train(stop - self.planned // 4, stop, slow=(stop - 3,))
            self.evaluate(stop).checkpoint(stop)
        for task in self.tasks:
            keep = self.keep_segmented if "camvid" in task else self.keep_classified
            keep(self.planned, task)
        return self.finish().write()

    def blob(self, height: int, width: int, kind: int) -> np.ndarray:
        """A picture with one coloured disc on noise."""
        y, x = np.mgrid[:height, :width]
        disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 3) ** 2
        picture = self.rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
        picture[disc] = ((kind * 67) % 256, (kind * 131 + 60) % 256, (kind * 29 + 120) % 256)
        return picture

    def _street(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        picture = self.blob(90, 120, int(self.rng.integers(9)))
        truth = np.repeat(np.array([0, 1, 2], np.uint8), 30)[:, None].repeat(120, axis=1)
        answer = np.roll(truth, 4, axis=0)
        truth[:, :6] = 255
        return picture, truth, answer

    def _predictions(self, step: int, task: str) -> Path:
        folder = self.folder / "predictions" / f"step-{step:08d}" / task
        folder.mkdir(parents=True)
        return folder

    def _scores(self, task: str, top: list[tuple[str, float]]) -> dict[str, Any]:
        return {"kind": "class_scores", "id": "", "task": task, "top": [list(pair) for pair in top]}

    def _index(
        self, folder: Path, rows: list[dict], confusion: np.ndarray, classes: tuple[str, ...]
    ) -> FakeRun:
        (folder / "index.json").write_text(json.dumps(rows))
        tables = {"values": {}, "confusion": confusion.tolist(), "classes": list(classes)}
        (folder / "tables.json").write_text(json.dumps(tables))
        return self


@pytest.fixture
def fake_run(tmp_path: Path) -> Callable[..., FakeRun]:
    """Function: (name, settings of FakeRun) -> FakeRun in a fresh folder."""

    def make(name: str = "joint", **settings: Any) -> FakeRun:
        return FakeRun(tmp_path / name, **settings)

    return make


@pytest.fixture(scope="module")
def fake_run_class() -> type[FakeRun]:
    """The class itself, for fixtures that live longer than one test."""
    return FakeRun
