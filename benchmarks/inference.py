"""What does preparing a network for inference bring?

    python benchmarks/inference.py
    python benchmarks/inference.py --only tiny small --pairs 5 --compile

Classifiers of every structure of the family, prepared (`for_inference`) and as they are, in turns in one
process, without gradients. Depth and width are those of the variant, unless `--width` makes all first stages
equally narrow. Offsets are drawn at random, about a pixel; layer scales and batch norms too, since at their
start they hide mistakes. Nothing is said about speed where outputs differ. Results go to
`benchmarks/results/`. Some minutes with one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _page import RESULTS, setting_of, write_page
from torch import Tensor, nn

from allsight.backbones import InternImage
from allsight.launch.bench.measure import interleave
from allsight.launch.bench.report import aligned, turns
from allsight.layers import DCNv3
from allsight.models import Classifier

VARIANTS = ("tiny", "small", "large", "huge", "giant")
PLAIN, PREPARED, COMPILED = "plain", "prepared", "compiled"
MAY_DIFFER = 1e-5


def classifier(variant: str, width: int | None) -> Classifier:
    """A network of the variant's structure with nothing at its start value."""
    torch.manual_seed(0)
    config = Classifier.Config.variant(variant)
    if width is not None:
        net = InternImage.Config.variant(variant)
        per_group = net.channels // net.groups[0]
        groups = tuple(max(1, width * 2**i // per_group) for i in range(4))
        net = InternImage.Config.variant(variant, channels=width, groups=groups)
        config = Classifier.Config(backbone=net, head=config.head)
    model = Classifier(config).eval()
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            nn.init.uniform_(parameter, 0.1, 0.5)
    for module in model.modules():
        if isinstance(module, DCNv3):
            for linear in (module.offset, module.mask):
                nn.init.normal_(linear.weight, std=1.5 / module.channels**0.5)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


def row(
    variant: str, size_px: int, width: int | None, pairs: int, clock: str, *, compiled: bool
) -> list[str]:
    """Times, their ratio, and how much outputs differ."""
    model, images = classifier(variant, width), torch.randn(1, 3, size_px, size_px)
    nets: dict[str, nn.Module] = {PLAIN: model, PREPARED: model.for_inference()}
    if compiled:
        nets[COMPILED] = model.for_inference(compile=True)
    difference = 0.0
    with torch.no_grad():
        expected = model(images)
        for net in nets.values():
            difference = max(difference, float((net(images) - expected).abs().max() / expected.abs().max()))
    if not difference <= MAY_DIFFER:
        sys.exit(f"{variant}: outputs differ by {difference:.1e} of the largest; no speed-up is given")

    def task(net: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.inference_mode():
                return net(images)

        return run

    samples = interleave({name: task(net) for name, net in nets.items()}, pairs=pairs, clock=clock)  # pyright: ignore[reportArgumentType]
    cells = [variant, f"{size_px}", f"{1e3 * samples.median(PLAIN):.1f} ms"]
    for name in (PREPARED, COMPILED):
        if name in nets:
            cells += [f"{1e3 * samples.median(name):.1f} ms", f"{samples.ratio(PLAIN, name):.3f}x"]
    return [*cells, f"{difference:.0e}"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=tuple(InternImage.variants), default=VARIANTS)
    parser.add_argument("--size", type=int, default=224, help="side of the picture in pixels")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage; 0: the variant's")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="1: CPU time of the thread; more: wall time")
    parser.add_argument("--compile", action="store_true", help="also with compiled blocks")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    clock = "cpu" if chosen.threads == 1 else "wall"
    lines = [["structure of", "px", PLAIN, PREPARED, "faster by"]]
    lines[0] += [COMPILED, "faster by"] if chosen.compile else []
    lines[0] += ["differs by"]
    for variant in chosen.only:
        lines.append(
            row(variant, chosen.size, chosen.width or None, chosen.pairs, clock, compiled=chosen.compile)
        )
        print(aligned(lines[:1] + lines[-1:]), flush=True)
    setting = setting_of(__file__, turns(chosen.threads, chosen.pairs))
    write_page("inference", "Prepared for inference", setting, [aligned(lines)], chosen.out)


if __name__ == "__main__":
    main()
