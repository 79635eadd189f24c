"""Scores of texts about pictures: exact match, BLEU-4, CIDEr-D."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from allsight.types import Answer, Batch, TextAnswer

_ORDERS = 4
_SIGMA = 6.0
Grams = Counter[tuple[str, ...]]


class CaptionScores:
    """`exact`: share of texts equal to one of the references; `bleu4` of the corpus; `cider_d`, times 10.

    Texts are compared in lower case without punctuation. CIDEr weighs groups of words by how few pictures'
    references have them, so it is a score of the whole set: on a handful of pictures it says little.

    Source: BLEU, Papineni et al. 2002; CIDEr-D, arXiv:1411.5726, section 4 (sigma 6, clipped).
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.references: list[tuple[str, ...]] = []

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Count a batch with the target `captions`."""
        for answer, captions in zip(answers, batch.targets["captions"], strict=True):
            assert isinstance(answer, TextAnswer)
            self.texts.append(answer.text)
            self.references.append(tuple(captions))

    def merge(self, other: CaptionScores) -> None:
        self.texts += other.texts
        self.references += other.references

    def compute(self) -> dict[str, float]:
        """nan when nothing was scored."""
        if not self.texts:
            return dict.fromkeys(("exact", "bleu4", "cider_d"), float("nan"))
        texts = [words_of(text) for text in self.texts]
        references = [[words_of(text) for text in some] for some in self.references]
        exact = [text in some for text, some in zip(texts, references, strict=True)]
        return {
            "exact": float(np.mean(exact)),
            "bleu4": bleu(texts, references),
            "cider_d": cider_d(texts, references),
        }

    def tables(self) -> dict[str, Any]:
        return {}


def words_of(text: str) -> list[str]:
    """Lower-case words; punctuation is no word. A script without spaces is one word a run of letters."""
    return re.findall(r"\w+", text.lower())


def grams_of(words: Sequence[str], order: int) -> Grams:
    """How often each group of `order` neighbouring words occurs."""
    return Counter(tuple(words[i : i + order]) for i in range(len(words) - order + 1))


def bleu(texts: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """BLEU-4 of a corpus: geometric mean of clipped precisions, times the penalty for short texts."""
    hits, totals = [0] * _ORDERS, [0] * _ORDERS
    length = closest = 0
    for text, some in zip(texts, references, strict=True):
        length += len(text)
        closest += min((abs(len(r) - len(text)), len(r)) for r in some)[1] if some else 0
        for order in range(1, _ORDERS + 1):
            found = grams_of(text, order)
            most: Grams = Counter()
            for reference in some:
                most |= grams_of(reference, order)
            hits[order - 1] += sum((found & most).values())
            totals[order - 1] += sum(found.values())
    if not length or not all(hits):
        return 0.0
    precision = sum(math.log(h / t) for h, t in zip(hits, totals, strict=True)) / _ORDERS
    return math.exp(precision + min(0.0, 1 - closest / length))


def cider_d(texts: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """Mean CIDEr-D of a corpus, times 10."""
    seen: Counter[tuple[str, ...]] = Counter()
    for some in references:
        seen.update({g for r in some for order in range(1, _ORDERS + 1) for g in grams_of(r, order)})
    total = math.log(max(1, len(references)))

    def vector(words: Sequence[str], order: int) -> dict[tuple[str, ...], float]:
        return {g: n * (total - math.log(max(1, seen[g]))) for g, n in grams_of(words, order).items()}

    def score(text: Sequence[str], reference: Sequence[str]) -> float:
        value = 0.0
        for order in range(1, _ORDERS + 1):
            a, b = vector(text, order), vector(reference, order)
            lengths = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
            clipped = sum(min(v, b[g]) * b[g] for g, v in a.items() if g in b)
            value += clipped / lengths if lengths > 0 else 0.0
        return value / _ORDERS * math.exp(-((len(text) - len(reference)) ** 2) / (2 * _SIGMA**2))

    means = [
        sum(score(text, r) for r in some) / len(some) if some else 0.0
        for text, some in zip(texts, references, strict=True)
    ]
    return 10 * sum(means) / max(1, len(means))
