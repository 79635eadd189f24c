"""The texts of YOLO: an object a line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from allsight.data.readers.tree import Tree


@dataclass(frozen=True)
class LabelFile:
    """What a text says, in shares of the picture; `fault` where it cannot be used (and then nothing else).

    Args:
        labels: Class index of each object.
        boxes: Edges left, top, right, bottom.
        polygons: x, y, x, y, ... of each; empty where it is a box.
        keypoints: [k, 3] of each, where keypoints are expected.
        fault: One line.
    """

    labels: tuple[int, ...] = ()
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    polygons: tuple[tuple[float, ...], ...] = ()
    keypoints: tuple[Float32[np.ndarray, "k 3"], ...] = ()
    fault: str = ""


def parse_labels(tree: Tree, name: str, num_classes: int, keypoint_shape: tuple[int, int]) -> LabelFile:
    """Read a text. `keypoint_shape` is (number, numbers for each: 2 or 3), or (0, 0)."""
    where = tree.where(name)
    try:
        lines = tree.read(name).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        return LabelFile(fault=f"{where}: not UTF-8 ({error.reason} at byte {error.start})")
    except OSError as error:
        return LabelFile(fault=f"{where}: {error.strerror or error}")
    labels, boxes, polygons, keypoints = [], [], [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            values = [float(word) for word in words]
        except ValueError:
            return LabelFile(fault=f"{where}, line {number}: expected numbers, got {line[:60]!r}")
        label, rest = values[0], tuple(values[1:])
        if not (label.is_integer() and 0 <= label < num_classes):
            return LabelFile(
                fault=f"{where}, line {number}: class {words[0][:20]}; expected 0 to {num_classes - 1}"
            )
        count, dims = keypoint_shape
        is_polygon = not count and len(rest) >= 6 and len(rest) % 2 == 0
        if not is_polygon and len(rest) != 4 + count * dims:
            return LabelFile(
                fault=f"{where}, line {number}: {len(rest)} numbers after the class; expected 4 (box), "
                + (f"or {4 + count * dims} (box and keypoints)" if count else "or 6 and more (polygon)")
            )
        if not np.isfinite(rest).all():
            return LabelFile(fault=f"{where}, line {number}: a number is NaN or infinite")
        labels.append(int(label))
        boxes.append(_around(rest) if is_polygon else _edges(rest))
        polygons.append(rest if is_polygon else ())
        if count:
            keypoints.append(_keypoints(rest[4:], count, dims))
    return LabelFile(tuple(labels), tuple(boxes), tuple(polygons), tuple(keypoints))


def _edges(values: tuple[float, ...]) -> tuple[float, float, float, float]:
    x, y, width, height = values[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _around(polygon: tuple[float, ...]) -> tuple[float, float, float, float]:
    x, y = polygon[0::2], polygon[1::2]
    return min(x), min(y), max(x), max(y)


def _keypoints(values: tuple[float, ...], count: int, dims: int) -> Float32[np.ndarray, "k 3"]:
    points = np.array(values, dtype=np.float32).reshape(count, dims)
    if dims == 3:
        return points
    # Without visibility, (0, 0) means not labelled.
    return np.concatenate((points, 2.0 * points.any(1, keepdims=True)), 1).astype(np.float32)
