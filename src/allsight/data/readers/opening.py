"""From a string `format:path` to a reader."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from allsight.config import ConfigError, did_you_mean
from allsight.data.readers.detection import (
    Candidate,
    candidate_for,
    detect_format,
    only_format,
    unknown_format,
)
from allsight.data.readers.formats import FORMATS, format_class
from allsight.types import DataError, Sample


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
        data: `format:path`; formats are the keys of `FORMATS`. `auto:path`, or a path alone, takes the one
            format that the folder or file can be (see `detect_format`).
        root: Folder that a relative path starts from; by default the environment variable ALLSIGHT_DATA.
        split: `train`, `val` or what the data set has.
        options: Keyword arguments of the format's class.

    Raises:
        ConfigError: Unknown format or option (names the nearest), or a relative path without a root.
        DataError: No such folder; one that could be of no format or of several; a split that is not there;
            see the format's class for the rest.
    """
    format, place = split_name(data)
    path = located(data, place, root)
    cls = format_class(format or only_format(path))
    known = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"data {data!r}: {cls.__name__} has no option {option!r}{did_you_mean(option, known)}"
            )
    return cls(path, split, **options)


def candidates_of(data: str, root: Path | str | None = None) -> tuple[Path, list[Candidate]]:
    """The path that a data set's name means, and the formats that fit, at least one; the named one alone.

    Args:
        data, root: As `open_reader`; without a root, a path that exists is taken as it is.

    Raises:
        ConfigError, DataError: As `open_reader`; several formats are no error.
    """
    format, place = split_name(data)
    path = Path(place) if root is None and Path(place).exists() else located(data, place, root)
    if format:
        return path, [candidate_for(path, format)]
    candidates = detect_format(path)
    if not candidates:
        raise unknown_format(path)
    return path.absolute(), candidates


def split_name(data: str) -> tuple[str, str]:
    """The format ("" where it is to be found out) and the path of `format:path`.

    Raises:
        ConfigError: No path, or an unknown format.
    """
    format, colon, place = data.partition(":")
    if not colon or os.sep in format:
        format, place = "auto", data
    if not place:
        raise ConfigError(f"data: expected 'format:path' such as 'imagefolder:pets', got {data!r}")
    if format != "auto" and format not in FORMATS:
        raise ConfigError(f"data: unknown format {format!r} in {data!r}{did_you_mean(format, FORMATS)}")
    return "" if format == "auto" else format, place


def located(data: str, place: str, root: Path | str | None) -> Path:
    """The path that a data set's name means. Errors as `open_reader`."""
    path = Path(place).expanduser()
    if not path.is_absolute():
        base = root or os.environ.get("ALLSIGHT_DATA")
        if not base:
            raise ConfigError(
                f"data {data!r}: the path is relative and there is no root; set data.root or the environment "
                "variable ALLSIGHT_DATA, or write an absolute path"
            )
        path = Path(base).expanduser() / path
    if not path.exists():
        raise DataError(
            f"data {data!r}: {path.absolute()} does not exist; set data.root or ALLSIGHT_DATA to the folder "
            f"that holds {place}"
        )
    return path
