"""The words of nuScenes: detection classes, their ranges and attributes, splits.

Source: nutonomy/nuscenes-devkit:python-sdk/nuscenes/eval/detection/{utils.py,constants.py},
configs/detection_cvpr_2019.json, and python-sdk/nuscenes/utils/splits.py (facts, restated here).
"""

from __future__ import annotations

from collections.abc import Mapping

from allsight.types.driving import NUSCENES_CLASSES

CLASSES = NUSCENES_CLASSES
"""The ten classes of the detection benchmark, in the order of BEVFormer's weights."""

CLASS_OF_CATEGORY: Mapping[str, str] = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
}
"""Category of the tables -> class of the benchmark; other categories are not detected."""

CATEGORY_OF_CLASS: Mapping[str, str] = {
    "bus": "vehicle.bus.rigid",
    "pedestrian": "human.pedestrian.adult",
    **{name: cat for cat, name in CLASS_OF_CATEGORY.items() if name not in ("bus", "pedestrian")},
}
"""What a writer calls a class in the tables."""

BIKE_RACK = "static_object.bicycle_rack"

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.parked",
    "vehicle.stopped",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.moving",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
)

RANGE_M: Mapping[str, float] = {
    **dict.fromkeys(("car", "truck", "bus", "trailer", "construction_vehicle"), 50.0),
    **dict.fromkeys(("pedestrian", "motorcycle", "bicycle"), 40.0),
    **dict.fromkeys(("traffic_cone", "barrier"), 30.0),
}
"""How far from the car a class is evaluated."""

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)
"""In the order of BEVFormer's camera embeddings."""

_VAL = (
    "3 12-18 35 36 38 39 92-110 221 268-278 329-332 344-346 519-524 552-565 625-627 629 630 632-638 770 771 "
    "775 777 778 780-784 794-800 802 904-917 919-931 962 963 966-969 971 972 1059-1073"
)
_MINI = {
    "mini_train": "61 553 655 757 796 1077 1094 1100",
    "mini_val": "103 916",
}


def _scenes(numbers: str) -> frozenset[str]:
    found = []
    for part in numbers.split():
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return frozenset(f"scene-{number:04d}" for number in found)


VAL_SCENES = _scenes(_VAL)
"""The 150 validation scenes of v1.0-trainval; its other 700 are for training."""


def official_splits(version: str) -> dict[str, frozenset[str] | None]:
    """Split -> its scenes (None: all that are not in another split) of an official version; else nothing."""
    if version.endswith("mini"):
        mini = {name: _scenes(numbers) for name, numbers in _MINI.items()}
        return {"train": mini["mini_train"], "val": mini["mini_val"], **mini}
    if version.endswith("trainval"):
        return {"train": None, "val": VAL_SCENES}
    if version.endswith("test"):
        return {"test": None}
    return {}


def default_attribute(name: str, speed_mps: float) -> str:
    """The attribute that a class most likely has at a speed; "" for classes without.

    Source: open-mmlab/mmdetection3d:mmdet3d/datasets/nuscenes_dataset.py, `_format_bbox`.
    """
    if speed_mps > 0.2:
        if name in ("car", "construction_vehicle", "bus", "truck", "trailer"):
            return "vehicle.moving"
        if name in ("bicycle", "motorcycle"):
            return "cycle.with_rider"
    elif name == "pedestrian":
        return "pedestrian.standing"
    elif name == "bus":
        return "vehicle.stopped"
    return _WITHOUT_SPEED.get(name, "")


_WITHOUT_SPEED = {
    **dict.fromkeys(("car", "truck", "trailer", "construction_vehicle"), "vehicle.parked"),
    "bus": "vehicle.moving",
    "pedestrian": "pedestrian.moving",
    **dict.fromkeys(("bicycle", "motorcycle"), "cycle.without_rider"),
}
