"""Truth in place of pictures: does the way from a map to boxes, memory included, learn what it should?

The map's cells hold what a perfect look at one moment could tell: class, place inside the cell with noise,
and heading. They are shown to the very network as the picture of one camera that looks straight down, without
perspective, so nothing of the network is left out or replaced but its backbone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from allsight.backbones import Backbone
from allsight.config import Mixture
from allsight.data.driving.poses import heading, inverse, moved
from allsight.data.transforms import Compose, MoveWorld, WithinRange
from allsight.data.world.drives import Drives
from allsight.data.world.drives.drive import pose
from allsight.data.world.drives.sampling import sample_drive
from allsight.engine.config import EvalConfig, RunConfig
from allsight.engine.optim import AdamW
from allsight.engine.schedule import Cosine
from allsight.models import BEVFormer
from allsight.models.bevformer import BEVNetwork, DetectionHead
from allsight.tasks import BEVDetection
from allsight.tasks.base import Split
from allsight.tasks.rigs import NoStreams
from allsight.types import (
    Batch,
    Boxes3D,
    CameraRig,
    FeatureSpec,
    MultiCameraBatch,
    Rig,
    Sample,
)

REACH_M, CLASSES = 40.0, ("car", "truck", "pedestrian", "bicycle")
CELLS = 32
"""Of 2.5 m, about as far as things drive in a frame. In much larger ones the past of most things lies in the
cell where they are now, and its place hardly comes through the warp."""
_CHANNELS = len(CLASSES) + 4
_EGO_FROM_REF = np.array([[0.0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]])


class RasterBackbone(Backbone):
    """Reads channels that were laid below each other, three by three; one linear layer."""

    class Config(Backbone.Config):
        channels: int = 64

    config: RasterBackbone.Config

    def __init__(self, config: RasterBackbone.Config) -> None:
        super().__init__(config)
        self.linear = nn.Conv2d(3 * math.ceil(_CHANNELS / 3), config.channels, 1)
        # As large as features of pictures are: what cells begin with would drown it else.
        nn.init.normal_(self.linear.weight)
        self.feature_specs = (FeatureSpec(config.channels, 1),)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        parts = images.unflatten(2, (-1, CELLS)).transpose(1, 2).flatten(1, 2)
        return (self.linear(parts),)


class TrueDrives:
    """Boxes and poses of generated drives, without pictures."""

    cameras = ()
    attributes = ()
    notes = ()

    def __init__(self, split: str, scenes: int, seed: int) -> None:
        self.name, self.split, self.classes = "drives", split, CLASSES
        self._config = Drives.Config.variant("easy", seed=seed, manoeuvres=1.0)
        self.sequences = (self._config.frames,) * scenes
        self._kept: dict[int, Any] = {}

    def __len__(self) -> int:
        return sum(self.sequences)

    def __getitem__(self, index: int) -> Sample:
        scene, number = divmod(index, self._config.frames)
        if scene not in self._kept:
            self._kept[scene] = sample_drive(self._config, self.split, scene)
        drive = self._kept[scene]
        time_s = drive.time_s(number)
        world_from_ref = drive.world_from_ego(time_s) @ _EGO_FROM_REF
        ref_from_world = inverse(world_from_ref)
        rows = []
        for thing in drive.things:
            if thing.name not in CLASSES:
                continue
            x, y, turn = thing.track.at(time_s)
            later = thing.track.at(time_s + 0.05)
            center = moved(ref_from_world, np.array([[x, y, thing.size_lwh_m[2] / 2]]))[0]
            way = ref_from_world[:2, :2] @ (np.array([later[0] - x, later[1] - y]) / 0.05)
            yaw = float(heading(ref_from_world[:3, :3] @ pose(x, y, turn)[:3, :3]))
            rows.append((*center, *thing.size_lwh_m, yaw, *way, CLASSES.index(thing.name)))
        table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 10)
        boxes = Boxes3D(table[:, :3], table[:, 3:6], table[:, 6], table[:, 7:9], table[:, 9].long())
        rig = Rig(
            (),
            torch.zeros(0, 3, 4),
            torch.from_numpy(_EGO_FROM_REF).float(),
            torch.from_numpy(world_from_ref),
            time_s,
        )
        inside = WithinRange((-REACH_M, -REACH_M, REACH_M, REACH_M))
        sample = Sample(f"{self.split}/{scene}/{number}", {"rig": rig}, {"boxes": boxes})
        return inside(sample, np.random.default_rng(0))


class OracleBoxes(BEVDetection):
    """Detection whose pictures are rasters of the truth."""

    class Config(BEVDetection.Config):
        scenes: int = 400
        """Training scenes."""
        val_scenes: int = 40
        """Scenes to judge on."""
        noise_m: float = 0.2
        """Standard deviation of places."""
        broken: Literal["", "history", "alignment"] = ""
        """Judging: forget the past at every frame, or claim that the car stands."""

    config: OracleBoxes.Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def drives(self, split: str) -> TrueDrives:
        scenes = self.config.scenes if split == "train" else self.config.val_scenes
        return TrueDrives("train" if split == "train" else "val", scenes, 0)

    def reader(self, split: Split) -> Any:
        reader = super().reader(split)
        return NoStreams(reader) if split == "val" and self.config.broken == "history" else reader

    def transform(self, split: Split) -> Any:
        if split != "train":
            return Compose()
        # Mirroring would move cameras, of which there are none.
        return Compose(MoveWorld(0.3, 0.0, 0.0), WithinRange(self.config.range_m))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        views = [list(sample.views) for sample in samples]
        places = max(map(len, views))
        if any(len(view) != places for view in views):
            raise ValueError("oracle: scenes must be multiples of a chunk")
        targets = self.collate_targets([sample.targets for sample in samples])
        inputs: dict[str, Any] = {"rig": self._seen(samples, [s.inputs["rig"] for s in samples], targets)}
        if places:
            earlier = [
                self.collate_targets(row)
                for row in zip(*(sample.targets["history"] for sample in samples), strict=True)
            ]
            rigs = list(zip(*([view["rig"] for view in row] for row in views), strict=True))
            inputs["history"] = tuple(
                self._seen(samples, rig, target) for rig, target in zip(rigs, earlier, strict=True)
            )
            targets["history"] = tuple(earlier)
        return Batch(self.name, tuple(sample.id for sample in samples), inputs, targets)

    def _seen(
        self, samples: Sequence[Sample], rigs: Sequence[Any], targets: Mapping[str, Any]
    ) -> MultiCameraBatch:
        rows = zip(samples, rigs, targets["boxes"], strict=True)
        images = torch.stack([self._raster(boxes, f"{s.id}/{rig.time_s}") for s, rig, boxes in rows])
        down = math.ceil(_CHANNELS / 3)
        cell = 2 * REACH_M / CELLS
        look = torch.tensor(
            [[1 / cell, 0, 0, CELLS / 2], [0, down / cell, 0, down * CELLS / 2], [0, 0, 0, 1.0]]
        )
        world = torch.stack([rig.world_from_ref.double() for rig in rigs])
        if self.config.broken == "alignment":
            world = torch.eye(4, dtype=torch.float64).expand_as(world).clone()
        rig = CameraRig(
            look.expand(len(rigs), 1, 3, 4).clone(),
            torch.stack([rig.ego_from_ref.double() for rig in rigs]),
            world,
            torch.tensor([rig.time_s for rig in rigs], dtype=torch.float64),
        )
        return MultiCameraBatch(images, rig)

    def _raster(self, boxes: Boxes3D, place: str) -> Float[Tensor, "1 3 _ _"]:
        """Class, place within the cell, heading; the noise of a frame is always the same."""
        from allsight.data.order import generator

        table = np.zeros((3 * math.ceil(_CHANNELS / 3), CELLS, CELLS), dtype=np.float32)
        cell = 2 * REACH_M / CELLS
        centers = boxes.centers_ref_m[:, :2].numpy()
        centers = centers + generator(0, "oracle", place).normal(0, self.config.noise_m, centers.shape)
        columns, rows = np.clip(np.floor((centers + REACH_M) / cell).astype(int), 0, CELLS - 1).T
        for n, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True)):
            inside = 2 * ((centers[n] + REACH_M) / cell - [column + 0.5, row + 0.5])
            yaw = float(boxes.yaw_rad[n])
            table[: len(CLASSES), row, column] = 0
            table[int(boxes.labels[n]), row, column] = 1
            table[len(CLASSES) : _CHANNELS, row, column] = (*inside, math.cos(yaw), math.sin(yaw))
        parts = torch.from_numpy(table).unflatten(0, (-1, 3)).transpose(0, 1).flatten(1, 2)
        return parts[None]


def oracle_run(name: str, *, temporal: bool, steps: int, scenes: int, val_scenes: int) -> RunConfig:
    """A run of equal frames a step, with memory or without."""
    rows: dict[str, Any] = {"chunk": 2, "batch_size": 2} if temporal else {"streams": False, "batch_size": 4}
    ground = (-REACH_M, -REACH_M, REACH_M, REACH_M)
    network = BEVNetwork.Config.variant(
        "micro",
        backbone=RasterBackbone.Config(),
        cameras=0,
        bev_hw=(CELLS, CELLS),
        layers=1,
        heights_m=(0.0,),
        camera_points=4,
        gradient_frames=2 if temporal else 1,
        clip_loss="all" if temporal else "last",
    )
    head = DetectionHead.Config(
        queries=25, peaks=25, layers=2, heads=4, hidden=128, drop=0.0, first_px=0, num_answers=100
    )
    return RunConfig(
        name=name,
        model=BEVFormer.Config(network=network),
        tasks=Mixture(
            boxes=OracleBoxes.Config(
                **rows,
                classes=CLASSES,
                range_m=ground,
                eval_range_m=REACH_M,
                head=head,
                box_weight=0.5,
                heading_weight=4.0,
                velocity_weight=8.0,
                scenes=scenes,
                val_scenes=val_scenes,
            )
        ),
        optim=AdamW.Config(lr=2e-3, weight_decay=0.01, clip_norm=100.0, fused=True),
        schedule=Cosine.Config(steps=steps, warmup_steps=max(1, min(100, steps // 4))),
        eval=EvalConfig(batch_size=20),
    )


def broken(config: RunConfig, how: str) -> RunConfig:
    """The same run, judged with something broken."""
    task = config.tasks["boxes"]
    return replace_task(config, task.model_copy(update={"broken": how}))


def replace_task(config: RunConfig, task: Any) -> RunConfig:
    """A run with another task `boxes`."""
    return config.model_copy(update={"tasks": Mixture(boxes=task)})
