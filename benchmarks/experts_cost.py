"""What do experts chosen by attributes cost: in training, and when they are merged for use?

    python benchmarks/experts_cost.py
    python benchmarks/experts_cost.py --only micro --rounds 10
    python benchmarks/experts_cost.py --quick                 # few tokens, 2 rounds: does it run?

- `micro`: the network of 64 px (width 128, 4 blocks).
- `wide`: two blocks of base (width 768, 224 px).

Every second block has eight experts at each linear layer, of which a token gets two. Asked are names of
pictures (all tokens share their experts) and captions (those of picture and text differ); `wide` is asked for
captions alone, and gets a third of the rounds. The bar: forward and backward of 4,096 tokens or more take at
most 1.15 times as long as those of the dense network. What the optimiser adds depends on parameters alone and
stands apart; merged experts answer as fast as a dense network.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from _generalist import TASK, captioning, model_of, naming, pass_of, settings, tokens_of
from _page import RESULTS, setting_of, write_page

from allsight.launch.bench.measure import Samples, interleave, upper_bound
from allsight.launch.bench.report import aligned
from allsight.models import UniPerceiver
from allsight.models.uniperceiver import ExpertSettings
from allsight.types import Query

BAR = 1.15
NETWORKS = {
    "micro": ({}, 64, 64),
    "wide": (
        dict(channels=768, depth=2, heads=12, hidden=3072, stem="patch", patch_px=16, image_px=224),
        224,
        18,
    ),
}
"""Changes of `micro`, size of pictures, how many."""
Rows = list[list[str]]


def optimiser_of(model: UniPerceiver) -> Callable[[], object]:
    """A step of AdamW with the gradients that are there."""
    return torch.optim.AdamW([p for p in model.parameters() if p.grad is not None], 1e-4, fused=True).step


def answer_of(model: UniPerceiver, query: Query) -> Callable[[], None]:
    model.eval()

    def answer() -> None:
        with torch.inference_mode():
            model.answer(query, task=TASK)

    return answer


def measured(name: str, rounds: int, *, quick: bool) -> Rows:
    """Rows of the table for one network."""
    changes, size_px, rows = NETWORKS[name]
    rows = 2 if quick else rows
    is_wide = name == "wide"
    rounds = max(2, rounds // 3) if is_wide else rounds
    queries = {
        "names": naming(rows, size_px, names=20, length=2),
        "captions": captioning(rows, size_px, length=20),
    }
    if is_wide:
        del queries["names"]
    dense, experts = (model_of(settings(**changes, experts=each)) for each in (None, ExpertSettings()))
    found: Rows = []
    for asked, query in queries.items():
        ways = {"dense": pass_of(dense, query), "experts": pass_of(experts, query)}
        count = f"{name}, {asked}, {tokens_of(dense, query):,} tokens"
        found.append(
            _row(count, "forward and backward", interleave(ways, pairs=rounds, calls=1), f"<= {BAR}")
        )
    steps = {"dense": optimiser_of(dense), "experts": optimiser_of(experts)}
    found.append(_row(name, "optimiser alone", interleave(steps, pairs=rounds, calls=1), ""))
    merged = experts.merge_experts()
    for asked, query in queries.items():
        ways = {"dense": answer_of(dense, query), "experts": answer_of(merged, query)}
        found.append(
            _row(f"{name}, {asked}", "answer, merged", interleave(ways, pairs=rounds, calls=1), "about 1")
        )
    return found


def _row(network: str, what: str, timed: Samples, bar: str) -> list[str]:
    ratios = timed.ratios("experts", "dense")
    interval = f"{-upper_bound(-ratios):.2f} .. {upper_bound(ratios):.2f}"
    times = (f"{1000 * timed.median(way):.0f} ms" for way in ("dense", "experts"))
    return [network, what, *times, f"{timed.ratio('experts', 'dense'):.3f}", interval, bar]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=tuple(NETWORKS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="two pictures, 2 rounds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", default="", help="a line for the page, such as what else the machine did")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rounds = 2 if chosen.quick else chosen.rounds
    lines: Rows = [["network", "what", "dense", "experts", "ratio", "95 % of the median", "bar"]]
    for name in chosen.only:
        lines += measured(name, rounds, quick=chosen.quick)
    method = f"one thread, CPU time, {rounds} rounds in turn. {chosen.note}".strip()
    setting = setting_of(__file__, method)
    write_page("experts_cost", "What experts by attributes cost", setting, [aligned(lines)], chosen.out)


if __name__ == "__main__":
    main()
