"""Writing a composed set: the same bytes however many processes work on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import simplejpeg
from PIL import Image as PillowImage
from pydantic import Field, field_validator

from allsight.config import Config, ConfigError, Configured
from allsight.data.composing.cutouts import Cutout, read_cutouts
from allsight.data.composing.texts import QUARTERS, WORDINGS, Arrangement, caption, questions
from allsight.data.order import generator
from allsight.data.readers import open_reader
from allsight.data.text_annotations import Question, captions_list, questions_list
from allsight.data.transforms import CenterCrop, Resize
from allsight.data.world.working import all_or_nothing, in_order
from allsight.types import Sample

SPLITS: Final = ("train", "val", "unseen")
"""`val`: cut-outs of `train`, arranged as never there, on other backgrounds; `unseen`: other cut-outs."""

_EXTENTS = (0.3, 0.46)
"""Longer side of an object, as a part of the picture's side; a quarter is 0.5."""
_TRIES = 100
_CHUNK = 50


class Composing(Configured):
    """Pictures of one to four cut-outs with captions and questions; `compose` writes them."""

    class Config(Config):
        """Options of a composed set.

        Args:
            seed: Everything follows from it.
            size_px: Side of the square pictures.
            train, val, unseen: Pictures of each split.
            objects: Fewest and most objects of a picture.
            languages: Of questions and texts; captions are in the first.
            most_words: Longest name of an object in words, article included.
            jpeg_quality: 1 to 100.
        """

        seed: int = Field(default=0, ge=0, lt=2**63)
        size_px: int = Field(default=64, ge=32, le=1024)
        train: int = Field(default=8000, ge=1, le=1_000_000)
        val: int = Field(default=1000, ge=1, le=100_000)
        unseen: int = Field(default=300, ge=1, le=100_000)
        objects: tuple[int, int] = (1, 4)
        languages: tuple[str, ...] = ("en", "de")
        most_words: int = Field(default=3, ge=1)
        jpeg_quality: int = Field(default=92, ge=1, le=100)

        @field_validator("objects")
        @classmethod
        def _objects_in_order(cls, objects: tuple[int, int]) -> tuple[int, int]:
            if not 1 <= objects[0] <= objects[1] <= QUARTERS:
                raise ValueError(f"expected fewest <= most, both from 1 to {QUARTERS}")
            return objects

        @field_validator("languages")
        @classmethod
        def _known_languages(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
            unknown = [language for language in languages if language not in WORDINGS]
            if unknown or not languages or len(set(languages)) < len(languages):
                raise ValueError(f"expected some of {', '.join(WORDINGS)}, each once")
            return languages


@dataclass(frozen=True)
class _Source:
    """Where a split's cut-outs and backgrounds are."""

    config: Composing.Config
    cutouts: Path
    backgrounds: str
    split: str

    @property
    def cutouts_split(self) -> str:
        return "val" if self.split == "unseen" else "train"

    @property
    def backgrounds_split(self) -> str:
        return "train" if self.split == "train" else "val"


@dataclass(frozen=True)
class _Job:
    source: _Source
    root: Path
    first: int
    arrangements: tuple[tuple[tuple[int, int], ...], ...]
    """Pictures as ((quarter, number of the cut-out), ...)."""


@dataclass(frozen=True)
class _Written:
    captions: tuple[str, ...]
    questions: tuple[Question, ...]


def compose(
    out: Path | str,
    cutouts: Path | str,
    backgrounds: str,
    config: Composing.Config | None = None,
    *,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[str, ...]:
    """Compose pictures of cut-outs on other pictures and write them with captions and questions.

    images/{train,val,unseen}/000000.jpg     pictures
    annotations/captions_{split}.json        `coco_captions`: what is where, in the first language
    annotations/vqa_{split}.json             `coco_vqa`: how many, and what is where
    texts/{train,val,unseen}.txt             `text`: the same in each language, a line each
    composed.json                            options, the last file

    Args:
        out: Folder to make; it may exist if it is empty.
        cutouts: Folder with train.json, train.zip, val.json and val.zip; see `read_cutouts`.
        backgrounds: A set of pictures with the splits train and val, as `format:path`.
        config: What to compose.
        workers: Processes; the bytes do not depend on it.
        on_progress: Called with (pictures done, pictures in all).
    Returns:
        Notes: which cut-outs were left out, and why.
    Raises:
        ConfigError: `out` exists and is not empty; there are not as many different pictures as asked for.
        DataError: Cut-outs or backgrounds cannot be read.
    """
    config, out = config or Composing.Config(), Path(out)
    # What lies there may be another than at the last call.
    _read_once.cache_clear()
    _backgrounds.cache_clear()
    sources = {split: _Source(config, Path(cutouts).resolve(), backgrounds, split) for split in SPLITS}
    notes = {note: None for source in sources.values() for note in _cutouts(source)[1]}
    arranged = _arranged(sources)
    total, done = sum(len(pictures) for pictures in arranged.values()), 0
    with all_or_nothing(out) as root:
        for split in SPLITS:
            (root / "images" / split).mkdir(parents=True)
        (root / "annotations").mkdir()
        (root / "texts").mkdir()
        jobs = [
            _Job(source, root, first, tuple(arranged[split][first : first + _CHUNK]))
            for split, source in sources.items()
            for first in range(0, len(arranged[split]), _CHUNK)
        ]
        written: dict[str, list[_Written]] = {split: [] for split in SPLITS}
        for job, some in zip(jobs, in_order(_do, jobs, workers), strict=True):
            written[job.source.split] += some
            done += len(some)
            if on_progress is not None:
                on_progress(done, total)
        for number, split in enumerate(SPLITS):
            _write_texts(root, config, split, 1 + number * 100_000_000, written[split])
        tree = {"kind": "allsight composed pictures", "format": 1, "options": config.model_dump(mode="json")}
        (root / "composed.json").write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    return tuple(notes)


def _arranged(sources: dict[str, _Source]) -> dict[str, list[tuple[tuple[int, int], ...]]]:
    """The pictures of each split; none of `val` is arranged as one of `train`."""
    found: dict[str, list[tuple[tuple[int, int], ...]]] = {}
    taken: set[tuple[str, tuple[tuple[int, int], ...]]] = set()
    for split, source in sources.items():
        config, count = source.config, len(_cutouts(source)[0])
        found[split] = []
        for index in range(getattr(config, split)):
            rng = generator(config.seed, "composing", split, index)
            for _ in range(_TRIES):
                things = _drawn(rng, config, count)
                if (source.cutouts_split, things) not in taken:
                    break
            else:
                raise ConfigError(
                    f"config.{split}: expected about {index} pictures, since no two may show the same things "
                    f"in the same places; got {getattr(config, split)}"
                )
            taken.add((source.cutouts_split, things))
            found[split].append(things)
    return found


def _drawn(rng: np.random.Generator, config: Composing.Config, count: int) -> tuple[tuple[int, int], ...]:
    fewest, most = config.objects
    objects = int(rng.integers(fewest, most + 1))
    quarters = sorted(rng.permutation(QUARTERS)[:objects].tolist())
    return tuple((quarter, int(rng.integers(count))) for quarter in quarters)


def _do(job: _Job) -> list[_Written]:
    source, config = job.source, job.source.config
    cutouts, _ = _cutouts(source)
    backgrounds = _backgrounds(source.backgrounds, source.backgrounds_split)
    found = []
    for number, places in enumerate(job.arrangements, start=job.first):
        rng = generator(config.seed, "composed looks", source.split, number)
        things = tuple((quarter, cutouts[thing]) for quarter, thing in places)
        behind = backgrounds[int(rng.integers(len(backgrounds)))]
        pixels = _pasted(rng, _square(behind, config.size_px), things)
        jpeg = simplejpeg.encode_jpeg(pixels, quality=config.jpeg_quality, colorsubsampling="444")
        (job.root / _path(source.split, number)).write_bytes(jpeg)
        captions = tuple(caption(things, language) for language in config.languages)
        found.append(_Written(captions, tuple(questions(rng, things, config.languages))))
    return found


def _square(sample: Sample, side: int) -> PillowImage.Image:
    """The middle of a picture, its shorter side brought to the picture's side."""
    rng = generator(0, "unused")
    for step in (Resize(side, how="short"), CenterCrop(side)):
        sample = step(sample, rng)
    return PillowImage.fromarray(sample.image.pixels.permute(1, 2, 0).numpy())


def _pasted(rng: np.random.Generator, picture: PillowImage.Image, things: Arrangement) -> np.ndarray:
    """The picture with each object somewhere in its quarter."""
    side, half = picture.width, picture.width / 2
    for quarter, cutout in things:
        height, width = cutout.pixels.shape[:2]
        scale = rng.uniform(*_EXTENTS) * side / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        scaled = PillowImage.fromarray(cutout.pixels).resize(size, PillowImage.Resampling.LANCZOS)
        row, column = divmod(quarter, 2)
        left, top = (
            round(start * half + rng.uniform(0, half - extent))
            for start, extent in zip((column, row), size, strict=True)
        )
        picture.paste(scaled, (left, top), scaled)
    return np.ascontiguousarray(picture)


def _write_texts(
    root: Path, config: Composing.Config, split: str, first: int, pictures: Sequence[_Written]
) -> None:
    captions = captions_list(
        ((first + n, _path(split, n).name, p.captions[:1]) for n, p in enumerate(pictures)), config.size_px
    )
    asked = questions_list(
        (first + n, str(_path(split, n)), list(enumerate(p.questions))) for n, p in enumerate(pictures)
    )
    for kind, tree in (("captions", captions), ("vqa", asked)):
        text = json.dumps(tree, separators=(",", ":"), ensure_ascii=False)
        (root / "annotations" / f"{kind}_{split}.json").write_text(text + "\n", encoding="utf-8")
    lines = "".join(f"{text}\n" for p in pictures for text in p.captions)
    (root / "texts" / f"{split}.txt").write_text(lines, encoding="utf-8")


def _path(split: str, number: int) -> Path:
    return Path("images") / split / f"{number:06d}.jpg"


def _cutouts(source: _Source) -> tuple[list[Cutout], tuple[str, ...]]:
    return _read_once(source.cutouts, source.cutouts_split, source.config.languages, source.config.most_words)


@cache
def _read_once(
    folder: Path, split: str, languages: tuple[str, ...], most_words: int
) -> tuple[list[Cutout], tuple[str, ...]]:
    """Once a process: each of its jobs needs them."""
    return read_cutouts(folder, split, languages, most_words)


_backgrounds = cache(lambda data, split: open_reader(data, split=split))
"""As `_read_once`."""
