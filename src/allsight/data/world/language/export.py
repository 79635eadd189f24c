"""The language world in the formats real data comes in; all below one folder.

images/{train,val,pairs}/picture_000000.jpg             pictures
annotations/captions_{split}.json                       `coco_captions`: the canonical caption, another order
annotations/vqa_{split}.json                            `coco_vqa`: questions, with `question_type`
{split}.jsonl                                           `manifest`: masked sentences and the words taken out
image_text/{split}-00000.tar                            `webdataset`: the canonical caption, then a short one
classes/{split}/<shape>/picture_000000.jpg              `imagefolder`: pictures whose large object has a class
pictures_{split}.jsonl                                  objects in words, and the scene graphs behind them
tokenizer.json                                          every word a token
language.json                                           what was asked for and what is there
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import simplejpeg

from allsight.config import ConfigError
from allsight.data.shards.tar_writing import TAR_END, tar_members
from allsight.data.text_annotations import Question, captions_list, questions_list
from allsight.data.world.export import same_file
from allsight.data.world.language.arranging import Arrangement, Thing, caption_of
from allsight.data.world.language.options import Language
from allsight.data.world.language.questions import SIMPLER, TYPES, questions_of
from allsight.data.world.language.scenes import scene_of
from allsight.data.world.language.sentences import MaskedSentence, masked, reordered, shortened
from allsight.data.world.language.split import PAIRS, SPLITS
from allsight.data.world.language.words import tokenizer_json
from allsight.data.world.rendering import describe
from allsight.data.world.sampling import Draws
from allsight.data.world.scene import Scene
from allsight.data.world.vocabulary import CAPTION_SHAPES, SHAPES

FORMAT = 2
"""Version of this layout, in language.json."""

_TEXTS = 2 << 40
"""Texts are drawn under numbers of their own, as looks are."""
_FIRST_ID = {"train": 1, "val": 100_000_001, "pairs": 200_000_001}


@dataclass(frozen=True)
class Written:
    """What is written of one picture, beside its files.

    Args:
        index: Its number within the split.
        things: Its objects.
        captions: The canonical one, and the same in another order.
        pair_captions: The canonical one, and a short one.
        questions: Up to one of each type.
        sentence: With words taken out.
        graph: Its line of pictures_{split}.jsonl.
    """

    index: int
    things: Arrangement
    captions: tuple[str, str]
    pair_captions: tuple[str, str]
    questions: tuple[Question, ...]
    sentence: MaskedSentence
    graph: str


def make_folders(root: Path) -> None:
    """Create every folder of the layout."""
    for split in SPLITS:
        (root / "images" / split).mkdir(parents=True)
        for shape in SHAPES:
            (root / "classes" / split / shape).mkdir(parents=True)
    (root / "annotations").mkdir()
    (root / "image_text").mkdir()


def write_picture(
    config: Language.Config, root: Path, split: str, index: int, things: Arrangement
) -> Written:
    """Render one picture, write it, and derive its texts."""
    scene, rendered = describe(scene_of(config, split, index, things))
    jpeg = simplejpeg.encode_jpeg(rendered.picture, quality=config.jpeg_quality, colorsubsampling="444")
    file = root / "images" / split / f"{scene.name}.jpg"
    file.write_bytes(jpeg)
    main = things[scene.main or 0]
    if main.is_class:
        same_file(file, root / "classes" / split / main.name / file.name)
    draws = Draws(config.seed, split, "pictures", _TEXTS + index)
    canonical = caption_of(things)
    return Written(
        index=index,
        things=things,
        captions=(canonical, reordered(draws, things)),
        pair_captions=(canonical, shortened(draws, things)),
        questions=questions_of(draws, split, things),
        sentence=masked(draws, things),
        graph=_line({"things": [asdict(thing) for thing in things], "scene": scene.to_json()}),
    )


def write_shard(root: Path, split: str, number: int, pictures: Sequence[tuple[int, tuple[str, str]]]) -> None:
    """Write one tar of pictures (number, texts): KEY.jpg, KEY.json with all texts, KEY.txt with the first."""
    with (root / "image_text" / f"{split}-{number:05d}.tar").open("wb") as tar:
        for index, texts in pictures:
            own = {"allsight": {"inputs": {}, "targets": {"captions": texts}}}
            files = {
                "jpg": (root / "images" / split / f"{stem(index)}.jpg").read_bytes(),
                "json": _line(own).encode(),
                "txt": texts[0].encode(),
            }
            tar.write(tar_members(stem(index), files))
        tar.write(TAR_END)


def write_texts(
    root: Path, config: Language.Config, split: str, pictures: Sequence[Written]
) -> dict[str, Any]:
    """Write captions, questions, masked sentences and graphs of a split; how many there are of what."""
    first, kinds = _FIRST_ID[split], TYPES + SIMPLER
    captions = captions_list(
        ((first + p.index, f"{stem(p.index)}.jpg", p.captions) for p in pictures), config.size_px
    )
    asked = questions_list(
        (
            first + p.index,
            f"images/{split}/{stem(p.index)}.jpg",
            [(kinds.index(question.type), question) for question in p.questions],
        )
        for p in pictures
    )
    sentences = [
        {
            "id": stem(p.index),
            "image": f"images/{split}/{stem(p.index)}.jpg",
            "text": p.sentence.text,
            "answers": p.sentence.answers,
            "kinds": p.sentence.kinds,
        }
        for p in pictures
    ]
    _write(root / "annotations" / f"captions_{split}.json", [captions])
    _write(root / "annotations" / f"vqa_{split}.json", [asked])
    _write(root / f"{split}.jsonl", sentences)
    (root / f"pictures_{split}.jsonl").write_text("".join(f"{p.graph}\n" for p in pictures), encoding="utf-8")
    counted = {type: sum(q.type == type for p in pictures for q in p.questions) for type in kinds}
    return {"pictures": len(pictures), "questions": counted}


def write_language_json(root: Path, config: Language.Config, counts: dict[str, Any]) -> None:
    """Write tokenizer.json, and language.json, the last file."""
    _write(root / "tokenizer.json", [tokenizer_json()], indent=1)
    tree = {
        "format": FORMAT,
        "kind": "allsight language world",
        "options": config.model_dump(mode="json"),
        "counts": counts,
        "classes": SHAPES,
        "names_in_captions_only": CAPTION_SHAPES,
        "held_out_pairs": PAIRS["pairs"],
    }
    _write(root / "language.json", [tree], indent=1)


def read_pictures(root: Path | str, split: str) -> Iterator[tuple[Arrangement, Scene]]:
    """The pictures of a split in order: objects in words, and the scene; toy k is object k.

    Args:
        root: The folder `language` of a world.

    Raises:
        ConfigError: There is no such file; the folder is no language world.
    """
    path = Path(root) / f"pictures_{split}.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected the folder `language` of `allsight data world`")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            data = json.loads(line)
            yield tuple(Thing(**thing) for thing in data["things"]), Scene.from_json(data["scene"])


def stem(index: int) -> str:
    """Stem of the names of a picture's files."""
    return f"picture_{index:06d}"


def _line(tree: Any) -> str:
    return json.dumps(tree, separators=(",", ":"))


def _write(path: Path, trees: Sequence[Any], indent: int | None = None) -> None:
    texts = (_line(tree) if indent is None else json.dumps(tree, indent=indent) for tree in trees)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
