"""How long each part of a backbone takes, against what this machine could do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from allsight.backbones import Backbone
from allsight.launch.bench.measure import Samples, interleave
from allsight.layers.deformable import DeformableLayer
from allsight.layers.inference import CompiledAlone
from allsight.view.explain.sampling import DEFORMABLE

_GEMM_SIDE, _COPY_NUMBERS = 1024, 2**24
_GEMM, _COPY = "matrix product", "copy"


@dataclass(frozen=True)
class Peak:
    """What this machine reaches here and now: a matrix product of side 1024, and a copy of 64 MiB."""

    flops_per_s: float
    bytes_per_s: float

    @property
    def ridge(self) -> float:
        """FLOP a byte from which on arithmetic is what limits."""
        return self.flops_per_s / self.bytes_per_s


@dataclass(frozen=True)
class PartTime:
    """One part, timed alone.

    Args:
        name: `stem`, `stage 1: block`, `stage 1: operator` (the deformable layer in it), `stage 1: sampling`
            (the operator's core), `stage 1: MLP`, `downsample 1` ...
        stage: From 1; 0 for the stem.
        count: How many of them the backbone has.
        seconds: One call.
        flops: Two for every multiplication with an addition; sampling counts 5 additions and multiplications
            for each point and channel.
        bytes: What must be read and written at least: input, output and weights once.
    """

    name: str
    stage: int
    count: int
    seconds: float
    flops: int
    bytes: int

    def attainable_s(self, peak: Peak) -> float:
        """The least time in which `peak` could do it."""
        return max(self.flops / peak.flops_per_s, self.bytes / peak.bytes_per_s)


@torch.no_grad()
def time_parts(
    backbone: Backbone, hw_px: tuple[int, int], *, batch: int = 1, pairs: int = 7
) -> tuple[Peak, list[PartTime]]:
    """Time the first of each kind of part by itself, the machine's peaks in the same turns.

    Args:
        backbone: On the CPU, in evaluation mode.
        hw_px: Height and width of the pictures.
        batch: Pictures at once.
        pairs: Turns of which the median is taken.

    Source: Williams et al., Roofline, CACM 52(4), 2009; the work of sampling as in
    OpenGVLab/InternImage:classification/get_flops.py.
    """
    images = torch.randn(batch, 3, *hw_px)
    parts = _parts(backbone, images)
    square, source = torch.randn(_GEMM_SIDE, _GEMM_SIDE), torch.randn(_COPY_NUMBERS)
    target = torch.empty_like(source)
    ways: dict[str, Callable[[], object]] = {
        _GEMM: lambda: F.linear(square, square),
        _COPY: lambda: target.copy_(source),
    }
    for part in parts:
        ways[part.name] = part.run
    clock = "cpu" if torch.get_num_threads() == 1 else "wall"
    samples = interleave(ways, pairs=pairs, clock=clock)
    peak = Peak(2 * _GEMM_SIDE**3 / samples.median(_GEMM), 2 * source.nbytes / samples.median(_COPY))
    return peak, [part.timed(samples) for part in parts]


@dataclass
class _Part:
    name: str
    stage: int
    count: int
    run: Callable[[], Tensor]
    tensors: tuple[Tensor, ...]
    more_flops: int = 0

    def timed(self, samples: Samples) -> PartTime:
        with FlopCounterMode(display=False) as counter:
            out = self.run()
        moved = sum(tensor.nbytes for tensor in (*self.tensors, out))
        flops = counter.get_total_flops() + self.more_flops
        return PartTime(self.name, self.stage, self.count, samples.median(self.name), flops, moved)


def _parts(backbone: Backbone, images: Tensor) -> list[_Part]:
    """The parts in the order of the forward pass, each with the input it gets."""
    inputs: dict[str, Tensor] = {}
    wanted: dict[str, Any] = {}
    for name, module in backbone.named_modules():
        parent = backbone.get_submodule(name.rpartition(".")[0]) if name else None
        is_direct = parent is backbone and not isinstance(module, nn.ModuleList)
        is_listed = isinstance(parent, nn.ModuleList) and not any(
            isinstance(inner, CompiledAlone) for inner in module.modules() if inner is not module
        )
        if is_direct or is_listed or isinstance(parent, CompiledAlone):
            wanted[name] = module

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            inputs[name] = given[0]

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in wanted.items()]
    try:
        backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    parts: list[_Part] = []
    stages = 0
    for name, x in inputs.items():
        module = wanted[name]
        if isinstance(module, CompiledAlone):
            if name.endswith(".blocks.0"):
                stages += 1
                siblings = backbone.get_submodule(name.rpartition(".")[0])
                parts += _of_block(module, name, inputs, wanted, stages, len(list(siblings.children())))
        elif not isinstance(backbone.get_submodule(name.rpartition(".")[0]), CompiledAlone):
            title = name if "." not in name else f"{name.partition('.')[0].removesuffix('s')} {stages}"
            parts.append(_whole(title, stages, 1, module, x))
    return parts


def _of_block(
    block: nn.Module, name: str, inputs: dict[str, Tensor], wanted: dict[str, Any], stage: int, count: int
) -> list[_Part]:
    """A block, the deformable layer in it, the sampling in that, and the MLP."""
    found = [_whole(f"stage {stage}: block", stage, count, block, inputs[name])]
    for inner, module in wanted.items():
        if not inner.startswith(f"{name}.") or inner not in inputs:
            continue
        x = inputs[inner]
        if isinstance(module, DEFORMABLE):
            sampling = _sampling(f"stage {stage}: sampling", stage, count, module, x)
            found[0].more_flops = sampling.more_flops
            whole = _whole(f"stage {stage}: operator", stage, count, module, x)
            whole.more_flops = sampling.more_flops
            found += [whole, sampling]
        elif inner.endswith(".mlp"):
            found.append(_whole(f"stage {stage}: MLP", stage, count, module, x))
    return found


def _whole(name: str, stage: int, count: int, module: nn.Module, x: Tensor) -> _Part:
    return _Part(name, stage, count, lambda: module(x), (x, *module.parameters()))


def _sampling(name: str, stage: int, count: int, module: DeformableLayer, x: Tensor) -> _Part:
    """The operator's core alone, on what the layer gives it."""
    operands = module.operands(x)

    def run() -> Tensor:
        return module.sample(operands)

    flops = 2 * 5 * module.geometry.points * run().numel()
    return _Part(name, stage, count, run, tuple(operands), flops)
