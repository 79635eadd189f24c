"""Drives in nuScenes' own tables: the format `nuscenes:PATH`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from allsight.config import ConfigError, did_you_mean
from allsight.data.decode import MAX_PIXELS, LeastSize
from allsight.data.driving.can_bus import CanBus, vehicle_signals
from allsight.data.driving.frames import BoxArrays, Frame, Shot, check_intrinsics, to_sample
from allsight.data.driving.index import Index, open_index
from allsight.data.driving.poses import heading, inverse, moved, poses, rotations
from allsight.data.driving.vocabulary import CAMERAS, CLASS_OF_CATEGORY, CLASSES, official_splits
from allsight.data.listings import SampleClasses
from allsight.data.readers.found import Found, no_split
from allsight.data.readers.pictures import notes
from allsight.data.readers.tree import FolderTree, Tree
from allsight.types import DataError, Rig, Sample

_SPLITS = "splits.json"


class NuScenes:
    """Reads PATH/VERSION/*.json and the pictures below PATH. Nothing has to be converted.

    Samples are key frames, called `SPLIT/TOKEN`; the input is `rig`, the targets are `boxes` and `box_notes`.
    The reference frame is that of the sensor `reference` at its key frame; matrices hold the car's motion
    between that moment and each exposure. Velocities are those of the devkit, NaN where unknown. Scenes are
    streams (`sequences`).

    Splits are those of `splits.json` beside the tables ({split: [scene names]}), else the official ones:
    `train` and `val` of v1.0-mini and v1.0-trainval, `test` of v1.0-test.

    Args:
        path: The folder that holds `v1.0-...` and `samples`.
        split: Which split.
        version: Name of the folder of tables; may be left out where there is one.
        classes: Detection classes in the order of labels; annotations of other categories are left out.
        cameras: Channels, in the order of every rig; default those of nuScenes that the set has, then others.
        reference: Channel whose frame is the reference frame.
        missing_cameras: `refuse` a sample that lacks a camera, or `allow` it: then the rig has fewer.
        min_points: Boxes with fewer LiDAR and radar points are left out.
        min_visibility: Boxes of a lower visibility level (1 to 4) are left out.
        range_m: Boxes whose middle is farther from the reference's origin in x or y are left out.
        can_bus: Fill `Rig.can_bus`, with acceleration, rotation rate and velocity from
            `PATH/can_bus/SCENE_pose.json`; zeros where a scene has no such file.
        index: Whether to keep the parsed tables as files beside them; default for large ones.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        ConfigError: An unknown class.
        DataError: A version or split that is not there; see `build` for the tables. On reading: a missing
            camera or picture, singular intrinsics.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        version: str = "",
        classes: tuple[str, ...] = CLASSES,
        cameras: tuple[str, ...] = (),
        reference: str = "LIDAR_TOP",
        missing_cameras: Literal["refuse", "allow"] = "refuse",
        min_points: int = 1,
        min_visibility: int = 0,
        range_m: float | None = None,
        can_bus: bool = False,
        index: bool | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        for name in classes:
            if name not in CLASSES:
                raise ConfigError(f"nuscenes: unknown class {name!r}{did_you_mean(name, CLASSES)}")
        folder = _version_folder(path, version, split)
        self.name = f"nuscenes:{path.name}"
        self.split = split
        self.classes = tuple(classes)
        self.version = folder.name
        self.index, note = open_index(folder, kept=index)
        self._tree = FolderTree(path)
        self._max_pixels, self._allows_missing = max_pixels, missing_cameras == "allow"
        self._min_points, self._min_visibility, self._range_m = min_points, min_visibility, range_m
        self._can_bus = CanBus(path / "can_bus") if can_bus else None
        scenes = _scenes_of(path, folder, split, self.index)
        self.has_own_splits = (folder / _SPLITS).is_file()
        """Whether splits are those of `splits.json`, not the official ones."""
        starts = self.index.scene_start.tolist()
        self.samples: Int64[np.ndarray, " n"] = np.concatenate(
            [np.arange(starts[s], starts[s + 1]) for s in scenes]
        )
        """Row of each sample in `index`."""
        self.sequences = tuple(starts[s + 1] - starts[s] for s in scenes)
        """How many samples each scene has."""
        self._scene_of = np.repeat(np.array(scenes, dtype=np.int64), self.sequences)
        channels = self.index.names["channels"]
        self._reference = _channel(channels, reference, folder)
        found = [name for name in CAMERAS if name in channels]
        found += [name for name in channels if name.startswith("CAM") and name not in CAMERAS]
        self.cameras = tuple(cameras) or tuple(found)
        """Channels of the cameras in the order of every rig."""
        self._channels = [_channel(channels, name, folder) for name in self.cameras]
        label_of = {name: n for n, name in enumerate(self.classes)}
        self._label_of_category = np.array(
            [label_of.get(CLASS_OF_CATEGORY.get(name, ""), -1) for name in self.index.names["categories"]],
            dtype=np.int64,
        )
        self.attributes = self.index.names["attributes"]
        """Names of the attributes, in the order of `box_notes.attributes`."""
        kept = self._kept(np.arange(len(self.index.box_points)))
        counts = np.diff(self.index.box_start)[self.samples]
        own = np.isin(
            np.repeat(np.arange(len(self.index.sample_time_us)), np.diff(self.index.box_start)), self.samples
        )
        left_out = int(counts.sum() - kept[own].sum())
        self.notes = (
            *notes((left_out, "boxes of other classes, too few points or too low visibility left out")),
            *((note,) if note else ()),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        versions = _versions(path) if path.is_dir() else []
        splits = list(dict.fromkeys(s for version in versions for s in _split_names(path / version)))
        return Found(f"nuScenes tables in {', '.join(versions)}", tuple(splits)) if splits else None

    def sample_classes(self) -> SampleClasses:
        """The classes of each sample's boxes; `range_m` is not looked at."""
        labels = []
        for sample in self.samples.tolist():
            own = self.index.boxes(sample)
            own = own[self._kept(own)]
            labels.append(self._label_of_category[self.index.box_category[own]].tolist())
        return SampleClasses.of_sets(labels)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.reduced(index, None)

    def reduced(self, index: int, least: LeastSize | None) -> Sample:
        """The sample, its pictures decoded smaller where that suffices."""
        frame = self.frame(index)
        id = f"{self.split}/{frame.token}"
        sample = to_sample(id, frame, self._tree, max_pixels=self._max_pixels, least=least)
        if self._can_bus is not None:
            row = int(self.samples[index])
            values = self._can_bus.at(frame.scene, int(self.index.sample_time_us[row]))
            pose = frame.world_from_ref @ inverse(frame.ego_from_ref)
            # As it stands in the table, be w negative or not.
            attitude = self.index.data_pose[int(self.index.data_of[row, self._reference])][3:]
            rig = sample.inputs["rig"]
            assert isinstance(rig, Rig)
            signals = vehicle_signals(pose, values, attitude)
            return replace(sample, inputs={**sample.inputs, "rig": replace(rig, can_bus=signals)})
        return sample

    def originals(self, index: int) -> dict[str, bytes]:
        """Nothing: the pictures of a rig are packed as pixels."""
        return {}

    def map_file(self, index: int) -> Path:
        """The vector map of the place where a sample was driven (it may not be there)."""
        location = self.index.names["locations"][int(self._scene_of[index])]
        return self._tree.root / "maps" / "expansion" / f"{location}.json"

    def frame(self, index: int) -> Frame:
        """All of a sample but its pixels.

        Raises:
            DataError: The reference sensor or a camera is missing, or intrinsics are singular.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        sample, tables = int(self.samples[index]), self.index
        id = f"{self.split}/{tables.token(sample)}"
        data = int(tables.data_of[sample, self._reference])
        if data < 0:
            name = tables.names["channels"][self._reference]
            raise DataError(
                f"{id}: no key frame of the reference sensor {name} in sample_data.json; expected one for "
                "each sample",
                id,
            )
        world_from_ego, ego_from_ref = self._poses(data)
        world_from_ref = world_from_ego @ ego_from_ref
        shots = []
        for name, channel in zip(self.cameras, self._channels, strict=True):
            data = int(tables.data_of[sample, channel])
            if data >= 0:
                shots.append(self._shot(name, data, world_from_ref, id))
            elif not self._allows_missing:
                raise DataError(
                    f"{id}: no key frame of camera {name} in sample_data.json; set missing_cameras=allow to "
                    "read it without",
                    id,
                )
        return Frame(
            tables.token(sample),
            tables.names["scenes"][int(self._scene_of[index])],
            int(tables.sample_time_us[sample]) * 1e-6,
            ego_from_ref,
            world_from_ref,
            tuple(shots),
            self._boxes(sample, world_from_ref),
        )

    def _poses(self, data: int) -> tuple[Float64[np.ndarray, "4 4"], Float64[np.ndarray, "4 4"]]:
        """Ego to world and sensor to ego of a row of sensor data."""
        ego, sensor = self.index.data_pose[data], self.index.sensor_pose[self.index.data_sensor[data]]
        return poses(ego[:3], ego[3:]), poses(sensor[:3], sensor[3:])

    def _shot(self, name: str, data: int, world_from_ref: Float64[np.ndarray, "4 4"], id: str) -> Shot:
        tables = self.index
        matrix = np.array(tables.sensor_matrix[tables.data_sensor[data]]).reshape(3, 3)
        check_intrinsics(matrix, f"camera {name}", id)
        world_from_ego, ego_from_cam = self._poses(data)
        cam_from_ref = inverse(world_from_ego @ ego_from_cam) @ world_from_ref
        height, width = (int(side) for side in tables.data_hw[data])
        file = bytes(tables.data_file[data]).decode()
        return Shot(name, file, matrix @ cam_from_ref[:3], (height, width) if height and width else None)

    def _kept(self, boxes: Int64[np.ndarray, " n"]) -> np.ndarray:
        tables = self.index
        is_kept = self._label_of_category[tables.box_category[boxes]] >= 0
        is_kept &= tables.box_points[boxes] >= self._min_points
        visibility = tables.box_visibility[boxes]
        return is_kept & ((visibility < 0) | (visibility >= self._min_visibility))

    def _boxes(self, sample: int, world_from_ref: Float64[np.ndarray, "4 4"]) -> BoxArrays:
        tables = self.index
        own = tables.boxes(sample)
        own = own[self._kept(own)]
        ref_from_world = inverse(world_from_ref)
        centers = moved(ref_from_world, tables.box_center[own])
        if self._range_m is not None:
            near = (np.abs(centers[:, :2]) <= self._range_m).all(axis=1)
            own, centers = own[near], centers[near]
        velocity = tables.box_velocity[own]
        flat = np.concatenate([velocity, np.zeros_like(velocity[:, :1])], axis=1)
        return BoxArrays(
            centers,
            np.array(tables.box_wlh[own][:, [1, 0, 2]]),
            heading(ref_from_world[:3, :3] @ rotations(tables.box_turn[own])),
            (flat @ ref_from_world[:3, :3].T)[:, :2],
            self._label_of_category[tables.box_category[own]],
            np.array(tables.box_points[own]),
            np.array(tables.box_attribute[own]),
            np.array(tables.box_instance[own]),
        )


def _versions(path: Path) -> list[str]:
    """Folders that hold tables."""
    return sorted(
        entry.name for entry in path.iterdir() if entry.is_dir() and (entry / "sample_data.json").is_file()
    )


def _split_names(folder: Path) -> list[str]:
    if (folder / _SPLITS).is_file():
        return list(_given_splits(folder))
    return [name for name in official_splits(folder.name) if not name.startswith("mini_")]


def _given_splits(folder: Path) -> dict[str, list[str]]:
    file = folder / _SPLITS
    try:
        splits = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    if not isinstance(splits, dict) or not all(isinstance(scenes, list) for scenes in splits.values()):
        raise DataError(f"{file}: expected {{split: [scene names]}}")
    return splits


def _version_folder(path: Path, version: str, split: str) -> Path:
    versions = _versions(path) if path.is_dir() else []
    listed = ", ".join(versions) or "none"
    if version:
        if version in versions:
            return path / version
        raise DataError(
            f"{path}: no tables of version {version!r}{did_you_mean(version, versions)}; there are: {listed}"
        )
    if len(versions) == 1:
        return path / versions[0]
    fitting = [name for name in versions if split in official_splits(name) and not name.endswith("mini")]
    if len(fitting) == 1:
        return path / fitting[0]
    if not versions:
        raise DataError(
            f"{path}: no nuScenes tables; expected a folder such as v1.0-trainval with sample_data.json and "
            "the other tables"
        )
    raise DataError(f"{path}: several versions fit; set version to one of: {listed}")


def _scenes_of(path: Path, folder: Path, split: str, index: Index) -> list[int]:
    """Places of the split's scenes."""
    names = index.names["scenes"]
    if (folder / _SPLITS).is_file():
        splits: dict[str, list[str]] = _given_splits(folder)
        if split in splits:
            unknown = next((name for name in splits[split] if name not in names), None)
            if unknown is not None:
                raise DataError(
                    f"{folder / _SPLITS}: scene {unknown!r} of split {split!r} is not in scene.json"
                )
            place_of = {name: n for n, name in enumerate(names)}
            return [place_of[name] for name in splits[split]]
        raise no_split(path, split, list(splits), f"a split of {folder / _SPLITS}")
    official = official_splits(folder.name)
    if split not in official:
        raise no_split(
            path, split, _split_names(folder), f"a split of {folder.name}, or {_SPLITS} beside the tables"
        )
    wanted = official[split]
    if wanted is None:
        others = frozenset().union(*(scenes for scenes in official.values() if scenes is not None))
        found = [n for n, name in enumerate(names) if name not in others]
    else:
        found = [n for n, name in enumerate(names) if name in wanted]
    if not found:
        raise DataError(f"{folder}: none of its {len(names)} scenes is of split {split!r}")
    return found


def _channel(channels: tuple[str, ...], name: str, folder: Path) -> int:
    if name not in channels:
        raise DataError(f"{folder / 'sensor.json'}: no channel {name!r}{did_you_mean(name, channels)}")
    return channels.index(name)
