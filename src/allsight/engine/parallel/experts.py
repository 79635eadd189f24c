"""The experts of a model over the ranks of a run, beside whatever is done with all other parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from allsight.config import ConfigError
from allsight.engine.distributed import Ranks
from allsight.engine.parallel.shards import local_part
from allsight.layers.expert_split import layers_to_split, split_experts, whole_experts


def check_expert_ranks(model: nn.Module, ranks_of_group: int, world: int) -> None:
    """Refuse groups of ranks that cannot share the experts of a model.

    Raises:
        ConfigError: The ranks do not form such groups, or there are no experts that they can share.
    """
    where = "config.parallel.expert_ranks"
    if world % ranks_of_group:
        raise ConfigError(
            f"{where}: {world} ranks do not form groups of {ranks_of_group}; expected a divisor of {world}"
        )
    counts = [len(layer.weight) for layer in layers_to_split(model)]
    if not counts:
        raise ConfigError(
            f"{where}: the model has no experts that tokens choose for themselves (routing=token or "
            "context), and others merge into one matrix; leave it out"
        )
    uneven = [count for count in counts if count % ranks_of_group]
    if uneven:
        raise ConfigError(
            f"{where}: {uneven[0]} experts cannot be shared evenly by {ranks_of_group} ranks; expected a "
            f"divisor of {uneven[0]}"
        )


class SplitExperts:
    """Groups of neighbouring ranks hold all experts of a model together, each rank as many of them.

    Args:
        model: The bare model, on its device, with the same weights on all ranks.
        ranks_of_group: `parallel.expert_ranks`.

    Attributes:
        parameters: Those of which each rank holds a part,
        names: and their names.

    Raises:
        ConfigError: The ranks do not form such groups, or there are no experts that they can share.
    """

    def __init__(self, model: nn.Module, ranks_of_group: int, ranks: Ranks) -> None:
        check_expert_ranks(model, ranks_of_group, ranks.world)
        # A mesh of two axes has lines of its own, so that no message meets one of the reducer's.
        copies = ranks.world // ranks_of_group
        mesh = init_device_mesh(
            ranks.device.type, (copies, ranks_of_group), mesh_dim_names=("copies", "experts")
        )
        self._copies = mesh.get_group(0) if copies > 1 else None
        self._layers = split_experts(model, mesh)
        split = {id(p) for layer in self._layers for p in layer.parameters()}
        self.parameters = [p for p in model.parameters() if id(p) in split]
        self.names = frozenset(name for name, p in model.named_parameters() if id(p) in split)

    def finish(self, loss_factor: float) -> None:
        """After the last backward of a step: the gradients of the whole step.

        Args:
            loss_factor: What losses were multiplied by.
        """
        for parameter in self.parameters:
            if parameter.grad is None:
                continue
            gradient = local_part(parameter.grad)
            if self._copies is not None:
                dist.all_reduce(gradient, group=self._copies)
            gradient.div_(loss_factor)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, each rank has all experts and may run the model alone, without gradients."""
        with whole_experts(self._layers):
            yield
