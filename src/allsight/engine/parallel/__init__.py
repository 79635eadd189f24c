"""One model over the ranks of a run: `spread` wraps it as the settings say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allsight.config import ConfigError
from allsight.engine.distributed import Ranks
from allsight.engine.parallel.base import Parallel
from allsight.engine.parallel.config import SHARDED, ParallelConfig
from allsight.engine.parallel.shards import local_part, norms, sharded_apart, total_norm
from allsight.models.base import TaskModel

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig
    from allsight.engine.parallel.experts import SplitExperts

__all__ = [
    "SHARDED",
    "Parallel",
    "ParallelConfig",
    "local_part",
    "norms",
    "sharded_apart",
    "spread",
    "total_norm",
]


def spread(model: TaskModel, run: RunConfig, ranks: Ranks) -> Parallel:
    """The model over the ranks, before the optimiser sees its parameters. With one rank it stays as it is.

    Args:
        model: The bare model, with the same weights on all ranks.
    Raises:
        ConfigError: The strategy does not fit the ranks, the layout or the tasks.
    """
    config, layout, reruns = run.parallel, run.sampling.layout, run.train.recover_memory
    strategy = config.strategy
    if strategy == "deepspeed":
        from allsight.engine.parallel.deepspeed import deepspeed_settings, refuse_for_deepspeed, stage_of
        from allsight.engine.parallel.deepspeed_engine import DeepSpeed, load_deepspeed

        settings = deepspeed_settings(run, ranks.world)
        refuse_for_deepspeed(run, stage_of(settings))
        if ranks.world > 1:
            return DeepSpeed(model, settings, ranks)
        load_deepspeed(ranks.device)
    if ranks.world == 1:
        return Parallel(model, ranks)
    if strategy == "single":
        raise ConfigError("config.parallel.strategy: 'single' uses one process; set ddp")
    if strategy in SHARDED:
        if layout == "mixed_lanes":
            raise ConfigError(
                f"config.parallel.strategy: {strategy} needs all ranks to run the same layers at once, which "
                "sampling.layout=mixed_lanes does not; set layout to one_task or mixed_batch, or strategy=ddp"
            )
        if reruns:
            raise ConfigError(
                f"config.train.recover_memory: not with parallel.strategy={strategy}, whose ranks wait for "
                "each other in the middle of a pass; set train.accumulate by hand (`allsight plan` tells)"
            )
        from allsight.engine.parallel.fsdp import FullyShard

        experts = _split_experts(model, run, ranks)
        return FullyShard(
            model, config.fsdp, ranks, experts, hybrid=strategy == "hsdp", precision=run.precision
        )
    experts = _split_experts(model, run, ranks)
    if experts is None and (layout == "mixed_lanes" or reruns):
        return Parallel(model, ranks)
    if config.ddp.static_graph and len(run.tasks) > 1:
        raise ConfigError(
            f"config.parallel.ddp.static_graph: {len(run.tasks)} tasks use different layers from step "
            "to step; leave it out"
        )
    from allsight.engine.parallel.ddp import DataParallel

    return DataParallel(model, config.ddp, ranks, experts)


def _split_experts(model: TaskModel, run: RunConfig, ranks: Ranks) -> SplitExperts | None:
    """The experts of the model, this rank's part in the place of all; None where ranks do not share them.

    Raises:
        ConfigError: The layout, or the experts, do not allow it.
    """
    if run.parallel.expert_ranks == 1:
        return None
    from allsight.engine.parallel.experts import SplitExperts

    for is_set, setting in (
        (run.sampling.layout == "mixed_lanes", "sampling.layout=mixed_lanes"),
        (run.train.recover_memory, "train.recover_memory"),
    ):
        if is_set:
            raise ConfigError(
                f"config.parallel.expert_ranks: not with {setting}: ranks exchange tokens in the middle of a "
                "pass, so all must run the same ones; leave one of the two out"
            )
    return SplitExperts(model, run.parallel.expert_ranks, ranks)
