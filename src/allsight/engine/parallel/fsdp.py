"""Every rank holds a part of each parameter; blocks are gathered when they run (PyTorch's FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from allsight.config import ConfigError
from allsight.engine.distributed import Ranks
from allsight.engine.parallel.base import Parallel, sum_gradients
from allsight.engine.parallel.config import FSDPConfig
from allsight.engine.parallel.experts import SplitExperts
from allsight.engine.parallel.same_passes import check_same_passes
from allsight.engine.precision import HALF
from allsight.layers.blocks import blocks_of
from allsight.models.base import TaskModel
from allsight.types import Step


class FullyShard(Parallel):
    """The blocks that the model names are units of their own; all else, heads too, is one more unit.

    A unit used by some ranks only would mix shards of different layers without an error, so `begin` checks
    that all ranks run the same passes. Parameters without axes cannot be sharded: they stay whole and their
    gradients are summed at the end of the step.

    Args:
        model: The bare model with the same weights on all ranks; on the CPU, if it fits no device whole.
        experts: Those that are split over ranks already, if any; they are no part of any unit.
        hybrid: Ranks form groups that hold a whole copy each (hsdp).
        precision: `precision` of the run, for what is sent in its half format.
    Raises:
        ConfigError: Groups of hsdp that the ranks cannot form; halves of a precision that has none.
    """

    def __init__(
        self,
        model: TaskModel,
        config: FSDPConfig,
        ranks: Ranks,
        experts: SplitExperts | None = None,
        *,
        hybrid: bool,
        precision: str,
    ) -> None:
        super().__init__(model, ranks, experts)
        whole = {p for p in model.parameters() if p.ndim == 0}
        split = set() if experts is None else set(experts.parameters)
        options: dict[str, Any] = {
            # Before the mesh, which asks the other ranks: what is wrong with the settings is said at once.
            "mp_policy": _policy(config, precision),
            "mesh": _hybrid_mesh(config, ranks) if hybrid else _mesh(ranks),
            "offload_policy": CPUOffloadPolicy(pin_memory=ranks.device.type != "cpu")
            if config.offload
            else OffloadPolicy(),
            "ignored_params": whole | split,
        }
        self._units: list[tuple[FSDPModule, bool]] = []
        for block in blocks_of(model):
            self._shard(block, config.reshard, options)
        # The root's weights are needed again at once, by the first layers of the backward pass.
        self._shard(model, False, options)
        self._whole = [p for p in whole if p.requires_grad]
        for parameter in whole:
            parameter.data = parameter.data.to(ranks.device)

    @property
    def loss_factor(self) -> float:
        return float(self.ranks.world)

    @property
    def is_sharded(self) -> bool:
        return True

    def begin(self, step: Step) -> None:
        check_same_passes(step, self.ranks)

    @contextmanager
    def reducing(self, is_last: bool) -> Iterator[None]:
        root: Any = self.bare
        root.set_requires_gradient_sync(is_last)
        yield

    def finish(self) -> None:
        """The gradients of what is in no unit."""
        sum_gradients(self._whole, self.ranks)
        for parameter in self._whole:
            if parameter.grad is not None:
                # As the sharded ones: losses were multiplied by `loss_factor`.
                parameter.grad /= self.ranks.world
        if self.experts is not None:
            self.experts.finish(self.loss_factor)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within, every rank holds all weights: ranks have different numbers of batches to judge."""
        for unit, _ in self._units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            with super().evaluating():
                yield
        finally:
            for unit, reshards in self._units:
                unit.set_reshard_after_forward(reshards, recurse=False)
                # Else the next forward would use these gathered weights again.
                unit.reshard()

    def _shard(self, module: nn.Module, reshard: bool, options: dict[str, Any]) -> None:
        if any(True for _ in module.parameters()):
            unit = fully_shard(module, reshard_after_forward=reshard, **options)
            self._units.append((unit, reshard))


def _mesh(ranks: Ranks) -> DeviceMesh:
    return init_device_mesh(ranks.device.type, (ranks.world,), mesh_dim_names=("shard",))


def _hybrid_mesh(config: FSDPConfig, ranks: Ranks) -> DeviceMesh:
    size = config.shard_ranks or int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))
    if ranks.world % size:
        raise ConfigError(
            f"config.parallel.fsdp.shard_ranks: {ranks.world} ranks do not form groups of {size}; expected a "
            f"divisor of {ranks.world}"
        )
    return init_device_mesh(
        ranks.device.type, (ranks.world // size, size), mesh_dim_names=("replicate", "shard")
    )


def _policy(config: FSDPConfig, precision: str) -> MixedPrecisionPolicy:
    half = HALF.get(precision)
    for name in ("gather_half", "reduce_half"):
        if half is None and getattr(config, name):
            raise ConfigError(
                f"config.parallel.fsdp.{name}: precision={precision} has no half format; set precision=bf16"
            )
    # Autocast decides over inputs, so that layers which compute places keep them in float32.
    return MixedPrecisionPolicy(
        param_dtype=half if config.gather_half else None,
        reduce_dtype=half if config.reduce_half else (torch.float32 if config.gather_half else None),
        cast_forward_inputs=False,
    )
