"""Tiny data sets with texts, for tests of tasks and of questions."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from allsight.data.text import Tokenizer

CAPTIONS = ["a red square", "a blue square", "a red circle at the left", "ein grünes Quadrat"]


def make_sets(folder: Path) -> Path:
    """Four pictures with captions and questions, texts with answers and labels, clips, and a tokenizer.

    `coco_captions:set`, `coco_vqa:set`, `manifest:sets`, `webdataset:clips`.
    """
    for split in ("train", "val"):
        (folder / "set" / "images" / split).mkdir(parents=True)
    (folder / "set" / "annotations").mkdir()
    questions = []
    for split in ("train", "val"):
        images, captions = [], []
        for number, caption in enumerate(CAPTIONS):
            name = f"{number}.png"
            pixels = np.full((12 + number, 16, 3), 60 * number, dtype=np.uint8)
            Picture.fromarray(pixels).save(folder / "set" / "images" / split / name)
            images.append({"id": number, "file_name": name, "height": 12 + number, "width": 16})
            captions.append({"id": number, "image_id": number, "caption": caption})
            answers = ["red", "red", "blue"] if number % 2 else ["yes"] * 3
            questions.append(
                {
                    "question_id": number + 10 * (split == "val"),
                    "image_id": number,
                    "image": f"images/{split}/{name}",
                    "question": "is it red?",
                    "split": split,
                    "answers": answers,
                    "multiple_choice_answer": answers[0],
                }
            )
        text = json.dumps({"images": images, "annotations": captions})
        (folder / "set" / "annotations" / f"captions_{split}.json").write_text(text)
    (folder / "set" / "annotations" / "vqa.json").write_text(json.dumps({"questions": questions}))
    for split in ("train", "val"):
        rows = [
            {"text": text, "question": "what?", "answer": text.split()[-1], "label": ["bad", "good"][n % 2]}
            for n, text in enumerate(CAPTIONS)
        ]
        (folder / "sets").mkdir(exist_ok=True)
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / "sets" / f"{split}.jsonl").write_text(lines)
    _make_clips(folder / "clips")
    Tokenizer.train([*CAPTIONS, "is it red?", "yes red blue"] * 3, vocab_size=300).save(folder)
    return folder


def _make_clips(folder: Path) -> None:
    """Four clips of three frames, with classes and captions, as tars."""
    folder.mkdir()
    (folder / "classes.json").write_text('["run", "jump"]')
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-00000.tar", "w") as tar:
            for number, caption in enumerate(CAPTIONS):
                files = {"cls": str(number % 2).encode(), "json": b'{"fps": 2}', "txt": caption.encode()}
                for frame in range(3):
                    buffer = io.BytesIO()
                    Picture.new("RGB", (12, 10), (60 * number, 40 * frame, 0)).save(buffer, "PNG")
                    files[f"{frame:03}.png"] = buffer.getvalue()
                for ending, data in files.items():
                    info = tarfile.TarInfo(f"clip{number}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
