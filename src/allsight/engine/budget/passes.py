"""What one forward and backward pass costs, found by running it on tensors that have shapes and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from allsight.config import ConfigError
from allsight.engine.budget.exchange import ExpertExchange
from allsight.engine.budget.shards import ShardedPass
from allsight.engine.config import RunConfig
from allsight.engine.parallel.config import ParallelConfig
from allsight.engine.precision import HALF
from allsight.layers import is_recomputing
from allsight.layers.expert_split import layers_to_split
from allsight.models.base import TaskModel, model_for_tasks
from allsight.tasks.base import Task
from allsight.types import Batch
from allsight.types.batches import map_tensors


@dataclass(frozen=True)
class Work:
    """Arithmetic and memory traffic of operators that ran one after the other.

    Args:
        flops: Two for every multiplication with an addition, in matrix products and convolutions.
        repeated_flops: Those of them that recomputation does a second time.
        bytes: Read and written by all operators, each as if it were alone.
        operators: (FLOPs, bytes) -> how often an operator of this size ran.
    """

    flops: int
    repeated_flops: int
    bytes: int
    operators: Mapping[tuple[int, int], int]

    def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
        """Time on a machine that is limited by arithmetic or by memory in each operator."""
        return sum(
            times * max(flops / flops_per_s, size / bytes_per_s)
            for (flops, size), times in self.operators.items()
        )


@dataclass(frozen=True)
class PassCost:
    """Forward and backward of one micro-batch.

    Args:
        rows: Of the micro-batch.
        own_bytes: Of the micro-batch.
        peak_bytes: Most memory at once beyond parameters and their gradients, the batch included.
        peak_with_gradients: Likewise with those gradients that are there by then.
        sharded: The same under FSDP, gathered weights and gradients included.
        exchanged: Bytes that tokens and experts on several ranks send each other, were all on other ranks.
        work: What is computed.
    """

    rows: int
    own_bytes: int
    peak_bytes: int
    peak_with_gradients: int
    sharded: ShardedPass
    exchanged: int
    work: Work

    def sharded_peak(self, shards: int, *, reshards: bool) -> int:
        """Most memory at once beyond a rank's shards of weights, optimiser and average."""
        return self.own_bytes + self.sharded.peak(shards, reshards=reshards)


@contextmanager
def without_memory() -> Iterator[FakeTensorMode]:
    """Within, tensors have shapes and no contents: a model of any size is built in seconds."""
    kept = {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and name[0] != "_"}
    try:
        for name in kept:
            # Some starting values are drawn until they lie in a range, which needs contents.
            setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)
        # PyTorch's own copies the storage of such a tensor, of which there is none: what it writes over then
        # is the memory of others.
        FakeTensor.__deepcopy__ = _deep_copied  # type: ignore[attr-defined]
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        if "__deepcopy__" in vars(FakeTensor):
            del FakeTensor.__deepcopy__  # type: ignore[attr-defined]
        for name, function in kept.items():
            setattr(nn.init, name, function)


