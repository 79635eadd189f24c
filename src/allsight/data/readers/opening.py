"""From a string `format:path` to a reader."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import TypeAdapter, ValidationError

from allsight.config import ConfigError, did_you_mean
from allsight.data.readers.detection import (
    Candidate,
    candidate_for,
    detect_format,
    only_format,
    unknown_format,
)
from allsight.data.readers.formats import FORMATS, format_class
from allsight.data.shards.stores import is_url
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
            format that the folder or file can be (see `detect_format`). Shards (`webdataset`) may also be
            named by a URL or a pattern of tars.
        root: Folder that a relative path starts from; by default the environment variable ALLSIGHT_DATA.
        split: `train`, `val` or what the data set has.
        options: Keyword arguments of the format's class.

    Raises:
        ConfigError: Unknown format or option (names the nearest), or a relative path without a root.
        DataError: No such folder; one that could be of no format or of several; a split that is not there;
            see the format's class for the rest.
    """
    format, place = format_and_place(data)
    path = placed(data, format, place, root)
    format = format if isinstance(path, str) or format else only_format(path)
    return format_class(format)(path, split, **typed_options(format, options, prefix=f"data {data!r}: "))


def typed_options(format: str, options: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """The options of a format in the types that its class states: lists become tuples, "3" becomes 3.

    Args:
        prefix: Begins the errors.

    Raises:
        ConfigError: The format has no such option (names the nearest), or it is of another type.
    """
    stated = inspect.signature(format_class(format), eval_str=True).parameters.values()
    types = {option.name: option.annotation for option in stated if option.kind is option.KEYWORD_ONLY}
    typed = {}
    for name, value in options.items():
        if name not in types:
            raise ConfigError(f"{prefix}{format} has no option {name!r}{did_you_mean(name, types)}")
        try:
            typed[name] = TypeAdapter(types[name]).validate_python(value)
        except ValidationError as error:
            said = error.errors(include_url=False)[0]["msg"]
            raise ConfigError(
                f"{prefix}the option {name!r} of {format} got {value!r}: {said[0].lower()}{said[1:]}"
            ) from None
    return typed


def candidates_of(data: str, root: Path | str | None = None) -> tuple[Path | str, list[Candidate]]:
    """The path or URL that a data set's name means, and the formats that fit: one at least, or the named one.

    Args:
        data, root: As `open_reader`; without a root, a path that exists is taken as it is.

    Raises:
        ConfigError, DataError: As `open_reader`; several formats are no error.
    """
    format, place = format_and_place(data)
    local = Path(place).expanduser()
    rootless = root is None and not os.environ.get("ALLSIGHT_DATA")
    if rootless and not (is_url(place) or "{" in place or local.is_absolute() or local.exists()):
        raise DataError(f"{place}: no such file or folder (looked in {Path.cwd()}; ALLSIGHT_DATA is not set)")
    path = Path(place) if root is None and Path(place).exists() else placed(data, format, place, root)
    if isinstance(path, str) or not path.exists():
        return path, [Candidate(format, "shards, which are not listed before they are read", ("train",))]
    if format:
        return path, [candidate_for(path, format)]
    candidates = detect_format(path)
    if not candidates:
        raise unknown_format(path)
    return path.absolute(), candidates


def format_and_place(data: str) -> tuple[str, str]:
    """The format ("" where it is to be found out) and the path or URL of `format:path`.

    Raises:
        ConfigError: No path, or an unknown format.
    """
    format, colon, place = data.partition(":")
    if not colon or os.sep in format or is_url(data):
        format, place = "auto", data
    if format == "auto" and is_url(place):
        format = "webdataset"
    if not place:
        raise ConfigError(f"data: expected 'format:path' such as 'imagefolder:pets', got {data!r}")
    if format != "auto" and format not in FORMATS:
        raise ConfigError(f"data: unknown format {format!r} in {data!r}{did_you_mean(format, FORMATS)}")
    return "" if format == "auto" else format, place


def placed(data: str, format: str, place: str, root: Path | str | None) -> Path | str:
    """The path, or the URL, that a data set's name means. Errors as `open_reader`."""
    is_anywhere = format != "" and getattr(format_class(format), "reads_anywhere", False)
    if is_url(place):
        if not is_anywhere:
            raise ConfigError(
                f"data {data!r}: {format} reads from disks, not from URLs; copy it to a disk, or "
                "pack it into shards with `allsight data pack` and read these as webdataset:URL"
            )
        return place
    path = Path(place).expanduser()
    if not path.is_absolute():
        base = root or os.environ.get("ALLSIGHT_DATA")
        if not base:
            raise ConfigError(
                f"data {data!r}: the path is relative and there is no root; set data.root or the environment "
                "variable ALLSIGHT_DATA, or write an absolute path"
            )
        path = Path(base).expanduser() / path
    if not (is_anywhere and "{" in place) and not path.exists():
        raise DataError(
            f"data {data!r}: {path.absolute()} does not exist; set data.root or ALLSIGHT_DATA to the folder "
            f"that holds {place}"
        )
    return path
