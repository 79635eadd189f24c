"""BEVFormer as the engine drives it: one network, one head per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from allsight.config import ConfigError
from allsight.models.base import TaskModel, TaskOfModel
from allsight.models.bevformer import official
from allsight.models.bevformer.detection import DetectionHead
from allsight.models.bevformer.model import BEVFormer
from allsight.models.bevformer.network import BEVNetwork
from allsight.models.multi_head import named_modules
from allsight.types import Batch, BEVSpec, MultiCameraBatch, Outputs, State
from allsight.weights import Weights, select_part


class TrainableBEVFormer(TaskModel):
    """The map of a rig's pictures, and the head that each task brings for it.

    A task's `head` gets one `BEVSpec` and returns a module that reads the map [b, c, h, w]: `DetectionHead`,
    or whatever it likes. Batches have the input `rig`, a `MultiCameraBatch`, and may have `history`: the
    frames before it, a tuple with the oldest first. `network.gradient_frames` says how many of the last
    frames learn; the others only give memory. Outputs are the head's; with `history` and `clip_loss="all"`
    a tuple of them, one for each frame that learns.

    Args:
        config: Its settings; `detection` is what a task's own head replaces, and is not read.
        tasks: Task name -> object with `head(feature_specs)`.
    Raises:
        ConfigError: A task has a name that a module cannot have, or no head.
    """

    config: BEVFormer.Config

    def __init__(self, config: BEVFormer.Config, tasks: Mapping[str, TaskOfModel]) -> None:
        super().__init__(config, tasks)
        _refuse_moved_worlds(config, tasks)
        self.network = BEVNetwork(config.network)
        heads = {}
        for name, task in tasks.items():
            try:
                heads[name] = task.head(self.feature_specs)
            except NotImplementedError as error:
                raise ConfigError(f"config.model: bevformer cannot serve task '{name}': {error}") from error
        self.heads = named_modules(heads, what="task")

    @property
    def feature_specs(self) -> tuple[BEVSpec, ...]:
        """The map that heads get."""
        return (self.network.spec,)

    def forward(self, batch: Batch, state: State = None) -> tuple[Outputs, State]:
        """What the head of the batch's task makes of its rig's pictures.

        Raises:
            ValueError: The batch belongs to a task without a head here, or has no `rig`.
        """
        if batch.task not in self.heads:
            raise ValueError(f"model has no head for task '{batch.task}'; it has {', '.join(self.heads)}")
        head, rig = self.heads[batch.task], batch.inputs.get("rig")
        if not isinstance(rig, MultiCameraBatch):
            raise ValueError(
                f"task '{batch.task}': bevformer needs a MultiCameraBatch as input 'rig'; inputs are "
                f"{sorted(batch.inputs)}"
            )
        earlier: Sequence[MultiCameraBatch] = batch.inputs.get("history", ())
        first, *others = (*earlier, rig)
        # The first frame goes on with the row's stream; the others say themselves whether they begin anew.
        maps, state = self.network.run_clip((replace(first, starts=batch.starts), *others), state)
        if earlier and self.network.config.clip_loss == "all":
            return tuple(head(bev) for bev in maps), state
        return head(maps[-1]), state

    def own_weights(self, weights: Weights) -> dict[str, Tensor]:
        """Return published weights under this model's names; what is not published comes back as it is.

        The published detection head goes to each task whose head is a `DetectionHead`.
        """
        part, _ = select_part(weights, "")
        part = official.turned(
            official.current_names(part), getattr(self.config.network.backbone, "channel_order", "rgb")
        )
        own: dict[str, list[str]] = {}
        for name in self.network.state_dict():
            published = official.name_of(f"network.{name}")
            if published is not None:
                own.setdefault(published, []).append(f"network.{name}")
        for task, head in self.heads.items():
            if isinstance(head, DetectionHead):
                for name in head.state_dict():
                    published = official.name_of(f"head.{name}")
                    if published is not None:
                        own.setdefault(published, []).append(f"heads.{task}.{name}")
        if not own.keys() & part.keys():
            return dict(weights)
        return {ours: tensor for name, tensor in part.items() for ours in own.get(name, [name])}


def _refuse_moved_worlds(config: BEVFormer.Config, tasks: Mapping[str, TaskOfModel]) -> None:
    """The published alignment reads the car's own motion, which does not turn with a world that is moved."""
    if config.network.compat != "official":
        return
    for name, task in tasks.items():
        settings = getattr(task, "config", None)
        moved = [key for key in ("turn_rad", "mirror", "world_scale") if getattr(settings, key, 0)]
        if moved:
            raise ConfigError(
                f"config.tasks.{name}.{moved[0]}: model.network.compat='official' aligns frames by the car's "
                f"own motion, which a moved world does not have; set {', '.join(f'{key}=0' for key in moved)}"
            )
