"""Fewer classes from a head that has more: 1000 of ImageNet out of the 21841 of ImageNet-22K."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from allsight.backbones.internimage_layouts import Published
from allsight.types import CheckpointError

HeadRows = str | os.PathLike[str] | Sequence[int]


def select_classes(found: Published, rows: HeadRows) -> Published:
    """Keep rows of the last linear layer.

    Args:
        found: Weights with `head.weight` [classes, channels] and `head.bias`.
        rows: Numbers of the classes to keep, in the new order; or a file with one number a line.

    Raises:
        CheckpointError: No head, no numbers, or one that the head does not have.
    """
    numbers = _read(Path(rows)) if isinstance(rows, str | os.PathLike) else _checked(rows, found.source)
    parts = [found.tensors.get(name) for name in ("head.weight", "head.bias")]
    if any(part is None or not part.ndim for part in parts):
        raise CheckpointError(f"{found.source}: head_rows: the weights have no head to choose classes from")
    classes = found.tensors["head.weight"].shape[0]
    wrong = next((row for row in numbers if not 0 <= row < classes), None)
    if wrong is not None or not numbers:
        fault = "is empty" if wrong is None else f"has {wrong}"
        raise CheckpointError(
            f"{found.source}: head_rows {fault}; expected numbers from 0 to {classes - 1}, the classes of "
            f"head.weight"
        )
    index = torch.tensor(numbers)
    kept = {name: found.tensors[name][index] for name in ("head.weight", "head.bias")}
    note = f"head_rows: {len(numbers)} of {classes} classes kept"
    return replace(found, tensors={**found.tensors, **kept}, notes=(*found.notes, note))


def _checked(rows: object, source: str) -> list[int]:
    """Whole numbers. A mask is refused: its entries would be taken for the classes 0 and 1."""
    plain = rows.tolist() if isinstance(rows, np.ndarray | torch.Tensor) else rows
    numbers: list[object] = list(plain) if isinstance(plain, Iterable) else [plain]
    taken: list[int] = []
    for row in numbers:
        if isinstance(row, bool) or not isinstance(row, int | np.integer):
            raise CheckpointError(
                f"{source}: head_rows: expected numbers of classes, or a file with one a line, got {row!r}"
            )
        taken.append(int(row))
    return taken


def _read(file: Path) -> list[int]:
    """One number a line."""
    try:
        return [int(line) for line in file.read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        raise CheckpointError(f"head_rows: {file}: no such file; expected one class number a line") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"head_rows: {file}: expected one class number a line ({error})") from error
