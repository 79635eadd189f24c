"""What a task says about one row, in the user's terms. Predictor, report and metrics read nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, UInt8


def class_name(index: int, classes: tuple[str, ...]) -> str:
    """The name of a class, or `class 281` where the weights came without names."""
    return classes[index] if 0 <= index < len(classes) else f"class {index}"


@dataclass(frozen=True)
class Answer:
    """Base of all answers: `id` of the sample, name of the task that answered, and `notes` on what of the
    question was left out, a line each."""

    kind: ClassVar[str] = "answer"

    id: str
    task: str
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json` and `predictions/`; large arrays are summarised."""
        plain = {"kind": self.kind, "id": self.id, "task": self.task}
        return {**plain, "notes": list(self.notes)} if self.notes else plain

    def arrays(self) -> dict[str, UInt8[np.ndarray, "h w"]]:
        """Picture-like parts of the answer, which `predictions/` keeps as PNG files."""
        return {}


@dataclass(frozen=True)
class ClassScores(Answer):
    """A probability per class, and the class names where known."""

    kind: ClassVar[str] = "class_scores"

    scores: Float32[np.ndarray, " classes"]
    classes: tuple[str, ...] = ()

    def top(self, k: int = 1) -> list[tuple[str, float]]:
        """The `k` likeliest classes with their probabilities, best first.

        Raises:
            ValueError: `k` is less than 1.
        """
        if k < 1:
            raise ValueError(f"top: k: expected at least 1, got {k}")
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(class_name(int(i), self.classes), float(self.scores[i])) for i in order]

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "top": [[name, round(score, 6)] for name, score in self.top(5)]}


@dataclass(frozen=True)
class LabelMapAnswer(Answer):
    """The class of each pixel; 255 where there is none (truth that nobody labelled)."""

    kind: ClassVar[str] = "label_map"

    label_map: UInt8[np.ndarray, "h w"]
    classes: tuple[str, ...] = ()

    def arrays(self) -> dict[str, UInt8[np.ndarray, "h w"]]:
        return {"label_map": self.label_map}

    def shares(self) -> dict[str, float]:
        """Class name -> share of the picture, largest first; classes that do not occur are left out."""
        found, counts = np.unique(self.label_map, return_counts=True)
        pairs = sorted(zip(found, counts, strict=True), key=lambda pair: -int(pair[1]))
        return {class_name(int(i), self.classes): float(n) / self.label_map.size for i, n in pairs}

    def to_json(self) -> dict[str, Any]:
        shares = {name: round(share, 6) for name, share in self.shares().items()}
        return {**super().to_json(), "size_hw_px": list(self.label_map.shape), "shares": shares}


@dataclass(frozen=True)
class TextAnswer(Answer):
    """A text, and the log-probability the model gives it."""

    kind: ClassVar[str] = "text"

    text: str
    log_probability: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "text": self.text, "log_probability": self.log_probability}


@dataclass(frozen=True)
class PretrainingAnswer(Answer):
    """Losses of the batch that a row was in, and its class, where there are classes."""

    kind: ClassVar[str] = "pretraining"

    losses: dict[str, float]
    label: int | None = None
    classes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        named = None if self.label is None else class_name(self.label, self.classes)
        return {**super().to_json(), "losses": self.losses, "class": named}


@dataclass(frozen=True)
class WordsAnswer(Answer):
    """Words that were taken out of a text: as a text, as the ids that a metric counts, and the probability of
    each id."""

    kind: ClassVar[str] = "words"

    text: str
    tokens: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        scores = {"scores": [round(score, 6) for score in self.scores]} if self.scores else {}
        return {**super().to_json(), "text": self.text, **scores}


@dataclass(frozen=True)
class PairAnswer(Answer):
    """Features of a query and of its target, to be compared with those of all others."""

    kind: ClassVar[str] = "pair"

    query: Float32[np.ndarray, " d"]
    target: Float32[np.ndarray, " d"] | None = None
    text: str = ""

    def similarity(self) -> float:
        """Cosine between the two; nan without a target."""
        if self.target is None:
            return float("nan")
        lengths = float(np.linalg.norm(self.query) * np.linalg.norm(self.target))
        return float(self.query @ self.target) / max(lengths, 1e-12)

    def to_json(self) -> dict[str, Any]:
        similarity = None if self.target is None else round(self.similarity(), 6)
        return {**super().to_json(), "text": self.text, "similarity": similarity}
