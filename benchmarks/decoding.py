"""Captions of 20 words: how much quicker are they written with kept keys and values than encoding all anew?

    python benchmarks/decoding.py
    python benchmarks/decoding.py --only micro --cases 1:1 4:5     # one picture; four, beam 5
    python benchmarks/decoding.py --quick                          # 3 words, 2 rounds: does it run?

Both ways write the same text, which is checked. Words that end a text are left out, so that all have the full
length. `experts` is micro with experts chosen by attributes in every second block; base (224 px) gets one
picture and a third of the rounds. The bar: at least 5 times as quick. One thread, CPU time, ways in turn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _generalist import TASK, pictures
from _page import RESULTS, setting_of, write_page

from allsight.launch.bench.measure import interleave, upper_bound
from allsight.launch.bench.report import aligned
from allsight.models import UniPerceiver
from allsight.models.uniperceiver import ExpertSettings
from allsight.models.uniperceiver.conditions import purpose_of
from allsight.models.uniperceiver.decoding import write
from allsight.types import Continuation, Query, Segment, Vocabulary

BAR = 5
VOCAB = 1000
NETWORKS = {"micro": ("micro", None), "experts": ("micro", ExpertSettings()), "base": ("base", None)}


def row(model: UniPerceiver, name: str, rows: int, words: int, beam: int, rounds: int) -> list[str]:
    """Of the table: one network, so many pictures, one beam."""
    text = Segment("text", torch.empty(rows, 0, dtype=torch.int64), causal=True)
    how = Continuation(0, words, beam, forbidden=(0,))
    query = Query((pictures(rows, model.config.image_px), text), Vocabulary(), 1, continuation=how)
    purpose, scale = purpose_of(query, TASK), model.scale(TASK)

    def written(cached: bool) -> torch.Tensor:
        return write(model, query, purpose, scale, cached=cached)["tokens"]

    ways = {"kept": lambda: written(True), "anew": lambda: written(False)}
    with torch.inference_mode():
        same = torch.equal(written(True), written(False))
        timed = interleave(ways, pairs=rounds, calls=1)
    ratios = timed.ratios("anew", "kept")
    return [
        name,
        str(rows),
        str(beam),
        *(f"{1000 * timed.median(way):.0f} ms" for way in ("kept", "anew")),
        f"{timed.ratio('anew', 'kept'):.1f}",
        f"{-upper_bound(-ratios):.1f} .. {upper_bound(ratios):.1f}",
        "yes" if same else "no",
        f">= {BAR}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=NETWORKS, nargs="+", default=tuple(NETWORKS))
    parser.add_argument("--cases", nargs="+", default=["1:1", "4:1", "4:3", "16:1"], help="PICTURES:BEAM")
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="3 words, 2 rounds, one picture")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--note", default="", help="a line for the page, such as what else the machine did")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.words, chosen.rounds, chosen.cases, chosen.only = 3, 2, ["1:1"], ["micro"]
    torch.set_num_threads(1)
    lines = [
        ["network", "pictures", "beam", "kept", "anew", "ratio", "95 % of the median", "same text", "bar"]
    ]
    for name in chosen.only:
        variant, experts = NETWORKS[name]
        torch.manual_seed(0)
        changes = {"vocab_size": VOCAB, "temperatures": (TASK,), "experts": experts}
        model = UniPerceiver(UniPerceiver.Config.variant(variant, **changes)).eval()
        rounds = max(2, chosen.rounds // 3) if variant == "base" else chosen.rounds
        for case in ["1:1"] if variant == "base" else chosen.cases:
            rows, beam = map(int, case.split(":"))
            lines.append(row(model, name, rows, chosen.words, beam, rounds))
    method = (
        f"one thread, CPU time, {chosen.words} words, {chosen.rounds} rounds in turn. {chosen.note}".strip()
    )
    setting = setting_of(__file__, method)
    title = "Writing captions: keys and values kept against everything encoded anew"
    write_page("decoding", title, setting, [aligned(lines)], chosen.out)


if __name__ == "__main__":
    main()
