"""From gradients to new weights: rates, clipping, the optimiser's step and the average that follows."""

from __future__ import annotations

from torch import Tensor

from allsight.engine.clipping import Clipping
from allsight.engine.config import RunConfig
from allsight.engine.ema import WeightAverage
from allsight.engine.loss_scale import LossScale
from allsight.engine.norms import PartNorms
from allsight.engine.parallel import sharded_apart, total_norm
from allsight.engine.parameter_groups import parameter_groups
from allsight.engine.schedule import Schedule
from allsight.models.base import TaskModel


class Updater:
    """Changes the weights of a model.

    Args:
        model: Spread over the ranks already.
        peak_lr: What the schedule's factors multiply.
        looks: Whether this rank takes part in looking at norms of parts; where weights are sharded, all must.
    """

    def __init__(
        self, model: TaskModel, config: RunConfig, schedule: Schedule, peak_lr: float, *, looks: bool
    ) -> None:
        optim = config.optim
        optimiser = optim.build()
        groups = sharded_apart(optimiser.sort(model, parameter_groups(model, optim)))
        self.optimizer = optimiser.make(groups, peak_lr)
        self.loss_scale = LossScale(enabled=config.precision == "fp16")
        self.ema: WeightAverage | None = None
        if optim.ema_decay is not None:
            self.ema = WeightAverage(model, decay=optim.ema_decay, warmup=optim.ema_warmup)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._model, self._parameters = model, list(trained.values())
        self._gradients: list[Tensor] = []
        self._clip, self._norms = Clipping(optim, trained), PartNorms(model)
        self._schedule, self._peak_lr = schedule, peak_lr
        self._norms_every = config.train.norms_every if looks else None

    def begin(self, number: int) -> float:
        """No gradients, and the learning rate of this step, which is returned."""
        lr = self._peak_lr * self._schedule.factor(number)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.forget_gradients()
        return lr

    def forget_gradients(self) -> None:
        """Give their memory back."""
        self._gradients = []
        self.optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """The norm of all gradients over all shards; they are in the loss's own scale from here on."""
        # Asked for once: each `grad` makes a new Python object, a hundred of them 0.1 ms.
        self._gradients = [gradient for p in self._parameters if (gradient := p.grad) is not None]
        self.loss_scale.unscale(self._gradients)
        return total_norm(self._gradients)

    def update(self, number: int, norm: Tensor) -> dict[str, float]:
        """Change the weights by finite gradients of this norm, and what the model ties to its weights.

        Returns:
            Norms of parts in the steps in which they are looked at, else nothing; see `PartNorms.after`.
        """
        every = self._norms_every
        looks = every is not None and number % every == 0
        with self._norms.around(looks) as values:
            self._clip(self._gradients, norm)
            self.optimizer.step()
        self._model.after_step(number)
        return values

    def average(self, number: int) -> None:
        """Let the average follow the new weights."""
        if self.ema is not None:
            self.ema.update(number)
