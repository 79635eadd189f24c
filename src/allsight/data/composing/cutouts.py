"""Cut-outs: pictures of one thing with transparency around it, and what they are called."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from allsight.data.decode import MAX_PIXELS
from allsight.data.readers.tree import Tree, name_inside, open_tree
from allsight.types import DataError


@dataclass(frozen=True)
class Cutout:
    """One thing.

    Args:
        file: Name of its picture, which is also its id.
        names: Language -> what it is called, with its article: `a frog`.
        pixels: RGBA.
    """

    file: str
    names: dict[str, str]
    pixels: UInt8[np.ndarray, "h w 4"]


def read_cutouts(
    folder: Path, split: str, languages: Sequence[str], most_words: int
) -> tuple[list[Cutout], tuple[str, ...]]:
    """The cut-outs of a split whose names are short enough, and notes on those left out.

    SPLIT.json is a list of objects with `file` and `captions` (language -> text, such as "A frog."); pictures
    are in SPLIT.zip or in the folder SPLIT.

    Args:
        folder: Where both are.
        split: Such as `train`.
        languages: Those whose names are needed.
        most_words: Longest name in words, article included.
    Raises:
        DataError: No such file; a damaged list; a picture that is missing, damaged, without transparency or
            without a visible pixel; no cut-out is left.
    """
    file = folder / f"{split}.json"
    entries = _entries(file)
    pictures = _pictures(folder, split)
    found, unnamed, long = [], 0, 0
    for entry in entries:
        names = {language: _name(entry["captions"].get(language, "")) for language in languages}
        if not all(names.values()):
            unnamed += 1
        elif max(len(name.split()) for name in names.values()) > most_words:
            long += 1
        else:
            name = name_inside(entry["file"], str(file))
            found.append(Cutout(name, names, _pixels(pictures, name)))
    if not found:
        raise DataError(
            f"{file}: no cut-out with a name of at most {most_words} words in {', '.join(languages)}"
        )
    counts = ((unnamed, "without a name in every language"), (long, f"with names of over {most_words} words"))
    return found, tuple(f"{split}: {count} cut-outs {why} left out" for count, why in counts if count)


def _entries(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected a list of cut-outs with `file` and `captions`")
    try:
        entries = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: not JSON ({error})") from None
    listed: list[Any] = entries if isinstance(entries, list) else [None]
    for number, entry in enumerate(listed):
        fits = (
            isinstance(entry, dict)
            and isinstance(entry.get("file"), str)
            and isinstance(entry.get("captions"), dict)
            and all(isinstance(text, str) for text in entry["captions"].values())
        )
        if not fits:
            raise DataError(
                f"{file}: entry {number}: expected an object with `file` and `captions` (language -> text)"
            )
    return listed


def _pictures(folder: Path, split: str) -> Tree:
    for path in (folder / f"{split}.zip", folder / split):
        if path.exists():
            return open_tree(path)
    raise DataError(f"{folder}: expected the pictures in {split}.zip or in the folder {split}")


def _name(caption: str) -> str:
    """`A frog.` -> `a frog`; words in brackets are no part of it."""
    words = re.sub(r"\s*\([^)]*\)", "", caption).strip().rstrip(".!").strip()
    return words[:1].lower() + words[1:]


def _pixels(pictures: Tree, name: str) -> UInt8[np.ndarray, "h w 4"]:
    try:
        with PillowImage.open(io.BytesIO(pictures.read(name)), formats=("PNG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"{name}: {picture.width}x{picture.height} px, more than {MAX_PIXELS} pixels")
            if "A" not in picture.mode and "transparency" not in picture.info:
                raise DataError(f"{name}: has no transparency; expected a cut-out")
            pixels = np.array(picture.convert("RGBA"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: {' '.join(str(error).split())}") from error
    if not pixels[..., 3].any():
        raise DataError(f"{name}: no pixel is visible")
    return pixels
