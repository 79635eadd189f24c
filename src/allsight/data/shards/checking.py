"""`allsight data index` and `allsight data verify`: whole folders of shards, tar by tar."""

from __future__ import annotations

import zlib
from pathlib import Path

from allsight.data.readers.files import splits_there
from allsight.data.shards.catalogue import Catalogue, catalogue_name, index_name
from allsight.data.shards.index import Index, IndexHeader, index_tar, write_whole
from allsight.data.shards.opening import tars_of
from allsight.data.side_by_side import Progress, each
from allsight.types import DataError

_PIECE = 2**20
_MOST_SHOWN = 10


def index_place(path: Path, *, processes: int = 1, progress: Progress | None = None) -> dict[str, Catalogue]:
    """Write the indexes of all tars of a folder and the list of each split; or the index of one tar.

    Returns:
        Split (or tar) -> its shards.

    Raises:
        DataError: No tars; a damaged one.
        OSError: The folder cannot be written to.
    """
    tars = _tars(path)
    names = [tar for group in tars.values() for tar in group]
    headers = {}
    for done, header in enumerate(each(_index, names, processes), 1):
        headers[names[done - 1]] = header
        if progress is not None:
            progress(done, len(names))
    written = {}
    for split, group in tars.items():
        old = _listed(path / catalogue_name(split)) if path.is_dir() else None
        parts, facts = (old.parts, old.facts) if old is not None else ((), {})
        written[split] = Catalogue.of(
            [tar.name for tar in group], [headers[tar] for tar in group], parts, **facts
        )
        if path.is_dir():
            write_whole(path / catalogue_name(split), written[split].pack())
    return written


def verify_place(path: Path, *, processes: int = 1, progress: Progress | None = None) -> int:
    """Read all tars of a folder (or one tar) and compare them with their indexes and with the lists.

    Returns:
        Samples that are as they were written.

    Raises:
        DataError: No tars; or a line for each that is damaged, missing or not listed.
    """
    tars = _tars(path)
    lists = {split: _listed(path / catalogue_name(split)) for split in tars} if path.is_dir() else {}
    names = [tar for group in tars.values() for tar in group]
    faults, samples, headers = [], 0, {}
    for done, found in enumerate(each(_verify, names, processes), 1):
        if isinstance(found, str):
            faults.append(found)
        else:
            samples += found.samples
            headers[names[done - 1].name] = found
        if progress is not None:
            progress(done, len(names))
    for split, catalogue in lists.items():
        if catalogue is None:
            continue
        listed = {name: catalogue.header(shard) for shard, name in enumerate(catalogue.names)}
        there = {tar.name for tar in tars[split]}
        faults += [f"{path / name}: listed, but not there" for name in sorted(set(listed) - there)]
        faults += [f"{path / name}: not in {catalogue_name(split)}" for name in sorted(there - set(listed))]
        faults += [
            f"{path / name}: another tar than the one in {catalogue_name(split)}"
            for name, header in listed.items()
            if name in headers and headers[name] != header
        ]
    if faults:
        more = [f"and {len(faults) - _MOST_SHOWN} more"] if len(faults) > _MOST_SHOWN else []
        raise DataError("\n".join([*faults[:_MOST_SHOWN], *more]))
    return samples


def tar_crc32(path: Path) -> tuple[int, int]:
    """Size and checksum of a file. Raises OSError."""
    size = checksum = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            checksum = zlib.crc32(piece, checksum)
            size += len(piece)
    return size, checksum


def _index(path: Path) -> IndexHeader:
    index = index_tar(path)
    write_whole(path.with_name(index_name(path.name)), index.pack())
    return index.header


def _verify(path: Path) -> IndexHeader | str:
    beside = path.with_name(index_name(path.name))
    try:
        index = Index.unpack(beside.read_bytes(), str(beside))
        size, checksum = tar_crc32(path)
        if (size, checksum) != (index.header.tar_bytes, index.header.tar_crc32):
            kind = (
                f"{size} bytes instead of {index.header.tar_bytes}" if size != index.header.tar_bytes else ""
            )
            return f"{path}: damaged: {kind or 'its checksum differs'}; get or pack it anew"
        again = index_tar(path)
    except FileNotFoundError:
        return f"{beside}: no such index; run `allsight data index`"
    except (DataError, OSError) as error:
        return str(error)
    return index.header if again.header == index.header else f"{beside}: places samples wrongly; index anew"


def _listed(path: Path) -> Catalogue | None:
    try:
        return Catalogue.unpack(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None


def _tars(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {path.name: [path]}
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or tar")
    found: dict[str, list[Path]] = {split: tars_of(path, split) for split in splits_there(path)}
    found = {split: tars for split, tars in found.items() if tars}
    if not found:
        raise DataError(f"{path}: no tars such as train-00000.tar; give a single tar by its name")
    return found
