"""What a Uni-Perceiver knows of the language world: each figure beside chance and beside a blind model.

Blind is the same model with each picture replaced by another one of the same set.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _retrieval import AT_ONCE, SET, Retrieval, found_in_sets, ids_of
from torch import Tensor

from allsight import load
from allsight.data.decode import read_picture
from allsight.data.world.language import Thing, caption_of, read_pictures
from allsight.data.world.language.arranging import Arrangement
from allsight.data.world.language.questions import SIMPLER, TYPES
from allsight.data.world.language.vocabulary import COLOURS, NAMES, PLACES, SIZES
from allsight.data.world.vocabulary import CAPTION_SHAPES
from allsight.tasks.names import names_as_texts
from allsight.types import ClassScores, Closed, Image, Query, Sample, Segment, Text, TextAnswer, WordsAnswer

KINDS = ("size", "colour", "name", "place")
_VALUES = (SIZES, COLOURS, NAMES, PLACES)


@dataclass(frozen=True)
class Figure:
    """A share of right answers.

    Args:
        what: Of what.
        found: By the model.
        count: Answers.
        trivial: What knowing nothing but the training texts gives.
        blind: By the model with other pictures.
        bar: Least figure wanted; None where there is no bar.
    """

    what: str
    found: float
    count: int
    trivial: float
    blind: float
    bar: float | None = None

    @property
    def error(self) -> float:
        """Standard error."""
        return sqrt(max(self.found * (1 - self.found), 0.0) / max(self.count, 1))


@dataclass(frozen=True)
class Picture:
    """A picture and its objects."""

    image: Image
    things: Arrangement


class Scores:
    """Asks one trained model.

    Args:
        run: Its run folder.
        root: The folder `language` of its world.
        pictures: Most pictures of a split that are looked at.
    """

    def __init__(self, run: Path, root: Path, pictures: int) -> None:
        self.root, self.most = root, pictures
        self.predictor = load(run, weights="last")
        self.model: Any = self.predictor.model
        tokenizer = self.predictor.tasks["captions"].tokenizer
        assert tokenizer is not None
        self.tokenizer = tokenizer
        self._retrieval = Retrieval(self.predictor, 16)

    @cached_property
    def val(self) -> list[Picture]:
        return self._pictures("val")

    @cached_property
    def held_out(self) -> list[Picture]:
        return self._pictures("pairs")

    @cached_property
    def train_answers(self) -> dict[str, str]:
        """Question, or type for those that training has not -> its most frequent answer in training."""
        counted: dict[str, Counter[str]] = defaultdict(Counter)
        for question in self._questions("train"):
            for key in (question["question"], question["question_type"]):
                counted[key][question["multiple_choice_answer"]] += 1
        return {text: answers.most_common(1)[0][0] for text, answers in counted.items()}

    def all(self) -> list[Figure]:
        """Every figure."""
        with torch.inference_mode():
            parts = (self.retrieval, self.captions, self.questions, self.masked_words, self.names)
            return [figure for part in parts for figure in part()]

    def retrieval(self) -> list[Figure]:
        """Which of 100 different canonical captions belongs to a picture and the reverse; then 99 captions
        that differ in one word of one object."""
        seen, blind = (
            self._retrieval.of_pictures([picture.image for picture in pictures])
            for pictures in (self.val, _others(self.val))
        )
        texts = self._retrieval.of_texts([caption_of(picture.things) for picture in self.val])
        figures = []
        for way, turned in (("picture to text", False), ("text to picture", True)):
            hits, hits_blind = (found_in_sets(features, texts, turned=turned) for features in (seen, blind))
            figures.append(Figure(f"R@1 of {SET}, {way}", *hits, 1 / SET, hits_blind[0], 0.90))
        hard, hard_blind, count, chance = 0, 0, 0, 0.0
        rng = np.random.default_rng(0)
        for row, picture in enumerate(self.val):
            wrong = [caption_of(things) for things in variants(picture.things)]
            if len(picture.things) < max(len(p.things) for p in self.val) or count == SET:
                continue
            chosen = [wrong[k] for k in rng.permutation(len(wrong))[: SET - 1]]
            candidates = self._retrieval.of_texts([caption_of(picture.things), *chosen])
            hard += int((candidates @ seen[row]).argmax() == 0)
            hard_blind += int((candidates @ blind[row]).argmax() == 0)
            chance, count = chance + 1 / len(candidates), count + 1
        rate = max(count, 1)
        figures.append(
            Figure(
                "R@1 of texts that differ in one word", hard / rate, count, chance / rate, hard_blind / rate
            )
        )
        return figures

    def captions(self) -> list[Figure]:
        """Words of canonical captions, each after the right ones before it; whole captions as written."""
        figures = []
        frequent = self._frequent_words()
        bars = {"colour": 0.95, "place": 0.98, "size": 0.95}
        for called, pictures in (("", self.val), (" (held-out pairs)", self.held_out)):
            right, blind = self._words_right(pictures), self._words_right(_others(pictures))
            for number, kind in enumerate(KINDS):
                trivial = np.mean([t.words[number] == frequent[kind] for p in pictures for t in p.things])
                figures.append(
                    Figure(
                        f"caption words: {kind}{called}",
                        float(right[:, number].mean()),
                        len(right),
                        float(trivial),
                        float(blind[:, number].mean()),
                        None if called else bars.get(kind),
                    )
                )
        few = [picture for picture in self.val if len(picture.things) < 3]
        many = [picture for picture in self.val if len(picture.things) == 3]
        for what, pictures, bar in (
            ("1-2 objects", few, 0.8),
            ("3 objects", many, None),
            ("held-out pairs", self.held_out, None),
        ):
            if pictures:
                exact, blind = self._exact(pictures), self._exact(_others(pictures))
                figures.append(Figure(f"captions exact: {what}", exact, len(pictures), 0.0, blind, bar))
        return figures

    def questions(self) -> list[Figure]:
        """Five types of questions on `val`, and the simpler ones; trivial is the most frequent answer to the
        same words."""
        figures = [self._type_of_question(type, 0.70) for type in TYPES]
        mean = [float(np.mean([getattr(f, n) for f in figures])) for n in ("found", "trivial", "blind")]
        count = sum(figure.count for figure in figures)
        simpler = [self._type_of_question(type, None) for type in SIMPLER]
        return [
            *figures,
            Figure("questions: mean of types", mean[0], count, mean[1], mean[2], 0.85),
            *simpler,
        ]

    def _type_of_question(self, type: str, bar: float | None) -> Figure:
        own = [
            q
            for q in self._questions("val")
            if q["question_type"] == type and self._number(q) < len(self.val)
        ]
        right, blind = (self._answered(pictures, own) for pictures in (self.val, _others(self.val)))
        trivial = [
            self.train_answers.get(q["question"], self.train_answers[type]) == q["multiple_choice_answer"]
            for q in own
        ]
        return Figure(f"questions: {type}", right, len(own), float(np.mean(trivial)), blind, bar)

    def masked_words(self) -> list[Figure]:
        """Words taken out of canonical captions of `val`; trivial is the most frequent word of the kind."""
        rows = [json.loads(line) for line in (self.root / "val.jsonl").read_text().splitlines()]
        rows = rows[: len(self.val)]
        frequent = self._frequent_words()
        results = [self._filled(pictures, rows) for pictures in (self.val, _others(self.val))]
        figures = []
        for kind in KINDS:
            truth = [
                a for row in rows for a, k in zip(row["answers"], row["kinds"], strict=True) if k == kind
            ]
            found, blind = ([word for word, k in one if k == kind] for one in results)
            shares = [float(np.mean([a == b for a, b in zip(truth, w, strict=True)])) for w in (found, blind)]
            trivial = float(np.mean([word == frequent[kind] for word in truth]))
            figures.append(Figure(f"masked words: {kind}", shares[0], len(truth), trivial, shares[1]))
        return figures

    def names(self) -> list[Figure]:
        """Classes of large objects; and, never trained, the names that only captions have."""
        trained = [p for p in self.val if _main(p).is_class]
        new = [p for p in self.val if not _main(p).is_class]
        classes = self.predictor.tasks["names"].classes
        figures = []
        for what, pictures, names, bar in (
            ("class of 12", trained, classes, None),
            ("zero-shot among 20 names of captions", new, CAPTION_SHAPES, 0.25),
            ("zero-shot among these and the 12", new, (*CAPTION_SHAPES, *classes), None),
        ):
            right, blind = (self._named(some, names) for some in (pictures, _others(pictures)))
            figures.append(Figure(what, right, len(pictures), 1 / len(names), blind, bar))
        return figures

    def _named(self, pictures: Sequence[Picture], names: Sequence[str]) -> float:
        candidates = names_as_texts(names, self.tokenizer)
        hits = 0
        for part in _parts(pictures):
            image = Segment("image", _stacked(part))
            query = Query((image,), Closed("names", (candidates,)), temperature="names")
            chosen = self.model.answer(query, task="names")["logits"].argmax(-1).tolist()
            hits += sum(names[k] == _main(p).name for k, p in zip(chosen, part, strict=True))
        return hits / max(len(pictures), 1)

    def _answered(self, task: str, pictures: Sequence[Picture], questions: Sequence[dict[str, Any]]) -> float:
        samples = (
            Sample(
                str(q["question_id"]),
                {"image": pictures[self._number(q)].image, "question": Text(q["question"])},
            )
            for q in questions
        )
        answers = self.predictor.predict_many(samples, "questions")
        right = []
        for answer, question in zip(answers, questions, strict=True):
            assert isinstance(answer, ClassScores)
            right.append(answer.classes[int(answer.scores.argmax())] == question["multiple_choice_answer"])
        return float(np.mean(right))

    def _filled(self, pictures: Sequence[Picture], rows: Sequence[dict]) -> list[tuple[str, str]]:
        samples = (
            Sample(row["id"], {"image": picture.image, "text": Text(row["text"])})
            for picture, row in zip(pictures, rows, strict=True)
        )
        found = []
        for answer, row in zip(self.predictor.predict_many(samples, "words"), rows, strict=True):
            assert isinstance(answer, WordsAnswer)
            words = [self.tokenizer.decode([token]).strip() for token in answer.tokens]
            found += zip(words, row["kinds"], strict=True)
        return found

    def _exact(self, pictures: Sequence[Picture]) -> float:
        samples = (Sample(str(n), {"image": picture.image}) for n, picture in enumerate(pictures))
        answers = self.predictor.predict_many(samples, "captions")
        right = []
        for answer, picture in zip(answers, pictures, strict=True):
            assert isinstance(answer, TextAnswer)
            right.append(answer.text == caption_of(picture.things))
        return float(np.mean(right))

    def _words_right(self, pictures: Sequence[Picture]) -> np.ndarray:
        """Whether each of an object's four words is the likeliest of its kind's place, for all objects."""
        task: Any = self.predictor.tasks["captions"]
        rows = []
        for part in _parts(pictures):
            texts = [caption_of(picture.things) for picture in part]
            samples = [
                Sample("", {"image": p.image, "text": Text(t, tokens=ids_of(self.tokenizer, t))})
                for p, t in zip(part, texts, strict=True)
            ]
            batch = task.collate(samples)
            query = replace(task.cast(batch), continuation=None)
            likeliest = self.model.answer(query, task="captions")["logits"].argmax(-1)
            right = (likeliest == batch.targets["words"]).numpy()
            for picture, one in zip(part, right, strict=True):
                # Four words an object, and one between objects.
                rows += [one[5 * k : 5 * k + 4] for k in range(len(picture.things))]
        return np.stack(rows)

    def _frequent_words(self) -> dict[str, str]:
        """The most frequent word of each kind in training."""
        counted = {kind: Counter() for kind in KINDS}
        for things, _ in read_pictures(self.root, "train"):
            for thing in things:
                for kind, word in zip(KINDS, thing.words, strict=True):
                    counted[kind][word] += 1
        return {kind: words.most_common(1)[0][0] for kind, words in counted.items()}

    def _questions(self, split: str) -> list[dict[str, Any]]:
        return json.loads((self.root / "annotations" / f"vqa_{split}.json").read_text())["questions"]

    def _pictures(self, split: str) -> list[Picture]:
        found = []
        for things, scene in read_pictures(self.root, split):
            if len(found) == self.most:
                break
            image = read_picture(self.root / "images" / split / f"{scene.name}.jpg")
            found.append(Picture(image, things))
        return found

    @staticmethod
    def _number(question: dict[str, Any]) -> int:
        return int(Path(question["image"]).stem.rpartition("_")[2])


def variants(things: Arrangement) -> list[Arrangement]:
    """All arrangements that differ in one word of one object."""
    found = []
    taken = {thing.place for thing in things}
    for number, thing in enumerate(things):
        for kind, values in zip(("size", "colour", "name", "place"), _VALUES, strict=True):
            for value in values:
                if value == getattr(thing, kind) or (kind == "place" and value in taken):
                    continue
                other: Thing = replace(thing, **{kind: value})
                changed = (*things[:number], other, *things[number + 1 :])
                found.append(tuple(sorted(changed, key=lambda t: PLACES.index(t.place))))
    return found


def _main(picture: Picture) -> Thing:
    return next(thing for thing in picture.things if thing.size == "large")


def _others(pictures: Sequence[Picture]) -> list[Picture]:
    """The same objects with the pictures of others."""
    half = len(pictures) // 2
    return [replace(p, image=pictures[(n + half) % len(pictures)].image) for n, p in enumerate(pictures)]


def _stacked(pictures: Sequence[Picture]) -> Tensor:
    return torch.stack([picture.image.pixels for picture in pictures])


def _parts(pictures: Sequence[Picture]) -> Iterable[Sequence[Picture]]:
    return (pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE))
