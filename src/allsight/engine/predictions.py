"""Keeps a few validation samples with truth and answer in the run folder: a report needs no data set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image as PillowImage
from torch import Tensor

from allsight.engine.distributed import Ranks
from allsight.engine.run_folder import write_text
from allsight.tasks.base import Metric, Task
from allsight.types import Answer, Batch


class PredictionWriter:
    """Writes `predictions/step-N/TASK/`: pictures as PNG, `index.json`, `tables.json`.

    Never stops a run: after the first file that cannot be written it writes no more, and `finish` says why.
    """

    def __init__(self, folder: Path, step: int, task: str) -> None:
        self._folder = folder / "predictions" / f"step-{step:08d}" / task
        self._rows: list[dict[str, Any]] = []
        self._problem = ""

    def add(
        self,
        batch: Batch,
        answers: Sequence[Answer],
        task: Task,
        shown: frozenset[int],
        positions: Sequence[int],
    ) -> None:
        """Keep the rows of a batch whose `positions` (among all samples judged) are in `shown`."""
        rows = {row: position for row, position in enumerate(positions) if position in shown}
        if not rows or self._problem:
            return
        truths = task.truth(batch)
        try:
            self._keep_rows(rows, batch, answers, truths, task)
        except OSError as error:
            self._problem = str(error)

    def _keep_rows(
        self,
        rows: Mapping[int, int],
        batch: Batch,
        answers: Sequence[Answer],
        truths: Sequence[Answer],
        task: Task,
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for row, number in rows.items():
            entry: dict[str, Any] = {"id": batch.ids[row], "position": number}
            picture = task.picture(batch, row, answers[row])
            if picture is None:
                picture = _input_picture(batch, row)
            if picture is not None:
                entry["image"] = f"{number:06d}.png"
                PillowImage.fromarray(picture).save(self._folder / entry["image"])
            entry["truth"] = self._keep(truths[row], f"{number:06d}-truth")
            entry["answer"] = self._keep(answers[row], f"{number:06d}-answer")
            self._rows.append(entry)

    def finish(self, values: dict[str, float], metric: Metric, task: Task, ranks: Ranks) -> str:
        """Write the index of all ranks' rows and the metric's tables; why not all could be written, or ""."""
        gathered = ranks.gather((self._rows, self._problem))
        problem = next((text for _, text in gathered if text), "")
        if not ranks.is_first:
            return problem
        rows = sorted((row for theirs, _ in gathered for row in theirs), key=lambda row: row["position"])
        tables = {"values": values, **metric.tables(), "classes": list(task.classes)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / "index.json", json.dumps(rows, indent=1, ensure_ascii=False))
            write_text(self._folder / "tables.json", json.dumps(tables, ensure_ascii=False))
        except OSError as error:
            return problem or str(error)
        return problem

    def _keep(self, answer: Answer, stem: str) -> dict[str, Any]:
        kept = answer.to_json()
        files = {}
        for name, array in answer.arrays().items():
            files[name] = f"{stem}-{name}.png"
            PillowImage.fromarray(array).save(self._folder / files[name])
        return {**kept, "files": files} if files else kept


def _input_picture(batch: Batch, row: int) -> UInt8[np.ndarray, "h w 3"] | None:
    """The input `image`, where there is one."""
    picture = batch.inputs.get("image")
    if not isinstance(picture, Tensor):
        return None
    return _as_uint8(_without_padding(picture[row], batch.inputs.get("valid_hw_px"), row))


def _without_padding(picture: Shaped[Tensor, "3 h w"], valid_hw_px: Any, row: int) -> Shaped[Tensor, "3 _ _"]:
    """The part of a canvas that holds picture, which is what answers speak of."""
    if not isinstance(valid_hw_px, Tensor):
        return picture
    height, width = valid_hw_px[row].tolist()
    return picture[:, :height, :width]


def _as_uint8(picture: Shaped[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as people see it; what was normalised already is stretched to its own range."""
    array = picture.detach().cpu().permute(1, 2, 0).numpy()
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    low, high = float(array.min()), float(array.max())
    return ((array - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
