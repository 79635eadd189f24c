"""Which shards make up a split: `SPLIT.shards.json`, or a pattern such as `train-{00000..00099}.tar`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int64

from allsight.data.readers.packed import PackedStrings
from allsight.data.readers.tree import Tree
from allsight.data.shards.index import SUFFIX, IndexHeader
from allsight.types import DataError

_FORMAT = "allsight-shards"
_VERSION = 1
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 10_000_000


_LISTED = ".shards.json"


def catalogue_name(split: str) -> str:
    """Name of the file that lists the shards of a split."""
    return f"{split}{_LISTED}"


def listed_splits(tree: Tree) -> list[str]:
    """The splits of a folder whose shards are listed."""
    return [name.removesuffix(_LISTED) for name in tree.files() if name.endswith(_LISTED)]


@dataclass(frozen=True)
class Catalogue:
    """The shards of a split, in order, and what their indexes say of them: 24 bytes and a name each.

    Args:
        names: Of the tars.
        samples: In each.
        tar_bytes: Size of each.
        tar_crc32: Checksum of each.
        entries_crc32: Checksum of the entries of its index.
        parts: Inputs and targets that every sample has; empty where nobody said.
        facts: How the shards were made, for people and for going on with an interrupted pack.
    """

    names: PackedStrings
    samples: Int64[np.ndarray, " n"]
    tar_bytes: Int64[np.ndarray, " n"]
    tar_crc32: np.ndarray
    entries_crc32: np.ndarray
    parts: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, names: Iterable[str], headers: Sequence[IndexHeader], parts: tuple[str, ...] = (), **facts: Any
    ) -> Catalogue:
        """From the headers of the shards' indexes."""
        rows = [(h.samples, h.tar_bytes, h.tar_crc32, h.entries_crc32) for h in headers]
        columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
        crc32s = columns[2:].astype(np.uint32)
        return cls(
            PackedStrings(names), columns[0].copy(), columns[1].copy(), crc32s[0], crc32s[1], parts, facts
        )

    def header(self, shard: int) -> IndexHeader:
        """What the index of a shard must say of itself."""
        columns = (self.samples, self.tar_bytes, self.tar_crc32, self.entries_crc32)
        return IndexHeader(*(int(column[shard]) for column in columns))

    def pack(self) -> bytes:
        """The catalogue as it stands in its file."""
        tree = {
            "format": _FORMAT,
            "version": _VERSION,
            "parts": list(self.parts),
            "facts": self.facts,
            "names": _joined(list(self.names)),
            "samples": self.samples.tolist(),
            "tar_bytes": self.tar_bytes.tolist(),
            "tar_crc32": self.tar_crc32.tolist(),
            "entries_crc32": self.entries_crc32.tolist(),
        }
        lines = (f" {json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in tree.items())
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @classmethod
    def unpack(cls, data: bytes, where: str) -> Catalogue:
        """The inverse of `pack`.

        Raises:
            DataError: Another structure or version.
        """
        remedy = "write it anew with `allsight data index`"
        try:
            tree = json.loads(data)
            if tree["format"] != _FORMAT or tree["version"] != _VERSION:
                raise DataError(
                    f"{where}: format {tree['format']!r}, version {tree['version']!r}; expected {_FORMAT!r}, "
                    f"version {_VERSION}; {remedy}, or update allsight"
                )
            names = tree["names"]
            names = expand(names, where) if isinstance(names, str) else [str(name) for name in names]
            samples, tar_bytes = (np.array(tree[name], dtype=np.int64) for name in ("samples", "tar_bytes"))
            tar_crc32, entries_crc32 = (
                np.array(tree[name], dtype=np.uint32) for name in ("tar_crc32", "entries_crc32")
            )
            parts, facts = tuple(map(str, tree["parts"])), dict(tree["facts"])
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise DataError(
                f"{where}: not a list of shards ({type(error).__name__}: {error}); {remedy}"
            ) from error
        if not names or any(
            column.shape != (len(names),) for column in (samples, tar_bytes, tar_crc32, entries_crc32)
        ):
            raise DataError(f"{where}: {len(names)} shards, but its columns have other lengths; {remedy}")
        for name in names:
            if name.startswith("/") or ".." in name.split("/") or "://" in name:
                raise DataError(f"{where}: the shard {name!r} leads outside its folder; {remedy}")
        return cls(PackedStrings(names), samples, tar_bytes, tar_crc32, entries_crc32, parts, facts)


def expand(pattern: str, where: str) -> list[str]:
    """The names of a pattern: each `{00000..00099}` counts, with as many digits as its first number has.

    Raises:
        DataError: A brace that is no such range, a range that counts down, or ten million names and more.
    """
    match = _RANGE.search(pattern)
    if match is None:
        if "{" in pattern or "}" in pattern:
            raise DataError(
                f"{where}: braces in {pattern!r}; expected a range of numbers such as {{00000..00099}}"
            )
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if last < first or last - first >= _MOST_SHARDS:
        raise DataError(f"{where}: the range {match[0]} in {pattern!r}; expected one that counts up")
    rest = expand(pattern[match.end() :], where)
    if (last - first + 1) * len(rest) > _MOST_SHARDS:
        raise DataError(f"{where}: {pattern!r} stands for more than {_MOST_SHARDS:,} names")
    head, digits = pattern[: match.start()], len(match[1])
    return [f"{head}{number:0{digits}}{tail}" for number in range(first, last + 1) for tail in rest]


def _joined(names: list[str]) -> str | list[str]:
    """Names as a pattern, if they are a plain row of numbers."""
    first, last = (re.fullmatch(r"(.*?)(\d+)(\.\w+)", names[k]) for k in (0, -1))
    if first is None or last is None:
        return names
    pattern = f"{first[1]}{{{first[2]}..{last[2]}}}{first[3]}"
    is_row = "{" not in first[1] and int(last[2]) >= int(first[2]) and expand(pattern, "") == names
    return pattern if is_row else names


def index_name(shard: str) -> str:
    """Name of the index beside a shard."""
    return f"{shard}{SUFFIX}"
