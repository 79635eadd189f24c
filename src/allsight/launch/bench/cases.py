"""The calls that are measured, with their inputs and the bars they have to reach.

Sizes are those of InternImage-T at 224 and 512 px, Deformable-DETR at 800 x 1066 px, and BEVFormer tiny.
Coordinates keep a hundredth of a pixel away from pixel centers: there the gradient of a coordinate jumps, and
two implementations that round differently would differ without either being wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from allsight import ops
from allsight.config.errors import ConfigError, did_you_mean
from allsight.launch.bench import yardsticks

OURS, OFFICIAL, REFERENCE = "allsight", "official", "reference"
Inputs = tuple[Tensor, Tensor, Tensor]
Way = Callable[[Tensor, Tensor, Tensor, bool], Tensor]
"""(values, places, weights, softmax) -> output."""

FORWARD, BOTH, CALL = "forward", "forward+backward", "call"
"""What of a case is timed; a call is so small that only its overhead is seen."""


@dataclass(frozen=True)
class Goal:
    """A ratio to reach at least; of calls, microseconds not to exceed."""

    must: float
    stretch: float


@dataclass(frozen=True)
class Case:
    """One size of one operator.

    Args:
        name: Words with hyphens, from the operator to the detail; leading words name all that begin so.
        about: Sizes, for people.
        tensors: Names of the three tensors in messages.
        make: Makes the inputs, always the same; the argument says whether weights are normalised.
        ways: Makes our operator and what it is measured against.
        works: What is timed.
        softmax: Whether the forward pass includes the softmax on all sides. With gradients it does not:
            the bars were set so.
        goals: Work -> ratio to `official`, with AVX-512 unless `goals_avx2` says otherwise.
    """

    name: str
    about: str
    tensors: tuple[str, str, str]
    make: Callable[[bool], Inputs]
    ways: Callable[[], dict[str, Way]]
    works: tuple[str, ...] = (FORWARD, BOTH)
    softmax: bool = False
    goals: Mapping[str, Goal] = field(default_factory=dict)
    goals_avx2: Mapping[str, Goal] = field(default_factory=dict)

    def goal(self, work: str, against: str, isa: str | None) -> Goal | None:
        """The bar of one thread on this instruction set; None where none was set."""
        if isa not in ("avx512", "avx2"):
            return None
        if against == yardsticks.TORCH_MS_DEFORM_ATTN:
            return {FORWARD: Goal(2.5, 5), BOTH: Goal(3, 6)}[work]
        if against != (OURS if work == CALL else OFFICIAL):
            return None
        goals = self.goals_avx2 if isa == "avx2" and self.goals_avx2 else self.goals
        return goals.get(work)


def all_cases() -> tuple[Case, ...]:
    """In the order of the table."""
    stages = [(stage, 64 * 2**stage, 4 * 2**stage) for stage in range(4)]
    dcnv3 = [
        _dcnv3(f"dcnv3-{size_px}-b{batch}-s{stage + 1}", batch, channels, groups, size_px // 4 // 2**stage)
        for size_px, batch in ((224, 1), (224, 8), (512, 1))
        for stage, channels, groups in stages
    ]
    return (
        *dcnv3,
        _attention("msda-encoder", _DETR, _on_pixels(_DETR), Goal(18, 30), Goal(18, 30)),
        _attention("msda-decoder", _DETR, _anywhere(1, 300), Goal(8, 12), Goal(7, 12), reach_px=4.0),
        _attention("msda-half-encoder", _DETR[1:] + _LAST, _on_pixels(_DETR[1:] + _LAST), None, None),
        _attention(
            "msda-bev-temporal", ((50, 50),), _on_pixels(((50, 50),), batch=2), Goal(15, 25), Goal(13, 22)
        ),
        _attention("msda-bev-spatial", ((15, 25),), _anywhere(6, 625), Goal(15, 25), Goal(13, 22), points=8),
        _tiny(_dcnv3("call-dcnv3", 1, 16, 1, 2)),
        _tiny(_attention("call-msda", ((2, 2),), _anywhere(1, 2), None, None, heads=1, points=1)),
    )


QUICK = ("dcnv3-224-b1-s3", "dcnv3-224-b1-s4", "msda-decoder", "call")


def select(names: Sequence[str]) -> tuple[Case, ...]:
    """The cases of these names, in the order of the table; all where none is given.

    Raises:
        ConfigError: Nothing has such a name.
    """
    cases = all_cases()
    known = {start for case in cases for start in accumulate(case.name.split("-"), "{}-{}".format)}
    for name in names:
        if name not in known:
            raise ConfigError(f"bench ops: no case '{name}'{did_you_mean(name, known)}")
    return tuple(
        case for case in cases if not names or any(f"{case.name}-".startswith(f"{name}-") for name in names)
    )


def _dcnv3(name: str, batch: int, channels: int, groups: int, side: int) -> Case:
    """3x3 points, zero padding, offsets of about a pixel."""
    is_first = name.startswith("dcnv3-224-b1-")

    def make(normalised: bool) -> Inputs:
        rng = torch.Generator().manual_seed(0)
        value = torch.randn(batch, side, side, channels, generator=rng)
        offset = _off_center(torch.randn(batch, side, side, groups * 18, generator=rng))
        mask = torch.randn(batch, side, side, groups, 9, generator=rng)
        return value, offset, (mask.softmax(-1) if normalised else mask).flatten(3)

    def ours(value: Tensor, offset: Tensor, mask: Tensor, softmax: bool) -> Tensor:
        return ops.dcnv3(value, offset, mask, groups=groups, softmax=softmax)

    def official(value: Tensor, offset: Tensor, mask: Tensor, softmax: bool) -> Tensor:
        return yardsticks.official_dcnv3(value, offset, mask, groups=groups, softmax=softmax)

    def reference(value: Tensor, offset: Tensor, mask: Tensor, softmax: bool) -> Tensor:
        return ops.dcnv3(value, offset, mask, groups=groups, softmax=softmax, backend="reference")

    return Case(
        name,
        f"{batch} x {side}x{side}, {channels} channels, {groups} groups",
        ("value", "offset", "mask"),
        make,
        lambda: {OURS: ours, OFFICIAL: official, REFERENCE: reference},
        softmax=True,
        goals={
            FORWARD: Goal(15, 25) if is_first else Goal(11, 20),
            BOTH: Goal(13, 20) if is_first else Goal(9, 16),
        },
        goals_avx2={FORWARD: Goal(10, 16), BOTH: Goal(7, 12)},
    )


Shapes = tuple[tuple[int, int], ...]
_DETR: Shapes = ((100, 134), (50, 67), (25, 34), (13, 17))
_LAST: Shapes = ((7, 9),)


def _attention(
    name: str,
    shapes: Shapes,
    centers: Tensor,
    forward: Goal | None,
    both: Goal | None,
    *,
    heads: int = 8,
    points: int = 4,
    reach_px: float = 2.0,
) -> Case:
    """Points scattered around a center [b, q, 2] of each query, in pixels of each level."""
    batch, queries = centers.shape[:2]

    def make(normalised: bool) -> Inputs:
        rng = torch.Generator().manual_seed(0)
        value = torch.randn(batch, sum(h * w for h, w in shapes), heads, 32, generator=rng)
        offsets = reach_px * torch.randn(batch, queries, heads, len(shapes), points, 2, generator=rng)
        sizes = torch.tensor([(w, h) for h, w in shapes])[:, None]  # [l, 1, (x, y)]
        pixels = centers[:, :, None, None, None] * sizes - 0.5 + offsets
        locations = (_off_center(pixels) + 0.5) / sizes
        weights = torch.randn(batch, queries, heads, len(shapes), points, generator=rng)
        return value, locations, yardsticks.normalised(weights) if normalised else weights

    def ways() -> dict[str, Way]:
        def ours(value: Tensor, locations: Tensor, weights: Tensor, softmax: bool) -> Tensor:
            return ops.ms_deform_attn(value, shapes, locations, weights, softmax=softmax)

        def official(value: Tensor, locations: Tensor, weights: Tensor, softmax: bool) -> Tensor:
            return yardsticks.official_ms_deform_attn(value, shapes, locations, weights, softmax=softmax)

        def reference(value: Tensor, locations: Tensor, weights: Tensor, softmax: bool) -> Tensor:
            return ops.ms_deform_attn(value, shapes, locations, weights, softmax=softmax, backend="reference")

        found = {OURS: ours, OFFICIAL: official, REFERENCE: reference}
        other = yardsticks.torch_ms_deform_attn()
        if not isinstance(other, str):
            found[yardsticks.TORCH_MS_DEFORM_ATTN] = lambda value, locations, weights, softmax: other(
                value, shapes, locations, weights, softmax=softmax
            )
        return found

    levels = ", ".join(f"{h}x{w}" for h, w in shapes)
    return Case(
        name,
        f"{batch} x {queries} queries, {heads} heads of 32, {levels}, {points} points",
        ("value", "sampling_locations", "attention_weights"),
        make,
        ways,
        goals={work: goal for work, goal in ((FORWARD, forward), (BOTH, both)) if goal is not None},
    )


def _tiny(case: Case) -> Case:
    """The case as one of which only the overhead of a call is measured."""
    return Case(case.name, case.about, case.tensors, case.make, case.ways, (CALL,), goals={CALL: Goal(25, 8)})


def _on_pixels(shapes: Shapes, batch: int = 1) -> Tensor:
    """A center on each pixel of each level, as in an encoder: [b, q, (x, y)] in 0..1."""
    maps = []
    for height, width in shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
        )
        maps.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
    return torch.cat(maps).expand(batch, -1, 2)


def _anywhere(batch: int, queries: int) -> Tensor:
    """Centers all over the map and a little beyond its rim."""
    return torch.rand(batch, queries, 2, generator=torch.Generator().manual_seed(1)) * 1.1 - 0.05


def _off_center(pixels: Tensor) -> Tensor:
    """The same coordinates, but none within a hundredth of an integer."""
    whole = pixels.floor()
    return whole + 0.01 + 0.98 * (pixels - whole)
