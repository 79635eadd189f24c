"""A result file that finds most boxes of tables, more or less well, and invents others."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from allsight.data.driving.index import Index
from allsight.data.driving.vocabulary import ATTRIBUTES, CLASS_OF_CATEGORY, CLASSES


def write_noisy(path: Path, index: Index, samples: np.ndarray, seed: int = 0, invented: int = 5) -> None:
    rng = np.random.default_rng(seed)
    results = {}
    for sample in samples.tolist():
        token, boxes = index.token(sample), []
        own = np.arange(index.box_start[sample], index.box_start[sample + 1])
        for n in [*own[rng.random(len(own)) < 0.9].tolist(), *rng.choice(own, invented).tolist()]:
            name = CLASS_OF_CATEGORY.get(index.names["categories"][index.box_category[n]])
            if name is None or rng.random() < 0.05:
                name = str(rng.choice(CLASSES))
            boxes.append(
                {
                    "sample_token": token,
                    "translation": (index.box_center[n] + rng.normal(0, 0.8, 3)).tolist(),
                    "size": (index.box_wlh[n] * rng.uniform(0.8, 1.2, 3)).tolist(),
                    "rotation": (index.box_turn[n] + rng.normal(0, 0.1, 4)).tolist(),
                    "velocity": (np.nan_to_num(index.box_velocity[n]) + rng.normal(0, 0.5, 2)).tolist(),
                    "detection_name": name,
                    # Rounded, so that some are equal.
                    "detection_score": round(float(rng.random()), 2),
                    "attribute_name": str(rng.choice(["", *ATTRIBUTES])),
                }
            )
        results[token] = boxes
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    path.write_text(json.dumps({"meta": meta, "results": results}))
