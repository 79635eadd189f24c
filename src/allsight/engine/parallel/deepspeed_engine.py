"""DeepSpeed's engine as one way to spread a model: optimiser, gradients and weights sharded by ZeRO."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from allsight.config import ConfigError
from allsight.engine.distributed import Ranks
from allsight.engine.parallel.base import Parallel, Stepper
from allsight.engine.parallel.deepspeed import stage_of
from allsight.engine.parallel.deepspeed_zero import Zero, Zero3
from allsight.engine.parallel.tensors import Formats, Tensors
from allsight.models.base import TaskModel
from allsight.types import Batch, Outputs, State
from allsight.types.batches import map_tensors

_NOT_SENT = "ds_optim_param"
"""The library's own mark, for weights of its LoRA layers that differ between ranks."""


class DeepSpeed(Parallel):
    """The bare model inside DeepSpeed's engine, which reduces, clips and updates; weights stay in float32.

    DeepSpeed lays the weights of a parameter group end to end and updates them as one, and sums at the end of
    a step only gradients that its last micro-batch has touched. So every layer must be used in every one.

    Args:
        model: The bare model, with the same weights on all ranks.
        settings: DeepSpeed's JSON, as `deepspeed_settings` gives it.
        ranks: More than one.
    Raises:
        ConfigError: DeepSpeed is not installed, or cannot shard this model.
    """

    def __init__(self, model: TaskModel, settings: dict[str, Any], ranks: Ranks) -> None:
        super().__init__(model, ranks)
        self._library = load_deepspeed(ranks.device)
        self._stage = stage_of(settings)
        scalar = next((name for name, p in model.named_parameters() if p.ndim == 0), None)
        if self._stage == 3 and scalar is not None:
            raise ConfigError(
                f"config.parallel.deepspeed.stage: 3 cannot shard {scalar}, which has no axes; set stage "
                "to 2, or parallel.strategy=fsdp"
            )
        # Of stage 0 gradients are whole and bounded as those of other strategies.
        self._settings = settings if self._stage else {**settings, "gradient_clipping": 0.0}
        self._engine: Any = None
        self._zero: Zero | None = None
        self._names = {parameter: name for name, parameter in self._trained().items()}
        self._untouched: dict[nn.Parameter, str] = {}

    @property
    def loss_factor(self) -> float:
        return float(self.ranks.world)

    def take(self, optimizer: torch.optim.Optimizer) -> Stepper:
        self._optimizer = optimizer
        with _not_sent(p for p in self.bare.parameters() if p.ndim == 0):
            self._engine = self._library.initialize(
                model=_Traversable(self.bare), optimizer=optimizer, config=self._settings
            )[0]
        for parameter in self._names:
            parameter.register_post_accumulate_grad_hook(self._touched)
        if self._stage > 0:
            self._zero = (Zero3 if self._stage == 3 else Zero)(self._library, self._engine, self.bare)
        return _Steps(self._engine, self._zero)

    def forward(self, batch: Batch, state: State) -> tuple[Outputs, State]:
        _, outputs, state = self._engine(batch, state)
        return outputs, state

    @contextmanager
    def reducing(self, is_last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        self._untouched = dict(self._names)
        # Our losses are shares of the step's loss: they add up over micro-batches, too.
        self._engine.backward(loss, scale_wrt_gas=False)
        if self._untouched:
            names = list(self._untouched.values())
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ConfigError(
                f"config.parallel.strategy: deepspeed needs every weight in every micro-batch, and "
                f"{names[0]}{more} had no part in one; freeze what is not used, or set parallel.strategy=fsdp"
            )

    def finish(self) -> None:
        """Nothing: the last backward has done it."""

    def gradients(self, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
        """Those of stage 0; the engine bounds what it shards."""
        return super().gradients(parameters) if self._zero is None else []

    def gradient_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        if self._zero is None:
            return super().gradient_norm(gradients)
        mine = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for part in self._zero.gradients():
            # Squared in float64, where float32 could overflow.
            mine += torch.linalg.vector_norm(part).to(mine).square()
        return self.ranks.sum(mine).sqrt().to(torch.float32)

    @contextmanager
    def changing(self) -> Iterator[None]:
        if self._zero is None or type(self.bare).after_step is TaskModel.after_step:
            yield
            return
        with self._zero.whole(writes=True):
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, every rank holds all weights: ranks have different numbers of batches to judge."""
        if self._zero is None:
            yield
        else:
            with self._zero.unhooked():
                yield

    def weight_shapes(self) -> dict[str, torch.Size]:
        return super().weight_shapes() if self._zero is None else self._zero.weight_shapes()

    def tensors(self) -> Tensors:
        if self._zero is None:
            return super().tensors()
        return self._zero.weights() | self._zero.optimizer_tensors()

    @contextmanager
    def restoring(self, optim: Formats) -> Iterator[Tensors]:
        if self._zero is None:
            with super().restoring(optim) as targets:
                yield targets
            return
        weights = {name: torch.empty(shape) for name, shape in self.weight_shapes().items()}
        targets = {f"model/{name}": room for name, room in weights.items()}
        targets |= {f"optim/{key}": torch.empty(shape, dtype=dtype) for key, (shape, dtype) in optim.items()}
        yield targets
        self._zero.restore(targets)

    def _touched(self, parameter: Any) -> None:
        self._untouched.pop(parameter, None)

    def held_bytes(self) -> dict[str, int]:
        return super().held_bytes() if self._zero is None else self._zero.held_bytes()


class _Traversable(nn.Module):
    """DeepSpeed looks for the tensors of a model's output in tuples, lists and dicts, but in no dataclass."""

    def __init__(self, bare: TaskModel) -> None:
        super().__init__()
        self.bare = bare

    def forward(self, batch: Batch, state: State) -> tuple[list[Tensor], Outputs, State]:
        outputs, state = self.bare(batch, state)
        seen: list[Tensor] = []
        map_tensors(seen.append, outputs)
        return seen, outputs, state


class _Steps:
    """What is stepped in the optimiser's place."""

    def __init__(self, engine: Any, zero: Zero | None) -> None:
        self._engine, self._zero = engine, zero

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self._engine.optimizer.param_groups

    def step(self) -> None:
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._engine.optimizer.zero_grad(set_to_none=set_to_none)
        if self._zero is not None:
            self._zero.discard()


@contextmanager
def _not_sent(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within, the engine does not overwrite these by those of rank 0: it cannot send what has no axes.

    All ranks have the same weights anyway.
    """
    marked = list(parameters)
    for parameter in marked:
        setattr(parameter, _NOT_SENT, True)
    try:
        yield
    finally:
        for parameter in marked:
            delattr(parameter, _NOT_SENT)


def load_deepspeed(device: torch.device) -> Any:
    """The library.

    Raises:
        ConfigError: It is not installed; names the extra.
    """
    # It decides once, at its import.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    try:
        return import_module("deepspeed")
    except ImportError as error:
        raise ConfigError(
            f"config.parallel.strategy: deepspeed needs the package deepspeed ({error}); "
            "pip install 'allsight[deepspeed]', or set parallel.strategy=fsdp"
        ) from None
