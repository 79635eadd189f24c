"""Memory that a rank holds under each strategy, and what it sends in a step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from allsight.engine.budget.shards import share_of
from allsight.engine.config import RunConfig
from allsight.engine.muon import Muon
from allsight.engine.optim import SGD
from allsight.engine.parallel.config import SHARDED, Strategy
from allsight.layers.blocks import blocks_of
from allsight.layers.expert_split import layers_to_split


@dataclass(frozen=True)
class Sizes:
    """Numbers that a model and its training consist of.

    Args:
        parameters: All, frozen ones too.
        trained: Those with a gradient.
        moments: Numbers that the optimiser keeps.
        experts: Parameters of experts that ranks share by `parallel.expert_ranks`; 0 where they share none.
        largest_block: Parameters of the largest block, without such experts.
        outside: Parameters in no block, likewise.
        width: Bytes of one number.
        averaged: An average of the weights is kept.
        shapes: (shape, whether it is trained) of each parameter but such experts.
    """

    parameters: int
    trained: int
    moments: int
    experts: int
    largest_block: int
    outside: int
    width: int
    averaged: bool
    shapes: tuple[tuple[torch.Size, bool], ...] = field(repr=False)

    @classmethod
    def of(cls, model: nn.Module, config: RunConfig) -> Sizes:
        """Count; the model may be without memory."""
        experts = [p for layer in layers_to_split(model) for p in layer.parameters()]
        apart = {id(p) for p in experts} if config.parallel.expert_ranks > 1 else set()
        others = [p for p in model.parameters() if id(p) not in apart]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        inside = [
            sum(p.numel() for p in block.parameters() if id(p) not in apart) for block in blocks_of(model)
        ]
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            trained=trained,
            moments=_moments(model, config, trained),
            experts=sum(p.numel() for p in experts if id(p) in apart),
            largest_block=max(inside, default=0),
            outside=sum(p.numel() for p in others) - sum(inside),
            width=8 if config.precision == "fp64" else 4,
            averaged=config.optim.ema_decay is not None,
            shapes=tuple((p.shape, p.requires_grad) for p in others),
        )

    def share(self, shards: int, expert_ranks: int, *, trained: bool = False) -> int:
        """Numbers that the rank with most of them holds.

        Args:
            shards: Ranks that share one copy of all but experts.
            expert_ranks: Ranks that share the experts.
            trained: Count what has a gradient only; experts are trained all or not at all.
        """
        own = sum(
            share_of(shape, shards) for shape, has_gradient in self.shapes if has_gradient or not trained
        )
        return own + -(-self.experts // expert_ranks)


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
    expert_ranks = 1 if strategy == "single" else config.parallel.expert_ranks
    parameters = sizes.share(shards, expert_ranks) * w
    trained = sizes.share(shards, expert_ranks, trained=True)
    gradients, average = trained * w, trained * w * sizes.averaged
    optimiser = trained * sizes.moments // max(1, sizes.trained) * w
    update = _copies(config) * gradients
    if strategy not in SHARDED:
        # DDP keeps gradients in its buckets, or a second time.
        twice = strategy == "ddp" and not config.parallel.ddp.bucket_views
        return Held(parameters, gradients * (1 + twice), optimiser, average, 0, update)
    sent = 2 if half else w
    if config.parallel.fsdp.reshard:
        # The block at work, the next one on its way, and what is in no block.
        gathered = (2 * sizes.largest_block + sizes.outside) * sent
    else:
        gathered = (sizes.parameters - sizes.experts) * sent
    # Gradients are sent in the last pass of a step; until then they add up whole.
    waiting = sizes.trained - sizes.experts if accumulate > 1 else sizes.largest_block + sizes.outside
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
    """(ranks that take part, bytes that each sends and receives) of a step's exchanges beside the passes.

    A ring over n ranks moves (n - 1) / n of the data for a gather or a scatter, twice that for a sum.
    """
    trained = (sizes.trained - sizes.experts) * sizes.width
    if ranks > 1 and sizes.experts:
        # Groups of ranks that share the experts hold copies of each other's.
        copies = ranks // config.parallel.expert_ranks
        yield ranks, 2 * (copies - 1) / ranks * sizes.experts * sizes.width
    if strategy == "ddp" and ranks > 1:
        factor = 1.0 if config.parallel.ddp.compression == "none" else 0.5
        yield ranks, 2 * (ranks - 1) / ranks * trained * factor
    if strategy in SHARDED and shards > 1:
        times = accumulate * (2 if config.parallel.fsdp.reshard else 1)
        share = (shards - 1) / shards
        yield shards, times * share * (sizes.parameters - sizes.experts) * (2 if half else sizes.width)
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
