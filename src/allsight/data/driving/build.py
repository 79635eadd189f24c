"""From nuScenes tables to arrays (`Index`). What refers to nothing is an error that names both rows.

| array | of each | holds |
|---|---|---|
| `scene_start` | scene, and one more | its first sample |
| `sample_token`, `sample_time_us`, `sample_place` | sample | and its row in the table |
| `data_of` | sample, channel | its row of sensor data, -1 if there is none |
| `data_file`, `data_hw`, `data_pose`, `data_sensor` | sensor data | file, size, ego to world (7) |
| `sensor_pose`, `sensor_matrix` | calibrated sensor | sensor to ego (7), intrinsics (9, NaN without) |
| `box_start` | sample, and one more | its first annotation |
| `box_token`, `box_center`, `box_wlh`, `box_turn`, `box_velocity` | annotation | in the world |
| `box_category`, `box_attribute`, `box_points`, `box_visibility`, `box_instance` | same | -1 for none |

Poses are x, y, z, then the quaternion w, x, y, z.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from allsight.data.driving.tables import Tables
from allsight.types import DataError

_MOST_APART_S = 1.5
"""Annotations farther apart in time give no velocity; twice as much for one between two."""

Built = tuple[dict[str, np.ndarray], dict[str, tuple[str, ...]]]


def build(tables: Tables) -> Built:
    """All arrays and lists of texts.

    Raises:
        DataError: A damaged table, a row without a needed field, a dangling token (named), a key frame twice
            in one channel, or a scene whose time does not rise.
    """
    scenes = list(tables.rows("scene", ("token", "name", "log_token")))
    logs = {row["token"]: str(row.get("location", "")) for row in tables.rows("log", ("token",))}
    for row in scenes:
        if row["log_token"] not in logs:
            raise tables.dangling("scene", row, "log_token", "log")
    samples, places, scene_start = _samples(tables, {row["token"]: n for n, row in enumerate(scenes)})
    row_of = {row["token"]: n for n, row in enumerate(samples)}
    times_us = np.array([int(row["timestamp"]) for row in samples], dtype=np.int64)
    arrays: dict[str, np.ndarray] = {
        "scene_start": scene_start,
        "sample_token": np.array([row["token"].encode() for row in samples], dtype=np.bytes_),
        "sample_time_us": times_us,
        "sample_place": np.array(places, dtype=np.int64),
    }
    channels = _add_sensor_data(tables, row_of, arrays)
    categories, attributes = _add_boxes(tables, row_of, times_us, arrays)
    names = {
        "scenes": tuple(row["name"] for row in scenes),
        "locations": tuple(logs[row["log_token"]] for row in scenes),
        "channels": channels,
        "categories": categories,
        "attributes": attributes,
    }
    return arrays, names


def _samples(
    tables: Tables, scene_of: Mapping[str, int]
) -> tuple[list[Mapping[str, Any]], list[int], np.ndarray]:
    """Samples scene by scene in the order of time, the row of each in its table, where each scene begins."""
    of_scene: list[list[Mapping[str, Any]]] = [[] for _ in scene_of]
    place_of: dict[str, int] = {}
    for place, row in enumerate(tables.rows("sample", ("token", "timestamp", "scene_token"))):
        place_of[row["token"]] = place
        if row["scene_token"] not in scene_of:
            raise tables.dangling("sample", row, "scene_token", "scene")
        of_scene[scene_of[row["scene_token"]]].append(row)
    for rows in of_scene:
        rows.sort(key=lambda row: int(row["timestamp"]))
        here = {row["token"]: int(row["timestamp"]) for row in rows}
        for row in rows:
            if row.get("next") and row["next"] not in here:
                raise tables.dangling("sample", row, "next", "sample (of its scene)")
            if row.get("next") and here[row["next"]] <= int(row["timestamp"]):
                raise DataError(
                    f"{tables.file('sample')}: time goes backwards: row {row['token']} is at "
                    f"{row['timestamp']}, its next, {row['next']}, at {here[row['next']]}"
                )
    starts = np.cumsum([0, *map(len, of_scene)], dtype=np.int64)
    found = [row for rows in of_scene for row in rows]
    return found, [place_of[row["token"]] for row in found], starts


def _add_sensor_data(
    tables: Tables, row_of: Mapping[str, int], arrays: dict[str, np.ndarray]
) -> tuple[str, ...]:
    """Key-frame sensor data, poses and sensors; returns the channels."""
    channel_of = {row["token"]: str(row["channel"]) for row in tables.rows("sensor", ("token", "channel"))}
    channels = tuple(dict.fromkeys(channel_of.values()))
    place_of = {name: n for n, name in enumerate(channels)}
    sensors, sensor_channel = {}, []
    poses, matrices = [], []
    needed = ("token", "sensor_token", "translation", "rotation")
    for row in tables.rows("calibrated_sensor", needed):
        if row["sensor_token"] not in channel_of:
            raise tables.dangling("calibrated_sensor", row, "sensor_token", "sensor")
        sensors[row["token"]] = len(poses)
        sensor_channel.append(place_of[channel_of[row["sensor_token"]]])
        poses.append([*row["translation"], *row["rotation"]])
        given = row.get("camera_intrinsic") or []
        matrices.append(np.array(given, dtype=np.float64).ravel() if given else np.full(9, np.nan))
    needed = (
        "token",
        "sample_token",
        "ego_pose_token",
        "calibrated_sensor_token",
        "is_key_frame",
        "filename",
    )
    kept = []
    data_of = np.full((len(row_of), len(channels)), -1, dtype=np.int64)
    for row in tables.rows("sample_data", needed):
        if not row["is_key_frame"]:
            continue
        if row["sample_token"] not in row_of:
            raise tables.dangling("sample_data", row, "sample_token", "sample")
        if row["calibrated_sensor_token"] not in sensors:
            raise tables.dangling("sample_data", row, "calibrated_sensor_token", "calibrated_sensor")
        sample, channel = row_of[row["sample_token"]], sensor_channel[sensors[row["calibrated_sensor_token"]]]
        if data_of[sample, channel] >= 0:
            other = kept[data_of[sample, channel]]["token"]
            raise DataError(
                f"{tables.file('sample_data')}: rows {other} and {row['token']} are both the key frame of "
                f"sample {row['sample_token']} and channel {channels[channel]}"
            )
        data_of[sample, channel] = len(kept)
        kept.append(
            {
                **{field: row[field] for field in needed},
                "hw": (row.get("height") or 0, row.get("width") or 0),
            }
        )
    wanted: dict[str, np.ndarray | None] = dict.fromkeys(row["ego_pose_token"] for row in kept)
    for row in tables.rows("ego_pose", ("token", "translation", "rotation")):
        if row["token"] in wanted:
            wanted[row["token"]] = _pose(tables, row)
    for row in kept:
        if wanted[row["ego_pose_token"]] is None:
            raise tables.dangling("sample_data", row, "ego_pose_token", "ego_pose")
    arrays |= {
        "data_of": data_of,
        "data_file": np.array([row["filename"].encode() for row in kept], dtype=np.bytes_),
        "data_hw": np.array([row["hw"] for row in kept], dtype=np.int64).reshape(-1, 2),
        "data_pose": np.array([wanted[row["ego_pose_token"]] for row in kept]).reshape(-1, 7),
        "data_sensor": np.array([sensors[row["calibrated_sensor_token"]] for row in kept], dtype=np.int64),
        "sensor_pose": np.array(poses, dtype=np.float64).reshape(-1, 7),
        "sensor_matrix": np.array(matrices, dtype=np.float64).reshape(-1, 9),
    }
    return channels


def _pose(tables: Tables, row: Mapping[str, Any]) -> np.ndarray:
    """Translation and quaternion of a row of `ego_pose`."""
    pose = np.array([*row["translation"], *row["rotation"]], dtype=np.float64)
    if pose.shape != (7,) or not np.isfinite(pose).all() or not pose[3:].any():
        raise DataError(
            f"{tables.file('ego_pose')}: row {row['token']} has translation {row['translation']}, rotation "
            f"{row['rotation']}; expected 3 and 4 finite numbers, the 4 not all 0"
        )
    return pose


def _add_boxes(
    tables: Tables, row_of: Mapping[str, int], times_us: np.ndarray, arrays: dict[str, np.ndarray]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Annotations, sorted by sample; returns the names of categories and attributes."""
    categories = {
        row["token"]: (n, row["name"]) for n, row in enumerate(tables.rows("category", ("token", "name")))
    }
    attributes = {
        row["token"]: (n, row["name"]) for n, row in enumerate(tables.rows("attribute", ("token", "name")))
    }
    instances: dict[str, tuple[int, int]] = {}
    for number, row in enumerate(tables.rows("instance", ("token", "category_token"))):
        if row["category_token"] not in categories:
            raise tables.dangling("instance", row, "category_token", "category")
        instances[row["token"]] = (number, categories[row["category_token"]][0])
    needed = (
        "token",
        "sample_token",
        "instance_token",
        "attribute_tokens",
        "translation",
        "size",
        "rotation",
        "num_lidar_pts",
        "num_radar_pts",
        "prev",
        "next",
    )
    place_of: dict[str, int] = {}
    facts: list[tuple[int, int, int, int, int, int]] = []
    geometry: list[list[float]] = []
    links: list[tuple[str, str]] = []
    for row in tables.rows("sample_annotation", needed):
        if row["sample_token"] not in row_of:
            raise tables.dangling("sample_annotation", row, "sample_token", "sample")
        if row["instance_token"] not in instances:
            raise tables.dangling("sample_annotation", row, "instance_token", "instance")
        own = row["attribute_tokens"]
        if own and own[0] not in attributes:
            raise tables.dangling(
                "sample_annotation", {**row, "attribute_tokens": own[0]}, "attribute_tokens", "attribute"
            )
        instance, category = instances[row["instance_token"]]
        visibility = str(row.get("visibility_token") or "-1")
        facts.append(
            (
                row_of[row["sample_token"]],
                category,
                attributes[own[0]][0] if own else -1,
                int(row["num_lidar_pts"]) + int(row["num_radar_pts"]),
                int(visibility) if visibility.isdecimal() else -1,
                instance,
            )
        )
        geometry.append([*row["translation"], *row["size"], *row["rotation"]])
        place_of[row["token"]] = len(links)
        links.append((row["prev"], row["next"]))
    values = np.array(geometry, dtype=np.float64).reshape(-1, 10)
    table = np.array(facts, dtype=np.int64).reshape(-1, 6)
    neighbours = _neighbours(tables, links, list(place_of), place_of)
    velocities = _velocities(values[:, :3], times_us[table[:, 0]] * 1e-6, neighbours)
    order = np.argsort(table[:, 0], kind="stable")
    table, values = table[order], values[order]
    tokens = np.array([token.encode() for token in place_of], dtype=np.bytes_)
    arrays |= {
        "box_start": np.searchsorted(table[:, 0], np.arange(len(row_of) + 1)).astype(np.int64),
        "box_token": tokens[order] if len(order) else np.zeros(0, dtype="S1"),
        "box_center": values[:, :3],
        "box_wlh": values[:, 3:6],
        "box_turn": values[:, 6:],
        "box_velocity": velocities[order],
        "box_category": table[:, 1],
        "box_attribute": table[:, 2],
        "box_points": table[:, 3],
        "box_visibility": table[:, 4],
        "box_instance": table[:, 5],
    }
    return _names(categories), _names(attributes)


