"""Drives of one's own rig: the format `infos:PATH`, allsight's plain `infos.json`.

```
{"categories": ["car", ...],                                   class names
 "splits": {"train": ["drive-1"], "val": ["drive-2"]},         optional: scenes of each split
 "maps": {"drive-1": "map.json"},                              optional: vector map of each scene
 "samples": [{
   "token": "a unique name", "scene": "drive-1", "timestamp": seconds,
   "ego2global": 4 x 4,                                        the car in a frame fixed in the world
   "lidar": {"lidar2ego": 4 x 4},                              optional: the reference frame, else the car's
   "cams": {"FRONT": {"path": "front/0001.jpg", "width": px, "height": px, "cam2img": 3 x 3,
                      "lidar2cam": 4 x 4}},                    or "cam2ego", perhaps "ego2global" at exposure
   "boxes": [{"name": "car", "center": [x, y, z], "size": [length, width, height], "yaw": radians,
              "velocity": [vx, vy] or null, "num_lidar_pts": count, "instance_id": whole number}]}]}
```

Boxes lie in the LiDAR's frame (the car's where there is no LiDAR) and are given by their middle; yaw turns
about its z axis, 0 along x. `velocity`, `num_lidar_pts` and `instance_id` may be left out. `lidar2cam` holds
the car's motion between the two sensors; pixel = cam2img @ (lidar2cam @ point). Samples of a scene stand in
the order of time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from allsight.data.decode import MAX_PIXELS, LeastSize
from allsight.data.driving.frames import BoxArrays, Frame, Shot, check_intrinsics, to_sample
from allsight.data.driving.poses import inverse, is_rigid
from allsight.data.listings import SampleClasses
from allsight.data.readers.found import Found, matches, no_split
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import notes
from allsight.data.readers.tree import Tree, name_inside, open_tree
from allsight.types import DataError, Sample

_FILE = "infos.json"
_ALL = "all"
"""The split of a lone `infos.json` that names none."""


class Infos:
    """Reads `infos_SPLIT.json`, or `infos.json` with `splits` (or all of it as the split `all`).

    Samples are called `SPLIT/TOKEN`, have the input `rig` and the targets `boxes` and `box_notes`. Scenes are
    streams (`sequences`). Boxes whose name is no category are dropped and counted in `notes`.

    Args:
        path: The data set's folder, or an archive of it.
        split: Which split.
        classes: Class names in order; default the file's `categories`. Boxes of other classes are dropped.
        cameras: Which, in this order; default all in the order of the first sample.
        missing_cameras: `refuse` a sample that lacks a camera, or `allow` it: then the rig has fewer.
        poses: False ignores `ego2global`: every sample is a stream of its own.
        min_points: Boxes with fewer LiDAR points are dropped; those without a count stay.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split; the json is damaged; a token twice; a scene whose time does not rise. On
            reading: a camera or a pose is missing, a matrix is no rigid motion, intrinsics are singular, a
            box is malformed, a picture cannot be read.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        classes: tuple[str, ...] = (),
        cameras: tuple[str, ...] = (),
        missing_cameras: Literal["refuse", "allow"] = "refuse",
        poses: bool = True,
        min_points: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"infos:{path.name}"
        self.split = split
        self._tree = open_tree(path)
        self._max_pixels, self._min_points = max_pixels, min_points
        self._has_poses, self._allows_missing = poses, missing_cameras == "allow"
        file = f"infos_{split}.json"
        wanted: list[str] | None = None
        if not self._tree.has_file(file):
            there = _splits(self._tree)
            if split not in there:
                raise no_split(path, split, there, "infos_SPLIT.json, or 'splits' in infos.json")
            file = _FILE
        self._where = self._tree.where(file)
        tree = _parsed(self._tree, file)
        if file == _FILE and split != _ALL:
            wanted = [str(scene) for scene in tree["splits"][split]]
        self.classes = tuple(classes or _names(tree.get("categories"), self._where))
        self._label_of = {name: n for n, name in enumerate(self.classes)}
        scenes = _by_scene(tree["samples"], wanted, self._where)
        samples = [sample for scene in scenes.values() for sample in scene]
        self.cameras = tuple(cameras) or _cameras(samples)
        """Names of the cameras in the order of every rig."""
        self.sequences = tuple(map(len, scenes.values())) if poses else (1,) * len(samples)
        """How many samples each scene has."""
        self._tokens = PackedStrings(sample["token"] for sample in samples)
        self._samples = PackedStrings(json.dumps(sample, separators=(",", ":")) for sample in samples)
        self._maps = {
            scene: path / name_inside(str(file), self._where) for scene, file in tree.get("maps", {}).items()
        }
        self._scenes = PackedStrings(sample["scene"] for sample in samples)
        labels, dropped = self._labels(samples)
        self._classes_of = SampleClasses.of_sets(labels)
        self.notes = notes((dropped, "boxes of no class in the list, or of too few points, left out"))

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = _splits(tree)
        return Found(f"infos.json of drives for {', '.join(splits)}", tuple(splits)) if splits else None

    def sample_classes(self) -> SampleClasses:
        """The classes of each sample's boxes."""
        return self._classes_of

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> Sample:
        return self.reduced(index, None)

    def reduced(self, index: int, least: LeastSize | None) -> Sample:
        """The sample, its pictures decoded smaller where that suffices."""
        id = f"{self.split}/{self._tokens[index]}"
        return to_sample(id, self.frame(index), self._tree, max_pixels=self._max_pixels, least=least)

    def originals(self, index: int) -> dict[str, bytes]:
        """Nothing: the pictures of a rig are packed as pixels."""
        return {}

    def map_file(self, index: int) -> Path | None:
        """The vector map of a sample's scene, if the file names one."""
        return self._maps.get(self._scenes[index])

    def frame(self, index: int) -> Frame:
        """All of a sample but its pixels."""
        id = f"{self.split}/{self._tokens[index]}"
        record = json.loads(self._samples.raw(index))
        ref_from = record.get("lidar") or {}
        ego_from_ref = _matrix(ref_from.get("lidar2ego", np.eye(4)), 4, "lidar.lidar2ego", id)
        world_from_ref = np.eye(4)
        world_from_ego = None
        if self._has_poses:
            if record.get("ego2global") is None:
                raise DataError(
                    f"{id}: no 'ego2global' in {self._where}; give the car's pose, or set poses=false to "
                    "read samples without their motion",
                    id,
                )
            world_from_ego = _matrix(record["ego2global"], 4, "ego2global", id)
            world_from_ref = world_from_ego @ ego_from_ref
        shots = []
        for name in self.cameras:
            camera = record.get("cams", {}).get(name)
            if camera is None and not self._allows_missing:
                there = ", ".join(record.get("cams", {})) or "none"
                raise DataError(
                    f"{id}: no camera {name} in {self._where} (there are: {there}); set "
                    "missing_cameras=allow to read it without",
                    id,
                )
            if camera is not None:
                shots.append(self._shot(name, camera, ego_from_ref, world_from_ego, id))
        return Frame(
            self._tokens[index],
            str(record["scene"]),
            float(record["timestamp"]),
            ego_from_ref,
            world_from_ref,
            tuple(shots),
            self._boxes(record.get("boxes") or (), id),
        )

    def _shot(
        self,
        name: str,
        camera: Mapping[str, Any],
        ego_from_ref: Float64[np.ndarray, "4 4"],
        world_from_ego: Float64[np.ndarray, "4 4"] | None,
        id: str,
    ) -> Shot:
        said_by = f"camera {name}"
        if not isinstance(camera.get("path"), str):
            raise DataError(f"{id}: {said_by} has no 'path' in {self._where}", id)
        intrinsics = _matrix(camera.get("cam2img"), 3, f"{said_by}: cam2img", id, rigid=False)
        check_intrinsics(intrinsics, said_by, id)
        if camera.get("lidar2cam") is not None:
            cam_from_ref = _matrix(camera["lidar2cam"], 4, f"{said_by}: lidar2cam", id)
        else:
            cam_from_ego = inverse(_matrix(camera.get("cam2ego"), 4, f"{said_by}: cam2ego", id))
            moved = np.eye(4)
            if camera.get("ego2global") is not None and world_from_ego is not None:
                at_exposure = _matrix(camera["ego2global"], 4, f"{said_by}: ego2global", id)
                moved = inverse(at_exposure) @ world_from_ego
            cam_from_ref = cam_from_ego @ moved @ ego_from_ref
        size = (camera.get("height"), camera.get("width"))
        return Shot(
            name,
            name_inside(camera["path"], f"{id}: {said_by}"),
            intrinsics @ cam_from_ref[:3],
            (int(size[0]), int(size[1])) if size[0] and size[1] else None,
        )

    def _labels(self, samples: Sequence[Mapping[str, Any]]) -> tuple[list[list[int]], int]:
        """The labels of each sample's boxes, and how many boxes are left out."""
        labels, total = [], 0
        for sample in samples:
            boxes = sample.get("boxes") or ()
            total += len(boxes)
            labels.append([self._label_of[box["name"]] for box in boxes if self._is_kept(box)])
        return labels, total - sum(map(len, labels))

    def _is_kept(self, box: Mapping[str, Any]) -> bool:
        has_points = "num_lidar_pts" not in box or int(box["num_lidar_pts"]) >= self._min_points
        return box.get("name") in self._label_of and has_points

    def _boxes(self, entries: Sequence[Mapping[str, Any]], id: str) -> BoxArrays:
        kept = [(n, box) for n, box in enumerate(entries) if self._is_kept(box)]
        geometry = np.zeros((len(kept), 7))
        velocities = np.full((len(kept), 2), np.nan)
        for row, (n, box) in enumerate(kept):
            try:
                geometry[row] = [*box["center"], *box["size"], box["yaw"]]
                given = box.get("velocity")
                if given is not None and None not in given:
                    velocities[row] = given
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{id}: box {n} is malformed ({error!r}); expected center [x, y, z], size [l, w, h], yaw",
                    id,
                ) from None
            if not np.isfinite(geometry[row]).all() or min(geometry[row, 3:6]) <= 0:
                raise DataError(
                    f"{id}: box {n} has center, size, yaw {geometry[row].tolist()}; expected finite numbers "
                    "and sizes above 0",
                    id,
                )
        entries = [box for _, box in kept]
        return BoxArrays(
            geometry[:, :3],
            geometry[:, 3:6],
            geometry[:, 6],
            velocities,
            np.array([self._label_of[box["name"]] for box in entries], dtype=np.int64),
            np.array([int(box.get("num_lidar_pts", -1)) for box in entries], dtype=np.int64),
            np.full(len(kept), -1, dtype=np.int64),
            np.array([int(box.get("instance_id", -1)) for box in entries], dtype=np.int64),
        )


