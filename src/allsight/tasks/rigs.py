"""What tasks on a camera rig share: drives in, batches of rigs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field, model_validator
from torch import Tensor

from allsight.config import ConfigError
from allsight.data.decode import LeastSize
from allsight.data.driving.mapped import Chunks, Clips, ThinHistory, reading
from allsight.data.inspection.moments import RigView, Seen, draw_moment
from allsight.data.transforms import (
    ColorJitter,
    Compose,
    DropCameras,
    GridMask,
    JitterRig,
    MoveWorld,
    NoisyExtrinsics,
    PermuteCameras,
    PhotometricDistortion,
    RandomCropRig,
    ResizeRig,
    WithinRange,
)
from allsight.data.transforms.rigs import names_of, rig_of
from allsight.tasks.base import Reader, Split, Task, Transform
from allsight.tasks.settings import given_options
from allsight.types import Answer, Batch, BEVSpec, DataError, FeatureSpec, MultiCameraBatch, Rig, Sample

_TILE_PX = 256
"""Width of a camera's picture in reports."""


class RigTask(Task):
    """Base of tasks whose input is a camera rig; subclasses say what is asked.

    Batches hold `rig` (`MultiCameraBatch`; cameras by name in the data set's order, those that delivered
    nothing not present) and, with `history` or `chunk`, `history`: a tuple of `MultiCameraBatch`, oldest
    first, whose `starts` are true up to the first frame that is there (before it, that frame is repeated).
    Targets are tuples with one `Boxes3D` (`boxes`) and one `BoxNotes` (`box_notes`) a row; with earlier
    frames, the target `history` is a tuple of dictionaries with the targets of each of them.
    """

    class Config(Task.Config):
        version: str = ""
        """Folder of nuScenes tables, such as `v1.0-mini`; where there is one it may be left out."""
        classes: tuple[str, ...] = ()
        """Classes of boxes in the order of labels; empty takes those of the data set."""
        cameras: tuple[str, ...] = ()
        """Names of cameras in order; empty takes all of the data set."""
        missing_cameras: Literal["refuse", "allow"] = "refuse"
        """Whether a sample that lacks a camera is refused or read without it."""
        can_bus: bool = False
        """Bring what the car's own sensors measured (nuScenes), for model.network.compat=official."""
        min_points: int | None = Field(default=None, ge=0)
        """Training boxes with fewer points are left out; None takes the format's default."""
        hw_px: tuple[int, int] = (256, 448)
        """Height and width of pictures: brought to the width, then cut at the top."""
        range_m: tuple[float, float, float, float] = (-51.2, -51.2, 51.2, 51.2)
        """x_min, y_min, x_max, y_max of the ground, in the reference frame; boxes outside are left out."""
        streams: bool = True
        """Whether drives are read as streams, for models with a memory; else samples come in any order."""
        chunk: int = Field(default=1, ge=1)
        """Streams in training move on by so many frames a step, all of which are answered and learn: the
        model needs network.gradient_frames of as many and network.clip_loss=all."""
        history: int = Field(default=0, ge=0)
        """Clips in place of streams: so many earlier frames come with each training sample."""
        history_kept: int | None = Field(default=None, ge=0)
        """So many of the earlier frames are kept, drawn at random."""
        turn_rad: float = Field(default=0.3, ge=0)
        """Training: the world is turned by up to this."""
        world_scale: float = Field(default=0.0, ge=0, lt=1)
        """Training: the world is scaled by up to this share."""
        mirror: float = Field(default=0.5, ge=0, le=1)
        """Training: probability of mirroring world and pictures."""
        crop: float = Field(default=1.0, ge=1)
        """Training: pictures are enlarged by up to this factor and cut."""
        colour: float = Field(default=0.2, ge=0, le=1)
        """Training: largest relative change of brightness, contrast and saturation of each picture."""
        distortion: bool = False
        """Training: change colours as published networks were trained, in place of `colour`; see
        `PhotometricDistortion`."""
        grid_mask: float = Field(default=0.0, ge=0, le=1)
        """Training: probability of wiping out squares on a grid; see `GridMask`."""
        camera_dropout: float = Field(default=0.0, ge=0, le=1)
        """Training: probability that a camera delivers nothing."""
        permute_cameras: bool = False
        """Training: put cameras into a random order."""
        eval_without: tuple[str, ...] = ()
        """Judging: these cameras deliver nothing."""
        noise_turn_rad: float = Field(default=0.0, ge=0)
        """Training: standard deviation of errors in the cameras' directions."""
        noise_shift_m: float = Field(default=0.0, ge=0)
        """Training: standard deviation of errors in the cameras' places."""

        @model_validator(mode="after")
        def _settings_agree(self) -> RigTask.Config:
            x_min, y_min, x_max, y_max = self.range_m
            if not (x_min < x_max and y_min < y_max):
                raise ValueError(f"range_m: expected x_min < x_max and y_min < y_max, got {self.range_m}")
            if min(self.hw_px) < 1:
                raise ValueError(f"hw_px: expected a size above 0, got {self.hw_px}")
            if self.chunk > 1 and (self.history or not self.streams):
                raise ValueError(f"chunk={self.chunk}: frames of streams; set streams=true and history=0")
            if self.history_kept is not None and self.history_kept > self.history:
                raise ValueError(f"history_kept={self.history_kept} is above history={self.history}")
            return self

    config: Config

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of labels."""
        return self._classes

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return self.given_classes or self.config.classes or tuple(self.drives("train").classes)

    @cached_property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras in the order of batches; empty for rigs that come without names."""
        if self.config.cameras or not self.config.data:
            return self.config.cameras
        try:
            return tuple(self.drives("train").cameras)
        except (ConfigError, DataError):
            # Weights without their data: a rig's own order counts.
            return ()

    def drives(self, split: Split) -> Any:
        """The data set's own reader of a split."""
        config = self.config
        return self.drives_of(config.data, config.train_split if split == "train" else config.val_split)

    def drives_of(self, data: str, split: str) -> Any:
        """The reader of any drives with the task's settings; `split` is as the set itself names it."""
        config = self.config
        options = given_options(
            version=config.version,
            classes=self.given_classes or config.classes,
            cameras=config.cameras,
            min_points=config.min_points,
            can_bus=config.can_bus or None,
        )
        return self.open_named(data, split, missing_cameras=config.missing_cameras, **options)

    def reader(self, split: Split) -> Reader:
        drives = self.completed(self.drives(split), split)
        if split == "train" and self.config.history:
            return Clips(drives, self.config.history)
        if split == "train" and self.config.chunk > 1:
            return Chunks(drives, self.config.chunk)
        return drives if self.config.streams else NoStreams(drives)

    def completed(self, drives: Any, split: Split) -> Any:
        """A reader with further targets in front of the data set's own."""
        return drives

    def transform(self, split: Split) -> Transform:
        config = self.config
        steps: list[Transform] = [ResizeRig(config.hw_px)]
        if split == "train":
            # Behind the size, which is asked first how large pictures are to be decoded.
            if config.history_kept is not None:
                steps.append(ThinHistory(config.history_kept))
            if config.crop > 1:
                steps.append(RandomCropRig(config.crop))
            if config.distortion:
                steps.append(JitterRig(PhotometricDistortion()))
            elif config.colour > 0:
                steps.append(JitterRig(ColorJitter(config.colour, config.colour, config.colour)))
            if config.noise_turn_rad > 0 or config.noise_shift_m > 0:
                steps.append(NoisyExtrinsics(config.noise_turn_rad, config.noise_shift_m))
            if config.turn_rad > 0 or config.world_scale > 0 or config.mirror > 0:
                steps.append(MoveWorld(config.turn_rad, config.world_scale, config.mirror))
            if config.permute_cameras:
                steps.append(PermuteCameras())
            if config.grid_mask > 0:
                steps.append(GridMask(config.grid_mask))
            if config.camera_dropout > 0:
                steps.append(DropCameras(config.camera_dropout))
            steps.append(WithinRange(config.range_m))
        elif split == "val" and config.eval_without:
            steps.append(DropCameras(1.0, config.eval_without))
        return Compose(*steps)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        rigs = [rig_of(sample) for sample in samples]
        longest = max(len(sample.views) for sample in samples)
        # Where a row has no frame before, its own stands in for it and must not become its past.
        alone = torch.tensor([not sample.views for sample in samples]) if longest else None
        rig = collate_rigs(rigs, self._names(rigs), self.config.hw_px, alone)
        inputs: dict[str, Any] = {"rig": rig}
        targets = self.collate_targets([sample.targets for sample in samples])
        if longest:
            inputs["history"] = tuple(self._earlier(samples, longest, place) for place in range(longest))
            if all("history" in sample.targets for sample in samples):
                rows = [_padded(sample.targets["history"], longest, sample.targets) for sample in samples]
                targets["history"] = tuple(self.collate_targets(place) for place in zip(*rows, strict=True))
        return Batch(self.name, tuple(sample.id for sample in samples), inputs, targets)

    def collate_targets(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The targets of one moment, those that all rows have."""
        names = [name for name in ("boxes", "box_notes") if all(name in row for row in rows)]
        return {name: tuple(row[name] for row in rows) for name in names}

    def answered(self, outputs: Any, batch: Batch) -> tuple[list[Any], list[dict[str, Any]]]:
        """Outputs and targets of each moment that learns, the oldest first.

        Raises:
            ConfigError: The model answers for another number of frames than the task asks for.
        """
        frames = list(outputs) if isinstance(outputs, tuple) else [outputs]
        moments = [*batch.targets.get("history", ()), batch.targets]
        wanted = self.num_answered(batch)
        if len(frames) != wanted:
            raise ConfigError(
                f"config.tasks.{self.name}.chunk: {self.config.chunk}, but the model answers for "
                f"{len(frames)} of {wanted} frames; set model.network.gradient_frames={wanted} and "
                "model.network.clip_loss=" + ("all" if wanted > 1 else "last")
            )
        return frames, moments[-wanted:]

    def num_answered(self, batch: Batch) -> int:
        """For how many moments of a batch answers learn: all of a chunk, the last of a clip."""
        return 1 + len(batch.inputs.get("history", ())) if self.config.chunk > 1 else 1

    def picture(self, batch: Batch, row: int, answer: Answer) -> UInt8[np.ndarray, "h w 3"]:
        """All cameras with what was answered, and what `panels` shows beside them."""
        view = RigView.of_row(batch.inputs["rig"], row, self.cameras)
        return draw_moment(view, self.classes, self.panels(batch, row, answer), tile_px=_TILE_PX)

    def panels(self, batch: Batch, row: int, answer: Answer) -> list[Seen]:
        """Truth and answer from above."""
        raise NotImplementedError(f"{type(self).__name__} has no panels")

    def _earlier(self, samples: Sequence[Sample], longest: int, place: int) -> MultiCameraBatch:
        rigs, starts = [], []
        for sample in samples:
            missing = longest - len(sample.views)
            rigs.append(_padded(sample.views, longest, {"rig": rig_of(sample)})[place]["rig"])
            starts.append(place <= missing)
        return collate_rigs(rigs, self._names(rigs), self.config.hw_px, torch.tensor(starts))

    def _names(self, rigs: Sequence[Rig]) -> tuple[str, ...]:
        if any(not rig.camera_names for rig in rigs):
            return ()
        known = self.cameras
        if not any(name in known for rig in rigs for name in rig.camera_names):
            known = ()  # another rig: its own order counts
        others = tuple(dict.fromkeys(name for rig in rigs for name in rig.camera_names if name not in known))
        return (*known, *others)


class NoStreams:
    """The samples of a reader without its streams."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.name, self.split, self.classes, self.notes = (
            reader.name,
            reader.split,
            reader.classes,
            reader.notes,
        )

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        return self.reader[index]

    def reduced(self, index: int, least: LeastSize) -> Sample:
        """The sample, its pictures decoded smaller where that suffices and the reader can."""
        return reading(self.reader, least)(index)


