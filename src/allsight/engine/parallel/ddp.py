"""Every rank holds the whole model; gradients are summed while the backward pass runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from allsight.config import ConfigError
from allsight.engine.distributed import Ranks
from allsight.engine.parallel.base import Parallel
from allsight.engine.parallel.config import DDPConfig
from allsight.engine.parallel.experts import SplitExperts
from allsight.models.base import TaskModel
from allsight.types import Batch, Outputs, State

# PyTorch 2.13 renamed the option and warns of the old name.
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers": False
}
_HOOKS = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}


class DataParallel(Parallel):
    """PyTorch's DistributedDataParallel; gradients are reduced once a step, on its last backward."""

    def __init__(
        self, model: TaskModel, config: DDPConfig, ranks: Ranks, experts: SplitExperts | None = None
    ) -> None:
        super().__init__(model, ranks, experts)
        if experts is not None:
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, experts.names)
        # Tasks differ in the heads they use. Buffers are shared when weights are used, not each step.
        self._module = DistributedDataParallel(
            model,
            find_unused_parameters=not config.static_graph,
            static_graph=config.static_graph,
            gradient_as_bucket_view=config.bucket_views,
            bucket_cap_mb=config.bucket_mb,
            **_NO_BUFFER_SYNC,
        )
        if config.compression != "none":
            try:
                self._module.register_comm_hook(None, _HOOKS[config.compression])
            except TypeError as error:
                raise ConfigError(
                    f"config.parallel.ddp.compression: {config.compression} cannot be sent here ({error}); "
                    "leave it out"
                ) from error

    @property
    def loss_factor(self) -> float:
        return float(self.ranks.world)

    def forward(self, batch: Batch, state: State) -> tuple[Outputs, State]:
        return self._module(batch, state)

    @contextmanager
    def reducing(self, is_last: bool) -> Iterator[None]:
        if is_last:
            yield
        else:
            with self._module.no_sync():
                yield

    def finish(self) -> None:
        """Of all but split experts the last backward has done it."""
        if self.experts is not None:
            self.experts.finish(self.loss_factor)
