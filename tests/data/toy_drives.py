"""Tiny drives: a rig of two cameras on a turning car, a few moving boxes, pictures of one colour each."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from allsight.data.driving.poses import inverse, poses, turns
from allsight.data.driving.writer import DrivenBox, DrivenFrame, DriveWriter, Exposure, RigCamera

HEIGHT, WIDTH = 24, 40
NAMES = ("car", "pedestrian", "bus", "barrier", "bicycle")


def jpeg(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (level % 256, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def looking(yaw: float, pitch: float = 0.05) -> np.ndarray:
    """ego_from_cam of a camera 1.6 m up that looks `yaw` to the left of ahead."""
    axes = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    tilt = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]], dtype=float
    )
    pose = np.eye(4)
    pose[:3, :3] = turns(np.array(yaw)) @ axes @ tilt
    pose[:3, 3] = [1.2, 0.1, 1.6]
    return pose


RIG = {
    "CAM_FRONT": RigCamera(looking(0.0), np.array([[30.0, 0, 20], [0, 30, 12], [0, 0, 1]]), (HEIGHT, WIDTH)),
    "CAM_BACK": RigCamera(looking(np.pi), np.array([[28.0, 0, 19], [0, 28, 11], [0, 0, 1]]), (HEIGHT, WIDTH)),
}


def car_at(time_s: float) -> np.ndarray:
    """The car's pose: a curve, uphill and leaning a little, far from the origin."""
    yaw = 0.4 + 0.2 * time_s
    pose = np.eye(4)
    lean = poses(np.zeros(3), np.array([1.0, 0.01, -0.02, 0.0]))
    pose[:3, :3] = turns(np.array(yaw)) @ lean[:3, :3]
    pose[:3, 3] = [1000 + 6 * time_s, 600 + 2 * time_s**2, 3 + 0.1 * time_s]
    return pose


def boxes_at(time_s: float, seed: int, count: int = 6) -> list[DrivenBox]:
    rng = np.random.default_rng(seed)
    car = car_at(0.0)[:3, 3]
    found = []
    for n in range(count):
        place, speed = rng.uniform(-30, 30, 2), rng.uniform(-4, 4, 2)
        name = NAMES[n % len(NAMES)]
        attribute = {"car": "vehicle.moving", "pedestrian": "pedestrian.moving", "bus": "vehicle.moving"}
        found.append(
            DrivenBox(
                f"object {n}",
                name,
                np.array([*(car[:2] + place + speed * time_s), 4.0]),
                rng.uniform(0.5, 5, 3),
                turns(np.array(rng.uniform(-3, 3))),
                attribute.get(name, "cycle.with_rider" if name == "bicycle" else ""),
                num_points=int(rng.integers(1, 30)),
            )
        )
    return found


def write_nuscenes(
    root: Path,
    scenes: Mapping[str, Mapping[str, int]] | None = None,
    *,
    boxes: int = 6,
    version: str = "v1.0-toy",
    pictures: bool = True,
) -> Path:
    """Scenes of each split ({split: {scene: frames}}); returns the first picture."""
    writer = DriveWriter(root, version)
    scenes = scenes or {"train": {"scene-0001": 2, "scene-0002": 1}, "val": {"scene-0003": 2}}
    number = 0
    for split, of_split in scenes.items():
        for name, count in of_split.items():
            frames = []
            number += 10
            for n in range(count):
                time_s = 100.0 * number + 0.5 * n
                shots = {}
                for k, camera in enumerate(RIG):
                    late = 0.5 * n + 0.02 * (k + 1)
                    data = jpeg(number * 7 + 3 * n + k) if pictures else None
                    shots[camera] = Exposure(data, time_s + 0.02 * (k + 1), car_at(late))
                measured = [0.1, 0, 9.8, 0, 0, 0.2, 6, 0, 0]
                frames.append(
                    DrivenFrame(time_s, car_at(0.5 * n), shots, boxes_at(0.5 * n, number, boxes), measured)
                )
            writer.add_scene(name, RIG, frames, split=split)
    writer.close()
    first = next(iter(next(iter(scenes.values()))))
    return root / f"samples/CAM_FRONT/{first}_0000_CAM_FRONT.jpg"


def write_infos(root: Path, splits: Mapping[str, int] | None = None) -> Path:
    """An `infos_SPLIT.json` for each split with one scene; returns its first picture."""
    ego_from_lidar = poses(np.array([0.9, 0.0, 1.8]), np.array([1.0, 0.0, 0.0, -0.9]))
    for split, count in (splits or {"train": 3, "val": 2}).items():
        samples = []
        for n in range(count):
            cams = {}
            for k, (name, camera) in enumerate(RIG.items()):
                file = root / f"pictures/{split}{n}_{name}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(jpeg(10 * n + k + len(split)))
                cams[name] = {
                    "path": file.relative_to(root).as_posix(),
                    "width": WIDTH,
                    "height": HEIGHT,
                    "cam2img": camera.intrinsics.tolist(),
                    "lidar2cam": (inverse(camera.ego_from_cam) @ ego_from_lidar).tolist(),
                }
            samples.append(
                {
                    "token": f"{split}-{n}",
                    "scene": f"drive {split}",
                    "timestamp": 50 + 0.5 * n,
                    "ego2global": car_at(0.5 * n).tolist(),
                    "lidar": {"lidar2ego": ego_from_lidar.tolist()},
                    "cams": cams,
                    "boxes": [
                        {
                            "name": "car",
                            "center": [3, 12, 0],
                            "size": [4, 2, 1.5],
                            "yaw": 0.3,
                            "velocity": [1, 2],
                        },
                        {
                            "name": "bike",
                            "center": [-3, 9, 0],
                            "size": [2, 1, 1.5],
                            "yaw": 2,
                            "num_lidar_pts": 4,
                        },
                    ],
                }
            )
        tree = {"categories": ["car", "bike"], "samples": samples}
        (root / f"infos_{split}.json").write_text(json.dumps(tree))
    return root / "pictures/train0_CAM_FRONT.png"
