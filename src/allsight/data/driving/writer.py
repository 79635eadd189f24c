"""Drives as nuScenes tables, which allsight's reader and the devkit open.

root/VERSION/*.json, splits.json              tables and {split: [scenes]}
root/samples/CAMERA/SCENE_0000_CAMERA.jpg     pictures
root/maps/expansion/LOCATION.json             vector map (`write_map_expansion`)
root/can_bus/SCENE_pose.json                  what the car measured, if given
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from allsight.data.driving.poses import quaternion
from allsight.data.driving.tables import NEEDED
from allsight.data.driving.vocabulary import ATTRIBUTES, CATEGORY_OF_CLASS, CLASS_OF_CATEGORY

_VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
_EMPTY_MAP = "maps/empty.png"


@dataclass(frozen=True)
class RigCamera:
    """A camera of the rig of one scene.

    Args:
        ego_from_cam: Camera (x right, y down, z ahead) to car (x ahead, y left, z up).
        intrinsics: 3 x 3, pixels.
        hw_px: Size of its pictures.
    """

    ego_from_cam: Float[np.ndarray, "4 4"]
    intrinsics: Float[np.ndarray, "3 3"]
    hw_px: tuple[int, int]


@dataclass(frozen=True)
class Exposure:
    """What a camera took at a moment.

    Args:
        data: The picture's file; None writes no file (evaluation needs none).
        time_s: When; None is the frame's time.
        world_from_ego: Where the car was then; None is the frame's pose.
    """

    data: bytes | None
    time_s: float | None = None
    world_from_ego: Float[np.ndarray, "4 4"] | None = None


@dataclass(frozen=True)
class DrivenBox:
    """An object at a moment, in the world.

    Args:
        instance: Its name within the scene, the same at all moments.
        name: Class of the benchmark, or a category of the tables.
        center_m, size_lwh_m: Its middle; length along its heading, width, height.
        rotation: Object to world.
        attribute: One of `ATTRIBUTES`, or "" for none.
        num_points: LiDAR points inside.
        visibility: 1 to 4.
    """

    instance: str
    name: str
    center_m: Sequence[float] | np.ndarray
    size_lwh_m: Sequence[float] | np.ndarray
    rotation: Float[np.ndarray, "3 3"]
    attribute: str = ""
    num_points: int = 1
    visibility: int = 4


@dataclass(frozen=True)
class DrivenFrame:
    """A key frame.

    Args:
        time_s: Reference time, that of the LiDAR.
        world_from_ego: Where the car is then.
        shots: Camera -> what it took; a camera may be missing.
        boxes: What is annotated.
        measured: Acceleration, rotation rate and velocity [9] of the car, for `can_bus`.
    """

    time_s: float
    world_from_ego: Float[np.ndarray, "4 4"]
    shots: Mapping[str, Exposure]
    boxes: Sequence[DrivenBox] = ()
    measured: Sequence[float] | None = None


@dataclass
class DriveWriter:
    """Writes scene after scene; `close` writes the tables.

    Args:
        root: Folder to write into.
        version: Name of the folder of tables.
        ego_from_lidar: The reference frame, `LIDAR_TOP`; by default as on nuScenes' car: x right, y ahead.

    Example:
        >>> writer = DriveWriter(Path("drives"))  # doctest: +SKIP
        >>> writer.add_scene("scene-0001", rig, frames, split="train")  # doctest: +SKIP
        >>> writer.close()  # doctest: +SKIP
    """

    root: Path
    version: str = "v1.0-world"
    ego_from_lidar: Float[np.ndarray, "4 4"] = field(
        default_factory=lambda: np.array(
            [[0.0, 1.0, 0.0, 0.94], [-1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.84], [0.0, 0.0, 0.0, 1.0]]
        )
    )

    def __post_init__(self) -> None:
        self._tables: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
        self._splits: dict[str, list[str]] = {}
        self._logs: dict[str, str] = {}
        self._sensors: dict[str, str] = {}
        for n, name in enumerate(_VISIBILITY, start=1):
            self._add("visibility", str(n), level=name, description="")
        for name in ATTRIBUTES:
            self._add("attribute", _token("attribute", name), name=name, description="")
        for name in CLASS_OF_CATEGORY:
            self._add("category", _token("category", name), name=name, description="")

    def add_scene(
        self,
        name: str,
        rig: Mapping[str, RigCamera],
        frames: Sequence[DrivenFrame],
        *,
        split: str,
        location: str = "singapore-onenorth",
    ) -> None:
        """Write a scene.

        Args:
            name: Of the scene, as `scene-0001`.
            rig: Camera -> where it sits; may differ between scenes.
            frames: In the order of time.
            split: Which split it belongs to.
            location: Names its map; the devkit knows nuScenes' four only.

        Raises:
            ValueError: No frames, time that does not rise, an unknown class or attribute, a scene twice.
        """
        times = [round(frame.time_s * 1e6) for frame in frames]
        if not frames or any(late <= early for early, late in pairwise(times)):
            raise ValueError(
                f"scene {name!r}: expected frames whose times rise, got {times[:4]} microseconds"
            )
        if any(name in scenes for scenes in self._splits.values()):
            raise ValueError(f"scene {name!r} was written before")
        self._splits.setdefault(split, []).append(name)
        log = self._logs.setdefault(location, _token("log", location))
        scene = _token("scene", name)
        tokens = [_token("sample", name, n) for n in range(len(frames))]
        self._add(
            "scene",
            scene,
            name=name,
            description="",
            log_token=log,
            nbr_samples=len(frames),
            first_sample_token=tokens[0],
            last_sample_token=tokens[-1],
        )
        for n, (token, time_us) in enumerate(zip(tokens, times, strict=True)):
            self._add(
                "sample",
                token,
                timestamp=time_us,
                scene_token=scene,
                prev=tokens[n - 1] if n else "",
                next=tokens[n + 1] if n + 1 < len(tokens) else "",
            )
        self._add_sensor_data(name, rig, frames, tokens, times)
        self._add_boxes(name, frames, tokens)
        messages = [
            {"utime": time_us, "accel": list(m[0:3]), "rotation_rate": list(m[3:6]), "vel": list(m[6:9])}
            for time_us, frame in zip(times, frames, strict=True)
            if (m := frame.measured) is not None
        ]
        if messages:
            _write_json(self.root / "can_bus" / f"{name}_pose.json", messages)

    def close(self) -> None:
        """Write the tables, the splits and the empty raster map that the devkit asks for."""
        for location, token in self._logs.items():
            self._add("log", token, logfile="", vehicle="world", date_captured="", location=location)
        self._add(
            "map",
            _token("map"),
            log_tokens=list(self._logs.values()),
            filename=_EMPTY_MAP,
            category="semantic_prior",
        )
        (self.root / "maps").mkdir(parents=True, exist_ok=True)
        (self.root / _EMPTY_MAP).touch()
        for name, rows in self._tables.items():
            _write_json(self.root / self.version / f"{name}.json", rows)
        _write_json(self.root / self.version / "splits.json", self._splits)

    def _add(self, table: str, token: str, **values: Any) -> None:
        self._tables[table].append({"token": token, **values})

    def _sensor(self, channel: str, modality: str) -> str:
        if channel not in self._sensors:
            self._sensors[channel] = _token("sensor", channel)
            self._add("sensor", self._sensors[channel], channel=channel, modality=modality)
        return self._sensors[channel]

    def _add_sensor_data(
        self,
        scene: str,
        rig: Mapping[str, RigCamera],
        frames: Sequence[DrivenFrame],
        tokens: Sequence[str],
        times_us: Sequence[int],
    ) -> None:
        mounts = {"LIDAR_TOP": ("lidar", self.ego_from_lidar, None)}
        mounts |= {name: ("camera", camera.ego_from_cam, camera) for name, camera in rig.items()}
        for channel, (modality, ego_from_sensor, camera) in mounts.items():
            sensor = _token("calibrated_sensor", scene, channel)
            self._add(
                "calibrated_sensor",
                sensor,
                sensor_token=self._sensor(channel, modality),
                **_placed(ego_from_sensor),
                camera_intrinsic=camera.intrinsics.tolist() if camera else [],
            )
            present = [n for n, frame in enumerate(frames) if camera is None or channel in frame.shots]
            own = [_token("sample_data", scene, n, channel) for n in present]
            for place, n in enumerate(present):
                shot = frames[n].shots[channel] if camera else Exposure(None)
                time_us = times_us[n] if shot.time_s is None else round(shot.time_s * 1e6)
                pose = frames[n].world_from_ego if shot.world_from_ego is None else shot.world_from_ego
                ending = "jpg" if camera else "pcd.bin"
                file = sample_file(scene, n, channel, ending)
                if shot.data is not None:
                    (self.root / file).parent.mkdir(parents=True, exist_ok=True)
                    (self.root / file).write_bytes(shot.data)
                ego = _token("ego_pose", scene, n, channel)
                self._add("ego_pose", ego, timestamp=time_us, **_placed(pose))
                height, width = camera.hw_px if camera else (0, 0)
                self._add(
                    "sample_data",
                    own[place],
                    sample_token=tokens[n],
                    ego_pose_token=ego,
                    calibrated_sensor_token=sensor,
                    timestamp=time_us,
                    fileformat=ending.split(".")[0],
                    is_key_frame=True,
                    height=height,
                    width=width,
                    filename=file,
                    prev=own[place - 1] if place else "",
                    next=own[place + 1] if place + 1 < len(own) else "",
                )

    def _add_boxes(self, scene: str, frames: Sequence[DrivenFrame], tokens: Sequence[str]) -> None:
        seen: dict[str, list[tuple[int, DrivenBox]]] = {}
        for n, frame in enumerate(frames):
            for box in frame.boxes:
                seen.setdefault(box.instance, []).append((n, box))
        for name, moments in seen.items():
            instance = _token("instance", scene, name)
            own = [_token("sample_annotation", scene, name, n) for n, _ in moments]
            category = CATEGORY_OF_CLASS.get(moments[0][1].name, moments[0][1].name)
            self._add(
                "instance",
                instance,
                category_token=self._category(category),
                nbr_annotations=len(own),
                first_annotation_token=own[0],
                last_annotation_token=own[-1],
            )
            for place, (n, box) in enumerate(moments):
                if box.attribute and box.attribute not in ATTRIBUTES:
                    raise ValueError(
                        f"scene {scene!r}: unknown attribute {box.attribute!r}; known: {ATTRIBUTES}"
                    )
                length, width, height = (float(side) for side in box.size_lwh_m)
                self._add(
                    "sample_annotation",
                    own[place],
                    sample_token=tokens[n],
                    instance_token=instance,
                    visibility_token=str(box.visibility),
                    attribute_tokens=[_token("attribute", box.attribute)] if box.attribute else [],
                    translation=[float(v) for v in box.center_m],
                    size=[width, length, height],
                    rotation=quaternion(box.rotation).tolist(),
                    num_lidar_pts=box.num_points,
                    num_radar_pts=0,
                    prev=own[place - 1] if place else "",
                    next=own[place + 1] if place + 1 < len(own) else "",
                )

    def _category(self, name: str) -> str:
        token = _token("category", name)
        if all(row["token"] != token for row in self._tables["category"]):
            self._add("category", token, name=name, description="")
        return token


# The devkit asks for all of them.
_TABLES = (*NEEDED, "map", "visibility")


def sample_file(scene: str, frame: int, channel: str, ending: str = "jpg") -> str:
    """Where below the root the data of a sensor at a key frame lies."""
    return f"samples/{channel}/{scene}_{frame:04d}_{channel}.{ending}"


def write_map_expansion(
    file: Path,
    areas: Mapping[str, Sequence[Sequence[np.ndarray]]],
    lines: Mapping[str, Sequence[np.ndarray]],
    *,
    edge_m: tuple[float, float] = (3000.0, 3000.0),
) -> None:
    """Write a vector map as nuScenes' map expansion has it.

    Args:
        file: `maps/expansion/LOCATION.json`.
        areas: Layer (`drivable_area`, `ped_crossing`, ...) -> polygons, each its outline [n, 2] and
            then its holes.
        lines: Layer (`road_divider`, `lane_divider`) -> lines [n, 2].
        edge_m: Size of the map in x and y.
    """
    tree: dict[str, Any] = {
        "version": "1.3",
        "canvas_edge": list(edge_m),
        "connectivity": {},
        "arcline_path_3": {},
    }
    layers = (*_POLYGON_LAYERS, *_LINE_LAYERS, "drivable_area", "lane_connector", "polygon", "line", "node")
    tree |= {layer: [] for layer in layers}

    def nodes(points: np.ndarray) -> list[str]:
        first = len(tree["node"])
        tree["node"] += [
            {"token": _token("node", first + n), "x": float(x), "y": float(y)}
            for n, (x, y) in enumerate(points)
        ]
        return [node["token"] for node in tree["node"][first:]]

    for layer, polygons in areas.items():
        for number, (outline, *holes) in enumerate(polygons):
            token = _token("polygon", layer, number)
            tree["polygon"].append(
                {
                    "token": token,
                    "exterior_node_tokens": nodes(outline),
                    "holes": [{"node_tokens": nodes(hole)} for hole in holes],
                }
            )
            own = {"polygon_tokens": [token]} if layer == "drivable_area" else {"polygon_token": token}
            tree[layer].append({"token": _token(layer, number), **own})
    for layer, paths in lines.items():
        for number, path in enumerate(paths):
            token = _token("line", layer, number)
            tree["line"].append({"token": token, "node_tokens": nodes(path)})
            tree[layer].append({"token": _token(layer, number), "line_token": token})
    _write_json(file, tree)


_POLYGON_LAYERS = (
    "road_segment",
    "road_block",
    "lane",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
)
_LINE_LAYERS = ("road_divider", "lane_divider", "traffic_light")


def _token(*parts: object) -> str:
    """The same for the same parts, whoever writes them."""
    return hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=16).hexdigest()


def _placed(pose: Float[np.ndarray, "4 4"]) -> dict[str, list[float]]:
    return {"translation": pose[:3, 3].tolist(), "rotation": quaternion(pose[:3, :3]).tolist()}


def _write_json(file: Path, tree: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(tree, separators=(",", ":")), encoding="utf-8")
