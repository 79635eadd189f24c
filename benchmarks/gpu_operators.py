"""How fast are the Triton operators on this GPU, against the reference, eager and under torch.compile?

    python benchmarks/gpu_operators.py [--only REGEX] [--limit-s 800] [--sweep]

Each case is first checked: output and gradients against the reference in float64 (two images of the batch),
images against the whole batch, the deterministic backward against itself, bit for bit. A case that differs is
reported and not timed, and the exit status is 1. Then all contenders take turns on the same tensors, with the
L2 cache overwritten before each turn; figures are medians of GPU time over the turns.

"ideal" is the time in which the device copies as many bytes as the operator must move at least (each tensor
read or written once), measured beforehand with a large copy; the fraction is ideal / measured. Compiling the
reference takes most of the time of a full run: `--limit-s` starts no further case after that many seconds and
lists what was left out. `--sweep` times the kernels for other tile sizes instead, to find better rules for
`allsight.ops._triton.Tile`.

Writes `benchmarks/results/DATE-gpu-operators-DEVICE.md`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from allsight.ops import _triton, dcnv3, ms_deform_attn

RESULTS = Path(__file__).parent / "results"
TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
FLUSHED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Case:
    """A call to measure: `draw` gives its tensors (batch first) and the gradient of the output."""

    name: str
    call: Callable[..., Tensor]  # of the tensors and the backend
    draw: Callable[[torch.Generator, torch.dtype], tuple[list[Tensor], Tensor]]
    dtype: str

    def __str__(self) -> str:
        return f"{self.name}, {self.dtype}"


def dcnv3_case(name: str, batch: int, size: int, groups: int, group_channels: int, dtype: str) -> Case:
    """3 x 3 points; offsets of about two pixels, as trained models have them or wider."""

    def draw(generator: torch.Generator, type_: torch.dtype) -> tuple[list[Tensor], Tensor]:
        normal = partial(torch.randn, generator=generator, device=generator.device)
        maps = (batch, size, size, groups * group_channels)
        value, grad = normal(maps).to(type_), normal(maps).to(type_)
        offset = away_from_pixels(normal(batch, size, size, groups * 18).to(type_))
        return [value, offset, normal(batch, size, size, groups * 9).to(type_)], grad

    return Case(name, partial(dcnv3, groups=groups, softmax=True), draw, dtype)


def attention_case(
    name: str,
    batch: int,
    shapes: Sequence[tuple[int, int]],
    grids: Sequence[tuple[int, int]],
    points: int,
    dtype: str,
) -> Case:
    """8 heads of 32 channels; queries on grids over the picture, float32 places two pixels around them."""

    def draw(generator: torch.Generator, type_: torch.dtype) -> tuple[list[Tensor], Tensor]:
        normal = partial(torch.randn, generator=generator, device=generator.device)
        centers = torch.cat([pixel_centers(*grid) for grid in grids]).to(generator.device)  # [q, 2]
        levels = len(shapes)
        sizes = torch.tensor([(width, height) for height, width in shapes], device=generator.device)
        pixels = centers[:, None] * sizes - 0.5  # [q, l, 2]
        moved = pixels[:, None, :, None] + 2 * normal(batch, len(centers), 8, levels, points, 2)
        locations = (away_from_pixels(moved) + 0.5) / sizes[:, None]
        value = normal(batch, sum(height * width for height, width in shapes), 8, 32).to(type_)
        weights = normal(batch, len(centers), 8, levels, points).to(type_)
        return [value, locations, weights], normal(batch, len(centers), 256).to(type_)

    def call(value: Tensor, locations: Tensor, weights: Tensor, backend: str) -> Tensor:
        return ms_deform_attn(value, shapes, locations, weights, softmax=True, backend=backend)

    return Case(name, call, draw, dtype)


def pixel_centers(height: int, width: int) -> Tensor:
    """(x, y) of all pixels of a grid, 0 to 1 over its edges, row by row."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([x, y], -1).flatten(0, 1)


def away_from_pixels(places: Tensor) -> Tensor:
    """Move places off whole coordinates, where the derivative jumps and rounding decides the side."""
    return torch.where((places - places.round()).abs() < 0.02, places + 0.3, places)


