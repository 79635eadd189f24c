"""Pictures of a camera rig to a bird's-eye-view map with memory: what all heads share.

Letters: b rows, n cameras, c channels, h w rows and columns of the map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Shaped
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.backbones import Backbone, ResNet
from allsight.config import Config, Configured, Variants
from allsight.layers import FPN
from allsight.models.bevformer.encoder import BEVEncoder
from allsight.models.bevformer.memory import Memory, OfficialRules
from allsight.types import BEVGrid, BEVSpec, MultiCameraBatch, State

NUSCENES_RANGE_M = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)


def _official(
    backbone: str, out_stages: tuple[int, ...], levels: int, cells: int, layers: int
) -> dict[str, Any]:
    net = ResNet.Config.variant(backbone, out_stages=out_stages, norm="frozen", frozen_parts=2)
    return {
        "backbone": net,
        "levels": levels,
        "level_rows": 4,
        "range_m": NUSCENES_RANGE_M,
        "bev_hw": (cells, cells),
        "channels": 256,
        "hidden": 512,
        "layers": layers,
        "heads": 8,
        "depthwise": False,
        "heights_m": None,
        "drop": 0.1,
        "first_px": 1,
        "embed_std": 1.0,
    }


_MICRO = {
    "backbone": ResNet.Config(block="basic", depths=(1, 1, 1), channels=24, out_stages=(1, 2)),
    "levels": 1,
    "level_rows": None,
    "range_m": (-40.0, -40.0, -3.0, 40.0, 40.0, 5.0),
    "bev_hw": (40, 40),
    "channels": 64,
    "hidden": 128,
    "layers": 2,
    "heads": 4,
    "depthwise": True,
    "heights_m": (0.0, 0.7, 1.4, 2.5),
    "drop": 0.0,
    "first_px": 1,
    "embed_std": 1.0,
}


class BEVNetwork(nn.Module, Configured):
    """Backbone, pyramid and encoder: everything before the heads.

    Source: BEVFormer, arXiv:2203.17270; sizes of fundamentalvision/BEVFormer:projects/configs/bevformer.
    """

    variants: ClassVar[Variants] = {
        "micro": _MICRO,
        "tiny": _official("r50", (3,), 1, 50, 3),
        "small": _official("r101_caffe_dcn", (3,), 1, 150, 3),
        "base": _official("r101_caffe_dcn", (1, 2, 3), 4, 200, 6),
    }

    class Config(Config):
        """Settings of the network.

        Attributes:
            backbone: What turns pictures into feature maps.
            levels: Maps of the pyramid that cells look at, from the backbone's finest on.
            level_rows: Rows of the table of level embeddings; None: as many as levels. Published networks
                have 4.
            cameras: Cameras with an embedding of their own. A rig may have fewer; 0: no such embeddings, any
                number of cameras and any order.
            range_m: x, y, z minima, then maxima, of the map in the reference frame.
            bev_hw: Rows (y) and columns (x) of the map.
            channels: Width of the map.
            hidden: Width of the feed-forward parts.
            layers: Encoder layers.
            heads: Attention heads.
            camera_points: Sampling points per head and level in the cameras.
            past_points: Sampling points per head in past and present map.
            heights: Points on a cell's pillar, evenly over the range.
            heights_m: Their z, in place of that.
            depthwise: Let neighbouring cells talk in the feed-forward parts.
            drop: Dropout probability.
            first_px: How far off its place each head's first point starts to look, in pixels of the level or
                cells of the past; the next are a pixel farther each. Published networks begin beside their
                place and have to find it; where cells are metres wide, 0 learns sooner.
            embed_std: Size of what does not depend on pictures at the start: embeddings of cells, levels and
                cameras, and the motion's. The published 1 is larger than what cells look up, and takes
                thousands of steps to fade.
            max_gap_s: A frame later than this after the last one begins anew; None: no limit.
            compat: "official": align the past and describe the motion as published weights expect. None: by
                relative poses.
            rotate_center: Column and row about which "official" rotates.
            rotate_past: Whether "official" rotates the past.
            shift_past: Whether "official" shifts the past.
            alias_shift: "official" only: shift the present as well, as the published weights were trained.
            use_motion: Whether the network hears of the motion.
            gradient_frames: Last frames of a clip that are trained through; earlier ones only give memory.
            clip_loss: Frames of a clip that heads answer for: the last, or all that are trained through.
        """

        backbone: Backbone.Config
        levels: int = Field(default=1, ge=1)
        level_rows: int | None = None
        cameras: int = Field(default=6, ge=0)
        range_m: tuple[float, float, float, float, float, float] = NUSCENES_RANGE_M
        bev_hw: tuple[int, int] = (50, 50)
        channels: int = Field(default=256, ge=2, multiple_of=2)
        hidden: int = Field(default=512, ge=1)
        layers: int = Field(default=3, ge=1)
        heads: int = Field(default=8, ge=1)
        camera_points: int = Field(default=8, ge=1)
        past_points: int = Field(default=4, ge=1)
        heights: int = Field(default=4, ge=1)
        heights_m: tuple[float, ...] | None = None
        depthwise: bool = False
        drop: float = Field(default=0.1, ge=0, lt=1)
        first_px: int = Field(default=1, ge=0)
        embed_std: float = Field(default=1.0, ge=0)
        max_gap_s: float | None = Field(default=3.0, gt=0)
        compat: Literal["official"] | None = None
        rotate_center: tuple[float, float] = (100.0, 100.0)
        rotate_past: bool = True
        shift_past: bool = True
        alias_shift: bool = False
        use_motion: bool = True
        gradient_frames: int = Field(default=1, ge=1)
        clip_loss: Literal["last", "all"] = "last"

        @model_validator(mode="after")
        def _fits_together(self) -> BEVNetwork.Config:
            if self.channels % self.heads:
                raise ValueError(f"heads: expected a divisor of channels={self.channels}, got {self.heads}")
            points = self.heights if self.heights_m is None else len(self.heights_m)
            if self.camera_points % points:
                raise ValueError(
                    f"camera_points: expected a multiple of the {points} heights, got {self.camera_points}"
                )
            if self.level_rows is not None and self.level_rows < self.levels:
                raise ValueError(f"level_rows: expected at least levels={self.levels}, got {self.level_rows}")
            if self.alias_shift and self.compat is None:
                raise ValueError("alias_shift: only with compat='official'")
            self.grid  # noqa: B018  (its own checks)
            return self

        @property
        def grid(self) -> BEVGrid:
            """Where the map's cells are."""
            return BEVGrid(self.range_m, self.bev_hw)

    def __init__(self, config: BEVNetwork.Config) -> None:
        super().__init__()
        self.config = config
        official = config.compat == "official"
        rules = OfficialRules(config.rotate_center, config.rotate_past, config.shift_past)
        self.memory = Memory(
            config.grid, config.channels, max_gap_s=config.max_gap_s, official=rules if official else None
        )
        self.backbone: Backbone = config.backbone.build()
        widths = [spec.channels for spec in self.backbone.feature_specs]
        self.neck = FPN(widths, config.channels, levels=config.levels)
        self.encoder = BEVEncoder(
            config.grid,
            config.channels,
            signals=self.memory.num_signals,
            layers=config.layers,
            levels=config.levels,
            cameras=config.cameras,
            level_rows=config.level_rows or config.levels,
            heads=config.heads,
            camera_points=config.camera_points,
            past_points=config.past_points,
            heights=config.heights,
            heights_m=config.heights_m,
            hidden=config.hidden,
            depthwise=config.depthwise,
            present="input" if official else "layer",
            alias_shift=config.alias_shift,
            use_signals=config.use_motion,
            drop=config.drop,
            first_px=config.first_px,
            embed_std=config.embed_std,
        )

    @property
    def spec(self) -> BEVSpec:
        """What heads may expect of the map."""
        return BEVSpec(self.config.channels, 1, self.config.grid)

    def forward(
        self, batch: MultiCameraBatch, state: State = None, *, max_cells: int | None = None
    ) -> tuple[Float[Tensor, "b c h w"], dict[str, Tensor]]:
        """Compute the map of a frame.

        Args:
            batch: Pictures and geometry; uint8 is normalised by the backbone.
            state: The memory of the frame before, None at the start; `batch.starts` marks rows that begin.
            max_cells: Room for cells per camera, so that shapes do not depend on the geometry (export).
        Returns:
            The map, and the memory for the next frame, which still carries the graph.
        """
        images, rig = _padded_with_zeros(self.backbone, batch), batch.rig
        if rig.is_present is not None:
            images = torch.where(rig.is_present[..., None, None, None], images, images.new_zeros(()))
        maps = self.neck(self.backbone(images.flatten(0, 1)))
        maps = [x.unflatten(0, images.shape[:2]) for x in maps]
        past = self.memory.recall(state, rig, batch.starts, maps[0])
        hw_px = (int(images.shape[3]), int(images.shape[4]))
        # The release counts what lies in the padding as seen.
        valid = None if self.config.compat == "official" else batch.valid_hw_px
        cells = self.encoder(maps, rig, hw_px, past, valid, max_cells=max_cells)
        return cells.transpose(1, 2).unflatten(2, self.config.bev_hw), self.memory.keep(cells, rig)

    def run_clip(
        self, frames: Sequence[MultiCameraBatch], state: State = None
    ) -> tuple[list[Float[Tensor, "b c h w"]], dict[str, Tensor]]:
        """Compute the maps of consecutive frames, the oldest first.

        Frames before the last `gradient_frames` run without gradient and as in evaluation.

        Returns:
            The maps that heads answer for (`clip_loss`), and the memory after the last frame, detached.
        """
        if not frames:
            raise ValueError("clip: expected at least one frame, got none")
        first = max(len(frames) - self.config.gradient_frames, 0)
        with torch.no_grad(), evaluating(self):
            for frame in frames[:first]:
                _, state = self(frame, state)
        maps = []
        for frame in frames[first:]:
            bev, state = self(frame, state)
            maps.append(bev)
        assert state is not None
        return maps if self.config.clip_loss == "all" else maps[-1:], detached(state)


def detached(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same memory without its graph."""
    return {name: tensor.detach() for name, tensor in state.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module as in evaluation for a while; afterwards each part is as it was."""
    before = [(part, part.training) for part in module.modules() if part.training]
    for part, _ in before:
        part.training = False
    try:
        yield
    finally:
        for part, training in before:
            part.training = training


def _padded_with_zeros(backbone: Backbone, batch: MultiCameraBatch) -> Shaped[Tensor, "b n 3 h w"]:
    """Pictures of bytes that fill their frame in part are normalised here: around them are zeros, as in the
    release, and not what black becomes."""
    images, valid = batch.images, batch.valid_hw_px
    if valid is None or images.is_floating_point():
        return images
    pixels = backbone.normalise(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    rows, columns = (
        torch.arange(side, device=images.device) < valid[..., axis, None]
        for axis, side in enumerate(images.shape[-2:])
    )
    inside = (rows[..., None] & columns[..., None, :])[:, :, None]
    return torch.where(inside, pixels, pixels.new_zeros(()))
