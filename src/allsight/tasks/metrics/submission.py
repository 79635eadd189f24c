"""Detection results in nuScenes' json, written and read, and the truth of tables to judge them by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from allsight.data.driving.index import Index
from allsight.data.driving.poses import heading, moved, quaternion, rotations, turns
from allsight.data.driving.vocabulary import (
    ATTRIBUTES,
    BIKE_RACK,
    CLASS_OF_CATEGORY,
    CLASSES,
    RANGE_M,
    default_attribute,
)
from allsight.tasks.metrics.detection_3d import WorldBoxes, without_racked
from allsight.types import Boxes3DAnswer, DataError

_NUMBERS: Mapping[str, int] = {"translation": 3, "size": 3, "rotation": 4, "velocity": 2}

MOST_BOXES = 500
"""A sample may have so many."""


def world_boxes(answer: Boxes3DAnswer, sample: int, attributes: Sequence[str] = ATTRIBUTES) -> WorldBoxes:
    """The boxes of an answer in the world, each with the attribute its class and speed suggest."""
    pose, ego = answer.world_from_ref, answer.ego_from_ref
    centers = answer.centers_ref_m.astype(np.float64)
    speeds = np.concatenate([answer.velocities_ref_mps.astype(np.float64), np.zeros((len(centers), 1))], 1)
    place_of = {name: n for n, name in enumerate(attributes)}
    names = [_name(answer, n) for n in range(len(centers))]
    speed = np.linalg.norm(speeds, axis=1)
    return WorldBoxes(
        np.full(len(centers), sample, dtype=np.int64),
        answer.labels,
        moved(pose, centers),
        answer.sizes_m.astype(np.float64),
        heading(pose[:3, :3] @ turns(answer.yaw_rad.astype(np.float64))),
        (speeds @ pose[:3, :3].T)[:, :2],
        np.array(
            [place_of.get(default_attribute(name, s), -1) for name, s in zip(names, speed, strict=True)],
            dtype=np.int64,
        ),
        _ground_distance(centers, pose, ego),
        answer.scores.astype(np.float64),
    )


def write_submission(
    path: Path, answers: Iterable[Boxes3DAnswer], *, meta: Mapping[str, bool] | None = None
) -> int:
    """Write answers for the benchmark's server or the devkit; returns how many samples were written.

    Boxes beyond the range of their class are left out, then all but the 500 best of a sample.

    Args:
        path: The json file.
        answers: One a sample; the token is what stands behind the last / of its id.
        meta: What was used; by default cameras alone.
    """
    results: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        token = answer.id.rpartition("/")[2]
        boxes = world_boxes(answer, 0)
        limits = np.array([RANGE_M.get(name, 0.0) for name in answer.classes])
        keep = boxes.distances_m < limits[boxes.labels] if len(boxes) else np.zeros(0, dtype=bool)
        places = np.flatnonzero(keep)
        places = places[np.argsort(-boxes.scores[places], kind="stable")][:MOST_BOXES]
        turn = answer.world_from_ref[:3, :3] @ turns(answer.yaw_rad.astype(np.float64))
        results[token] = [
            {
                "sample_token": token,
                "translation": boxes.centers_m[n].tolist(),
                "size": boxes.sizes_lwh_m[n, [1, 0, 2]].tolist(),
                "rotation": quaternion(turn[n]).tolist(),
                "velocity": np.nan_to_num(boxes.velocities_mps[n]).tolist(),
                "detection_name": _name(answer, n),
                "detection_score": float(boxes.scores[n]),
                "attribute_name": ATTRIBUTES[boxes.attributes[n]] if boxes.attributes[n] >= 0 else "",
            }
            for n in places.tolist()
        ]
    used = {name: False for name in ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")}
    tree = {"meta": {**used, "use_camera": True, **(meta or {})}, "results": results}
    path.write_text(json.dumps(tree), encoding="utf-8")
    return len(results)


def read_submission(
    path: Path, index: Index, samples: Int64[np.ndarray, " s"], *, in_table_order: bool = False
) -> WorldBoxes:
    """The boxes of a result file; samples are numbered by their place in `samples` (rows of `index`).

    Args:
        path: The file.
        index: The tables.
        samples: The samples of the split.
        in_table_order: Take samples in the order of `sample.json`, not in that of the file: what the devkit
            does for splits of one's own (`NuScenes.has_own_splits`). Equal scores are ranked by it.
    Raises:
        DataError: Not such a file, a sample that is missing, an unknown class, or a malformed box.
    """
    try:
        results = json.loads(path.read_bytes())["results"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: no detection results ({error!r}); expected an object with 'results'"
        ) from None
    tokens = [index.token(sample) for sample in samples.tolist()]
    missing = next((token for token in tokens if token not in results), None)
    if missing is not None:
        raise DataError(f"{path}: no results of sample {missing}; give an empty list where nothing is found")
    label_of = {name: n for n, name in enumerate(CLASSES)}
    place_of = {name: n for n, name in enumerate(ATTRIBUTES)}
    number_of = {token: n for n, token in enumerate(tokens)}
    columns: dict[str, list[Any]] = {name: [] for name in _NUMBERS}
    samples_of, labels, attributes, scores = [], [], [], []
    # The order matters, since equal scores are ranked by it.
    order: Iterable[str] = results
    if in_table_order:
        order = (tokens[n] for n in index.sample_place[samples].argsort(kind="stable").tolist())
    for token in order:
        if token not in number_of:
            continue
        boxes = results[token]
        try:
            labels += [label_of[box["detection_name"]] for box in boxes]
            attributes += [place_of.get(box["attribute_name"], -1) for box in boxes]
            scores += [box.get("detection_score", -1.0) for box in boxes]
            for name, column in columns.items():
                column += [box[name] for box in boxes]
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: a box of sample {token} has no or a wrong {error}") from None
        samples_of += [number_of[token]] * len(boxes)
    try:
        values = np.concatenate(
            [np.array(columns[name], dtype=np.float64).reshape(-1, size) for name, size in _NUMBERS.items()],
            1,
        )
    except ValueError as error:
        raise DataError(f"{path}: boxes whose numbers are not {dict(_NUMBERS)} ({error})") from None
    numbers = np.array(samples_of, dtype=np.int64)
    return WorldBoxes(
        numbers,
        np.array(labels, dtype=np.int64),
        values[:, :3],
        values[:, [4, 3, 5]],
        heading(rotations(values[:, 6:10])) if len(values) else np.zeros(0),
        values[:, 10:12],
        np.array(attributes, dtype=np.int64),
        _ego_distances(index, samples, numbers, values[:, :3]),
        np.array(scores, dtype=np.float64),
    )


def tables_truth(
    index: Index, samples: Int64[np.ndarray, " s"], reference: str = "LIDAR_TOP"
) -> tuple[WorldBoxes, WorldBoxes]:
    """The annotations that the benchmark evaluates (with points), and the bicycle racks, of rows of `index`.

    `scores` of truth are the numbers of points.
    """
    rows = samples
    starts, ends = index.box_start[rows], index.box_start[rows + 1]
    own = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)]) if len(rows) else rows
    numbers = np.repeat(np.arange(len(rows)), ends - starts)
    label_of = {name: n for n, name in enumerate(CLASSES)}
    names = index.names["categories"]
    labels = np.array([label_of.get(CLASS_OF_CATEGORY.get(name, ""), -1) for name in names], dtype=np.int64)
    is_rack = np.array([name == BIKE_RACK for name in names], dtype=bool)
    known = {name: n for n, name in enumerate(ATTRIBUTES)}
    attribute = np.array([*(known.get(name, -1) for name in index.names["attributes"]), -1], dtype=np.int64)
    category = index.box_category[own]

    def part(keep: np.ndarray) -> WorldBoxes:
        boxes, some = own[keep], numbers[keep]
        centers = np.array(index.box_center[boxes])
        return WorldBoxes(
            some,
            labels[index.box_category[boxes]],
            centers,
            np.array(index.box_wlh[boxes][:, [1, 0, 2]]),
            heading(rotations(index.box_turn[boxes])) if len(boxes) else np.zeros(0),
            np.array(index.box_velocity[boxes]),
            attribute[index.box_attribute[boxes]],
            _ego_distances(index, rows, some, centers, reference),
            index.box_points[boxes].astype(np.float64),
        )

    return part((labels[category] >= 0) & (index.box_points[own] > 0)), part(is_rack[category])


def filtered(boxes: WorldBoxes, racks: WorldBoxes, classes: Sequence[str] = CLASSES) -> WorldBoxes:
    """The boxes that the benchmark counts: within the range of their class, and no bicycles in racks."""
    return without_racked(boxes.within([RANGE_M[name] for name in classes]), racks, classes)


def _ego_distances(
    index: Index,
    rows: np.ndarray,
    numbers: np.ndarray,
    centers_m: np.ndarray,
    reference: str = "LIDAR_TOP",
) -> np.ndarray:
    data = index.data_of[rows, index.names["channels"].index(reference)]
    ego = index.data_pose[data][:, :2]
    return np.sqrt(((centers_m[:, :2] - ego[numbers]) ** 2).sum(axis=1))


def _ground_distance(
    centers_ref_m: np.ndarray, world_from_ref: np.ndarray, ego_from_ref: np.ndarray
) -> np.ndarray:
    ego_in_ref = np.linalg.inv(ego_from_ref)[:3, 3]
    way = (centers_ref_m - ego_in_ref) @ world_from_ref[:3, :3].T
    return np.sqrt((way[:, :2] ** 2).sum(axis=1))


def _name(answer: Boxes3DAnswer, n: int) -> str:
    label = int(answer.labels[n])
    return answer.classes[label] if 0 <= label < len(answer.classes) else ""
