"""Plain text: the format `text:PATH`."""

from __future__ import annotations

import codecs
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from allsight.config import ConfigError
from allsight.data.readers.captions import MAX_CHARACTERS, check_length
from allsight.data.readers.files import Files, SomeFiles, has_split, open_split, splits_there
from allsight.data.readers.found import Found, no_split
from allsight.data.readers.lines import Lines
from allsight.data.readers.pictures import link_notes, notes, read_or_refuse
from allsight.data.readers.tree import Tree
from allsight.types import DataError, Sample, Text


class PlainText:
    """Reads documents: the lines of PATH/SPLIT.txt, or the .txt files in PATH/SPLIT (or an archive of it).

    Samples are called `SPLIT/LINE` (counted from 1) or `SPLIT/NAME.txt`, and have the input `text`. Lines
    without text are passed over and counted in `notes`. A file of lines costs 16 bytes of memory a line.

    Args:
        path: The folder, or the file SPLIT.txt itself.
        split: Which split.
        encoding: How letters are written; one that ends lines with byte 10 (not UTF-16).
        max_characters: A longer document is refused when it is read.

    Raises:
        ConfigError: No such encoding.
        DataError: No such split, or nothing in it. On reading: another encoding; a document is too long.
    """

    def __init__(
        self, path: Path, split: str, *, encoding: str = "utf-8", max_characters: int = 100 * MAX_CHARACTERS
    ) -> None:
        try:
            codecs.lookup(encoding)
        except LookupError:
            raise ConfigError(
                f"text: unknown encoding {encoding!r}; expected such as utf-8 or latin-1"
            ) from None
        self.name = f"text:{path.name}"
        self.split = split
        self.classes: tuple[str, ...] = ()
        self._encoding, self._max_characters = encoding, max_characters
        file = _line_file(path, split)
        self._lines = Lines(file) if file is not None else None
        self._files: Files | None = None
        empty, links = 0, ()
        if self._lines is not None:
            self._numbers = np.array(
                [n for n, line in enumerate(self._lines) if line.strip()], dtype=np.int64
            )
            empty = len(self._lines) - len(self._numbers)
        else:
            every = _documents_folder(path, split)
            links = link_notes(every)
            self._files = SomeFiles(every, [n for n, name in enumerate(every.names) if name.endswith(".txt")])
            self._numbers = np.arange(len(self._files.names))
        if not len(self._numbers):
            raise DataError(
                f"{path}: no documents in the split {split!r}; expected lines with text, or .txt files"
            )
        self.notes = (*notes((empty, "lines without text passed over")), *links)

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        if path.suffix == ".txt":
            return Found("a text file", (path.stem,))
        splits = _splits(path) if path.is_dir() else []
        return Found(f"text files for {', '.join(splits)}", tuple(splits)) if splits else None

    reads_single_files = True

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Bytes of each document as it is written: for English about its letters. Reads files through once.

        Raises:
            DataError: A file cannot be read.
        """
        if self._files is None:
            assert self._lines is not None
            return self._lines.sizes[self._numbers]
        names = self._files.names
        sizes = [len(read_or_refuse(self._files, n, f"{self.split}/{names[n]}")) for n in range(len(names))]
        return np.array(sizes, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Sample:
        number = int(self._numbers[index])
        if self._files is not None:
            id = f"{self.split}/{self._files.names[number]}"
            data = read_or_refuse(self._files, number, id)
        else:
            assert self._lines is not None
            id = f"{self.split}/{number + 1}"
            try:
                data = self._lines[number]
            except OSError as error:
                raise DataError(f"{id}: {self._lines.path}: {error.strerror or error}", id) from error
        try:
            text = data.decode(self._encoding)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{id}: not {self._encoding} ({error.reason} at byte {error.start}); set encoding=, such as "
                "latin-1",
                id,
            ) from None
        check_length([text], id, self._max_characters)
        return Sample(id, {"text": Text(text)})


def _line_file(path: Path, split: str) -> Path | None:
    """The file whose lines are documents, if there is one."""
    if path.suffix == ".txt" and path.is_file():
        if path.stem != split:
            raise no_split(path, split, [path.stem], f"a file {split}.txt")
        return path
    file = path / f"{split}.txt"
    return file if file.is_file() else None


def _documents_folder(path: Path, split: str) -> Files:
    if path.is_dir() and not has_split(path, split):
        raise no_split(
            path, split, _splits(path), f"{path / split}.txt or a folder {path / split} of .txt files"
        )
    return open_split(path, split)


def _splits(path: Path) -> list[str]:
    """Files of lines at the top, and folders that hold nothing but .txt files."""
    found = {file.stem for file in path.glob("*.txt") if file.stem not in ("classes", "labels", "README")}
    for name in splits_there(path):
        entries = list((path / name).glob("*")) if (path / name).is_dir() else []
        if entries and all(entry.suffix == ".txt" for entry in entries):
            found.add(name)
    return sorted(found)
