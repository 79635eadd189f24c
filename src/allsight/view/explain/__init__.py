"""What a backbone sees and what it costs: sampling points, receptive fields, times against the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allsight.config import ConfigError
from allsight.data.decode import read_picture
from allsight.draw import encode_png
from allsight.engine.predictor import Predictor
from allsight.types import Sample
from allsight.view.explain.field import Field, effective_receptive_field
from allsight.view.explain.page import own_page
from allsight.view.explain.panels import displacement_panels, field_panels, sampling_panels
from allsight.view.explain.record import FOLDER, Explanation, read_explanation
from allsight.view.explain.roofline import PartTime, Peak, time_parts
from allsight.view.explain.sampling import (
    LayerSampling,
    LayerStatistics,
    backbone_of,
    sample_layers,
    seen_from,
    statistics,
)

__all__ = [
    "FOLDER",
    "Explanation",
    "Field",
    "LayerSampling",
    "LayerStatistics",
    "PartTime",
    "Peak",
    "effective_receptive_field",
    "explain",
    "read_explanation",
    "sample_layers",
    "seen_from",
    "statistics",
    "time_parts",
]


def explain(
    predictor: Predictor,
    pictures: Sequence[str | Path],
    out: Path,
    *,
    task: str | None = None,
    at: tuple[float, float] = (0.5, 0.5),
) -> Explanation:
    """Look into the backbone on some pictures; write pictures, `explain.json` and `index.html` into a folder.

    Args:
        predictor: From `allsight.load`.
        pictures: Files; the receptive field is their mean, layers' numbers are over all.
        out: Folder to write, `RUN/explained` to see it in the run's report.
        task: Whose transform makes the pictures ready; None takes the first.
        at: The place whose samples are shown, in units of height and width, from the upper left.

    Raises:
        ConfigError: No pictures, no such task, a place outside, or a model without a backbone.
        DataError: A picture cannot be read.
    """
    backbone = backbone_of(predictor.model)
    if backbone is None:
        raise ConfigError(f"explain: {type(predictor.model).__name__} has no backbone to look into")
    name = task or next(iter(predictor.tasks))
    if name not in predictor.tasks:
        raise ConfigError(f"explain: task: no task '{name}'; there are {', '.join(predictor.tasks)}")
    if not pictures or not all(0 <= share <= 1 for share in at):
        raise ConfigError(f"explain: expected pictures and a place from 0 to 1, got {len(pictures)}, {at}")
    # Sampling is looked at in float32, whatever the run was trained in, and times are those of the CPU.
    backbone = backbone.cpu().float()
    out.mkdir(parents=True, exist_ok=True)
    images = [_prepared(predictor, name, picture) for picture in pictures]
    shown: dict[str, dict[str, str]] = {}
    layers: list[list[LayerSampling]] = []
    for picture, image in zip(pictures, images, strict=True):
        found = sample_layers(backbone, image[None])
        if found:
            layers.append(found)
            stem = _free(Path(picture).stem, shown)
            seen = image.permute(1, 2, 0).numpy()
            shown[stem] = {"sampling": f"{stem}-sampling.png", "displacement": f"{stem}-displacement.png"}
            (out / shown[stem]["sampling"]).write_bytes(encode_png(sampling_panels(seen, found, at)))
            (out / shown[stem]["displacement"]).write_bytes(encode_png(displacement_panels(seen, found)))
    same = [image for image in images if image.shape == images[0].shape]
    fields = effective_receptive_field(backbone, [backbone.normalise(image[None])[0] for image in same])
    (out / "field.png").write_bytes(encode_png(field_panels(fields)))
    hw_px = (int(images[0].shape[1]), int(images[0].shape[2]))
    peak, parts = time_parts(backbone, hw_px)
    explanation = Explanation(
        weights=predictor.weights,
        task=name,
        hw_px=hw_px,
        pictures=shown,
        field="field.png",
        sides_px=[{f"{share:g}": side for share, side in field.side_px.items()} for field in fields],
        layers=_over_pictures([statistics(each) for each in layers]),
        peak=peak,
        parts=parts,
    )
    explanation.save(out)
    (out / "index.html").write_text(own_page(explanation, out, predictor.config.name), encoding="utf-8")
    return explanation


def _prepared(predictor: Predictor, task: str, picture: str | Path) -> Tensor:
    """The picture as the model sees it, without padding: uint8 [3, h, w]."""
    found = predictor.tasks[task]
    sample = found.transform("predict")(
        Sample(str(picture), {"image": read_picture(str(picture))}), np.random.default_rng(0)
    )
    pixels: Any = found.collate([sample]).inputs["image"][0]
    height, width = sample.image.valid_hw_px or pixels.shape[1:]
    return torch.as_tensor(pixels)[:, :height, :width]


def _over_pictures(rows: list[list[LayerStatistics]]) -> list[LayerStatistics]:
    """The mean of each layer's numbers."""
    return [
        LayerStatistics(
            name=same[0].name,
            stage=same[0].stage,
            stride=same[0].stride,
            displacement_px=tuple(np.mean([each.displacement_px for each in same], axis=0).tolist()),
            reach_px=float(np.mean([each.reach_px for each in same])),
            points_used=float(np.mean([each.points_used for each in same])),
            outside=float(np.mean([each.outside for each in same])),
        )
        for same in zip(*rows, strict=True)
    ]


def _free(stem: str, taken: dict[str, dict[str, str]]) -> str:
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    return name
