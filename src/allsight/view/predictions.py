"""The validation samples, confusion tables and class names that a run kept in `predictions/`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image

Tree = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """One validation sample with truth and answer, as plain values."""

    id: str
    folder: Path
    image: str | None
    truth: Tree
    answer: Tree

    def picture(self) -> UInt8[np.ndarray, "h w 3"] | None:
        """The input as RGB; None where there is no picture or it cannot be read."""
        return read_picture(self.folder, self.image, "RGB")

    def size(self) -> tuple[int, int] | None:
        """(width, height) of the input."""
        found = self.picture()
        return None if found is None else (found.shape[1], found.shape[0])

    def label_maps(self) -> tuple[UInt8[np.ndarray, "h w"] | None, UInt8[np.ndarray, "h2 w2"] | None]:
        """Truth and answer as label maps, where the sample has them."""
        truth = read_picture(self.folder, _file_of(self.truth, "label_map"), "L")
        answer = read_picture(self.folder, _file_of(self.answer, "label_map"), "L")
        return truth, answer


@dataclass(frozen=True)
class Kept:
    """What was kept of a task at its most recent evaluation with pictures."""

    step: int
    samples: tuple[Shown, ...] = ()
    confusion: Float64[np.ndarray, "c c"] | None = None
    classes: tuple[str, ...] = ()
    problems: tuple[str, ...] = field(default=())


def read_kept(run: Path, task: str) -> Kept | None:
    """The newest predictions of a task; None if there are none."""
    problems: list[str] = []
    for step, folder in _newest_first(run, task):
        place = f"predictions/{folder.parent.name}/{task}"
        rows = _read(folder / "index.json", place, problems)
        tables = _read(folder / "tables.json", place, problems)
        if rows is None and tables is None:
            continue
        tables = tables if isinstance(tables, dict) else {}
        samples = [_shown(folder, row) for row in rows or [] if isinstance(row, dict)]
        names = tables.get("classes")
        return Kept(
            step,
            tuple(samples),
            _confusion(tables.get("confusion"), place, problems),
            tuple(str(name) for name in names) if isinstance(names, list) else (),
            tuple(problems),
        )
    return Kept(0, problems=tuple(problems)) if problems else None


def read_picture(folder: Path, name: str | None, mode: str) -> np.ndarray | None:
    """A picture of the run folder as an array; None where it is not there or cannot be read."""
    # Only the plain name counts: a run folder from elsewhere must not make a report show other files.
    if not name or Path(name).name != name:
        return None
    try:
        with Image.open(folder / name) as image:
            return np.array(image.convert(mode) if image.mode != mode else image)
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _newest_first(run: Path, task: str) -> list[tuple[int, Path]]:
    found = []
    for path in (run / "predictions").glob("step-*"):
        number = path.name.removeprefix("step-")
        if number.isdigit() and (path / task).is_dir():
            found.append((int(number), path / task))
    return sorted(found, reverse=True)


def _read(file: Path, place: str, problems: list[str]) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{place}/{file.name} cannot be read: {error}")
        return None


def _shown(folder: Path, row: Tree) -> Shown:
    truth, answer, image = row.get("truth"), row.get("answer"), row.get("image")
    return Shown(
        str(row.get("id", "")),
        folder,
        image if isinstance(image, str) else None,
        truth if isinstance(truth, dict) else {},
        answer if isinstance(answer, dict) else {},
    )


def _file_of(tree: Tree, name: str) -> str | None:
    files = tree.get("files")
    found = files.get(name) if isinstance(files, dict) else None
    return found if isinstance(found, str) else None


def _confusion(rows: Any, place: str, problems: list[str]) -> Float64[np.ndarray, "c c"] | None:
    if rows is None:
        return None
    try:
        table = np.array(rows, dtype=np.float64)
    except (TypeError, ValueError):
        table = np.zeros((0, 1))
    if (
        table.ndim != 2
        or table.shape[0] != table.shape[1]
        or not np.isfinite(table).all()
        or (table < 0).any()
    ):
        problems.append(f"{place}/tables.json: the confusion table is not square or not numbers; left out")
        return None
    return table
