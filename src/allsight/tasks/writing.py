"""Tasks that write: how a text goes on, and what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from allsight.data.text import Tokenizer
from allsight.types import Answer, Continuation, TextAnswer


def continuation(
    tokenizer: Tokenizer,
    max_tokens: int,
    *,
    beam: int = 1,
    length_penalty: float = 0.0,
    goes_on: bool = False,
) -> Continuation:
    """A text of at most so many tokens, without special ones. The rest is as in `Continuation`."""
    never = (tokenizer.pad_id, tokenizer.bos_id, tokenizer.mask_id, tokenizer.spe_id)
    return Continuation(tokenizer.eos_id, max_tokens, beam, length_penalty, forbidden=never, goes_on=goes_on)


def written(outputs: Any, ids: Sequence[str], task: str, tokenizer: Tokenizer) -> list[Answer]:
    """What a model wrote, one text a row, with its log-probability."""
    rows = zip(ids, outputs["tokens"], outputs["lengths"], outputs["log_probability"], strict=True)
    return [
        TextAnswer(id, task, tokenizer.decode(tokens[: int(length)]).strip(), float(log_p))
        for id, tokens, length, log_p in rows
    ]
