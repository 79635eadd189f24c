"""Streaming inference: one frame in, its answers out, memory in the caller's hands."""

from __future__ import annotations

import threading
from collections import deque
from time import perf_counter

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from allsight.models.bevformer.detection import DetectionHead
from allsight.models.bevformer.model import BEVFormer, BEVFormerOutputs
from allsight.models.bevformer.network import BEVNetwork
from allsight.types import Boxes3D, CameraRig, MultiCameraBatch

_REMEMBERED = 1000


class BEVStream:
    """Frames of one or several streams, one step at a time.

    The state is explicit, so threads may share a stream object and each keep a state of its own. Its tensors
    have the same shapes from the first frame on: every step does the same work and memory does not grow.

    Args:
        model: Put into evaluation mode.
    """

    def __init__(self, model: BEVFormer) -> None:
        self.model = model.eval()
        self._lock = threading.Lock()
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._frames = 0

    def init(self, rows: int = 1) -> dict[str, Tensor]:
        """The state before the first frame of `rows` streams."""
        return self.model.network.memory.start(rows, self.model.network.encoder.queries)

    def step(
        self, frame: MultiCameraBatch, state: dict[str, Tensor]
    ) -> tuple[BEVFormerOutputs, dict[str, Tensor]]:
        """Look at the next frame; `state` is not changed, the new one is returned."""
        begin = perf_counter()
        with torch.no_grad():
            outputs, state = self.model(frame, state)
        if frame.images.device.type == "cuda":
            torch.cuda.synchronize(frame.images.device)
        with self._lock:
            self._seconds.append(perf_counter() - begin)
            self._frames += 1
        return outputs, state

    def warm_up(self, frame: MultiCameraBatch, steps: int = 2) -> None:
        """Run a few steps that are not counted, so that the first real one is as fast as the others."""
        state = self.init(len(frame.images))
        with torch.no_grad():
            for _ in range(steps):
                _, state = self.model(frame, state)

    def latency(self) -> dict[str, float]:
        """Frames so far, and seconds a frame over the last 1000: mean, median, 95th percentile, last."""
        with self._lock:
            seconds, frames = list(self._seconds), self._frames
        if not seconds:
            return {"frames": 0.0}
        ordered = sorted(seconds)
        return {
            "frames": float(frames),
            "mean_s": sum(seconds) / len(seconds),
            "median_s": ordered[len(ordered) // 2],
            "p95_s": ordered[min(int(len(ordered) * 0.95), len(ordered) - 1)],
            "last_s": seconds[-1],
        }


class BEVStep(nn.Module):
    """A step as a function of tensors alone, for export: shapes do not depend on the geometry.

    Args:
        network: Only its default alignment by poses is supported.
        head: What reads boxes off the map; it is put into evaluation mode, as is the network.
        max_cells: Room for cells per camera; None: for all, which is exact for any rig. A smaller number is
            faster and exact for rigs whose cameras see no more cells than that.
    """

    state_names = ("bev", "has_past", "time_s", "world_from_ref")

    def __init__(self, network: BEVNetwork, head: DetectionHead, *, max_cells: int | None = None) -> None:
        super().__init__()
        if network.config.compat is not None:
            raise ValueError("BEVStep: compat='official' cannot be exported; use the default alignment")
        self.network, self.head = network.eval(), head.eval()
        self.max_cells = network.config.grid.cells if max_cells is None else max_cells

    input_names = (
        "images",
        "img_from_ref",
        "ego_from_ref",
        "world_from_ref",
        "time_s",
        *(f"past_{name}" for name in ("bev", "has_past", "time_s", "world_from_ref")),
    )
    output_names = (
        "centers_ref_m",
        "sizes_m",
        "yaw_rad",
        "velocities_ref_mps",
        "labels",
        "scores",
        *(f"next_{name}" for name in ("bev", "has_past", "time_s", "world_from_ref")),
    )

    def forward(
        self,
        images: Tensor,
        img_from_ref: Float[Tensor, "b n 3 4"],
        ego_from_ref: Float[Tensor, "b 4 4"],
        world_from_ref: Float[Tensor, "b 4 4"],
        time_s: Float[Tensor, " b"],
        past_bev: Float[Tensor, "b q c"],
        has_past: Bool[Tensor, " b"],
        past_time_s: Float[Tensor, " b"],
        past_world_from_ref: Float[Tensor, "b 4 4"],
    ) -> tuple[Tensor, ...]:
        """Boxes (centers, sizes, yaw, velocities, labels, scores), then the new state as `state_names`."""
        rig = CameraRig(img_from_ref, ego_from_ref, world_from_ref, time_s)
        past = (past_bev, has_past, past_time_s, past_world_from_ref)
        before = dict(zip(self.state_names, past, strict=True))
        bev, state = self.network(MultiCameraBatch(images, rig), before, max_cells=self.max_cells)
        boxes: Boxes3D | None = self.head(bev).boxes
        assert boxes is not None and boxes.scores is not None
        answers = (boxes.centers_ref_m, boxes.sizes_m, boxes.yaw_rad, boxes.velocities_ref_mps)
        return (*answers, boxes.labels, boxes.scores, *(state[name] for name in self.state_names))
