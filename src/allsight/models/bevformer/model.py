"""BEVFormer as people use it: `out, state = model(batch, state)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from allsight.config import Variants
from allsight.models.base import PlainModel, TaskModel, TaskOfModel
from allsight.models.bevformer import official
from allsight.models.bevformer.detection import DetectionHead, DetectionOutputs
from allsight.models.bevformer.network import BEVNetwork, detached
from allsight.types import Boxes3D, CheckpointError, MultiCameraBatch, State
from allsight.weights import LoadReport, Source, load_mapped, read_weights, select_part, write_weights


@dataclass(frozen=True)
class BEVFormerOutputs:
    """What the model gives.

    Args:
        bev: The bird's-eye-view map, which any further head may read.
        detection: What the detection head gives.
    """

    bev: Float[Tensor, "b c h w"]
    detection: DetectionOutputs

    @property
    def boxes(self) -> Boxes3D:
        """Each row's best boxes [b, k], best first; `bevformer.answers` sorts out those that are far off.

        Raises:
            ValueError: The model was in training mode, where nobody asks for answers.
        """
        if self.detection.boxes is None:
            raise ValueError("BEVFormer: no boxes in training mode; call model.eval() first")
        return self.detection.boxes


_MICRO = DetectionHead.Config(
    queries=25, peaks=25, layers=3, heads=4, hidden=128, drop=0.0, first_px=0, num_answers=100
)


class BEVFormer(PlainModel):
    """Cameras around a vehicle to boxes in space, through a bird's-eye-view map that remembers.

    Memory is a value that the caller keeps: tensors with one row per stream, which may be saved and loaded.
    None is the start; `batch.starts` marks single rows that begin anew, and so does a frame that comes before
    the one remembered or too long after it.

    Source: BEVFormer, arXiv:2203.17270; fundamentalvision/BEVFormer.
    """

    variants: ClassVar[Variants] = {
        "micro": {"network": BEVNetwork.Config.variant("micro"), "detection": _MICRO},
        **{
            name: {"network": BEVNetwork.Config.variant(name), "detection": DetectionHead.Config()}
            for name in ("tiny", "small", "base")
        },
    }

    class Config(PlainModel.Config):
        """Settings of a BEVFormer.

        Attributes:
            network: From pictures to the map.
            detection: From the map to boxes.
        """

        network: BEVNetwork.Config
        detection: DetectionHead.Config = DetectionHead.Config()

    config: BEVFormer.Config
    load_report: LoadReport | None

    def __init__(self, config: BEVFormer.Config) -> None:
        super().__init__()
        self.config = config
        self.load_report = None
        self.network = BEVNetwork(config.network)
        self.head = DetectionHead(config.detection, self.network.spec)

    def forward(
        self, batch: MultiCameraBatch, state: State = None
    ) -> tuple[BEVFormerOutputs, dict[str, Tensor]]:
        """Look at one frame of each row.

        Args:
            batch: Pictures and geometry.
            state: What the call for the frame before returned, None at the start.
        Returns:
            The outputs and the state for the next frame, detached.
        """
        bev, memory = self.network(batch, state)
        return BEVFormerOutputs(bev, self.head(bev)), detached(memory)

    def clip(
        self, frames: Sequence[MultiCameraBatch], state: State = None
    ) -> tuple[list[BEVFormerOutputs], dict[str, Tensor]]:
        """Look at consecutive frames; settings `gradient_frames` and `clip_loss` say which learn and answer.

        Returns:
            Outputs of the frames that answer, and the state after the last frame, detached.
        """
        maps, state = self.network.run_clip(frames, state)
        return [BEVFormerOutputs(bev, self.head(bev)) for bev in maps], state

    def stream(self) -> Any:
        """Streaming inference, see `BEVStream`; puts the model into evaluation mode."""
        from allsight.models.bevformer.stream import BEVStream

        return BEVStream(self)

    @classmethod
    def for_tasks(cls, config: Any, tasks: Mapping[str, TaskOfModel]) -> TaskModel:
        """Return the network with one head per task."""
        from allsight.models.bevformer.trainable import TrainableBEVFormer

        return TrainableBEVFormer(config, tasks)

    @classmethod
    def from_official(cls, source: Source, config: BEVFormer.Config | None = None) -> BEVFormer:
        """Build the model of published weights.

        Args:
            source: File or state dict of the official repository (tiny, small or base).
            config: What to build; None: recognise the variant from names and shapes, with
                `compat="official"` and no limit on gaps in time.
        Returns:
            The model in float32 with its `load_report`. Images are RGB for all variants, classes in the order
            of `official.CLASSES`.
        Raises:
            CheckpointError: The weights do not fit; names the tensors.
        """
        weights, outside = select_part(read_weights(source), "")
        weights = official.current_names(weights)
        if config is None:
            config = _recognised(weights)
        with torch.device("meta"):
            model = cls(config)
        turned = official.turned(weights, _channel_order(config))
        report = load_mapped(model, turned, model.official_names(), what="BEVFormer")
        model.load_report = report.with_skipped(outside)
        return model

    def official_names(self) -> dict[str, str]:
        """Return own name -> official name for every entry of the state dict.

        Raises:
            CheckpointError: Some part has no counterpart in the official code.
        """
        return official.names(self.state_dict())

    def official_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under the official names and in the official order of channels."""
        state = self.state_dict()
        published = {name: state[own] for own, name in self.official_names().items()}
        return official.turned(published, _channel_order(self.config))

    def save_official(self, path: Any) -> None:
        """Write the weights under the official names: `.safetensors`, else a torch file with `model`."""
        write_weights(self.official_state_dict(), path)


def _channel_order(config: BEVFormer.Config) -> str:
    return getattr(config.network.backbone, "channel_order", "rgb")


def _recognised(weights: Mapping[str, Tensor]) -> BEVFormer.Config:
    """The variant that published weights belong to."""
    variant, classes, cameras = official.recognise(weights)
    if variant is None:
        known = ", ".join(official.VARIANTS.values())
        raise CheckpointError(f"BEVFormer: the sizes are those of none of {known}; pass config=")
    return BEVFormer.Config(
        network=BEVNetwork.Config.variant(variant, compat="official", max_gap_s=None, cameras=cameras),
        detection=DetectionHead.Config(num_classes=classes),
    )


torch.export.register_dataclass(BEVFormerOutputs, serialized_type_name="allsight.BEVFormerOutputs")
