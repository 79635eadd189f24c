"""Which class a clip shows, by the names of the classes."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from allsight.data.transforms import Compose
from allsight.tasks.base import Split, Transform
from allsight.tasks.naming import NamingTask
from allsight.tasks.texts import seen, stack_seen, visual_steps
from allsight.types import Batch, Sample, Segment


class VideoClassification(NamingTask):
    """Clips among the names of the classes. Batches hold `video` [b, frames, 3, size, size]."""

    class Config(NamingTask.Config):
        num_frames: int = Field(default=8, ge=1)
        label_smoothing: float = Field(default=0.1, ge=0, lt=1)

    config: Config

    @property
    def reads(self) -> tuple[str, ...]:
        return ("video",)

    def transform(self, split: Split) -> Transform:
        return Compose(*visual_steps(self.config, split), *self.labelled(split))

    def segments(self, batch: Batch) -> tuple[Segment, ...]:
        return (seen(batch),)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        inputs = stack_seen(samples, self.config)
        return Batch(self.name, tuple(s.id for s in samples), inputs, self.label_targets(samples))
