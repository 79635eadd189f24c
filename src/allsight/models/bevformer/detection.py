"""Boxes from a bird's-eye-view map: queries, a deformable decoder that refines where they look, answers.

Letters: b rows, q queries, c channels, l decoder layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from allsight.config import Config, Configured
from allsight.layers import MLP, MSDeformAttn, in_float32
from allsight.objectives.box_code_3d import CODE_SIZE, decode_boxes
from allsight.objectives.detection_3d import CODE_WEIGHTS
from allsight.types import BEVGrid, BEVSpec, Boxes3D

NUSCENES_CLASSES = 10
_EDGE = 1e-5
Range = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class DetectionOutputs:
    """What the head gives.

    Args:
        logits: Class logits after each decoder layer.
        codes: Codes of the boxes (`objectives.box_code_3d`), in metres.
        heatmap: Logits of the middles of things, where the head has such a map.
        boxes: In evaluation, each row's best answers of the last layer, best first; a query may give several
            with other labels.
    """

    logits: Float[Tensor, "l b q classes"]
    codes: Float[Tensor, "l b q 10"]
    heatmap: Float[Tensor, "b classes h w"] | None = None
    boxes: Boxes3D | None = None


class DetectionHead(nn.Module, Configured):
    """Set prediction of boxes: every query gives one box, no suppression of overlaps.

    Args:
        config: Its settings.
        spec: The map it reads.

    Source: BEVFormer, arXiv:2203.17270, section 3.5, after Deformable DETR, arXiv:2010.04159, and DETR3D;
    fundamentalvision/BEVFormer:projects/mmdet3d_plugin/bevformer/dense_heads/bevformer_head.py.
    """

    class Config(Config):
        """Settings of the head.

        Attributes:
            num_classes: Classes; None: as many as the task has, or the ten of nuScenes where no task says.
            queries: Learned queries; at most so many boxes are found.
            peaks: Further queries that start at the peaks of a heatmap, which the head then learns too.
            layers: Decoder layers.
            heads: Attention heads.
            points: Sampling points per head.
            hidden: Width of the feed-forward part.
            drop: Dropout probability.
            first_px: How far off its place each head's first point starts to look, in cells.
            num_answers: How many (query, class) pairs become answers.
        """

        num_classes: int | None = Field(default=None, ge=1)
        queries: int = Field(default=900, ge=0)
        peaks: int = Field(default=0, ge=0)
        layers: int = Field(default=6, ge=1)
        heads: int = Field(default=8, ge=1)
        points: int = Field(default=4, ge=1)
        hidden: int = Field(default=512, ge=1)
        drop: float = Field(default=0.1, ge=0, lt=1)
        first_px: int = Field(default=1, ge=0)
        num_answers: int = Field(default=300, ge=1)

        @model_validator(mode="after")
        def _asks_something(self) -> DetectionHead.Config:
            if not self.queries + self.peaks:
                raise ValueError("queries: expected at least one query or peak")
            return self

    def __init__(self, config: DetectionHead.Config, spec: BEVSpec) -> None:
        super().__init__()
        self.config, self.grid = config, spec.grid
        channels, classes = spec.channels, config.num_classes or NUSCENES_CLASSES
        self.code_weights = nn.Parameter(torch.tensor(CODE_WEIGHTS), requires_grad=False)
        self.queries = nn.Parameter(torch.randn(config.queries, 2 * channels))
        self.reference = nn.Linear(channels, 3)
        self.layers = nn.ModuleList(
            DecoderLayer(
                channels,
                config.heads,
                config.points,
                config.hidden,
                drop=config.drop,
                first_px=config.first_px,
            )
            for _ in range(config.layers)
        )
        self.classify = nn.ModuleList(_classifier(channels, classes) for _ in self.layers)
        self.regress = nn.ModuleList(_regressor(channels) for _ in self.layers)
        self.peaks = PeakQueries(config.peaks, classes, spec) if config.peaks else None
        nn.init.xavier_uniform_(self.reference.weight)
        nn.init.zeros_(self.reference.bias)

    def forward(self, bev: Float[Tensor, "b c h w"]) -> DetectionOutputs:
        """Find the boxes of a map."""
        memory = bev.flatten(2).transpose(1, 2)
        position, content = self.queries.expand(len(bev), -1, -1).chunk(2, dim=-1)
        reference = _precisely(self.reference, position).sigmoid()
        heatmap = None
        if self.peaks is not None:
            heatmap, places, more_position, more_content = self.peaks(bev)
            position, content = torch.cat([position, more_position], 1), torch.cat([content, more_content], 1)
            reference = torch.cat([reference, places], 1)
        logits, codes = [], []
        for layer, classify, regress in zip(self.layers, self.classify, self.regress, strict=True):
            content = layer(content, position, reference, memory, self.grid.hw)
            raw = _precisely(regress, content)
            moved = (raw[..., [0, 1, 4]] + _logit(reference)).sigmoid()
            logits.append(classify(content))
            codes.append(_in_metres(raw, moved, self.grid))
            reference = moved.detach()
        outputs = DetectionOutputs(torch.stack(logits), torch.stack(codes), heatmap)
        if self.training:
            return outputs
        boxes = best_boxes(outputs.logits[-1], outputs.codes[-1], self.config.num_answers)
        return DetectionOutputs(outputs.logits, outputs.codes, heatmap, boxes)

    def blocks_in_order(self) -> list[nn.Module]:
        """The layers, each run once a pass."""
        return list(self.layers)


class DecoderLayer(nn.Module):
    """Queries talk to each other, look at the map, think; a norm after each."""

    def __init__(
        self, channels: int, heads: int, points: int, hidden: int, *, drop: float, first_px: int = 1
    ) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout=drop, batch_first=True)
        self.cross_attn = MSDeformAttn(channels, levels=1, heads=heads, points=points, first_px=first_px)
        self.mlp = MLP(channels, hidden, act="relu", drop=drop)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.drop = nn.Dropout(drop)
        for linear in (self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        content: Float[Tensor, "b q c"],
        position: Float[Tensor, "b q c"],
        reference: Float[Tensor, "b q 3"],
        memory: Float[Tensor, "b s c"],
        hw: tuple[int, int],
    ) -> Float[Tensor, "b q c"]:
        asking = content + position
        talked, _ = self.self_attn(asking, asking, content, need_weights=False)
        content = self.norms[0](content + self.drop(talked))
        looked = self.cross_attn(content + position, reference[..., None, :2], memory, (hw,))
        content = self.norms[1](content + self.drop(looked))
        return self.norms[2](content + self.mlp(content))


class PeakQueries(nn.Module):
    """Queries that start where a heatmap of middles has its peaks. Not part of published networks.

    Args:
        peaks: How many.
        num_classes: Maps, one per class; a cell's highest decides.
        spec: The map that is read.
    """

    def __init__(self, peaks: int, num_classes: int, spec: BEVSpec) -> None:
        super().__init__()
        self.num_peaks, self.grid = peaks, spec.grid
        channels = spec.channels
        last = nn.Conv2d(channels, num_classes, 1)
        last.bias = nn.Parameter(torch.full((num_classes,), -math.log(99)))  # a chance of one in a hundred
        self.heat = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), last)
        self.height = nn.Parameter(torch.zeros(()))
        self.position = nn.Sequential(nn.Linear(2, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.content = nn.Linear(channels, channels)

    def forward(
        self, bev: Float[Tensor, "b c h w"]
    ) -> tuple[
        Float[Tensor, "b classes h w"],
        Float[Tensor, "b q 3"],
        Float[Tensor, "b q c"],
        Float[Tensor, "b q c"],
    ]:
        """The heatmap's logits, and reference points, positions and contents of the queries."""
        heatmap = self.heat(bev)
        highest = heatmap.detach().amax(1, keepdim=True)
        is_peak = highest == nn.functional.max_pool2d(highest, 3, 1, 1)
        # Cells that are no peak come last, in case there are fewer peaks than queries.
        order = torch.where(is_peak, highest, highest - highest.new_full((), 1e4)).flatten(1)
        cells = order.topk(min(self.num_peaks, self.grid.cells), dim=1).indices
        centers = self.grid.centers(bev)[cells]
        height = self.height.sigmoid().to(bev.dtype).expand(*centers.shape[:2], 1)
        index = cells[..., None].expand(-1, -1, bev.shape[1])
        content = self.content(bev.flatten(2).transpose(1, 2).gather(1, index))
        return heatmap, torch.cat([centers, height], dim=-1), self.position(centers), content


