"""From gradients to new weights: rates, clipping, the optimiser's step and the average that follows."""

from __future__ import annotations

from torch import Tensor

from allsight.engine.clipping import Clipping
from allsight.engine.config import RunConfig
from allsight.engine.ema import WeightAverage
from allsight.engine.loss_scale import LossScale
from allsight.engine.norms import PartNorms
from allsight.engine.parallel import Parallel, sharded_apart
from allsight.engine.parameter_groups import parameter_groups
from allsight.engine.schedule import Schedule


class Updater:
    """Changes the weights of a model.

    Args:
        parallel: The model over the ranks; it takes the optimiser.
        peak_lr: What the schedule's factors multiply.
        looks: Whether this rank takes part in looking at norms of parts; where weights are sharded, all must.
    """

    def __init__(
        self, parallel: Parallel, config: RunConfig, schedule: Schedule, peak_lr: float, *, looks: bool
    ) -> None:
        optim, model = config.optim, parallel.bare
        optimiser = optim.build()
        groups = sharded_apart(optimiser.sort(model, parameter_groups(model, optim)))
        # Before anything keeps views of weights: an engine may move them.
        self.optimizer = parallel.take(optimiser.make(groups, peak_lr))
        self.loss_scale = LossScale(enabled=config.precision == "fp16")
        self.ema: WeightAverage | None = None
        if optim.ema_decay is not None:
            self.ema = WeightAverage(model, decay=optim.ema_decay, warmup=optim.ema_warmup)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._parallel, self._parameters = parallel, list(trained.values())
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
        self._gradients = self._parallel.gradients(self._parameters)
        self.loss_scale.unscale(self._gradients)
        return self._parallel.gradient_norm(self._gradients)

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
        with self._parallel.changing():
            self._parallel.bare.after_step(number)
        return values

    def average(self, number: int) -> None:
        """Let the average follow the new weights."""
        if self.ema is not None:
            self.ema.update(number)
