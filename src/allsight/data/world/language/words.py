"""The tokenizer of the language world: every word a token, since its texts have no others."""

from __future__ import annotations

from typing import Any

from allsight.data.world.language.vocabulary import tokens

_SPECIALS = ("<PAD>", "<BOS>", "<EOS>", "<MASK>", "<SPE>")
_UNKNOWN = "<UNK>"


def tokenizer_json() -> dict[str, Any]:
    """What the `tokenizer.json` of the language world holds.

    Words are parted at blanks and before punctuation (not at hyphens). A word that the world does not have
    becomes `<UNK>`; train a tokenizer (`allsight data tokenizer`) to have a token for any text.
    """
    names = (*_SPECIALS, _UNKNOWN, *tokens())
    added = [
        {
            "id": id,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for id, name in enumerate(_SPECIALS)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": r"[\w-]+|[^\w\s-]"},
            "behavior": "Removed",
            "invert": True,
        },
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {name: id for id, name in enumerate(names)},
            "unk_token": _UNKNOWN,
        },
    }
