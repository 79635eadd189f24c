"""Memory that a rank holds under each strategy, and what it sends in a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from allsight.engine.config import RunConfig
from allsight.engine.muon import Muon
from allsight.engine.optim import SGD
from allsight.engine.parallel.config import SHARDED, Strategy
from allsight.layers.blocks import blocks_of


@dataclass(frozen=True)
class Sizes:
    """Numbers that a model and its training consist of.

    Args:
        parameters: All, frozen ones too.
        trained: Those with a gradient.
        moments: Numbers that the optimiser keeps.
        largest_block: Parameters of the largest block.
        outside: Parameters in no block.
        width: Bytes of one number.
        averaged: An average of the weights is kept.
    """

    parameters: int
    trained: int
    moments: int
    largest_block: int
    outside: int
    width: int
    averaged: bool

    @classmethod
    def of(cls, model: nn.Module, config: RunConfig) -> Sizes:
        """Count; the model may be without memory."""
        blocks = blocks_of(model)
        every, trained = _count(model), sum(p.numel() for p in model.parameters() if p.requires_grad)
        inside = [_count(block) for block in blocks]
        return cls(
            parameters=every,
            trained=trained,
            moments=_moments(model, config, trained),
            largest_block=max(inside, default=0),
            outside=every - sum(inside),
            width=8 if config.precision == "fp64" else 4,
            averaged=config.optim.ema_decay is not None,
        )


@dataclass(frozen=True)
class Held:
    """Bytes on one rank between and during the passes of a step."""

    parameters: int
    gradients: int
    optimiser: int
    average: int
    gathered: int
    """Weights, and gradients not yet sent, of blocks that are whole for a while."""
    update: int
    """Copies while the weights change: the optimiser's own, and those that `train.norms_every` looks at."""

    @property
    def kept(self) -> int:
        """What is there all the time."""
        return self.parameters + self.gradients + self.optimiser + self.average

    @property
    def total(self) -> int:
        """During the passes of a step."""
        return self.kept + self.gathered


def held(
    sizes: Sizes, config: RunConfig, strategy: Strategy, *, shards: int, accumulate: int, half: bool
) -> Held:
    """What a rank holds.

    Args:
        shards: Ranks that share one copy of the state.
        accumulate: Micro-batches of a step.
        half: Blocks are gathered in a half format.
    """
    w = sizes.width
    whole = (sizes.parameters * w, sizes.trained * w, sizes.moments * w, sizes.trained * w * sizes.averaged)
    if strategy not in SHARDED:
        parameters, gradients, optimiser, average = whole
        # DDP keeps gradients in its buckets, or a second time.
        twice = strategy == "ddp" and not config.parallel.ddp.bucket_views
        update = _copies(config) * sizes.trained * w
        return Held(parameters, gradients * (1 + twice), optimiser, average, 0, update)
    parameters, gradients, optimiser, average = (-(-size // shards) for size in whole)
    sent = 2 if half else w
    if config.parallel.fsdp.reshard:
        # The block at work, the next one on its way, and what is in no block.
        gathered = (2 * sizes.largest_block + sizes.outside) * sent
    else:
        gathered = sizes.parameters * sent
    # Gradients are sent in the last pass of a step; until then they add up whole.
    waiting = sizes.trained if accumulate > 1 else sizes.largest_block + sizes.outside
    update = _copies(config) * gradients
    return Held(parameters, gradients, optimiser, average, gathered + waiting * w, update)


def _copies(config: RunConfig) -> int:
    """How often trained numbers are there once more while they change."""
    # AdamW's roots, SGD's gradients with decay: the operators that treat all tensors at once keep them.
    own = 0 if getattr(config.optim, "fused", False) else 1
    return own + (config.train.norms_every is not None)


def messages(
    sizes: Sizes,
    config: RunConfig,
    strategy: Strategy,
    *,
    ranks: int,
    shards: int,
    accumulate: int,
    half: bool,
) -> Iterator[tuple[int, float]]:
    """(ranks that take part, bytes that each sends and receives) of a step's exchanges.

    A ring over n ranks moves (n - 1) / n of the data for a gather or a scatter, twice that for a sum.
    """
    trained = sizes.trained * sizes.width
    if strategy == "ddp" and ranks > 1:
        factor = 1.0 if config.parallel.ddp.compression == "none" else 0.5
        yield ranks, 2 * (ranks - 1) / ranks * trained * factor
    if strategy in SHARDED and shards > 1:
        times = accumulate * (2 if config.parallel.fsdp.reshard else 1)
        share = (shards - 1) / shards
        yield shards, times * share * sizes.parameters * (2 if half else sizes.width)
        yield shards, share * trained * (0.5 if config.parallel.fsdp.reduce_half else 1.0)
    if strategy == "hsdp" and ranks > shards:
        copies = ranks // shards
        yield ranks, 2 * (copies - 1) / copies * trained / shards


def _moments(model: nn.Module, config: RunConfig, trained: int) -> int:
    optim = config.optim
    if isinstance(optim, SGD.Config):
        return trained if optim.momentum else 0
    if isinstance(optim, Muon.Config):
        groups = Muon(optim).sort(
            model, [{"params": [p for p in model.parameters() if p.requires_grad], "name": ""}]
        )
        matrices = sum(p.numel() for group in groups if group["by"] == "muon" for p in group["params"])
        return 2 * trained - matrices
    return 2 * trained


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
