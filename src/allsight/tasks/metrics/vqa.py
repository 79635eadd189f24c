"""Scores of answers to questions about pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from allsight.types import Answer, Batch, ClassScores

_KINDS: tuple[str, ...] = ("yes/no", "number", "other")


class VQAScores:
    """Consensus accuracy: an answer that n of the other people gave counts min(n / 3, 1).

    It is the mean over leaving each person out once, as in VQA v2; of one or two people it is the plain share
    of those who agree. Kinds of questions are told from the people's answers.

    Source: Agrawal et al., arXiv:1505.00468, section 4.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = dict.fromkeys(_KINDS, 0.0)
        self.counts: dict[str, int] = dict.fromkeys(_KINDS, 0)

    def update(self, answers: Sequence[Answer], batch: Batch) -> None:
        """Count a batch with the target `answers`."""
        for answer, people in zip(answers, batch.targets["answers"], strict=True):
            assert isinstance(answer, ClassScores)
            kind = kind_of(people)
            self.sums[kind] += consensus(answer.top(1)[0][0], people)
            self.counts[kind] += 1

    def merge(self, other: VQAScores) -> None:
        for kind in _KINDS:
            self.sums[kind] += other.sums[kind]
            self.counts[kind] += other.counts[kind]

    def compute(self) -> dict[str, float]:
        """`accuracy`, and that of each kind that occurred; nan when nothing was scored."""
        total = sum(self.counts.values())
        found = {"accuracy": sum(self.sums.values()) / total if total else float("nan")}
        for kind in _KINDS:
            if self.counts[kind]:
                found[f"accuracy_{kind.replace('/', '_')}"] = self.sums[kind] / self.counts[kind]
        return found

    def tables(self) -> dict[str, Any]:
        return {"counts": dict(self.counts)}


def consensus(answer: str, people: Sequence[str]) -> float:
    """How far people agree with an answer, 0..1."""
    agreeing, count = sum(p == answer for p in people), len(people)
    if count < 3:
        return agreeing / count if count else 0.0
    without_one = [agreeing - (p == answer) for p in people]
    return sum(min(n / 3, 1.0) for n in without_one) / count


def kind_of(people: Sequence[str]) -> str:
    """Yes/no, number or other, by what most people said."""
    common = Counter(people).most_common(1)
    answer = common[0][0] if common else ""
    return "yes/no" if answer in ("yes", "no") else "number" if answer.isdigit() else "other"
