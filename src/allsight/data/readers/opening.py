"""From a string `format:path` to a reader."""

from __future__ import annotations

import inspect
import os
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from allsight.config import ConfigError, did_you_mean
from allsight.data.shards.stores import is_url
from allsight.types import DataError, Sample

FORMATS = {
    "coco": "allsight.data.readers.coco:Coco",
    "imagefolder": "allsight.data.readers.imagefolder:ImageFolder",
    "label_maps": "allsight.data.readers.label_maps:LabelMaps",
    "webdataset": "allsight.data.readers.webdataset:WebDataset",
}
"""Format -> class that reads it: `Class(path, split, **options)`."""

_FROM_ANYWHERE = ("webdataset",)
"""Formats whose path may also be a URL, or a pattern of several paths."""


@runtime_checkable
class NamedReader(Protocol):
    """What each reader here offers beyond random access: whence, which classes, and what it passed over."""

    name: str
    split: str
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_reader(
    data: str, root: Path | str | None = None, split: str = "train", **options: Any
) -> NamedReader:
    """Open one split of a data set. Nothing is decoded yet.

    Args:
        data: `format:path`; formats are the keys of `FORMATS`. Shards (`webdataset`) may also be named by
            a URL or a pattern.
        root: Folder that a relative path starts from; by default the environment variable ALLSIGHT_DATA.
        split: `train`, `val` or what the data set has.
        options: Keyword arguments of the format's class.

    Raises:
        ConfigError: Unknown format or option (names the nearest), or a relative path without a root.
        DataError: No such folder; a split that is not there; see the format's class for the rest.
    """
    format, colon, place = data.partition(":")
    if not colon or not place:
        raise ConfigError(f"data: expected 'format:path' such as 'imagefolder:pets', got {data!r}")
    if format not in FORMATS:
        raise ConfigError(f"data: unknown format {format!r} in {data!r}{did_you_mean(format, FORMATS)}")
    module, name = FORMATS[format].split(":")
    cls = getattr(import_module(module), name)
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"data {data!r}: {format} has no option {option!r}{did_you_mean(option, known)}"
            )
    if is_url(place):
        if format not in _FROM_ANYWHERE:
            raise ConfigError(
                f"data {data!r}: {format} reads from disks, not from URLs; copy it to a disk, or pack it "
                "into shards with `allsight data pack` and read these as webdataset:URL"
            )
        return cls(place, split, **options)
    is_pattern = format in _FROM_ANYWHERE and "{" in place
    return cls(_located(data, place, root, is_pattern=is_pattern), split, **options)


def _located(data: str, place: str, root: Path | str | None, *, is_pattern: bool) -> Path:
    path = Path(place).expanduser()
    if not path.is_absolute():
        base = root or os.environ.get("ALLSIGHT_DATA")
        if not base:
            raise ConfigError(
                f"data {data!r}: the path is relative and there is no root; set data.root or the environment "
                "variable ALLSIGHT_DATA, or write an absolute path"
            )
        path = Path(base).expanduser() / path
    if not is_pattern and not path.exists():
        raise DataError(
            f"data {data!r}: {path.absolute()} does not exist; set data.root or ALLSIGHT_DATA to the folder "
            f"that holds {place}"
        )
    return path
