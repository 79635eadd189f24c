"""Writing captions and questions as COCO and VQA lists, which `coco_captions` and `coco_vqa` read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PER_PICTURE = 10
"""Ids that each picture has for its captions and its questions."""


@dataclass(frozen=True)
class Question:
    """A question, its answer, and its type."""

    text: str
    answer: str
    type: str


def captions_list(pictures: Iterable[tuple[int, str, Sequence[str]]], size_px: int) -> dict[str, Any]:
    """What `annotations/captions_SPLIT.json` holds.

    Args:
        pictures: (id, name of the file, captions) of each; up to ten captions.
        size_px: Side of the square pictures.
    """
    images, annotations = [], []
    for id, name, captions in pictures:
        images.append({"id": id, "file_name": name, "width": size_px, "height": size_px})
        annotations += [
            {"id": id * PER_PICTURE + number, "image_id": id, "caption": caption}
            for number, caption in enumerate(captions)
        ]
    return {"images": images, "annotations": annotations}


def questions_list(pictures: Iterable[tuple[int, str, Sequence[tuple[int, Question]]]]) -> dict[str, Any]:
    """What `annotations/vqa_SPLIT.json` holds.

    Args:
        pictures: (id, path of the file, questions with a number from 0 to 9 each) of each.
    """
    return {
        "questions": [
            {
                "question_id": id * PER_PICTURE + number,
                "image_id": id,
                "image": path,
                "question": question.text,
                "question_type": question.type,
                "answers": [question.answer],
                "multiple_choice_answer": question.answer,
            }
            for id, path, questions in pictures
            for number, question in questions
        ]
    }
