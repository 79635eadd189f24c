"""How fast, how large and how exact is a whole InternImage-T on a CPU, on our operator and on others?

    python benchmarks/internimage_cpu.py
    python benchmarks/internimage_cpu.py --only inference-224 --pairs 5

The same network runs on the compiled operators (`cpu`), on this package's plain PyTorch (`reference`), and on
the formulation of the official fall-back (`official`), in turns in one process; inference also after
`prepare_for_inference` (`prepared`). Without gradients `cpu` fuses norms with their neighbours by itself.
Offsets and weights of the operator are drawn at random so that offsets are about a pixel: a fresh network
samples the regular grid only. Beside them runs one large matrix product, since that is where the floor is:
the FLOPs of the linear layers and convolutions at its rate. `training-micro` is a step of the recipes' small
network, batch and size as in `internimage_micro_tiny20`. Results go to `benchmarks/results/`. 10 minutes
with one thread.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from _memory import Peak, mib, peak_of, report_peak
from _page import RESULTS, setting_of, write_page
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from allsight import ops
from allsight.launch.bench.measure import Samples, interleave
from allsight.launch.bench.report import aligned, turns
from allsight.launch.bench.yardsticks import official_dcnv3
from allsight.layers import DCNv3, prepare_for_inference
from allsight.models import Classifier

WAYS = ("cpu", "reference", "official")
LOOKING = ("cpu", "prepared", "reference", "official")
PARTS = ("inference-224", "inference-512", "training", "training-micro", "memory", "accuracy")
GEMM, GEMM_SIDE = "matrix product", 2048
# Ratio to the official network at least, and share of the floor at least: what must be and what should be.
SPEED = {"inference-224": (2.3, 3.3), "inference-512": (2.8, 4.0), "training": (1.8, 2.6)}
FLOOR = {"inference-224": (0.52, 0.75), "inference-512": (0.52, 0.75), "training": (0.48, 0.65)}
MICRO = 32, 64  # Pictures in a step and their side, as in `internimage_micro_tiny20`.
MEMORY, ACCURACY = (0.75, 0.6), (2e-5, 5e-6)
OUTPUTS_MAY_DIFFER, GRADIENTS_MAY_DIFFER = 1e-3, 1e-2


def classifier(variant: str = "tiny", classes: int = 1000) -> Classifier:
    """An InternImage with offsets of about a pixel and uneven weights."""
    torch.manual_seed(0)
    model = Classifier(Classifier.Config.variant(variant, num_classes=classes))
    for module in model.modules():
        if isinstance(module, DCNv3):
            for linear in (module.offset, module.mask):
                nn.init.normal_(linear.weight, std=1.5 / module.channels**0.5)
    return model


@contextmanager
def running_on(way: str) -> Iterator[None]:
    """Let the network's operator be computed in this way."""
    if way == "official":
        # Everything else on plain PyTorch too: nothing of what is fused elsewhere.
        with mock.patch("allsight.layers.dcnv3.dcnv3", _official), ops.use_backend("reference"):
            yield
    else:
        with ops.use_backend("cpu" if way == "prepared" else way):  # pyright: ignore[reportArgumentType]
            yield


def _official(value: Tensor, offset: Tensor, mask: Tensor, **options: Any) -> Tensor:
    plain = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    plain |= {"remove_center": False}
    assert all(options[name] == setting for name, setting in plain.items()), options
    chosen = {name: options[name] for name in ("groups", "softmax", "offset_scale")}
    return official_dcnv3(value, offset, mask, **chosen)


def inference(size_px: int) -> Callable[[str], object]:
    """A function that looks at one picture."""
    model, images = classifier().eval(), torch.randn(1, 3, size_px, size_px)
    prepared = prepare_for_inference(model)

    def run(way: str) -> Tensor:
        with torch.inference_mode(), running_on(way):
            return (prepared if way == "prepared" else model)(images)

    return run


def training(variant: str = "tiny", batch: int = 4, size_px: int = 224) -> Callable[[str], object]:
    """A function that does one step."""
    model = classifier(variant).train()
    # So small a step that the weights stay where they are, however often it is done.
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7, momentum=0.9)
    images, labels = torch.randn(batch, 3, size_px, size_px), torch.arange(batch)

    def run(way: str) -> None:
        with running_on(way):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def gradients(model: Classifier, images: Tensor, way: str) -> dict[str, Tensor]:
    """Of all parameters."""
    with running_on(way):
        loss = F.cross_entropy(model(images.to(next(model.parameters()).dtype)), torch.arange(len(images)))
        grads = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip(dict(model.named_parameters()), grads, strict=True))


def errors(size_px: int, ways: tuple[str, ...] = WAYS) -> dict[str, np.ndarray]:
    """Way -> relative errors (L2) of the float32 gradients of all parameters against a float64 run.

    Parameters whose true gradient is zero, such as a shift that a batch norm takes away again, are left out.
    """
    model = classifier().train()
    images = torch.randn(4, 3, size_px, size_px, generator=torch.Generator().manual_seed(1))
    truth = gradients(copy.deepcopy(model).double(), images, "reference")
    floor = 1e-9 * max(float(grad.norm()) for grad in truth.values())
    known = [name for name, grad in truth.items() if float(grad.norm()) > floor]
    found = {}
    for way in ways:
        grads = gradients(model, images, way)
        found[way] = np.array([float((grads[n].double() - truth[n]).norm() / truth[n].norm()) for n in known])
    return found


