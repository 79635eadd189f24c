"""Questions about pictures and their answers, as VQA v2 writes them: the format `coco_vqa:PATH`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from allsight.data.decode import MAX_PIXELS, decode_picture
from allsight.data.readers import coco_json
from allsight.data.readers.captions import MAX_CHARACTERS, check_length
from allsight.data.readers.found import Found, matches, no_split
from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.pictures import notes, original, read_or_refuse
from allsight.data.readers.tree import Tree, TreeFiles, check_text, name_inside, open_tree
from allsight.types import DataError, Sample, Text

_QUESTIONS = {"question_id": "id", "image_id": "id", "question": "text"}
_OFFICIAL = r"v2_OpenEnded_mscoco_(.+?)(?:2014|2015)?_questions\.json"


class CocoVqa:
    """Reads questions about pictures: one sample a question, called `SPLIT/QUESTION_ID`.

    Inputs are `image` and `question` (Text), targets `answers` (what each person said) and `answer` (the one
    that counts); both are left out where the file has none. Two ways of writing are known:

    - VQA v2's own: `v2_OpenEnded_mscoco_SPLIT2014_questions.json`, beside it
      `v2_mscoco_SPLIT2014_annotations.json` (perhaps none), both in PATH or PATH/annotations, and the
      pictures `COCO_SPLIT2014_000000000042.jpg` in PATH/SPLIT2014 or PATH/images/SPLIT2014;
    - one file `annotations/vqa_SPLIT.json`, or `annotations/vqa.json` with a `split` at each question: a list
      `questions` of objects with `question_id`, `image_id`, `question`, `image` (a name below PATH),
      `answers` (texts, or objects with `answer`) and `multiple_choice_answer`.

    Args:
        path: The data set's folder, or an archive of it.
        split: Which split.
        types: Only questions whose `question_type` is one of these; None: all.
        max_characters: A sample with a longer question or answer is refused when it is read.
        max_pixels: Larger pictures are refused when they are read.

    Raises:
        DataError: No such split, or no question of one of the types in it; damaged json; a question twice or
            without a picture's name. On reading: the picture is missing or unreadable; a text is too long.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        types: tuple[str, ...] | None = None,
        max_characters: int = MAX_CHARACTERS,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.name = f"coco_vqa:{path.name}"
        self.split = split
        self.classes: tuple[str, ...] = ()
        self._max_characters, self._max_pixels = max_characters, max_pixels
        tree = open_tree(path)
        questions, where, pictures = _questions(tree, path, split)
        if not questions:
            raise DataError(f"{where}: no questions of the split {split!r}")
        coco_json.refuse_twice((q["question_id"] for q in questions), "question_id", where)
        asked = len(questions)
        if types is not None:
            questions = _of_types(questions, types, f"{where}: the split {split!r}")
        self._ids = np.array([q["question_id"] for q in questions], dtype=np.int64)
        paths = PackedStrings(name_inside(check_text(q["image"], where), where) for q in questions)
        self._pictures = TreeFiles(pictures, paths)
        self._texts = PackedStrings(json.dumps(_text(q, where)) for q in questions)
        unanswered = sum("answers" not in q for q in questions)
        self.notes = notes(
            (unanswered, "questions without answers"), (asked - len(questions), "questions of other types")
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = _splits(tree)
        return Found(f"questions about pictures for {', '.join(splits)}", tuple(splits)) if splits else None

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Sample:
        id = f"{self.split}/{self._ids[index]}"
        text = json.loads(self._texts[index])
        check_length([text["question"], *text.get("answers", ())], id, self._max_characters)
        data = read_or_refuse(self._pictures, index, id)
        image = decode_picture(data, id, max_pixels=self._max_pixels)
        targets: dict[str, Any] = {}
        if "answers" in text:
            targets = {"answers": tuple(text["answers"]), "answer": text["answer"]}
        return Sample(id, {"image": image, "question": Text(text["question"])}, targets)

    def common_answers(self) -> Iterator[str]:
        """The answer that counts, of each question that has one; reads no pictures."""
        for index in range(len(self)):
            text = json.loads(self._texts[index])
            if "answer" in text:
                yield text["answer"]

    def originals(self, index: int) -> dict[str, bytes]:
        """The picture's file by its ending."""
        return original(self._pictures, index, f"{self.split}/{self._ids[index]}")


def _splits(tree: Tree) -> list[str]:
    found = set(matches([*tree.files(), *tree.files("annotations")], _OFFICIAL))
    found |= set(matches(tree.files("annotations"), r"vqa_(.+)\.json"))
    if tree.has_file("annotations/vqa.json"):
        entries = coco_json.read_json(tree, "annotations/vqa.json", {"questions": _QUESTIONS})["questions"]
        found |= {str(entry.get("split")) for entry in entries}
    return sorted(found)


def _questions(tree: Tree, path: Path, split: str) -> tuple[list[Mapping[str, Any]], str, Tree]:
    """The questions of a split with `image` and perhaps `answers`, where they stand, and the pictures."""
    for folder in ("", "annotations/"):
        for name in (split, f"{split}2014", f"{split}2015"):
            file = f"{folder}v2_OpenEnded_mscoco_{name}_questions.json"
            if tree.has_file(file):
                pictures = tree.below(name) or tree.below(f"images/{name}")
                if pictures is None:
                    raise DataError(
                        f"{tree.where(file)} is there, but not its pictures; expected {path / name}"
                    )
                return _official(tree, file, name, folder), tree.where(file), pictures
    for file in (f"annotations/vqa_{split}.json", "annotations/vqa.json"):
        if tree.has_file(file) and (file != "annotations/vqa.json" or split in _splits(tree)):
            kinds = {"questions": {**_QUESTIONS, "image": "text"}}
            entries = coco_json.read_json(tree, file, kinds)["questions"]
            return [e for e in entries if e.get("split", split) == split], tree.where(file), tree
    raise no_split(path, split, _splits(tree), f"{path}/v2_OpenEnded_mscoco_{split}2014_questions.json")


def _official(tree: Tree, file: str, name: str, folder: str) -> list[Mapping[str, Any]]:
    questions = coco_json.read_json(tree, file, {"questions": _QUESTIONS})["questions"]
    answers = f"{folder}v2_mscoco_{name}_annotations.json"
    of_question: dict[int, Mapping[str, Any]] = {}
    if tree.has_file(answers):
        kinds = {"annotations": {"question_id": "id", "answers": "list"}}
        entries = coco_json.read_json(tree, answers, kinds)["annotations"]
        of_question = {entry["question_id"]: entry for entry in entries}
    return [
        {**of_question.get(q["question_id"], {}), **q, "image": f"COCO_{name}_{q['image_id']:012d}.jpg"}
        for q in questions
    ]


def _of_types(
    questions: list[Mapping[str, Any]], types: tuple[str, ...], where: str
) -> list[Mapping[str, Any]]:
    known = sorted({str(q["question_type"]) for q in questions if "question_type" in q})
    unknown = next((type for type in types if type not in known), None)
    if unknown is not None:
        raise DataError(
            f"{where}: no question of the type {unknown!r}; it has {', '.join(known) or 'no types'}"
        )
    return [q for q in questions if q.get("question_type") in types]


def _text(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is kept of a question, as plain values."""
    kept: dict[str, Any] = {"question": check_text(entry["question"], where).strip()}
    if "answers" in entry:
        kept["answers"] = _answers(entry, where)
        most = max(kept["answers"], key=kept["answers"].count, default="")
        answer = entry.get("multiple_choice_answer", most)
        if not isinstance(answer, str):
            raise DataError(
                f"{where}: question {entry['question_id']}: its answer is {answer!r}; expected a text"
            )
        kept["answer"] = check_text(answer, where)
    return kept


def _answers(entry: Mapping[str, Any], where: str) -> list[str]:
    given = entry["answers"]
    answers = []
    for one in given if isinstance(given, list) else ():
        answer = one.get("answer") if isinstance(one, dict) else one
        if isinstance(answer, str):
            answers.append(check_text(answer, where))
    if not answers or len(answers) < len(given):
        raise DataError(
            f"{where}: question {entry['question_id']} has the answers {str(given)[:80]}; expected texts, or "
            "objects with 'answer'"
        )
    return answers
