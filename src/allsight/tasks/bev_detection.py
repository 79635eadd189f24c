"""Boxes around a car, from the pictures of its cameras."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from allsight.config import ConfigError
from allsight.config import replace as replaced
from allsight.data.driving.vocabulary import RANGE_M
from allsight.data.inspection.moments import Seen
from allsight.models.bevformer.detection import DetectionHead, joined_frames
from allsight.objectives import center_loss, center_targets, detection_3d_losses
from allsight.objectives.detection_3d import CODE_WEIGHTS
from allsight.tasks.metrics.detection_scores import Detection3DScores, attribute_places
from allsight.tasks.rigs import RigTask, bev_spec
from allsight.types import Answer, Batch, Boxes3D, Boxes3DAnswer, FeatureSpec

SHOWN_SCORE = 0.3
"""Boxes with a lower score are not drawn."""


class BEVDetection(RigTask):
    """Which things stand where around the car, how large, which way they head and how fast.

    Batches are those of `RigTask`. The head is a `DetectionHead`; its losses are sums over all decoder layers
    and means over boxes, with each frame counted as one box more, so that frames without boxes count and
    results do not depend on how a batch is split. Outputs hold `boxes`, a `Boxes3D` [b, k] with scores,
    under this key of a dictionary or this name of a dataclass; boxes with a score below `min_score` are
    left out of the answers.
    The score is nuScenes': NDS where all classes are of its benchmark, else the mean AP of the classes that
    occur.
    """

    class Config(RigTask.Config):
        head: DetectionHead.Config = DetectionHead.Config()
        """The head; `num_classes` follows from the classes."""
        class_weight: float = Field(default=2.0, ge=0)
        """Factor on the loss of classes and on its part in matching."""
        box_weight: float = Field(default=0.25, ge=0)
        """Factor on the distance of the numbers of a box, which is about that of metres."""
        heading_weight: float = Field(default=1.0, ge=0)
        """Factor on the sine and cosine of headings beside that. Gradients of places are many times larger:
        small networks learn headings late without a larger factor."""
        velocity_weight: float = Field(default=0.2, ge=0)
        """Factor on velocities beside that; as for headings."""
        peak_weight: float = Field(default=1.0, ge=0)
        """Factor on the loss of the heatmap, where the head has one (`head.peaks`)."""
        peak_sigma_m: float = Field(default=1.6, gt=0)
        """Standard deviation of the bells in that heatmap."""
        max_boxes: int = Field(default=300, ge=1)
        """The best so many boxes of a sample are answered."""
        min_score: float = Field(default=0.0, ge=0, le=1)
        """Boxes below this score are left out."""
        compat: Literal["official"] | None = None
        """"official": the losses of the release. A box with an unknown number (velocity NaN) is left out of
        the L1 loss as a whole, not for that number alone, and sums are divided by the number of boxes, at
        least 1, not by that of boxes and frames."""
        eval_range_m: float | None = Field(default=None, gt=0)
        """How far from the car boxes count at most, beside nuScenes' range of their class (50 m for
        others)."""
        ring_edges_m: tuple[float, ...] = (0.0, 20.0, 40.0)
        """Scores are given for the rings between these distances too."""

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride]

    @property
    def counted(self) -> tuple[str, ...]:  # type: ignore[override]
        """Its losses; that of the heatmap only where the head has one."""
        return "classes", "boxes", *(("peaks",) if self.config.head.peaks else ())

    def head(self, features: tuple[FeatureSpec, ...]) -> DetectionHead:
        """The head for a bird's-eye-view map.

        Raises:
            ConfigError: The features are none, or `head.num_classes` is not that of the data.
        """
        spec, given = bev_spec(features, self.name), self.config.head.num_classes
        if given not in (None, len(self.classes)):
            raise ConfigError(
                f"config.tasks.{self.name}.head.num_classes: {given}, but there are {len(self.classes)} "
                "classes; leave it out"
            )
        self._grid = spec.grid
        return DetectionHead(replaced(self.config.head, {"num_classes": len(self.classes)}), spec)

    def loss(self, outputs: Any, batch: Batch) -> dict[str, Float[Tensor, ""]]:
        frames, moments = self.answered(outputs, batch)
        whole = joined_frames(frames)
        truth = [boxes for moment in moments for boxes in moment["boxes"]]
        config, count = self.config, self._count(truth)
        turn, speed = config.heading_weight, config.velocity_weight
        weights = (*CODE_WEIGHTS[:6], turn, turn, speed, speed)
        losses = detection_3d_losses(
            whole.logits,
            whole.codes,
            truth,
            class_weight=config.class_weight,
            box_weight=config.box_weight,
            code_weights=weights,
            num_boxes=count,
            keep_boxes_in_part=config.compat != "official",
        )
        found = {name: loss.sum() for name, loss in losses.items()}
        if whole.heatmap is not None:
            targets = center_targets(
                truth, self._grid, len(self.classes), whole.heatmap, sigma_m=config.peak_sigma_m
            )
            found["peaks"] = config.peak_weight * center_loss(whole.heatmap, targets, num_boxes=count)
        return found

    def counts(self, batch: Batch) -> dict[str, float]:
        moments = [*batch.targets.get("history", ()), batch.targets][-self.num_answered(batch) :]
        truth = [boxes for moment in moments for boxes in moment["boxes"]]
        return dict.fromkeys(self.counted, self._count(truth))

    def _count(self, truth: Sequence[Boxes3D]) -> float:
        boxes = sum(len(each.labels) for each in truth)
        # With the frames it is never zero, and frames without boxes count for what they teach.
        return float(max(boxes, 1) if self.config.compat == "official" else boxes + len(truth))

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

    def panels(self, batch: Batch, row: int, answer: Answer) -> list[Seen]:
        """The boxes that are rather meant than not, over the true ones."""
        assert isinstance(answer, Boxes3DAnswer)
        truth = batch.targets["boxes"][row]
        return [Seen(boxes=answer.boxes(SHOWN_SCORE), faint=truth, title="answer over truth (grey)")]

    def metric(self) -> Detection3DScores:
        most = self.config.eval_range_m or math.inf
        ranges = {name: min(most, RANGE_M.get(name, 50.0)) for name in self.classes}
        return Detection3DScores(self.classes, ranges, self.config.ring_edges_m)

    def main_metric(self) -> str:
        return "nds" if set(self.classes) <= set(RANGE_M) else "map_occurring"

    def collate_targets(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As `RigTask`, with attributes as places in nuScenes' list."""
        targets = super().collate_targets(rows)
        if "box_notes" in targets and self.config.data:
            places = attribute_places(self._attributes)
            targets["box_notes"] = tuple(
                replace(note, attributes=note.attributes.new_tensor(places[note.attributes.numpy()]))
                for note in targets["box_notes"]
            )
        return targets

    @property
    def _attributes(self) -> tuple[str, ...]:
        if not hasattr(self, "_known_attributes"):
            self._known_attributes = tuple(getattr(self.drives("train"), "attributes", ()))
        return self._known_attributes

    def _answer(self, boxes: Boxes3D, batch: Batch, row: int) -> Boxes3DAnswer:
        rig = batch.inputs["rig"].rig
        poses = rig.ego_from_ref[row], rig.world_from_ref[row]
        return Boxes3DAnswer.of(batch.ids[row], self.name, boxes, *poses, self.classes)
