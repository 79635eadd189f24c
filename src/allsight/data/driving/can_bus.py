"""The expansion `can_bus` of nuScenes: what the car's own sensors measured. Not every scene has it."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from allsight.data.driving.poses import heading, quaternion
from allsight.types import DataError

_FIELDS = ("accel", "rotation_rate", "vel")


class CanBus:
    """Reads `SCENE_pose.json`.

    Args:
        folder: Where these files lie; it may be missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def at(self, scene: str, time_us: int) -> Float64[Tensor, " 9"]:
        """Acceleration, rotation rate and velocity, x y z each, of the first message after a moment.

        Zeros where the scene has no file. The last message counts for what comes after it.

        Source: fundamentalvision/BEVFormer:tools/data_converter/nuscenes_converter.py, `_get_can_bus_info`.
        """
        times, values = _messages(self.folder / f"{scene}_pose.json")
        if not len(times):
            return torch.zeros(9, dtype=torch.float64)
        return torch.from_numpy(
            values[min(int(np.searchsorted(times, time_us, side="right")), len(times) - 1)]
        )


def vehicle_signals(
    world_from_ego: Float64[np.ndarray, "4 4"],
    measured: Float64[Tensor, " 9"],
    attitude_wxyz: Float64[np.ndarray, " 4"] | None = None,
) -> Float64[Tensor, " 18"]:
    """The vector that `CameraRig.can_bus` wants: place, attitude, what was measured, heading.

    Args:
        world_from_ego: Pose of the car.
        measured: Acceleration, rotation rate and velocity.
        attitude_wxyz: The quaternion of the pose as it is stored: a network that was trained on the numbers
            tells its two signs apart. None: that of the pose with w >= 0.
    Source: fundamentalvision/BEVFormer:projects/mmdet3d_plugin/datasets/nuscenes_dataset.py.
    """
    turn = float(heading(world_from_ego[:3, :3])) % (2 * np.pi)
    attitude = quaternion(world_from_ego[:3, :3]) if attitude_wxyz is None else attitude_wxyz
    return torch.cat(
        [
            torch.from_numpy(np.concatenate([world_from_ego[:3, 3], attitude])),
            measured,
            torch.tensor([turn, np.degrees(turn)], dtype=torch.float64),
        ]
    )


@lru_cache(maxsize=32)
def _messages(file: Path) -> tuple[np.ndarray, np.ndarray]:
    if not file.is_file():
        return np.zeros(0, dtype=np.int64), np.zeros((0, 9))
    try:
        messages = json.loads(file.read_bytes())
        times = np.array([int(message["utime"]) for message in messages], dtype=np.int64)
        values = np.array(
            [[*(v for f in _FIELDS for v in message[f])] for message in messages], dtype=np.float64
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: not a list of messages with utime, {', '.join(_FIELDS)} ({error!r})"
        ) from None
    return times, values.reshape(-1, 9)
