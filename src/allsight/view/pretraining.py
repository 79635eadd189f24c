"""What pre-training does with pictures: mixed inputs, and for each target what was predicted of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, UInt8

from allsight.draw import contact_sheet, encode_png

if TYPE_CHECKING:
    from allsight.engine.predictor import Predictor
    from allsight.models.m3i import M3I
    from allsight.types import Batch

FILE = "pretraining.png"
"""In the run folder; the report shows it."""

_TILE_PX = 128


def draw_pretraining(predictor: Predictor, out: Path, *, pictures: int = 8) -> Path:
    """Draw some training pictures of the first task of a run of M3I on one sheet.

    Args:
        pictures: How many, evenly spread; a multiple of those that one input is mixed of.
        out: File to write, a PNG.
    Raises:
        ConfigError: The run is not of M3I.
        DataError: The pictures cannot be read.
    """
    from allsight.config import ConfigError
    from allsight.models.m3i import M3I

    if not isinstance(predictor.model, M3I):
        raise ConfigError(f"{type(predictor.model).__name__} does not pre-train; expected a run of m3i")
    task = next(iter(predictor.tasks.values()))
    reader, transform = task.reader("train"), task.transform("train")
    rows = [i * len(reader) // pictures for i in range(pictures)]
    samples = [transform(reader[row], np.random.default_rng(row)) for row in rows]
    batch = task.collate(samples).to(predictor.device)
    out.write_bytes(encode_png(sheet_of(predictor.model, batch)))
    return out


def sheet_of(model: M3I, batch: Batch) -> UInt8[np.ndarray, "h w 3"]:
    """One row for each input: the input, then for each dense target its view, its features, the prediction.

    Features are shown by their three main directions as red, green and blue; a prediction by the same.
    """
    found = model.explain(batch)
    columns: list[tuple[str, list[np.ndarray]]] = [("input", _images(found.inputs))]
    for name, term in found.terms.items():
        settings = model.config.targets[name]
        looked = term.looked[0]
        cells = found.grid[0] * found.grid[1]
        if looked.target is None or len(looked.target) != len(found.inputs) * cells:
            continue
        role = (settings.roles or (0,))[0]
        view = batch.inputs["views"][settings.pairs[0][1]]
        target, prediction = looked.target.float().cpu().numpy(), looked.prediction.float().cpu().numpy()
        truth, guess = _as_colours(target, prediction, (len(found.inputs), *found.grid))
        columns.append((f"{name}: view", _images(view[found.players[role]])))
        columns.append((f"{name}: slow copy's features", truth))
        columns.append((f"{name}: predicted", guess))
    tiles = [tiles[row] for row in range(len(found.inputs)) for _, tiles in columns]
    names = [name for _ in range(len(found.inputs)) for name, _ in columns]
    return contact_sheet(tiles, names, columns=len(columns), tile_px=_TILE_PX)


def _images(images: object) -> list[UInt8[np.ndarray, "h w 3"]]:
    pixels = np.asarray(images.cpu().numpy())  # type: ignore[attr-defined]
    return [np.ascontiguousarray(each.transpose(1, 2, 0)) for each in pixels]


def _as_colours(
    target: Float32[np.ndarray, "n d"], prediction: Float32[np.ndarray, "n d"], shape: tuple[int, int, int]
) -> tuple[list[UInt8[np.ndarray, "h w 3"]], list[UInt8[np.ndarray, "h w 3"]]]:
    """Both by the three main directions of the targets, over the range that the targets have there."""
    mean = target.mean(0)
    _, _, directions = np.linalg.svd(target - mean, full_matrices=False)
    low, high = np.percentile((target - mean) @ directions[:3].T, (2, 98), axis=0)

    def shown(values: np.ndarray) -> list[np.ndarray]:
        places = ((values - mean) @ directions[:3].T - low) / np.maximum(high - low, 1e-6)
        colours = (places.clip(0, 1) * 255).astype(np.uint8)
        return list(colours.reshape(*shape, 3))

    return shown(target), shown(prediction)
