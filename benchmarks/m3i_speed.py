"""What does a step of M3I cost, against supervised training of the same batch and a forward pass a target?

    python benchmarks/m3i_speed.py
    python benchmarks/m3i_speed.py --only micro --pairs 5
    python benchmarks/m3i_speed.py --quick                 # small networks, 3 rounds: does it run?

- `micro`: the network of `m3i_micro` on 32 views of 64 px, decoders of the recipe.
- `vit_micro`: a transformer in its place.
- `vit_b16`: ViT-B/16 on 4 views of 224 px with the decoders of Siamese Image Modeling (width 768, 2 + 4
  blocks).
- `memory`: bytes that the dense loss with its covariance term allocates, for tokens and twice as many.

A step is forward, backward, optimiser and slow copies; views are random, so that data costs nothing. The bar:
one mixed step takes at most 1.25 times as long as a supervised step of the same batch together with one
forward pass of the whole batch for each target of images. `rotate` lets each picture play both roles, which
the bar is not about. One thread, CPU time, ways in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _memory import allocated_by
from _page import RESULTS, setting_of, write_page
from torch import Tensor

from allsight.backbones import ViT
from allsight.config import replace
from allsight.launch.bench.measure import Samples, interleave
from allsight.models import M3I
from allsight.models.m3i import cases
from allsight.objectives import covariance_term, gaussian_nll, second_moment
from allsight.recipes import m3i_micro, m3i_vit_b16
from allsight.types import Batch

PARTS = ("micro", "vit_micro", "vit_b16", "memory")
BAR = 1.25
CLASSES = 20
Rows = list[list[str]]


class Classes:
    """What a model asks of a task."""

    num_classes = CLASSES
    tokenizer = None

    def head(self, features: Any) -> Any:
        raise NotImplementedError

    def cast(self, batch: Batch) -> Any:
        raise NotImplementedError


def views_of(rows: int, size_px: int) -> Batch:
    """Two random views of each picture, with random crops and classes."""
    rng = torch.Generator().manual_seed(0)
    images = [
        torch.randint(256, (rows, 3, size_px, size_px), dtype=torch.uint8, generator=rng) for _ in range(2)
    ]
    geometry = []
    for _ in range(2):
        crop = torch.rand(rows, 4, generator=rng) * 20 + torch.tensor([0.0, 0.0, 30.0, 30.0])
        mirrored = torch.randint(2, (rows, 1), generator=rng)
        geometry.append(torch.cat([crop, torch.full((rows, 1), 80.0), mirrored], 1))
    seeds = torch.randint(2**31, (rows,), generator=rng)
    inputs = {"views": tuple(images), "geometry": tuple(geometry), "seed": seeds}
    targets = {"label": torch.randint(CLASSES, (rows,), generator=rng)}
    return Batch("t", tuple(map(str, range(rows))), inputs, targets, group_size=2)


def model_of(config: M3I.Config) -> M3I:
    torch.manual_seed(0)
    return M3I(replace(config, {"watch.every_steps": None}), {"t": Classes()}).train()


def step_of(model: M3I, batch: Batch) -> Callable[[], None]:
    """A whole training step."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        losses: dict[str, Tensor] = model(batch)[0]["losses"]  # type: ignore[assignment]
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        model.after_step(0)

    return step


def parts_of(model: M3I, batch: Batch) -> dict[str, Callable[[], object]]:
    """The forward passes of a mixed step, one by one; what is left of the step is backward and optimiser."""
    scene, players = model._scene(batch)
    views = sorted({view for target in model.config.targets.values() for _, view in target.pairs[:1]})
    dense = [model.targets[name] for name in ("intra", "inter")]

    def mixed() -> None:
        model._scene(batch)

    def slow() -> None:
        with torch.no_grad():
            for view in views:
                rows = scene._momentum_rows.get(view)
                images = scene.views[view].images
                model.momentum_encoder.whole(images if rows is None else images[rows])  # type: ignore[union-attr]

    def predicted() -> None:
        # The slow copies' features are known by now: what is left is decoders, projectors and losses.
        for target in dense:
            target(scene, players)

    predicted()
    return {"mixing and encoder": mixed, "slow copies": slow, "decoders and losses": predicted}