def refuse_different() -> None:
    """End here if the ways do not compute the same: then nothing is said about speed."""
    run = inference(96)
    outputs = {way: run(way) for way in LOOKING}
    for way in LOOKING[1:]:
        ours, other = outputs["cpu"], outputs[way]
        assert isinstance(ours, Tensor) and isinstance(other, Tensor)
        difference = float((ours - other).abs().max() / other.abs().max())
        if not difference <= OUTPUTS_MAY_DIFFER:
            sys.exit(
                f"logits differ from those on {way} by {difference:.1e} of the largest; no speed-up is given"
            )
    middle = float(np.median(errors(64, ("cpu",))["cpu"]))
    if not middle <= GRADIENTS_MAY_DIFFER:
        sys.exit(f"gradients differ from the float64 run by {middle:.1e} in the median; no speed-up is given")


def forward_flops(size_px: int, batch: int, variant: str = "tiny") -> int:
    """Of linear layers and convolutions."""
    model, images = classifier(variant).eval(), torch.randn(batch, 3, size_px, size_px)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return counter.get_total_flops()


def time_parts(parts: list[str], pairs: int, threads: int) -> str:
    """A table of times, ratios and shares of the floor."""
    lines = [
        [
            "what",
            "on",
            "takes",
            "cpu is faster by",
            "must",
            "stretch",
            "share of the floor",
            "must",
            "stretch",
        ]
    ]
    square = torch.randn(GEMM_SIDE, GEMM_SIDE)
    for part in parts:
        if part == "training-micro":
            run, flops, ways = training("micro", *MICRO), 3 * forward_flops(MICRO[1], MICRO[0], "micro"), WAYS
        elif part == "training":
            run, flops, ways = training(), 3 * forward_flops(224, 4), WAYS
        else:
            size_px = int(part.removeprefix("inference-"))
            run, flops, ways = inference(size_px), forward_flops(size_px, 1), LOOKING
        tasks: dict[str, Callable[[], object]] = {way: _bound(run, way) for way in ways}
        tasks[GEMM] = lambda: F.linear(square, square)
        samples = interleave(tasks, pairs=pairs, clock="cpu" if threads == 1 else "wall")
        floor_s = flops * samples.median(GEMM) / (2 * GEMM_SIDE**3)
        lines += [_line(part, way, samples, floor_s) for way in ways]
        lines.append(["", "floor", f"{1e3 * floor_s:.0f} ms ({flops / 1e9:.2f} GFLOP)", *[""] * 6])
        print(aligned(lines), flush=True)
    return aligned(lines)


def _bound(run: Callable[[str], object], way: str) -> Callable[[], object]:
    return lambda: run(way)


def _line(part: str, way: str, samples: Samples, floor_s: float) -> list[str]:
    took = f"{1e3 * samples.median(way):.0f} ms"
    if way == "cpu":
        share = floor_s / samples.median("cpu")
        return [part, way, took, "", "", "", f"{share:.2f}", *map(str, FLOOR.get(part, ("", "")))]
    bars = [f"{bar:g}x" for bar in SPEED[part]] if way == "official" and part in SPEED else ["", ""]
    if way == "prepared":
        share = f"{floor_s / samples.median(way):.2f}"
        return ["", way, took, f"{samples.ratio(way, 'cpu'):.2f}x", *bars, share, "", ""]
    return ["", way, took, f"{samples.ratio(way, 'cpu'):.2f}x", *bars, "", "", ""]


def memory_table() -> str:
    """Peaks of a training step in fresh processes."""
    peaks: dict[str, Peak] = {way: peak_of(__file__, way) for way in WAYS}
    lines = [["training step 224, batch 4, on", "allocated", "VmHWM", "share", "must", "stretch"]]
    for way, peak in peaks.items():
        share = peaks["cpu"].allocated / peak.allocated
        bars = [f"<= {bar:g}" for bar in MEMORY] if way == "official" else ["", ""]
        lines.append(
            [way, mib(peak.allocated), mib(peak.resident), "" if way == "cpu" else f"{share:.2f}", *bars]
        )
    return (
        aligned(lines)
        + "\n\nPeaks above weights and inputs; the share is that of `cpu` in what was allocated."
    )


def accuracy_table(size_px: int = 64) -> str:
    """Errors of float32 gradients."""
    lines = [
        [f"gradients at {size_px} px, batch 4, on", "median error", "90 %", "largest", "must", "stretch"]
    ]
    for way, values in errors(size_px).items():
        bars = [f"<= {bar:.0e}" for bar in ACCURACY] if way == "cpu" else ["", ""]
        figures = [f"{np.quantile(values, share):.1e}" for share in (0.5, 0.9, 1.0)]
        lines.append([way, *figures, *bars])
    return aligned(lines) + "\n\nRelative L2 per parameter, float32 against float64."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="1: CPU time of the thread; more: wall time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.peak:
        run = training()
        report_peak(lambda: run(chosen.peak))
        return
    refuse_different()
    parts = []
    timed = [part for part in PARTS if part in chosen.only and part not in ("memory", "accuracy")]
    if timed:
        parts.append(time_parts(timed, chosen.pairs, chosen.threads))
    if "memory" in chosen.only:
        parts.append(memory_table())
    if "accuracy" in chosen.only:
        parts.append(accuracy_table())
    setting = setting_of(__file__, turns(chosen.threads, chosen.pairs))
    write_page("internimage_cpu", "InternImage-T on a CPU", setting, parts, chosen.out)


if __name__ == "__main__":
    main()