def all_cases() -> list[Case]:
    """The shapes of the operator study, hardest first."""
    pyramid = [(100, 134), (50, 67), (25, 34), (13, 17)]
    cameras = [(116, 200), (58, 100), (29, 50), (15, 25)]
    cases = []
    for dtype in ("bf16", "fp16", "fp32"):
        cases.append(dcnv3_case("DCNv4 paper: 64 x 56 x 56 x 128, 4 groups", 64, 56, 4, 32, dtype))
        for batch in (64, 128):
            for stage in range(4):
                size, groups = 56 >> stage, 4 << stage
                name = f"InternImage-T, 224 px, stage {stage + 1}, batch {batch}"
                cases.append(dcnv3_case(name, batch, size, groups, 16, dtype))
        attention = partial(attention_case, dtype=dtype)
        cases += [
            attention("Deformable-DETR encoder, batch 4", 4, pyramid, pyramid, 4),
            attention("Deformable-DETR decoder, batch 4, 300 queries", 4, pyramid, [(15, 20)], 4),
            attention("BEVFormer temporal, 2 x 200 x 200 queries", 2, [(200, 200)], [(200, 200)], 4),
            attention("BEVFormer spatial, 6 x 9675 queries", 6, cameras, [(75, 129)], 8),
        ]
    return cases


def outputs_and_gradients(case: Case, backend: str, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in tensors]
    output = case.call(*inputs, backend=backend)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


def differences(case: Case, tensors: Sequence[Tensor], grad: Tensor) -> list[str]:
    """Check the kernels on a case; a line for each thing that is wrong."""
    wrong = []
    some = [0, len(grad) - 1]
    whole = outputs_and_gradients(case, "triton", tensors, grad)
    few = outputs_and_gradients(case, "triton", [tensor[some] for tensor in tensors], grad[some])
    doubles = [tensor[some].double() for tensor in tensors]
    exact = outputs_and_gradients(case, "reference", doubles, grad[some].double())
    names = ("output", "gradient of value", "gradient of places", "gradient of weights")
    for name, w, f, e in zip(names, whole, few, exact, strict=True):
        # Places in float32 carry an error that grows with the map; its gradients feel it most.
        limit = max(torch.finfo(f.dtype).eps, 1e-5 if name == "output" else 1e-4)
        error = float((f.double() - e).norm() / e.norm())
        if not error < limit:
            wrong.append(f"{name}: relative error {error:.1e}, expected below {limit:.1e}")
        # Floating-point sums of the gradient of value depend on the order of programs.
        if name != "gradient of value" and not torch.equal(w[some], f):
            wrong.append(f"{name}: images depend on the rest of the batch")
    torch.use_deterministic_algorithms(True)
    first, second = (outputs_and_gradients(case, "triton", tensors, grad) for _ in range(2))
    torch.use_deterministic_algorithms(False)
    for name, w, a, b in zip(names, whole, first, second, strict=True):
        if not torch.equal(a, b):
            wrong.append(f"{name}: differs between runs of the deterministic backward")
        limit = max(torch.finfo(a.dtype).eps, 1e-6)
        error = float((a.double() - w.double()).norm() / w.double().norm())
        if not error < limit:
            wrong.append(f"{name}: deterministic and default backward differ by {error:.1e}")
    return wrong


class Stopwatch:
    """GPU time of single calls, each with a cold L2 cache."""

    def __init__(self, turns: int) -> None:
        self.turns = turns
        self._flush = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")

    def medians_ms(self, contenders: dict[str, Callable[[], object]]) -> dict[str, float]:
        """Let the contenders take turns; NaN for those that run out of memory."""
        able = {name: run for name, run in contenders.items() if self._warm_up(run)}
        events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in able}
        for turn in range(self.turns):
            order = list(able.items())
            for name, run in order[turn % len(order) :] + order[: turn % len(order)]:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                self._flush.zero_()
                start.record()
                run()
                end.record()
                events[name].append((start, end))
            torch.cuda.synchronize()
        times = {
            name: statistics.median(start.elapsed_time(end) for start, end in pairs)
            for name, pairs in events.items()
        }
        return {name: times.get(name, float("nan")) for name in contenders}

    def _warm_up(self, run: Callable[[], object]) -> bool:
        try:
            for _ in range(3):
                run()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return False
        return True

    def bytes_per_ms(self) -> float:
        """Bytes read and written in a millisecond of a large copy."""
        source = torch.empty(2**28, dtype=torch.float32, device="cuda").normal_()
        target = torch.empty_like(source)
        time_ms = self.medians_ms({"copy": lambda: target.copy_(source)})["copy"]
        return 2 * source.nbytes / time_ms


def deterministically(run: Callable[[], object]) -> Callable[[], object]:
    def wrapped() -> None:
        torch.use_deterministic_algorithms(True)
        run()
        torch.use_deterministic_algorithms(False)

    return wrapped


