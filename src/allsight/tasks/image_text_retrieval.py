"""Retrieval: which text belongs to a picture or a clip, and which picture or clip to a text."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from allsight.tasks.pairs import PairTask
from allsight.tasks.texts import CaptionedTask, pair_targets, seen, stack_seen
from allsight.types import Batch, Sample, Segment


class ImageTextRetrieval(PairTask, CaptionedTask):
    """Pictures (or clips) and texts that belong together; see `PairTask`. Batches hold `image` (`video`)."""

    class Config(PairTask.Config):
        pass

    @property
    def reads(self) -> tuple[str, ...]:
        return ("video" if self.config.num_frames else "image",)

    def query_segment(self, batch: Batch) -> Segment:
        return seen(batch)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        inputs = stack_seen(samples, self.config)
        return Batch(self.name, tuple(s.id for s in samples), inputs, pair_targets(samples, self))


class VideoTextRetrieval(ImageTextRetrieval):
    """`ImageTextRetrieval` with clips."""

    ways = ("to_text", "to_video")

    class Config(ImageTextRetrieval.Config):
        num_frames: int = Field(default=8, ge=1)
