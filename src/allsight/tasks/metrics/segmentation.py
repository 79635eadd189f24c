"""Scores of a semantic segmentation task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allsight.tasks.metrics.confusion import Confusion, plain
from allsight.types import Answer, Batch, LabelMapAnswer, class_name

_NUM_MISTAKES = 20


class SegmentationScores:
    """mIoU, pixel accuracy and confusion over all labelled pixels of all pictures.

    Args:
        num_classes: How many classes there are.
        classes: Their names, as far as known.
    """

    def __init__(self, num_classes: int, classes: tuple[str, ...] = ()) -> None:
        self.classes = classes
        self.confusion = Confusion(num_classes)

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Count the pixels of a batch; 255 in `label_map` is ignored, as is what lies outside the answer.

        Pictures are padded to the right and below, so the answer covers the top left of the truth.
        """
        maps = batch.targets["label_map"].cpu().numpy()
        for row, answer in enumerate(answers):
            assert isinstance(answer, LabelMapAnswer), "segmentation is scored on label maps"
            height, width = answer.label_map.shape
            self.confusion.add(maps[row, :height, :width], answer.label_map)

    def merge(self, other: SegmentationScores) -> None:
        self.confusion.merge(other.confusion)

    def compute(self) -> dict[str, float]:
        """`miou`, `pixel_accuracy`, `mean_class_accuracy`; nan when no labelled pixel was scored."""
        return {
            "miou": self.confusion.mean_iou(),
            "pixel_accuracy": self.confusion.accuracy(),
            "mean_class_accuracy": self.confusion.mean_class_accuracy(),
        }

    def tables(self) -> dict[str, Any]:
        """`per_class` rows, `confusion` in pixels (rows truth, columns answer), `mistakes`, and `notes`."""
        ious, accuracies = self.confusion.ious(), self.confusion.class_accuracies()
        pixels = self.confusion.counts.sum(axis=1)
        tables: dict[str, Any] = {
            "per_class": [
                {
                    "class": class_name(i, self.classes),
                    "count": int(pixels[i]),
                    "iou": plain(ious[i]),
                    "accuracy": plain(accuracies[i]),
                }
                for i in range(self.confusion.num_classes)
            ],
            "confusion": self.confusion.rows(),
            "mistakes": self.confusion.most_confused(_NUM_MISTAKES, self.classes),
        }
        if not self.confusion.total:
            tables["notes"] = ["no labelled pixel was scored, so all values are nan"]
        return tables
