"""Features of pictures and of texts, and how often the right one is found among a hundred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from allsight.models.uniperceiver.conditions import Purpose
from allsight.types import Image, Sample, Segment

SET = 100
"""Texts among which the right one is to be found."""
AT_ONCE = 100


class Retrieval:
    """The features that the task `pairs` of a trained model compares.

    Args:
        predictor: The model and its tasks.
        longest: Most tokens of a text, its end included.
    """

    def __init__(self, predictor: Any, longest: int) -> None:
        self._model, self._task = predictor.model, predictor.tasks["pairs"]
        self._longest = longest

    def of_pictures(self, images: Sequence[Image]) -> Tensor:
        found = []
        for start in range(0, len(images), AT_ONCE):
            some = images[start : start + AT_ONCE]
            batch = self._task.collate([Sample("", {"image": image}) for image in some])
            found.append(self._model(batch)[0]["queries"])
        return F.normalize(torch.cat(found), dim=-1)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        purpose = Purpose("pairs", frozenset({"image"}), frozenset({"text"}), is_target=True)
        tokenizer, found = self._task.tokenizer, []
        for start in range(0, len(texts), AT_ONCE):
            ids = [ids_of(tokenizer, text) for text in texts[start : start + AT_ONCE]]
            padded, mask = tokenizer.pad(ids, self._longest)
            found.append(self._model.encoder([Segment("text", padded, mask)], purpose))
        return F.normalize(torch.cat(found), dim=-1)


def ids_of(tokenizer: Any, text: str) -> Tensor:
    """The ids of a text and of its end."""
    return torch.cat([tokenizer.encode(text), torch.tensor([tokenizer.eos_id])])


def found_in_sets(pictures: Tensor, texts: Tensor, *, turned: bool) -> tuple[float, int]:
    """Share of right ones over sets of 100, and how many there were.

    Args:
        pictures, texts: Features; row k of the one belongs to row k of the other.
        turned: The picture is looked for, not the text.
    """
    hits, count = 0, 0
    for start in range(0, len(pictures), SET):
        similarity = pictures[start : start + SET] @ texts[start : start + SET].T
        similarity = similarity.T if turned else similarity
        hits += int((similarity.argmax(1) == torch.arange(len(similarity))).sum())
        count += len(similarity)
    return hits / count, count