def joined_frames(frames: Sequence[DetectionOutputs]) -> DetectionOutputs:
    """Outputs for the same rows at several moments as those of that many more rows.

    One moment comes after the other. For losses; boxes are left out.
    """
    heat = [frame.heatmap for frame in frames if frame.heatmap is not None]
    return DetectionOutputs(
        torch.cat([frame.logits for frame in frames], 1),
        torch.cat([frame.codes for frame in frames], 1),
        torch.cat(heat) if heat else None,
    )


def best_boxes(logits: Float[Tensor, "b q classes"], codes: Float[Tensor, "b q 10"], number: int) -> Boxes3D:
    """The `number` highest scores over queries and classes, best first, and their boxes."""
    scores, index = logits.sigmoid().flatten(1).topk(min(number, logits[0].numel()))
    classes = logits.shape[-1]
    queries: Int64[Tensor, "b k"] = index // classes
    chosen = codes.gather(1, queries[..., None].expand(-1, -1, codes.shape[-1]))
    return decode_boxes(chosen, index % classes, scores)


def answers(
    boxes: Boxes3D, *, range_m: Range | None = None, score_threshold: float | None = None
) -> list[Boxes3D]:
    """Each row's boxes apart, without those that cannot be meant.

    Args:
        boxes: What `best_boxes` gave, [b, k].
        range_m: Middles outside (x, y, z minima, then maxima; inclusive) are left out.
        score_threshold: Scores must be above; while no box is, it is lowered by tenths, and below 0.01 given
            up.

    Source: fundamentalvision/BEVFormer:projects/mmdet3d_plugin/core/bbox/coders/nms_free_coder.py.
    """
    assert boxes.scores is not None
    rows = []
    for row in range(len(boxes.labels)):
        one = Boxes3D(
            boxes.centers_ref_m[row],
            boxes.sizes_m[row],
            boxes.yaw_rad[row],
            boxes.velocities_ref_mps[row],
            boxes.labels[row],
            boxes.scores[row],
        )
        keep = torch.ones_like(one.labels, dtype=torch.bool)
        if score_threshold is not None and one.scores is not None:
            keep = _above(one.scores, score_threshold)
        if range_m is not None:
            low, high = one.centers_ref_m.new_tensor(range_m).chunk(2)
            keep = keep & ((one.centers_ref_m >= low) & (one.centers_ref_m <= high)).all(-1)
        rows.append(one.select(keep))
    return rows