def _deep_copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A copy of a tensor without contents, for `copy.deepcopy`."""
    if id(tensor) not in memo:
        copied = tensor.detach().clone()
        if isinstance(tensor, nn.Parameter):
            copied = nn.Parameter(copied, requires_grad=tensor.requires_grad)
        memo[id(tensor)] = copied
    return memo[id(tensor)]


def build_without_memory(config: RunConfig, tasks: Mapping[str, Task]) -> TaskModel:
    """The model of a run, to be called within `without_memory`."""
    usual = torch.get_default_dtype()
    # Weights without memory cannot be turned into another format.
    torch.set_default_dtype(torch.float64 if config.precision == "fp64" else usual)
    try:
        return model_for_tasks(config.model, tasks).train()
    except RuntimeError as error:
        raise ConfigError(
            f"plan: the model cannot be planned, since it cannot be made without memory: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    finally:
        torch.set_default_dtype(usual)


def pass_cost(
    model: nn.Module,
    batch: Batch,
    *,
    precision: str,
    mode: FakeTensorMode,
    parallel: ParallelConfig | None = None,
    copies: bool = False,
) -> PassCost:
    """Cost of one pass of a model made within `without_memory`; the mean of its outputs stands for the loss.

    Args:
        parallel: How the run is spread: the formats in which FSDP sends, and the ranks that share experts;
            None: one process, or FSDP with all at its default.
        copies: The library that sends copies each message, as gloo does on CPUs.
    Raises:
        ConfigError: The forward depends on the contents of its inputs.
    """
    parallel = parallel or ParallelConfig()
    inputs = map_tensors(mode.from_tensor, batch)
    model.zero_grad(set_to_none=True)
    layers = layers_to_split(model) if parallel.expert_ranks > 1 else []
    full, half = 8 if precision == "fp64" else 4, 2 if precision in HALF else 4
    sharded = ShardedPass(
        model,
        half if parallel.fsdp.gather_half else full,
        reduced_width=half if parallel.fsdp.reduce_half else full,
        copies=copies,
        apart={id(p) for layer in layers for p in layer.parameters()},
    )
    exchange = ExpertExchange(layers)
    shared = {layer.weight.shape: parallel.expert_ranks for layer in layers}
    meter = _Meter({id(p.untyped_storage()) for p in model.parameters()}, sharded, shared)
    hooks: list[Any] = [
        p.register_post_accumulate_grad_hook(meter.set_aside) for p in model.parameters() if p.requires_grad
    ]
    hooks += [*sharded.hooks(), *exchange.hooks()]
    autocast = torch.autocast("cpu", HALF.get(precision, torch.bfloat16), enabled=precision in HALF)
    try:
        with meter:
            with autocast:
                outputs, _ = model(inputs, None)
            total = _mean_of(outputs)
            del outputs
            sharded.begin_backward()
            total.backward()
            sharded.end_backward()
    except (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError) as error:
        raise ConfigError(
            f"plan: {type(model).__name__} cannot be planned, since its forward depends on the contents of "
            f"pictures or texts ({str(error).splitlines()[0] or type(error).__name__})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    own = sum(tensor.nbytes for tensor in _tensors_of(batch))
    work = Work(meter.flops, meter.repeated_flops, meter.bytes, meter.operators)
    peaks = meter.peak + own, meter.peak_with_gradients + own
    return PassCost(len(batch), own, *peaks, sharded, exchange.bytes, work)


def _mean_of(outputs: Any) -> Tensor:
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.requires_grad:
            found.append(tensor)
        return tensor

    map_tensors(note, outputs)
    return torch.stack([tensor.float().mean() for tensor in found]).sum()


def _tensors_of(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    map_tensors(lambda tensor: found.append(tensor) or tensor, batch)
    return found


def _flops(operator: Any, args: Any, kwargs: Any, out: Any) -> int:
    if operator is torch.ops.aten.convolution_backward:
        # PyTorch's own count takes the gradient of a grouped kernel for that of a dense one.
        grad, inputs, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
        places = inputs if transposed else grad
        return 2 * places.numel() * weight[0].numel() * (int(wanted[0]) + int(wanted[1]))
    if operator in flop_registry:
        return int(flop_registry[operator](*args, **kwargs, out_val=out))
    return 0


def _everywhere(tensor: Tensor) -> Tensor:
    """`nonzero` of a tensor without any zero."""
    return tensor.new_zeros((tensor.numel(), tensor.ndim), dtype=torch.int64)


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _unmasked(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Indices with masks as the places that they pick."""
    found: list[Tensor | None] = []
    for index in indices:
        found += _everywhere(index).unbind(1) if index is not None and _is_mask(index) else [index]
    return found


class _Meter(TorchDispatchMode):
    """Counts FLOPs, traffic, and the memory of all tensors that live at once.

    Args:
        known: Ids of memory that is counted elsewhere.
        sharded: Follows what is counted.
        shared: Shape of the weights of experts -> ranks that share them: of copies and gradients of such a
            shape a rank has its part.
    """

    def __init__(self, known: set[int], sharded: ShardedPass, shared: Mapping[torch.Size, int]) -> None:
        super().__init__()
        self._known, self._sharded, self._shared = known, sharded, shared
        self._live: dict[int, int] = {}
        self._now = self.peak = self.flops = self.repeated_flops = self.bytes = 0
        self._gradients = self.peak_with_gradients = 0
        self.operators: dict[tuple[int, int], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.nonzero.default:
            # What the contents pick: all there is, since rows that are left out cost less.
            return _everywhere(args[0])
        if func is torch.ops.aten.index.Tensor and any(_is_mask(index) for index in args[1]):
            args = (args[0], _unmasked(args[1]))
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        new = sum(self._note(tensor) for tensor in made)
        flops = _flops(func.overloadpacket, args, kwargs or {}, out)
        # Views and look-ups move nothing.
        if new or flops or func._schema.is_mutable:
            read = sum(leaf.nbytes for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            size = read + sum(tensor.nbytes for tensor in made)
            self.flops, self.bytes = self.flops + flops, self.bytes + size
            self.repeated_flops += flops * is_recomputing()
            self.operators[flops, size] = self.operators.get((flops, size), 0) + 1
        return out

    def _note(self, tensor: Tensor) -> int:
        """Count a tensor's memory while it lives; its bytes if they are new."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known or key in self._live:
            return 0
        size = -(-storage.nbytes() // self._shared.get(tensor.shape, 1))
        self._live[key] = size
        self._now += size
        self.peak = max(self.peak, self._now)
        self.peak_with_gradients = max(self.peak_with_gradients, self._now + self._gradients)
        self._sharded.see(self._now)
        weakref.finalize(storage, self._forget, key)
        return size

    def set_aside(self, parameter: nn.Parameter) -> None:
        """A gradient is whole now: it is counted apart."""
        assert parameter.grad is not None
        size = self._live.pop(id(parameter.grad.untyped_storage()), 0)
        self._known.add(id(parameter.grad.untyped_storage()))
        self._now -= size
        self._gradients += size
        self._sharded.gradient(parameter, size, self._now)

    def _forget(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)
