"""Writing generated drives as nuScenes tables with pictures, vector maps and CAN bus data, all or nothing.

root/v1.0-world/*.json, splits.json      tables; splits train and val
root/samples/CAMERA/*.jpg                pictures of key frames
root/maps/expansion/LOCATION.json        vector maps
root/can_bus/SCENE_pose.json             what the car measured
root/drives.json                         what was asked for, the last file
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from allsight.data.driving.writer import (
    DrivenBox,
    DrivenFrame,
    DriveWriter,
    Exposure,
    RigCamera,
    sample_file,
    write_map_expansion,
)
from allsight.data.world.drives.drive import Drive, Thing, pose
from allsight.data.world.drives.mapping import Layers, layers_of
from allsight.data.world.drives.options import Drives
from allsight.data.world.drives.painting import Painter, Shot
from allsight.data.world.drives.sampling import CAMERA_YAWS_DEG, LOCATIONS, location_of, sample_drive
from allsight.data.world.sampling import SPLITS
from allsight.data.world.working import all_or_nothing, in_order

VERSION = "v1.0-world"
LEAST_PX = 8
"""Pixels of a thing, over all cameras, that make it count as seen."""

_ANNOTATED_M = 70.0


@dataclass(frozen=True)
class _Job:
    config: Drives.Config
    root: Path
    split: str
    index: int


@dataclass(frozen=True)
class _Done:
    drive: Drive
    frames: list[DrivenFrame]


def generate_drives(
    out: Path | str,
    config: Drives.Config | None = None,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Generate drives and write them as nuScenes tables, which `nuscenes:OUT` reads and the devkit opens.

    A thing counts as seen where at least 8 of its pixels are (`num_lidar_pts` says how many, 0 for fewer), as
    nuScenes counts LiDAR points. The files appear all at once when everything is written.

    Args:
        out: Folder to make; it may exist if it is empty.
        config: What to generate.
        workers: Processes; the bytes do not depend on it.
        on_progress: Called with (scenes done, scenes in all).
    Returns:
        The folder.
    Raises:
        ConfigError: `out` exists and is not empty, or `workers` is below 1.
    Example:
        >>> generate_drives("drives", Drives.Config(train=20, val=4))  # doctest: +SKIP
    """
    config = config or Drives.Config()
    out = Path(out)
    with all_or_nothing(out) as root:
        for camera in CAMERA_YAWS_DEG:
            (root / "samples" / camera).mkdir(parents=True)
        work = list(_jobs(config, root))
        writer = DriveWriter(root, version=VERSION)
        maps: dict[str, list[Layers]] = {name: [] for name in LOCATIONS}
        for number, (job, done) in enumerate(zip(work, in_order(_do, work, workers), strict=True), start=1):
            location, drive = location_of(job.index), done.drive
            rig = {
                name: RigCamera(lens.ego_from_cam, lens.intrinsics, lens.hw_px)
                for name, lens in drive.rig.items()
            }
            writer.add_scene(drive.name, rig, done.frames, split=job.split, location=location)
            maps[location].append(layers_of(drive.street))
            if on_progress is not None:
                on_progress(number, len(work))
        writer.close()
        for location, layers in maps.items():
            if layers:
                joined = Layers.joined(layers)
                edge = joined.edge_m
                write_map_expansion(
                    root / "maps" / "expansion" / f"{location}.json", joined.areas, joined.lines, edge_m=edge
                )
        asked = {"format": 1, "kind": "allsight drives", "options": config.model_dump(mode="json")}
        (root / "drives.json").write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")
    return out


def _jobs(config: Drives.Config, root: Path) -> Iterator[_Job]:
    for split in SPLITS:
        for index in range(getattr(config, split)):
            yield _Job(config, root, split, index)


def _do(job: _Job) -> _Done:
    """Paint a scene and write its pictures."""
    drive = sample_drive(job.config, job.split, job.index)
    painter = Painter(drive)
    frames = []
    for number in range(drive.frames):
        shots = painter.take(number)
        for camera, shot in shots.items():
            jpeg = simplejpeg.encode_jpeg(
                np.ascontiguousarray(shot.picture), quality=job.config.jpeg_quality, colorsubsampling="444"
            )
            (job.root / sample_file(drive.name, number, camera)).write_bytes(jpeg)
        frames.append(_frame(drive, number, shots))
    return _Done(drive, frames)


def _frame(drive: Drive, number: int, shots: dict[str, Shot]) -> DrivenFrame:
    time_s = drive.time_s(number)
    here = drive.world_from_ego(time_s)
    exposures = {
        camera: Exposure(None, _START_S + time_s + lens.delay_s, drive.world_from_ego(time_s + lens.delay_s))
        for camera, lens in drive.rig.items()
    }
    boxes = []
    for index, thing in enumerate(drive.things):
        x, y, heading = thing.track.at(time_s)
        if math.hypot(x - here[0, 3], y - here[1, 3]) > _ANNOTATED_M:
            continue
        seen = sum(shot.pixels.get(index, 0) for shot in shots.values())
        alone = sum(shot.alone.get(index, 0) for shot in shots.values())
        boxes.append(_box(thing, f"{index}", x, y, heading, seen, alone))
    return DrivenFrame(_START_S + time_s, here, exposures, boxes, _measured(drive, time_s))


_START_S = 1_500_000_000.0


def _box(thing: Thing, name: str, x: float, y: float, heading: float, seen: int, alone: int) -> DrivenBox:
    share = seen / alone if alone else 0.0
    return DrivenBox(
        instance=name,
        name=thing.name,
        center_m=(x, y, 0.5 * thing.size_lwh_m[2]),
        size_lwh_m=thing.size_lwh_m,
        rotation=pose(x, y, heading)[:3, :3],
        attribute=thing.attribute,
        num_points=seen if seen >= LEAST_PX else 0,
        visibility=1 + sum(share >= edge for edge in (0.4, 0.6, 0.8)),
    )


def _measured(drive: Drive, time_s: float) -> list[float]:
    """Acceleration, rotation rate and velocity, each x, y, z in the car's frame."""
    step = 0.05
    before, after = drive.path.at(time_s - step), drive.path.at(time_s + step)
    turning = (after[2] - before[2]) / (2 * step)
    speed = drive.path.speed_at(time_s)
    rate = (drive.path.speed_at(time_s + step) - drive.path.speed_at(time_s - step)) / (2 * step)
    return [rate, speed * turning, 9.81, 0.0, 0.0, turning, speed, 0.0, 0.0]