def _above(scores: Float[Tensor, " k"], threshold: float) -> Tensor:
    keep = scores > threshold
    while not bool(keep.any()):
        threshold *= 0.9
        if threshold < 0.01:
            return torch.ones_like(keep)
        keep = scores >= threshold
    return keep


def _precisely(module: nn.Module, x: Tensor) -> Tensor:
    """What the module gives without autocast: in 16 bits a place is off by tens of centimetres."""
    return in_float32(lambda x: module(x), x).to(torch.promote_types(x.dtype, torch.float32))


def _logit(x: Tensor) -> Tensor:
    """The inverse of sigmoid, finite at the ends."""
    x = x.clamp(0, 1)
    return (x.clamp_min(_EDGE) / (1 - x).clamp_min(_EDGE)).log()


def _in_metres(
    raw: Float[Tensor, "b q 10"], parts: Float[Tensor, "b q 3"], grid: BEVGrid
) -> Float[Tensor, "b q 10"]:
    """The code with its place, given in parts of the range, in metres."""
    x, y, z = grid.to_metres(parts).split(1, dim=-1)
    return torch.cat([x, y, raw[..., 2:4], z, raw[..., 5:]], dim=-1)


def _classifier(channels: int, classes: int) -> nn.Sequential:
    last = nn.Linear(channels, classes)
    nn.init.constant_(last.bias, -math.log(99))  # a chance of one in a hundred
    hidden = [[nn.Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU()] for _ in range(2)]
    return nn.Sequential(*(module for part in hidden for module in part), last)


def _regressor(channels: int) -> nn.Sequential:
    hidden = [[nn.Linear(channels, channels), nn.ReLU()] for _ in range(2)]
    return nn.Sequential(*(module for part in hidden for module in part), nn.Linear(channels, CODE_SIZE))


torch.export.register_dataclass(DetectionOutputs, serialized_type_name="allsight.DetectionOutputs")
