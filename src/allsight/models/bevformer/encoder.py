"""From feature maps of cameras to a bird's-eye-view map. Knows no head.

Letters: b rows, n cameras, q cells, z heights, c channels, s pixels of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from allsight.layers import (
    MLP,
    SeenCells,
    SpatialCrossAttention,
    TemporalSelfAttention,
    find_seen_cells,
    make_activation,
)
from allsight.models.bevformer.memory import Past
from allsight.types import BEVGrid, CameraRig
from allsight.types.geometry import MIN_DEPTH_M


class BEVEncoder(nn.Module):
    """Learned cells look at their past and into the cameras that see them, layer by layer.

    Args:
        grid: Where cells are.
        channels: Width.
        signals: Numbers that describe the motion since the frame before.
        layers: How many.
        levels: Feature maps per camera.
        cameras: Cameras with an embedding of their own; 0: none, cameras are told apart by geometry only.
        level_rows: Rows of the table of level embeddings, at least `levels`.
        heads: Attention heads.
        camera_points: Sampling points per head and level in the cameras; a multiple of the heights.
        past_points: Sampling points per head in the past map and in the present one.
        heights: Points on a cell's pillar, evenly spread over the range.
        heights_m: Their z, in place of that.
        hidden: Width of the feed-forward part.
        depthwise: Let neighbouring cells talk in the feed-forward part.
        present: "layer": in rows with a past, the present map is each layer's own query; "input": the query
            as it entered the first layer, as published weights expect.
        alias_shift: Shift the look into the present too, as published networks did while they were trained.
        use_signals: False: the network does not hear of the motion (the layers stay).
        drop: Dropout probability.
        first_px: How far off its place each head's first point starts: pixels of the level, or cells.
        embed_std: Size at the start of what pictures do not tell: cells, levels, cameras, motion.

    Source: BEVFormer, arXiv:2203.17270, section 3; fundamentalvision/BEVFormer:
    projects/mmdet3d_plugin/bevformer/modules/{encoder,transformer}.py.
    """

    def __init__(
        self,
        grid: BEVGrid,
        channels: int,
        *,
        signals: int,
        layers: int,
        levels: int,
        cameras: int,
        level_rows: int,
        heads: int = 8,
        camera_points: int = 8,
        past_points: int = 4,
        heights: int = 4,
        heights_m: tuple[float, ...] | None = None,
        hidden: int = 512,
        depthwise: bool = False,
        present: str = "layer",
        alias_shift: bool = False,
        use_signals: bool = True,
        drop: float = 0.0,
        first_px: int = 1,
        embed_std: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid, self.heights, self.heights_m = grid, heights, heights_m
        self.present, self.alias_shift, self.use_signals = present, alias_shift, use_signals
        rows, columns = grid.hw
        self.queries = nn.Parameter(torch.randn(grid.cells, channels) * embed_std)
        self.row_embed = nn.Parameter(torch.rand(rows, channels // 2))
        self.column_embed = nn.Parameter(torch.rand(columns, channels // 2))
        self.level_embed = nn.Parameter(torch.randn(level_rows, channels) * embed_std)
        self.camera_embed = nn.Parameter(torch.randn(cameras, channels) * embed_std) if cameras else None
        self.motion = MotionMLP(signals, channels)
        nn.init.constant_(self.motion.norm.weight, embed_std)
        self.layers = nn.ModuleList(
            EncoderLayer(
                channels,
                levels,
                heads,
                camera_points,
                past_points,
                hidden,
                depthwise=depthwise,
                drop=drop,
                first_px=first_px,
            )
            for _ in range(layers)
        )

    def forward(
        self,
        maps: Sequence[Float[Tensor, "b n c _ _"]],
        rig: CameraRig,
        hw_px: tuple[int, int],
        past: Past,
        valid_hw_px: Int64[Tensor, "b n 2"] | None = None,
        *,
        max_cells: int | None = None,
    ) -> Float[Tensor, "b q c"]:
        """Compute the map, cells row by row.

        Args:
            maps: Feature maps of all cameras, fine to coarse.
            rig: Where the cameras were.
            hw_px: Size of the (padded) pictures that the matrices speak of.
            past: What is known of the frame before.
            valid_hw_px: The part of each picture that is no padding.
            max_cells: Room for cells per camera, so that shapes do not depend on the geometry (export).
        Raises:
            ValueError: More cameras than camera embeddings.
        """
        rows = maps[0].shape[0]
        seen = self._seen(rig, hw_px, valid_hw_px, like=maps[0], max_cells=max_cells)
        value, shapes = self._value(maps)
        query = self.queries.to(value.dtype).expand(rows, -1, -1)
        if self.use_signals:
            query = query + self.motion(past.signals)[:, None]
        position = torch.cat(
            [
                self.column_embed.expand(self.grid.hw[0], -1, -1),
                self.row_embed[:, None].expand(-1, self.grid.hw[1], -1),
            ],
            dim=-1,
        )
        position = position.flatten(0, 1).expand(rows, -1, -1)
        centers = self.grid.centers(past.shift).expand(rows, -1, -1)
        shifted = centers + past.shift[:, None]
        places = torch.stack([shifted, shifted if self.alias_shift else centers], dim=2)
        entered = query if self.present == "input" else None
        for layer in self.layers:
            query = layer(query, position, places, self.grid.hw, past, entered, value, shapes, seen)
        return query

    def see(
        self,
        rig: CameraRig,
        hw_px: tuple[int, int],
        valid_hw_px: Int64[Tensor, "b n 2"] | None = None,
    ) -> tuple[Float[Tensor, "b n q z 2"], Bool[Tensor, "b n q z"]]:
        """Where the points of all pillars are in all pictures, (x, y) in 0..1, and which can be seen."""
        matrices = rig.img_from_ref
        like = matrices.new_empty((), dtype=torch.promote_types(matrices.dtype, torch.float32))
        pillars = self.grid.pillars(like, points=self.heights, heights_m=self.heights_m)
        shape = pillars.shape[:2]
        with torch.autocast(matrices.device.type, enabled=False):
            pixels, depth = rig.project(pillars.flatten(0, 1).expand(len(matrices), -1, -1))
        # Filled on the device: a tensor made from numbers would be copied there at every call.
        size = torch.stack([like.new_full((), side) for side in (hw_px[1], hw_px[0])])
        places = pixels / size
        limit = torch.ones_like(size) if valid_hw_px is None else valid_hw_px.flip(-1)[:, :, None] / size
        hits = (depth > MIN_DEPTH_M) & ((places > 0) & (places < limit)).all(-1)
        if rig.is_present is not None:
            hits = hits & rig.is_present[..., None]
        return places.unflatten(2, shape), hits.unflatten(2, shape)

    def _seen(
        self,
        rig: CameraRig,
        hw_px: tuple[int, int],
        valid_hw_px: Tensor | None,
        *,
        like: Tensor,
        max_cells: int | None = None,
    ) -> SeenCells:
        places, hits = self.see(rig, hw_px, valid_hw_px)
        places = places.to(torch.promote_types(like.dtype, torch.float32))
        return find_seen_cells(places, hits, most=max_cells)

    def _value(
        self, maps: Sequence[Float[Tensor, "b n c _ _"]]
    ) -> tuple[Float[Tensor, "bn s c"], tuple[tuple[int, int], ...]]:
        """All pixels of each camera, with the embeddings that say which camera and level they are of."""
        levels = []
        for level, x in enumerate(maps):
            pixels = x.flatten(3).transpose(2, 3) + self.level_embed[level].to(x.dtype)
            if self.camera_embed is not None:
                if x.shape[1] > len(self.camera_embed):
                    raise ValueError(
                        f"BEVFormer: {x.shape[1]} cameras, but embeddings for {len(self.camera_embed)}; "
                        "build it with cameras= that many, or cameras=0 to do without"
                    )
                pixels = pixels + self.camera_embed[: x.shape[1], None].to(x.dtype)
            levels.append(pixels)
        shapes = tuple((int(x.shape[3]), int(x.shape[4])) for x in maps)
        return torch.cat(levels, dim=2).flatten(0, 1), shapes

    def blocks_in_order(self) -> list[nn.Module]:
        """The layers, each run once a pass."""
        return list(self.layers)


class EncoderLayer(nn.Module):
    """Look at the past, look into the cameras, think; a norm after each."""

    def __init__(
        self,
        channels: int,
        levels: int,
        heads: int,
        camera_points: int,
        past_points: int,
        hidden: int,
        *,
        depthwise: bool,
        drop: float,
        first_px: int,
    ) -> None:
        super().__init__()
        self.temporal = TemporalSelfAttention(
            channels, heads=heads, points=past_points, drop=drop, first_px=first_px
        )
        self.spatial = SpatialCrossAttention(
            channels, levels=levels, heads=heads, points=camera_points, drop=drop, first_px=first_px
        )
        self.mlp = MLP(channels, hidden, act="relu", drop=drop)
        self.neighbours = nn.Conv2d(channels, channels, 3, padding=1, groups=channels) if depthwise else None
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        for linear in (self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        query: Float[Tensor, "b q c"],
        position: Float[Tensor, "b q c"],
        places: Float[Tensor, "b q 2 2"],
        hw: tuple[int, int],
        past: Past,
        present: Float[Tensor, "b q c"] | None,
        value: Float[Tensor, "bn s c"],
        shapes: tuple[tuple[int, int], ...],
        seen: SeenCells,
    ) -> Float[Tensor, "b q c"]:
        looked = self.temporal(query, position, places, hw, past.bev, present=present, has_past=past.has_past)
        query = self.norms[0](query + looked)
        query = self.norms[1](query + self.spatial(query, value, shapes, seen))
        thought = self.mlp(query)
        if self.neighbours is not None:
            maps = query.transpose(1, 2).unflatten(2, hw)
            thought = thought + self.neighbours(maps).flatten(2).transpose(1, 2)
        return self.norms[2](query + thought)


class MotionMLP(nn.Module):
    """Numbers of the motion to a bias for all cells."""

    def __init__(self, signals: int, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(signals, channels // 2)
        self.fc2 = nn.Linear(channels // 2, channels)
        self.act = make_activation("relu")
        self.norm = nn.LayerNorm(channels)

    def forward(self, signals: Float[Tensor, "b k"]) -> Float[Tensor, "b c"]:
        return self.norm(self.act(self.fc2(self.act(self.fc1(signals)))))
