"""One backbone, one head per task: the plain way to train several tasks jointly."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from allsight.backbones import Backbone
from allsight.config import ConfigError
from allsight.models.base import TaskModel, TaskOfModel
from allsight.types import Batch, FeatureSpec, Outputs, State


class MultiHead(TaskModel):
    """A shared backbone, and the head that each task brings for its feature maps.

    A batch runs through the backbone and its own task's head only; other heads get no gradient at all (None,
    not zero). Every task's batch has the input `image` [b, 3, h, w]; uint8 is normalised by the backbone.

    Args:
        config: Its settings.
        tasks: Task name -> object with `head(feature_specs)`.
    Raises:
        ConfigError: A task has a name that a module cannot have, or no head.
    """

    class Config(TaskModel.Config):
        backbone: Backbone.Config
        """The backbone; it must give out the maps that the heads need (classification: the coarsest)."""

    config: Config

    def __init__(self, config: Config, tasks: Mapping[str, TaskOfModel]) -> None:
        super().__init__(config, tasks)
        self.backbone: Backbone = config.backbone.build()
        self.heads = named_modules(
            {name: self._head(name, task) for name, task in tasks.items()}, what="task"
        )

    @property
    def feature_specs(self) -> tuple[FeatureSpec, ...]:
        """Channels and stride of the maps that heads get, fine to coarse."""
        return self.backbone.feature_specs

    def cause_of_misfit(self, weights: Mapping[str, Tensor]) -> str:
        from allsight.models.misfit import cause_of_misfit

        return cause_of_misfit(self, weights)

    def forward(self, batch: Batch, state: State = None) -> tuple[Outputs, State]:
        """What the head of the batch's task makes of its pictures; there is no temporal state.

        Raises:
            ValueError: The batch belongs to a task without a head here, or has no `image`.
        """
        if batch.task not in self.heads:
            raise ValueError(f"model has no head for task '{batch.task}'; it has {', '.join(self.heads)}")
        images = batch.inputs.get("image")
        if not isinstance(images, Tensor):
            raise ValueError(
                f"task '{batch.task}': multi_head needs a tensor 'image' among the inputs, which are "
                f"{sorted(batch.inputs)}"
            )
        return self.heads[batch.task](self.backbone(images)), None

    def _head(self, name: str, task: TaskOfModel) -> nn.Module:
        try:
            return task.head(self.backbone.feature_specs)
        except NotImplementedError as error:
            raise ConfigError(f"config.model: multi_head cannot serve task '{name}': {error}") from error


def named_modules(modules: Mapping[str, nn.Module], *, what: str) -> nn.ModuleDict:
    """A ModuleDict, with a plain message for the names that PyTorch keeps for itself (`train`, `type` ...).

    Raises:
        ConfigError: Such a name.
    """
    named = nn.ModuleDict()
    for name, module in modules.items():
        if hasattr(named, name):
            raise ConfigError(
                f"{what} '{name}': modules of PyTorch have an attribute of this name; rename it"
            )
        named[name] = module
    return named
