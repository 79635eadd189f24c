"""What readers of picture files share: which files count, which are left out, and how a read can fail."""

from __future__ import annotations

from allsight.data.decode import PICTURE_SUFFIXES
from allsight.data.readers.files import Files, SomeFiles
from allsight.data.readers.folders import FolderFiles
from allsight.types import DataError


def pictures_of(files: Files, where: str) -> Files:
    """Those of the files that are pictures, by their ending.

    Raises:
        DataError: There are none, or a name occurs twice (in two archives).
    """
    picked = [index for index, name in enumerate(files.names) if is_picture(name)]
    if not picked:
        raise DataError(f"{where}: no pictures; expected files ending in {', '.join(PICTURE_SUFFIXES)}")
    pictures = files if len(picked) == len(files.names) else SomeFiles(files, picked)
    seen: set[str] = set()
    for index, name in enumerate(pictures.names):
        if name in seen:
            raise DataError(
                f"{where}: picture {name} occurs twice, again in {pictures.where(index)}; names are ids"
            )
        seen.add(name)
    return pictures


def leave_out_of(files: Files, split: str, prefixes: tuple[str, ...]) -> tuple[Files, int]:
    """The files whose id `SPLIT/NAME` begins with none of the prefixes, and how many do.

    Raises:
        DataError: Nothing remains, or a prefix that names this split fits no file in it.
    """
    if not prefixes:
        return files, 0
    ids = [f"{split}/{name}" for name in files.names]
    for prefix in prefixes:
        if prefix.startswith(f"{split}/") and not any(id.startswith(prefix) for id in ids):
            raise DataError(f"leave_out: no sample begins with {prefix!r}; ids look like {ids[0]!r}")
    kept = [index for index, id in enumerate(ids) if not id.startswith(prefixes)]
    if not kept:
        raise DataError(f"leave_out={prefixes} leaves nothing of the {len(ids)} pictures of {split!r}")
    return SomeFiles(files, kept), len(ids) - len(kept)


def read_or_refuse(files: Files, index: int, id: str) -> bytes:
    """One file's bytes; what the system says against it becomes a DataError."""
    try:
        return files.read(index)
    except FileNotFoundError:
        raise DataError(f"{id}: no such file: {files.where(index)}", id) from None
    except OSError as error:
        raise DataError(f"{id}: cannot be read from {files.where(index)}: {error}", id) from error


def notes(*counted: tuple[int, str]) -> tuple[str, ...]:
    """Lines for people about what a reader passed over; none for zeros."""
    return tuple(f"{count} {what}" for count, what in counted if count)


def link_notes(files: Files) -> tuple[str, ...]:
    """Lines for people about links in a folder; none for files in archives."""
    return files.notes if isinstance(files, FolderFiles) else ()


def is_picture(name: str) -> bool:
    """Whether a file's ending is that of a picture."""
    return name.lower().endswith(PICTURE_SUFFIXES)


_BEGINNINGS = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
"""How files begin -> ending."""


def original(files: Files, index: int, id: str) -> dict[str, bytes]:
    """A picture's file by its ending; see `original_of`. Errors as `read_or_refuse`."""
    return original_of(read_or_refuse(files, index, id), files.names[index])


def original_of(data: bytes, name: str = "") -> dict[str, bytes]:
    """What `allsight data pack` copies of a picture: its file by its ending ("jpg").

    The ending is that of the name or, where pictures have no such names, what the file begins like. Nothing
    where neither tells; then pixels are packed.
    """
    if is_picture(name):
        return {name.rpartition(".")[2].lower(): data}
    ending = next((ending for start, ending in _BEGINNINGS.items() if data.startswith(start)), None)
    return {ending: data} if ending else {}
