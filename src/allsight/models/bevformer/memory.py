"""The temporal state: what a stream remembers from frame to frame, as plain tensors with a row per stream.

bev             [b, q, c]  the map of the frame before, cells row by row
has_past        [b]        whether there was such a frame
time_s          [b]        its time
world_from_ref  [b, 4, 4]  its reference frame
can_bus         [b, 18]    its absolute CAN-bus vector, in place of the pose; only `compat="official"`
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from allsight.models.bevformer.alignment import (
    CAN_BUS_SIZE,
    MOTION_SIZE,
    motion_signals,
    official_can_bus,
    official_can_bus_since,
    official_rotation,
    official_shift,
    warp_past,
)
from allsight.types import BEVGrid, CameraRig, State, relative_pose


@dataclass(frozen=True)
class Past:
    """What the encoder gets to know of the past, in terms of the present frame.

    Args:
        signals: Numbers that describe the motion.
        shift: Where cells start to look in the past, relative to themselves, in parts of the range.
        bev: The map before, aligned; None where no row has one.
        has_past: Rows whose past counts.
    """

    signals: Float[Tensor, "b k"]
    shift: Float[Tensor, "b 2"]
    bev: Float[Tensor, "b q c"] | None = None
    has_past: Bool[Tensor, " b"] | None = None


@dataclass(frozen=True)
class OfficialRules:
    """How the published weights treat the past: nearest rotation about a fixed cell, then a shift.

    Args:
        rotate_center: Column and row; 100, 100 in all published networks, whatever the size of the map.
        rotate: Whether to rotate at all.
        shift: Whether to shift.
    """

    rotate_center: tuple[float, float] = (100.0, 100.0)
    rotate: bool = True
    shift: bool = True


class Memory:
    """Turns a state into a `Past`, and a finished map into the next state.

    Args:
        grid: Where cells are.
        channels: Width of the map.
        max_gap_s: A frame that comes later than this after the last begins anew; None: no limit. One that
            comes before it always does.
        official: Rules of published weights in place of poses.
    """

    def __init__(
        self, grid: BEVGrid, channels: int, *, max_gap_s: float | None, official: OfficialRules | None
    ) -> None:
        self.grid, self.channels = grid, channels
        self.max_gap_s, self.official = max_gap_s, official
        self.num_signals = MOTION_SIZE if official is None else CAN_BUS_SIZE

    def start(self, rows: int, like: Tensor) -> dict[str, Tensor]:
        """The state before the first frame, in the type and place of `like`; None means the same."""
        device = like.device
        state = {
            "bev": like.new_zeros((rows, self.grid.cells, self.channels)),
            "has_past": torch.zeros(rows, dtype=torch.bool, device=device),
            "time_s": torch.zeros(rows, dtype=torch.float64, device=device),
        }
        if self.official is None:
            eye = torch.eye(4, dtype=torch.float64, device=device)
            return {**state, "world_from_ref": eye.repeat(rows, 1, 1)}
        return {**state, "can_bus": torch.zeros((rows, CAN_BUS_SIZE), dtype=torch.float64, device=device)}

    def keep(self, bev: Float[Tensor, "b q c"], rig: CameraRig) -> dict[str, Tensor]:
        """The state after a frame; its map is the very tensor given, with its graph."""
        state = {
            "bev": bev,
            "has_past": torch.ones(len(bev), dtype=torch.bool, device=bev.device),
            "time_s": rig.time_s.double(),
        }
        if self.official is None:
            return {**state, "world_from_ref": rig.world_from_ref.double()}
        return {**state, "can_bus": official_can_bus(rig)}

    def recall(self, state: State, rig: CameraRig, starts: Bool[Tensor, " b"] | None, like: Tensor) -> Past:
        """The past of each row in its present frame.

        Args:
            state: What `keep` gave; rows that start may hold anything.
            rig: The present frame.
            starts: Rows that begin a stream.
            like: Tells the network's type.
        Raises:
            ValueError: The state has other rows or cells than the frame.
        """
        rows = len(rig.time_s)
        dtype = torch.promote_types(like.dtype, torch.float32)
        if state is None:
            none = torch.zeros(rows, dtype=torch.bool, device=like.device)
            signals = self._signals(None, rig, none).to(dtype)
            return Past(signals, signals.new_zeros((rows, 2)))
        expected = (rows, self.grid.cells, self.channels)
        if tuple(state["bev"].shape) != expected:
            raise ValueError(f"state: expected a map {expected}, got {tuple(state['bev'].shape)}")
        gap_s = rig.time_s.double() - state["time_s"]
        follows = state["has_past"] & (gap_s >= 0)
        if starts is not None:
            follows = follows & ~starts
        if self.max_gap_s is not None:
            follows = follows & (gap_s <= self.max_gap_s)
        bev = torch.where(follows[:, None, None], state["bev"].to(like.dtype), 0.0)
        if self.official is None:
            here = rig.world_from_ref.double()
            before = torch.where(follows[:, None, None], state["world_from_ref"].double(), here)
            old_from_new = relative_pose(before, here)
            signals = motion_signals(old_from_new, gap_s, follows)
            bev = warp_past(bev, old_from_new.to(dtype), self.grid)
            shift = signals.new_zeros((rows, 2))
        else:
            signals = self._signals(state, rig, follows)
            shift = official_shift(signals, self.grid) * self.official.shift
            if self.official.rotate:
                bev = official_rotation(bev, signals[:, -1], self.grid.hw, self.official.rotate_center)
        return Past(signals.to(dtype), shift.to(dtype), bev, follows)

    def _signals(self, state: State, rig: CameraRig, follows: Bool[Tensor, " b"]) -> Float[Tensor, "b k"]:
        if self.official is None:
            return torch.zeros((len(follows), MOTION_SIZE), device=follows.device)
        now = official_can_bus(rig)
        return official_can_bus_since(now, now if state is None else state["can_bus"], follows)
