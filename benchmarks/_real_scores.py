"""What a Uni-Perceiver knows of real pictures: each figure beside what knowing no picture gives.

Blind is the same model with each picture replaced by another one of the same set.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _language_scores import Figure
from _retrieval import AT_ONCE, SET, Retrieval, found_in_sets
from torch import Tensor

from allsight import load
from allsight.data.order import generator
from allsight.data.readers import open_reader
from allsight.types import Sample


class RealScores:
    """Asks one trained model about the tasks it has.

    Args:
        run: Its run folder.
        root: The folder of its data sets.
        most: Most samples of a split that are asked about.
    """

    def __init__(self, run: Path, root: Path, most: int) -> None:
        self.root, self.most = root, most
        self.predictor = load(run, weights="last")
        self.model: Any = self.predictor.model
        self.tasks: Any = self.predictor.tasks

    def all(self) -> list[Figure]:
        """Every figure of the tasks there are."""
        asks: dict[str, Callable[[str], list[Figure]]] = {
            "tiny20": self._classes,
            "cifar10": self._classes,
            "captions": lambda name: self._words(name, "val"),
            "pairs": self._pairs,
            "questions": self._composed_questions,
            "words": lambda name: self._words(name, "val"),
            "coco_captions": lambda name: self._words(name, "train"),
            "coco_questions": self._coco_questions,
        }
        with torch.inference_mode():
            return [figure for name, ask in asks.items() if name in self.tasks for figure in ask(name)]

    def _classes(self, name: str) -> list[Figure]:
        reader = open_reader(self.tasks[name].config.data, root=self.root, split="val")
        step = max(1, len(reader) // self.most)
        samples = [reader[k] for k in range(0, len(reader), step)[: self.most]]
        names = np.array([reader.classes[int(sample.targets["label"])] for sample in samples])
        found, blind = (
            float(np.mean(self._answers(name, some) == names)) for some in (samples, _others(samples))
        )
        classes = len(reader.classes)
        return [Figure(f"{name}: class of {classes}", found, len(samples), 1 / classes, blind)]

    def _pairs(self, name: str) -> list[Figure]:
        samples = self._samples(name, "val")[: self.most // SET * SET]
        retrieval = Retrieval(self.predictor, self.tasks[name].max_tokens)
        texts = retrieval.of_texts([sample.targets["captions"][0] for sample in samples])
        seen, blind = (
            retrieval.of_pictures([sample.image for sample in some]) for some in (samples, _others(samples))
        )
        figures = []
        for way, turned in (("picture to text", False), ("text to picture", True)):
            hits, count = found_in_sets(seen, texts, turned=turned)
            chance = found_in_sets(blind, texts, turned=turned)[0]
            figures.append(Figure(f"{name}: R@1 of {SET}, {way}", hits, count, 1 / SET, chance))
        return figures

    def _words(self, name: str, split: str) -> list[Figure]:
        """Words of texts, each after the right ones before it or between those left; trivial is the most
        frequent word."""
        samples = self._samples(name, split)
        right, truth = self._words_right(name, samples)
        frequent = Counter(truth.tolist()).most_common(1)[0][1] / len(truth)
        # Where there is no picture, nothing is blind: all that could be known is what is frequent.
        blind = self._words_right(name, _others(samples))[0] if "image" in samples[0].inputs else frequent
        where = "" if split == "val" else " (of training)"
        return [Figure(f"{name}: words{where}", right, len(truth), frequent, blind)]

    def _words_right(self, name: str, samples: Sequence[Sample]) -> tuple[float, Tensor]:
        """The share of words that are right, and the right ones."""
        likeliest, truth = self._read(name, samples)
        return float((likeliest == truth).float().mean()), truth

    def _read(self, name: str, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """Likeliest and right words."""
        task = self.tasks[name]
        found, right = [], []
        for start in range(0, len(samples), AT_ONCE):
            batch = task.collate(samples[start : start + AT_ONCE])
            query = replace(task.cast(batch), continuation=None)
            likeliest = self.model.answer(query, task=name)["logits"].argmax(-1)
            if "labels" in batch.targets:
                truth, asked = batch.targets["labels"], batch.targets["labels"] >= 0
            else:
                truth, asked = batch.targets["words"], batch.targets["is_word"]
            found.append(likeliest[asked])
            right.append(truth[asked])
        return torch.cat(found), torch.cat(right)

    def _composed_questions(self, name: str) -> list[Figure]:
        data = self.tasks[name].config.data
        frequent = self._frequent_answers(data)
        figures = []
        for split in ("val", "unseen"):
            reader = open_reader(data, root=self.root, split=split)
            samples = [reader[k] for k in range(min(len(reader), 2 * self.most))]
            for kind in ("how many", "what is there"):
                own = [s for s in samples if s.targets["answer"].isdigit() == (kind == "how many")]
                # Names that training never said are no answers.
                if split == "val" or kind == "how many":
                    called = f"{name}: {kind}{'' if split == 'val' else ' (unseen objects)'}"
                    figures.append(self._asked(name, called, own, frequent))
        return figures

    def _coco_questions(self, name: str) -> list[Figure]:
        data = self.tasks[name].config.data
        reader = open_reader(data, root=self.root, split="train")
        samples = [reader[k] for k in range(min(len(reader), self.most))]
        most = Counter(sample.targets["answer"] for sample in samples).most_common(1)[0][0]
        frequent = {sample.inputs["question"].string: most for sample in samples}
        return [self._asked(name, f"{name}: answers (of training)", samples, frequent)]

    def _asked(self, name: str, called: str, samples: list[Sample], frequent: dict[str, str]) -> Figure:
        right = [
            float(np.mean(self._answers(name, some) == np.array([s.targets["answer"] for s in samples])))
            for some in (samples, _others(samples))
        ]
        trivial = np.mean([frequent.get(s.inputs["question"].string) == s.targets["answer"] for s in samples])
        return Figure(called, right[0], len(samples), float(trivial), right[1])

    def _answers(self, name: str, samples: Sequence[Sample]) -> np.ndarray:
        answers: Any = self.predictor.predict_many((Sample(s.id, dict(s.inputs)) for s in samples), name)
        return np.array([answer.classes[int(answer.scores.argmax())] for answer in answers])

    def _samples(self, name: str, split: str) -> list[Sample]:
        """Samples of a task's data as its evaluation sees them."""
        task = self.tasks[name]
        reader = open_reader(task.config.data, root=self.root, split=split)
        seen = task.transform("val")
        return [seen(reader[k], generator(0, "scores", name, k)) for k in range(min(len(reader), self.most))]

    def _frequent_answers(self, data: str) -> dict[str, str]:
        """Question of training -> its most frequent answer."""
        file = self.root / data.partition(":")[2] / "annotations" / "vqa_train.json"
        counted: dict[str, Counter[str]] = defaultdict(Counter)
        for asked in json.loads(file.read_text())["questions"]:
            counted[asked["question"]][asked["multiple_choice_answer"]] += 1
        return {question: answers.most_common(1)[0][0] for question, answers in counted.items()}


def _others(samples: Sequence[Sample]) -> list[Sample]:
    """The same samples with the pictures of others."""
    half = len(samples) // 2
    return [
        replace(s, inputs={**s.inputs, "image": samples[(n + half) % len(samples)].image})
        for n, s in enumerate(samples)
    ]
