"""Texts as token ids: the tokenizer of a task, single texts, and names as candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor

from allsight.data.text import Tokenizer
from allsight.types import DataError, Segment, Text


@lru_cache(maxsize=8)
def _open(path: Path, changed_ns: int) -> Tokenizer:
    return Tokenizer.from_file(path)


def open_tokenizer(name: str, root: Path | None) -> Tokenizer:
    """The tokenizer of a file; read once.

    Raises:
        DataError: No such file, or not a tokenizer.
    """
    path = Path(name) if root is None else root / name
    file = path / "tokenizer.json" if path.is_dir() else path
    return _open(file, file.stat().st_mtime_ns if file.exists() else 0)


def encode_text(
    string: str, tokenizer: Tokenizer, max_tokens: int, *, cut: bool = False, id: str = ""
) -> Int64[Tensor, " t"]:
    """The ids of a text and the end behind them.

    Raises:
        DataError: More than `max_tokens`, and it may not be cut.
    """
    ids = tokenizer.encode(string, max_tokens)
    if len(ids) == max_tokens and not cut:
        count = len(tokenizer.encode(string))
        raise DataError(
            f"{id or repr(string[:40])}: a text of {count} tokens, {string[:40]!r}...; "
            f"expected at most {max_tokens - 1} and the end (max_tokens; long_texts=cut cuts it)",
            id,
        )
    return torch.cat([ids[: max_tokens - 1], torch.tensor([tokenizer.eos_id])])


def with_tokens(
    text: Text, tokenizer: Tokenizer, max_tokens: int, *, cut: bool = False, id: str = ""
) -> Text:
    """A text with its ids, and how many were left out.

    Raises:
        DataError: As `encode_text`.
    """
    ids = encode_text(text.string, tokenizer, max_tokens, cut=cut, id=id)
    lost = 0
    if len(ids) == max_tokens:
        lost = len(tokenizer.encode(text.string)) - (max_tokens - 1)
    return replace(text, tokens=ids, cut=lost)


def names_as_texts(names: Sequence[str], tokenizer: Tokenizer) -> Segment:
    """Names as candidates, filled up to the longest."""
    longest = max(len(tokenizer.encode(name)) for name in names) + 1
    ids, mask = tokenizer.pad([encode_text(name, tokenizer, longest) for name in names], longest)
    return Segment("text", ids, mask)


def on(device: torch.device, segment: Segment) -> Segment:
    """A segment on a device."""
    mask = None if segment.mask is None else segment.mask.to(device)
    return replace(segment, content=segment.content.to(device), mask=mask)