def _splits(tree: Tree) -> list[str]:
    found = matches(tree.files(), r"infos_(\w+)\.json")
    if not tree.has_file(_FILE):
        return sorted(found, key=lambda split: (split != "train", split))
    # The file may be long, but what it says of splits is not known otherwise.
    given = _parsed(tree, _FILE).get("splits")
    return [*(given if isinstance(given, dict) else ()), *found, _ALL][: None if not given else -1]


def _parsed(tree: Tree, file: str) -> dict[str, Any]:
    where = tree.where(file)
    try:
        parsed = json.loads(tree.read(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("samples"), list):
        raise DataError(f"{where}: expected an object with a list 'samples'; see the format infos")
    splits = parsed.get("splits")
    if splits is not None and not (
        isinstance(splits, dict) and all(isinstance(scenes, list) for scenes in splits.values())
    ):
        raise DataError(
            f"{where}: 'splits' is no object of lists of scenes, such as {{'train': ['drive-1']}}"
        )
    return parsed


def _names(categories: Any, where: str) -> list[str]:
    if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
        raise DataError(f"{where}: 'categories' is {categories!r}; expected a list of class names")
    twice = next((name for name in categories if categories.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: category {twice!r} occurs twice")
    return categories


def _by_scene(
    entries: Sequence[Any], wanted: list[str] | None, where: str
) -> dict[str, list[dict[str, Any]]]:
    """The samples of each scene in the order of time; scenes as listed, or as they begin."""
    scenes: dict[str, list[dict[str, Any]]] = {scene: [] for scene in wanted or ()}
    seen: set[str] = set()
    for number, sample in enumerate(entries):
        is_one = isinstance(sample, dict) and isinstance(sample.get("token"), str)
        if not is_one or not isinstance(sample.get("timestamp"), int | float) or "scene" not in sample:
            raise DataError(f"{where}: sample {number} lacks a token, a scene or a timestamp in seconds")
        token, scene = sample["token"], str(sample["scene"])
        if token in seen:
            raise DataError(f"{where}: token {token} occurs twice; tokens are ids")
        seen.add(token)
        if wanted is not None and scene not in scenes:
            continue
        others = scenes.setdefault(scene, [])
        if others and sample["timestamp"] <= others[-1]["timestamp"]:
            raise DataError(
                f"{where}: sample {token} of scene {scene} is at {sample['timestamp']:.6f} s, not after "
                f"{others[-1]['token']} at {others[-1]['timestamp']:.6f} s; expected samples in order of time"
            )
        others.append(sample)
    empty = next((scene for scene, samples in scenes.items() if not samples), None)
    if empty is not None or not scenes:
        raise DataError(
            f"{where}: " + (f"no sample of scene {empty!r} in its split" if empty else "no samples")
        )
    return scenes


def _cameras(samples: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for sample in samples for name in sample.get("cams") or ()))


def _matrix(
    value: Any, size: int, said_by: str, id: str, *, rigid: bool = True
) -> Float64[np.ndarray, "n n"]:
    try:
        matrix = np.array(value, dtype=np.float64).reshape(size, size)
    except (ValueError, TypeError):
        raise DataError(f"{id}: {said_by} is missing or not {size} x {size} numbers", id) from None
    if rigid and not is_rigid(matrix):
        raise DataError(f"{id}: {said_by} is no rotation and shift: {matrix.round(4).tolist()}", id)
    return matrix