def measure(case: Case, tensors: Sequence[Tensor], grad: Tensor, watch: Stopwatch) -> list[dict[str, float]]:
    """Times of forward, then of forward and backward, with the bytes that each must move."""
    torch.compiler.reset()

    def reference(*inputs: Tensor) -> Tensor:
        return case.call(*inputs, backend="reference")

    calls = {
        "triton": partial(case.call, backend="triton"),
        "compiled": torch.compile(reference, dynamic=False),
        "eager": reference,
    }

    def forward(call: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            call(*tensors)

    def both(call: Callable[..., Tensor]) -> None:
        inputs = [tensor.detach().requires_grad_() for tensor in tensors]
        torch.autograd.grad(call(*inputs), inputs, grad)

    once = sum(tensor.nbytes for tensor in tensors)
    rows = []
    for run, must_move in ((forward, once + grad.nbytes), (both, 3 * once + 2 * grad.nbytes)):
        contenders = {name: partial(run, call) for name, call in calls.items()}
        if run is both:
            contenders["deterministic"] = deterministically(contenders["triton"])
        rows.append(watch.medians_ms(contenders) | {"bytes": float(must_move)})
    return rows


def table_row(case: Case, what: str, times: dict[str, float], bytes_per_ms: float) -> str:
    triton, ideal = times["triton"], times["bytes"] / bytes_per_ms
    cells = [
        f"{case} | {what}",
        f"{triton:.3f}",
        f"{ideal:.3f}",
        f"{ideal / triton:.2f}",
        *(f"{times[name]:.3f} | {times[name] / triton:.1f}x" for name in ("compiled", "eager")),
        f"{times['deterministic'] / triton:.2f}" if "deterministic" in times else "",
    ]
    return f"| {' | '.join(cells)} |"


HEADER = """\
| case | pass | Triton ms | ideal ms | fraction | compiled ms | ratio | eager ms | ratio | deterministic |
|---|---|---|---|---|---|---|---|---|---|"""


def sweep(cases: Sequence[Case], generator: torch.Generator, watch: Stopwatch) -> None:
    """Print times for other tiles than the rules would choose."""
    usual = _triton._MOST_ROWS, _triton._MOST_WARPS
    for case in cases:
        tensors, grad = case.draw(generator, TYPES[case.dtype])
        print(f"\n{case}: rows x warps at most, forward ms, forward and backward ms")
        for rows in (16, 32, 64, 128):
            for warps in (2, 4, 8, 16):
                _triton._MOST_ROWS, _triton._MOST_WARPS = rows, warps
                times = watch.medians_ms(
                    {
                        "forward": lambda tensors=tensors, case=case: case.call(*tensors, backend="triton"),
                        "both": partial(outputs_and_gradients, case, "triton", tensors, grad),
                    }
                )
                chosen = " (the rule)" if (rows, warps) == usual else ""
                print(f"{rows:4} x {warps:2}: {times['forward']:7.3f} {times['both']:7.3f}{chosen}")
    _triton._MOST_ROWS, _triton._MOST_WARPS = usual


def describe_machine(bytes_per_ms: float, turns: int) -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "triton"))
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return (
        f"{torch.cuda.get_device_name()}, {versions}, {runtime}, Python {platform.python_version()}\n\n"
        f"Command: `python {' '.join(sys.argv)}`; medians of {turns} turns; a large copy moves "
        f"{bytes_per_ms / 1e9:.2f} TB/s."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Speed of the Triton operators on this GPU")
    parser.add_argument("--only", default="", help="regular expression that the name of a case must match")
    parser.add_argument("--turns", type=int, default=30)
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no case after this time")
    parser.add_argument("--sweep", action="store_true", help="time other tile sizes instead")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_operators: no GPU here, nothing was measured")
        return 0
    began = time.monotonic()
    cases = [case for case in all_cases() if re.search(options.only, str(case))]
    generator = torch.Generator("cuda").manual_seed(0)
    watch = Stopwatch(options.turns)
    if options.sweep:
        sweep(cases, generator, watch)
        return 0

    bytes_per_ms = watch.bytes_per_ms()
    lines, wrong, left_out = [HEADER], [], []
    for case in cases:
        if time.monotonic() - began > options.limit_s:
            left_out.append(str(case))
            continue
        tensors, grad = case.draw(generator, TYPES[case.dtype])
        problems = differences(case, tensors, grad)
        if problems:
            wrong.append(f"- {case}: {'; '.join(problems)}")
            print(wrong[-1], flush=True)
            continue
        for what, times in zip(("forward", "both"), measure(case, tensors, grad, watch), strict=True):
            lines.append(table_row(case, what, times, bytes_per_ms))
            print(lines[-1], flush=True)
    today = datetime.date.today().isoformat()
    parts = [
        f"# Operators on a GPU, {today}",
        describe_machine(bytes_per_ms, options.turns),
        "\n".join(lines),
    ]
    if wrong:
        parts += ["Results differ, hence not timed:", "\n".join(wrong)]
    if left_out:
        parts += ["Not run for lack of time: " + "; ".join(left_out) + "."]
    device = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    report = options.out / f"{today}-gpu-operators-{device}.md"
    report.write_text("\n\n".join(parts) + "\n")
    print(f"written to {report}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
