"""What is kept for the report: pictures, truth and answers of one size."""

import json

import numpy as np
import torch
from PIL import Image as PillowImage

from allsight.engine.predictions import PredictionWriter
from allsight.tasks import Task
from allsight.types import Batch, LabelMapAnswer


class Maps(Task):
    """As much of a segmentation task as the writer asks for."""

    classes = ("sky", "ground")

    def truth(self, batch):
        return [LabelMapAnswer(i, "maps", np.zeros((5, 7), np.uint8), self.classes) for i in batch.ids]


def test_pictures_are_kept_without_the_padding_of_their_canvas(tmp_path):
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    valid = torch.tensor([[5, 7], [5, 7]])
    batch = Batch("maps", ("a", "b"), {"image": pixels, "valid_hw_px": valid})
    task = Maps(Maps.Config())
    writer = PredictionWriter(tmp_path, 3, "maps")
    writer.add(batch, task.truth(batch), task, frozenset({1}), batch.slots.tolist())
    (row,) = writer._rows
    folder = tmp_path / "predictions" / "step-00000003" / "maps"
    kept = np.array(PillowImage.open(folder / row["image"]))
    np.testing.assert_array_equal(kept, pixels[1, :, :5, :7].permute(1, 2, 0).numpy())
    answer = np.array(PillowImage.open(folder / row["answer"]["files"]["label_map"]))
    assert answer.shape == kept.shape[:2]
    assert json.dumps(row)
