"""Texts of a corpus for the tokenizer, one at a time: lines, a field of JSON lines, or captions in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from allsight.types import DataError


class Corpus:
    """The texts of some files, read anew each time it is iterated. Only files of JSON are held whole.

    `.jsonl`: the text in `field` of each line. `.json`: the field of each entry of `annotations` (COCO's
    captions), or of each entry of a list. Any other file: each line that is not empty is a text.

    Args:
        files: The files, in any order.
        field: Name of the text among the keys of an entry; None takes `caption`, else `text`.
    Raises:
        DataError: A file is missing, a folder, or without texts; on iteration also: it is damaged, mostly not
            UTF-8, or an entry has no text.
    """

    def __init__(self, files: Sequence[Path], *, field: str | None = None) -> None:
        self._fields = ("caption", "text") if field is None else (field,)
        self._files = tuple(files)
        for file in files:
            if file.is_dir():
                raise DataError(f"{file}: a folder; give its files, such as {file / '*.txt'}")
            if not file.is_file():
                raise DataError(f"{file}: no such file")
        self.texts = 0
        """Texts read so far."""
        self.replaced = 0
        """Texts among them with bytes that were no UTF-8, which became U+FFFD."""

    def __iter__(self) -> Iterator[str]:
        self.texts = self.replaced = 0
        for file in self._files:
            before, replaced_before = self.texts, self.replaced
            for text in self._texts_of(file):
                self.texts += 1
                yield text
            if self.texts == before:
                raise DataError(f"{file}: holds no text; leave it out")
            if 2 * (self.replaced - replaced_before) > self.texts - before:
                raise DataError(f"{file}: most of it is not UTF-8; give text, as UTF-8")

    def _texts_of(self, file: Path) -> Iterator[str]:
        if file.suffix == ".json":
            tree = _parsed(file.read_bytes(), str(file))
            entries = tree.get("annotations") if isinstance(tree, dict) else tree
            if not isinstance(entries, list):
                raise DataError(f"{file}: expected a list, or an object with a list 'annotations'")
            for number, entry in enumerate(entries):
                yield self._text_of(entry, f"{file}, entry {number}")
            return
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                if file.suffix == ".jsonl":
                    where = f"{file}, line {number}"
                    yield self._text_of(_parsed(line, where), where)
                else:
                    yield self._decoded(line.rstrip(b"\r\n"))

    def _text_of(self, entry: Any, where: str) -> str:
        """The text of an entry; several texts in a list are joined by line ends."""
        if isinstance(entry, str):
            return entry
        if isinstance(entry, dict):
            value = next((entry[field] for field in self._fields if field in entry), None)
            if isinstance(value, str):
                return value
            if isinstance(value, list) and all(isinstance(each, str) for each in value):
                return "\n".join(value)
        known = f"; it has {', '.join(map(str, entry))[:200]}" if isinstance(entry, dict) else ""
        raise DataError(
            f"{where}: no text in {' or '.join(self._fields)}{known}; name the field with --field"
        )

    def _decoded(self, line: bytes) -> str:
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            self.replaced += 1
            return line.decode("utf-8", "replace")


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
