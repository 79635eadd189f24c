"""Clips brought to one size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from allsight.data.transforms.carry import Window, resample
from allsight.types import DataError, Sample, Video


@dataclass(frozen=True)
class ResizeClip:
    """Bring all frames of the input `video` to a square; the aspect is not kept.

    Args:
        size_px: Side of the square.

    Raises:
        DataError: There is no video.
    """

    size_px: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        video = sample.inputs.get("video")
        if not isinstance(video, Video):
            raise DataError(f"{sample.id}: no video; it has {sorted(sample.inputs)}", sample.id)
        whole = Window(0, 0, video.frames.shape[-1], video.frames.shape[-2])
        frames = [resample(frame, whole, (self.size_px, self.size_px)) for frame in video.frames]
        return replace(sample, inputs={**sample.inputs, "video": replace(video, frames=torch.stack(frames))})
