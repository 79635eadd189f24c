"""Fewer frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from allsight.types import DataError, Sample, Video


@dataclass(frozen=True)
class PickFrames:
    """Keep `count` frames of the input `video`: one of each of so many equal parts of the clip.

    Args:
        count: How many.
        random: Whether a part's frame is drawn at random; else it is the middle one.

    Raises:
        DataError: There is no video, or it has fewer frames.

    Source: Wang et al., Temporal Segment Networks, arXiv:1608.00859, section 3.1.
    """

    count: int
    random: bool = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"PickFrames: expected a count of at least 1, got {self.count}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        shares = rng.random(self.count)
        video = sample.inputs.get("video")
        if not isinstance(video, Video) or len(video.frames) < self.count:
            there = len(video.frames) if isinstance(video, Video) else "no"
            raise DataError(f"{sample.id}: {there} frames; expected at least {self.count}", sample.id)
        if not self.random:
            shares[:] = 0.5
        bounds = np.arange(self.count + 1) * len(video.frames) // self.count
        places = torch.from_numpy(bounds[:-1] + (shares * np.diff(bounds)).astype(np.int64))
        picked = Video(video.frames[places], video.times_s[places])
        return replace(sample, inputs={**sample.inputs, "video": picked})