def _neighbours(
    tables: Tables, links: Sequence[tuple[str, str]], tokens: Sequence[str], place_of: Mapping[str, int]
) -> np.ndarray:
    """Places of the annotation before and after each; its own place where there is none."""
    places = np.arange(len(links))[:, None].repeat(2, axis=1)
    for number, pair in enumerate(links):
        for side, field in enumerate(("prev", "next")):
            if not pair[side]:
                continue
            if pair[side] not in place_of:
                row = {"token": tokens[number], field: pair[side]}
                raise tables.dangling("sample_annotation", row, field, "sample_annotation")
            places[number, side] = place_of[pair[side]]
    return places


def _velocities(centers_m: np.ndarray, times_s: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
    """x and y, from the annotation before to the one after; NaN where there is neither or they are far apart.

    Source: nutonomy/nuscenes-devkit:python-sdk/nuscenes/nuscenes.py, `box_velocity`.
    """
    before, after = neighbours[:, 0], neighbours[:, 1]
    own = np.arange(len(centers_m))
    seconds = times_s[after] - times_s[before]
    limit = np.where((before != own) & (after != own), 2 * _MOST_APART_S, _MOST_APART_S)
    is_known = (before != after) & (seconds <= limit) & (seconds > 0)
    way = centers_m[after, :2] - centers_m[before, :2]
    return np.where(is_known[:, None], way / np.where(is_known, seconds, 1)[:, None], np.nan)


def _names(table: Mapping[str, tuple[int, str]]) -> tuple[str, ...]:
    return tuple(name for _, name in sorted(table.values()))
