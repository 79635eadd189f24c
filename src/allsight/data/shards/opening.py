"""From a folder, a tar, a pattern of tars or a URL to the shelf of its samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from allsight.data.readers.files import shards_of, splits_there
from allsight.data.shards.catalogue import Catalogue, catalogue_name, expand, index_name
from allsight.data.shards.index import (
    HEADER_BYTES,
    Index,
    IndexHeader,
    index_tar,
    tar_crc32,
    write_whole,
)
from allsight.data.shards.remote import FsspecStore, HttpStore, Patience
from allsight.data.shards.stores import FolderStore, Store, is_url
from allsight.types import DataError

_AT_ONCE = 16


@dataclass(frozen=True)
class Found:
    """Shards, and what there is to say about how they were found.

    Args:
        indexes: Those that could not be written beside their tars, by number.
    """

    store: Store
    catalogue: Catalogue
    indexes: dict[int, Index] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def find_shards(place: str | Path, split: str, patience: Patience | None = None) -> Found:
    """The shards of a split.

    Args:
        place: A folder or the URL of one, which holds `SPLIT.shards.json` (on disks also just shards
            `SPLIT-00000.tar`, ...); or a tar, or a pattern `.../{split}-{00000..00099}.tar`, as path or URL.
        split: Replaces `{split}` in a pattern. One without `{split}` is of the split whose name it holds,
            else `train`.
        patience: With servers.

    Tars on disk that have no index are read through once and given one.

    Raises:
        DataError: No such split or tar; a tar on a server without an index; a damaged list or index.
        ConfigError: A place that cannot be: rights, scheme.
        RemoteError: A server does not answer.
    """
    text = str(place)
    if is_url(text) and not text.startswith("file://"):
        base, query, pattern = _parted(text)
        store: Store = (
            HttpStore(base, query, patience or Patience())
            if text.startswith(("http://", "https://"))
            else FsspecStore(base, patience or Patience())
        )
        if pattern is None:
            return Found(store, _listed_far(store, split))
        names = _expanded(pattern, split, text)
        return Found(store, Catalogue.of(names, _headers(store, names)))
    path = Path(text.removeprefix("file://"))
    if not path.is_dir():
        folder, names = _of_pattern(path, split)
        return _indexed(folder, names)
    try:
        data = (path / catalogue_name(split)).read_bytes()
    except FileNotFoundError:
        names = [tar.name for tar in tars_of(path, split)]
        if not names:
            there = splits_there(path)
            listed = f"there are: {', '.join(there)}" if there else "there are no tars"
            raise DataError(
                f"{path}: no split {split!r}; {listed}; expected {catalogue_name(split)}, {split}.tar or "
                f"{split}-00000.tar"
            ) from None
        return _indexed(path, names)
    return Found(FolderStore(path), Catalogue.unpack(data, str(path / catalogue_name(split))))


def _parted(url: str) -> tuple[str, str, str | None]:
    """Folder, query and pattern of a URL; no pattern where it names a folder."""
    parts = urlsplit(url)
    # Patterns begin at the last slash before their first brace.
    path = parts.path.rstrip("/")
    if not path.endswith(".tar"):
        return urlunsplit((parts.scheme, parts.netloc, path, "", "")), parts.query, None
    cut = path.rfind("/", 0, path.find("{") if "{" in path else len(path))
    folder = urlunsplit((parts.scheme, parts.netloc, path[:cut], "", ""))
    return folder, parts.query, path[cut + 1 :]


def _of_pattern(path: Path, split: str) -> tuple[Path, list[str]]:
    parts = path.parts
    cut = next((k for k, part in enumerate(parts) if "{" in part), len(parts) - 1)
    folder, pattern = Path(*parts[:cut]), "/".join(parts[cut:])
    if path.suffix != ".tar":
        raise DataError(
            f"{path}: expected a folder, a .tar, or a pattern such as {{split}}-{{00000..00099}}.tar"
        )
    names = _expanded(pattern, split, str(path))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{folder / missing[0]}: no such shard ({len(missing)} of {len(names)} are missing)")
    return folder, names


def tars_of(folder: Path, split: str) -> list[Path]:
    """The tars of a split in a folder: `SPLIT.tar`, or `SPLIT-00000.tar` and those that follow."""
    single = folder / f"{split}.tar"
    return (
        [single]
        if single.is_file()
        else [shard for shard in shards_of(folder, split) if shard.suffix == ".tar"]
    )


def _expanded(pattern: str, split: str, where: str) -> list[str]:
    if "{split}" not in pattern and split != "train" and split not in pattern:
        raise DataError(
            f"{where}: which of its samples are split {split!r} is not said; put {{split}} into the pattern "
            "where the name of the split stands"
        )
    return expand(pattern.replace("{split}", split), where)


def _listed_far(store: Store, split: str) -> Catalogue:
    name = catalogue_name(split)
    try:
        return Catalogue.unpack(store.read(name), store.where(name))
    except FileNotFoundError:
        raise DataError(
            f"{store.where(name)}: no such file, so the split {split!r} is not there or its shards are not "
            "listed; run `allsight data index` where the tars are and put what it writes beside them, or "
            "name the tars with a pattern such as {split}-{00000..00099}.tar"
        ) from None


def _headers(store: Store, names: Sequence[str]) -> list[IndexHeader]:
    def header(name: str) -> IndexHeader:
        try:
            data = store.read(index_name(name), 0, HEADER_BYTES)
        except FileNotFoundError:
            raise DataError(
                f"{store.where(index_name(name))}: no such file; a tar on a server is read by its index: run "
                "`allsight data index` where the tars are and put what it writes beside them"
            ) from None
        return IndexHeader.unpack(data, store.where(index_name(name)))

    with ThreadPoolExecutor(min(_AT_ONCE, len(names))) as pool:
        return list(pool.map(header, names))


def _indexed(folder: Path, names: Sequence[str]) -> Found:
    """Shards on disk that no catalogue lists; those without an index get one."""
    headers, indexes, written = [], {}, 0
    for number, name in enumerate(names):
        index, is_new = ensure_index(folder / name)
        headers.append(index.header)
        written += is_new
        if is_new and not (folder / index_name(name)).exists():
            indexes[number] = index
    notes = []
    if written:
        notes.append(f"{written} tars without an index read through once")
    if indexes:
        notes.append(f"{len(indexes)} indexes could not be written to {folder} and are kept in memory")
    return Found(FolderStore(folder), Catalogue.of(names, headers), indexes, tuple(notes))


def _is_of(index: Index, tar: Path, beside: Path) -> bool:
    """Whether an index is that of a tar. Tars are padded, so another one may well have the same size."""
    if index.header.tar_bytes != tar.stat().st_size:
        return False
    if tar.stat().st_mtime_ns <= beside.stat().st_mtime_ns:
        return True
    if tar_crc32(tar) != index.header.tar_crc32:
        return False
    # Copied after its index: said once, if that is allowed, so that it is not read through each time.
    with suppress(OSError):
        os.utime(beside)
    return True


def ensure_index(path: Path) -> tuple[Index, bool]:
    """The index beside a tar, or a new one where there is none or it is of another tar; whether it is new.

    A new one is written beside the tar if that is allowed.

    Raises:
        DataError: The tar, or an index that is there, is damaged.
    """
    beside = path.with_name(index_name(path.name))
    try:
        index = Index.unpack(beside.read_bytes(), str(beside))
        if _is_of(index, path, beside):
            return index, False
    except FileNotFoundError:
        pass
    index = index_tar(path)
    try:
        write_whole(beside, index.pack())
    except OSError:
        # A folder that others own, or a full disk: it works as well from memory.
        return index, True
    return index, True
