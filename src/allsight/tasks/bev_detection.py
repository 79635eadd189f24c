"""Boxes around a car, from the pictures of its cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from pydantic import Field

from allsight.data.driving.vocabulary import RANGE_M
from allsight.tasks.metrics.detection_scores import Detection3DScores, attribute_places
from allsight.tasks.rigs import RigTask
from allsight.types import Answer, Batch, Boxes3D, Boxes3DAnswer, BoxNotes


class BEVDetection(RigTask):
    """Which things stand where around the car, how large, which way they head and how fast.

    Batches are those of `RigTask`. Outputs hold `boxes`, a `Boxes3D` [b, k] with scores, under this key of a
    dictionary or this name of a dataclass; boxes with a score below `min_score` are left out of the answers.
    The score is nuScenes': NDS where all classes are of its benchmark, else the mean AP of the classes that
    occur.
    """

    class Config(RigTask.Config):
        max_boxes: int = Field(default=300, ge=1)
        """The best so many boxes of a sample are answered."""
        min_score: float = Field(default=0.0, ge=0, le=1)
        """Boxes below this score are left out."""
        eval_range_m: float | None = Field(default=None, gt=0)
        """How far from the car boxes count; None: nuScenes' range of each class, 50 m for other classes."""
        ring_edges_m: tuple[float, ...] = (0.0, 20.0, 40.0)
        """Scores are given for the rings between these distances too."""

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def counts(self, batch: Batch) -> dict[str, float]:
        """Losses that are means over boxes count these."""
        total = float(sum(len(boxes.labels) for boxes in batch.targets["boxes"]))
        return dict.fromkeys(self.counted, total)

    def decode(self, outputs: Any, batch: Batch) -> list[Answer]:
        """The best boxes of each row."""
        boxes: Boxes3D = outputs["boxes"] if isinstance(outputs, dict) else outputs.boxes
        assert boxes.scores is not None, "answered boxes need scores"
        answers: list[Answer] = []
        for row in range(len(batch)):
            own = Boxes3D(**{field.name: getattr(boxes, field.name)[row] for field in fields(Boxes3D)})
            order = boxes.scores[row].argsort(descending=True, stable=True)[: self.config.max_boxes]
            order = order[boxes.scores[row, order] >= self.config.min_score]
            answers.append(self._answer(own.select(order), batch, row))
        return answers

    def truth(self, batch: Batch) -> list[Answer]:
        return [self._answer(boxes, batch, row) for row, boxes in enumerate(batch.targets["boxes"])]

    def metric(self) -> Detection3DScores:
        given = self.config.eval_range_m
        ranges = {name: given or RANGE_M.get(name, 50.0) for name in self.classes}
        return Detection3DScores(self.classes, ranges, self.config.ring_edges_m)

    def main_metric(self) -> str:
        return "nds" if set(self.classes) <= set(RANGE_M) else "map_occurring"

    def collate(self, samples: Sequence[Any]) -> Batch:
        """As `RigTask`, with attributes as places in nuScenes' list."""
        batch = super().collate(samples)
        if "box_notes" in batch.targets and self.config.data:
            places = attribute_places(self._attributes)
            batch.targets["box_notes"] = tuple(
                BoxNotes(
                    note.num_points,
                    note.attributes.new_tensor(places[note.attributes.numpy()]),
                    note.instances,
                )
                for note in batch.targets["box_notes"]
            )
        return batch

    @property
    def _attributes(self) -> tuple[str, ...]:
        if not hasattr(self, "_known_attributes"):
            self._known_attributes = tuple(getattr(self.drives("train"), "attributes", ()))
        return self._known_attributes

    def _answer(self, boxes: Boxes3D, batch: Batch, row: int) -> Boxes3DAnswer:
        rig = batch.inputs["rig"].rig
        poses = rig.ego_from_ref[row], rig.world_from_ref[row]
        return Boxes3DAnswer.of(batch.ids[row], self.name, boxes, *poses, self.classes)