def measured(name: str, config: M3I.Config, batch: Batch, pairs: int) -> Rows:
    """Rows of the table for one network."""
    mixed, rotated = model_of(config), model_of(replace(config, {"mixer.roles": "rotate"}))
    plain = model_of(cases.supervised(config.backbone))
    images = batch.inputs["views"][0]

    def forward() -> None:
        with torch.no_grad():
            plain.encoder.whole(images)

    ways: dict[str, Callable[[], object]] = {
        "supervised step": step_of(plain, batch),
        "forward pass": forward,
        "mixed step": step_of(mixed, batch),
        "mixed step, rotate": step_of(rotated, batch),
        **parts_of(mixed, batch),
    }
    timed = interleave(ways, pairs=pairs, calls=1)
    ratio, rotate = (_against(timed, way) for way in ("mixed step", "mixed step, rotate"))
    rows = [[name, "mixed step / (supervised step + 2 forward passes)", f"{ratio:.2f}", f"<= {BAR}"]]
    rows.append([name, "the same with roles=rotate: twice the inputs", f"{rotate:.2f}", ""])
    rows += [[name, way, f"{1000 * timed.median(way):.0f} ms", ""] for way in ways]
    forwards = ("mixing and encoder", "slow copies", "decoders and losses")
    rest = timed.median("mixed step") - sum(timed.median(way) for way in forwards)
    rows.append([name, "backward, optimiser and the rest", f"{1000 * rest:.0f} ms", ""])
    return rows


def _against(timed: Samples, way: str) -> float:
    allowed = np.array(timed.seconds["supervised step"]) + 2 * np.array(timed.seconds["forward pass"])
    return float(np.median(np.array(timed.seconds[way]) / allowed))


def memory(channels: int = 768) -> Rows:
    """Bytes of the dense loss, forward and backward."""

    def work(rows: int) -> Callable[[], None]:
        prediction, target = torch.randn(2, rows, channels)
        prediction.requires_grad_()

        def call() -> None:
            loss = gaussian_nll(prediction, target).mean()
            (loss + 0.02 * covariance_term(prediction, second_moment(target))).backward()

        return call

    for rows in (4096, 8192):
        work(rows)()
    once, twice = (allocated_by(work(rows)) for rows in (4096, 8192))
    return [
        ["memory", f"dense loss of 4096 tokens of {channels} channels", f"{once / 2**20:.0f} MiB", ""],
        ["memory", "a matrix of tokens times tokens", f"{4 * 4096**2 / 2**20:.0f} MiB", "not formed"],
        ["memory", "twice as many tokens", f"{twice / once:.2f} times as much", "<= 2"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="small networks, 3 rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", default="", help="a line for the page, such as what else the machine did")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    pairs = 3 if chosen.quick else chosen.pairs
    micro = m3i_micro().model
    assert isinstance(micro, M3I.Config)
    rows: Rows = [["network", "what", "figure", "bar"], ["---"] * 4]
    if "micro" in chosen.only:
        rows += measured("InternImage, 64 px", micro, views_of(32, 64), pairs)
    if "vit_micro" in chosen.only:
        transformer = replace(micro, {"backbone": ViT.Config.variant("micro")})
        rows += measured("ViT-micro, 64 px", transformer, views_of(32, 64), pairs)
    if "vit_b16" in chosen.only and not chosen.quick:
        rows += measured("ViT-B/16, 224 px", m3i_vit_b16().model, views_of(4, 224), max(3, pairs // 5))  # type: ignore[arg-type]
    if "memory" in chosen.only:
        rows += memory()
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    method = f"one thread, CPU time, {pairs} rounds in turn. {chosen.note}".strip()
    write_page("m3i_speed", "What a step of M3I costs", setting_of(__file__, method), [table], chosen.out)


if __name__ == "__main__":
    main()