def bev_spec(features: tuple[FeatureSpec, ...], task: str) -> BEVSpec:
    """The bird's-eye-view map among what a model offers to heads.

    Raises:
        ConfigError: There is none.
    """
    found = next((spec for spec in features if isinstance(spec, BEVSpec)), None)
    if found is None:
        raise ConfigError(
            f"config.model: task '{task}' needs a bird's-eye-view map; set model.kind=bevformer"
        )
    return found


def collate_rigs(
    rigs: Sequence[Rig],
    names: tuple[str, ...],
    hw_px: tuple[int, int] | None = None,
    starts: Tensor | None = None,
) -> MultiCameraBatch:
    """Rigs as a batch in which a camera has its place by name.

    Args:
        rigs: One a row; cameras may be missing.
        names: Of all cameras, in order; empty leaves them where they are.
        hw_px: Size of pictures; they are padded to it at the right and below.
        starts: See `MultiCameraBatch`.
    """
    batch = MultiCameraBatch.of(rigs, hw_px=hw_px, cameras=len(names) or None)
    if names and any(names_of(rig) != names for rig in rigs):
        order = np.empty((len(rigs), len(names)), dtype=np.int64)
        for row, rig in enumerate(rigs):
            own = names_of(rig)
            free = iter(range(len(own), len(names)))
            order[row] = [own.index(name) if name in own else next(free) for name in names]
        rows, places = torch.arange(len(rigs))[:, None], torch.from_numpy(order)
        rig, valid = batch.rig, batch.valid_hw_px
        rig = replace(
            rig,
            img_from_ref=rig.img_from_ref[rows, places],
            is_present=None if rig.is_present is None else rig.is_present[rows, places],
        )
        batch = replace(
            batch,
            images=batch.images[rows, places],
            rig=rig,
            valid_hw_px=None if valid is None else valid[rows, places],
        )
    if starts is None:
        return batch
    return MultiCameraBatch(batch.images, batch.rig, starts, batch.valid_hw_px)


def _padded(items: Sequence[Any], count: int, last: Any) -> list[Any]:
    """So many items: the first is repeated in front; `last` where there are none."""
    items = list(items) or [last]
    return [items[0]] * (count - len(items)) + items[-count:]
