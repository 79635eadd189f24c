"""Captions of 20 words: writing with kept keys and values against encoding everything again for each word.

python benchmarks/decoding.py [--variant base] [--rows 4] [--words 20] [--beam 1] [--pairs 20]
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from allsight.models import UniPerceiver
from allsight.models.uniperceiver.conditions import purpose_of
from allsight.models.uniperceiver.decoding import write
from allsight.types import Continuation, Query, Segment, Vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="base")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--words", type=int, default=20)
    parser.add_argument("--beam", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=20)
    given = parser.parse_args()
    torch.manual_seed(0)
    vocab_size = 1000
    config = UniPerceiver.Config.variant(given.variant, vocab_size=vocab_size, temperatures=("caption",))
    model = UniPerceiver(config).eval()
    image = torch.randn(given.rows, 3, config.image_px, config.image_px)
    text = Segment("text", torch.empty(given.rows, 0, dtype=torch.int64), causal=True)
    # A word that is never the likeliest ends texts, so that all have the full length.
    how = Continuation(0, given.words, given.beam, forbidden=(0,))
    query = Query((Segment("image", image), text), Vocabulary(), 1, continuation=how)
    purpose, scale = purpose_of(query, "caption"), model.scale("caption")

    def seconds(cached: bool) -> tuple[float, torch.Tensor]:
        begun = time.thread_time()
        found = write(model, query, purpose, scale, cached=cached)
        return time.thread_time() - begun, found["tokens"]

    with torch.inference_mode():
        model.candidates(Vocabulary(), purpose)
        same = torch.equal(seconds(True)[1], seconds(False)[1])
        pairs = [(seconds(True)[0], seconds(False)[0]) for _ in range(given.pairs)]
    ratio = statistics.median(anew / kept for kept, anew in pairs)
    kept, anew = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"{given.variant}, {given.rows} rows, {given.words} words, beam {given.beam}, same text: {same}")
    times = f"kept {kept * 1e3:.0f} ms, anew {anew * 1e3:.0f} ms"
    print(f"{times}, ratio {ratio:.1f} (median of {given.pairs} pairs)")


if __name__ == "__main__":
    main()
