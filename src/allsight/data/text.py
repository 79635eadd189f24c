"""Texts as token ids: byte-level BPE, trained on a corpus or loaded from any `tokenizer.json`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from jaxtyping import Bool, Int64
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from allsight.config import ConfigError
from allsight.types import DataError

FILE_NAME = "tokenizer.json"

SPECIALS: Mapping[str, tuple[str, ...]] = {
    "<PAD>": ("[PAD]", "<pad>", "<|pad|>"),
    "<BOS>": ("[CLS]", "<s>", "<bos>", "<|startoftext|>"),
    "<EOS>": ("[SEP]", "</s>", "<eos>", "<|endoftext|>"),
    "<MASK>": ("[MASK]", "<mask>"),
    "<SPE>": (),
}
"""Special token -> what other vocabularies call it. <SPE> is last, so that it gets the last id where it is
added (as in the released Uni-Perceiver, whose vocabulary is that of CLIP and three more)."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD_END = re.compile(r"(?<=\S)[ \n]")


class Tokenizer:
    """Turns texts into token ids and back.

    What a text says never becomes a special token: "<PAD>" in a caption is five characters (and left out
    where a foreign vocabulary has it as a word). Any text has tokens: with byte-level BPE, control
    characters and all of Unicode are kept as they are and `decode` gives them back. Halves of a UTF-16 pair,
    which no file can hold, become U+FFFD. An empty text has no tokens.

    Args:
        definition: What a `tokenizer.json` holds.
        where: Whose it is, for errors.
    Raises:
        DataError: It is no tokenizer, or one of its special tokens is missing.
    """

    def __init__(self, definition: str, *, where: str = FILE_NAME) -> None:
        self._inner = _parsed(definition, where)
        self._definition = definition
        vocabulary = self._inner.get_vocab(with_added_tokens=True)
        found = _find_specials(vocabulary)
        missing = [name for name in SPECIALS if name not in found]
        if missing:
            raise DataError(
                f"{where}: no special token {', '.join(missing)}; load it with Tokenizer.from_file, which "
                f"adds them"
            )
        self.pad_id, self.bos_id, self.eos_id, self.mask_id, self.spe_id = (found[name] for name in SPECIALS)
        self._special_ids = frozenset(found.values())
        self.vocab_size = 1 + max(vocabulary.values())
        """Number of ids, special ones included: the rows of a table of word embeddings."""
        self._longest = max(map(len, vocabulary))
        splitter = self._inner.pre_tokenizer
        self._is_plain_bytes = (
            self._inner.normalizer is None
            and isinstance(splitter, pre_tokenizers.ByteLevel)
            and splitter.use_regex
        )

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int, specials: Sequence[str] = ()) -> Tokenizer:
        """Learn a vocabulary of byte-level BPE. The same texts, in any order, give the same tokenizer.

        Args:
            texts: The corpus, one text at a time; it need not fit into memory.
            vocab_size: Ids wanted, special tokens included. A small corpus gives fewer.
            specials: Further special tokens.
        Raises:
            ConfigError: Too few ids for the 256 bytes and the special tokens, or a special token twice.
            DataError: The corpus holds no text.
        """
        names = [*SPECIALS, *specials]
        if len(set(names)) < len(names) or not all(names):
            raise ConfigError(
                f"special tokens: expected different names beside {', '.join(SPECIALS)}, got {specials}"
            )
        if vocab_size < 256 + len(names):
            raise ConfigError(
                f"vocab_size: {vocab_size} ids do not hold the 256 bytes and {len(names)} special tokens; "
                f"set at least {256 + len(names)}"
            )
        counted = _Counted(texts)
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=names,
            # Sorted: the set's own order is that of hashes.
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(counted, trainer)
        if not counted.characters:
            raise DataError("the corpus of the tokenizer holds no text; give files with at least one line")
        return cls(inner.to_str())

    @classmethod
    def from_file(cls, path: Path, *, add_missing: bool = True) -> Tokenizer:
        """Load any `tokenizer.json`.

        Args:
            path: The file, or a folder that holds a `tokenizer.json`.
            add_missing: Give ids after its last one to the special tokens it lacks under their own names and
                under those of `SPECIALS`; else they are an error.
        Raises:
            DataError: No such file, not a tokenizer, or a special token is missing.
        """
        file = path / FILE_NAME if path.is_dir() else path
        try:
            definition = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(f"{file}: no such file; train one with `allsight data tokenizer`") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as a tokenizer: {error}") from error
        if add_missing:
            inner = _parsed(definition, str(file))
            found = _find_specials(inner.get_vocab(with_added_tokens=True))
            missing = [name for name in SPECIALS if name not in found]
            if missing:
                inner.add_special_tokens(missing)
                definition = inner.to_str()
        return cls(definition, where=str(file))

    @property
    def hash(self) -> str:
        """64 hexadecimal digits that tell tokenizers apart; spaces in the file do not count."""
        canonical = json.dumps(json.loads(self._definition), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, path: Path) -> Path:
        """Write the tokenizer, whole or not at all, to a file or a folder's `tokenizer.json`; that file."""
        file = path / FILE_NAME if path.is_dir() else path
        temporary = file.with_name(f".{file.name}.tmp")
        temporary.write_text(self._definition, encoding="utf-8")
        os.replace(temporary, file)
        return file

    def encode(self, text: str, max_tokens: int | None = None) -> Int64[Tensor, " t"]:
        """The ids of a text, without special tokens around it.

        Args:
            text: Any string.
            max_tokens: Leave out what comes after so many tokens.
        """
        if max_tokens is not None and max_tokens < 0:
            raise ValueError(f"max_tokens: expected 0 or more, got {max_tokens}")
        text = _LONE_SURROGATE.sub("\ufffd", text)
        if max_tokens is not None and self._is_plain_bytes:
            text = self._head(text, max_tokens)
        ids = self._inner.encode(text, add_special_tokens=False).ids
        if not self._is_plain_bytes:
            # Vocabularies of other kinds may hold a special token's name as an ordinary word.
            ids = [id for id in ids if id not in self._special_ids]
        return torch.tensor(ids[:max_tokens], dtype=torch.int64)

    def encode_many(self, texts: Iterable[str], max_tokens: int | None = None) -> list[Int64[Tensor, " _"]]:
        """`encode` for each text. One after the other: loader workers are parallel already."""
        return [self.encode(text, max_tokens) for text in texts]

    def decode(self, tokens: Int64[Tensor, " t"] | Sequence[int], *, keep_specials: bool = False) -> str:
        """The text of some ids; bytes that form no character become U+FFFD.

        Args:
            keep_specials: Show special tokens by their names in place of leaving them out.
        Raises:
            ValueError: An id is outside the vocabulary.
        """
        ids = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        wrong = next((id for id in ids if not 0 <= id < self.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"token {wrong}: expected an id of 0..{self.vocab_size - 1}")
        return self._inner.decode(ids, skip_special_tokens=not keep_specials)

    def pad(
        self, rows: Sequence[Int64[Tensor, " _"]], length: int
    ) -> tuple[Int64[Tensor, "b length"], Bool[Tensor, "b length"]]:
        """Rows of ids as one tensor, filled up with <PAD>, and where the ids are.

        Args:
            length: Follows from the settings or the bucket, never from the rows of a micro-batch: results
                would depend on how batches are split.
        Raises:
            ValueError: A row is longer.
        """
        tokens = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        is_token = torch.zeros(len(rows), length, dtype=torch.bool)
        for number, row in enumerate(rows):
            if len(row) > length:
                raise ValueError(
                    f"row {number}: {len(row)} tokens do not fit into {length}; encode with max_tokens"
                )
            tokens[number, : len(row)] = row
            is_token[number, : len(row)] = True
        return tokens, is_token

    def id_of(self, token: str) -> int:
        """The id of one token, such as a further special one.

        Raises:
            ValueError: There is none of that name.
        """
        id = self._inner.token_to_id(token)
        if id is None:
            raise ValueError(f"no token {token!r} among the {self.vocab_size} of this tokenizer")
        return id

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._definition,)

    def _head(self, text: str, max_tokens: int) -> str:
        """As much of a text as surely holds its first tokens: a hostile caption of megabytes costs nothing.

        A token is at most so many bytes long, and what comes before the end of a word is not changed by what
        comes after.
        """
        enough = max_tokens * self._longest
        end = _WORD_END.search(text, enough) if len(text) > enough else None
        return text if end is None else text[: end.start()]


class _Counted:
    """The texts of a corpus, fit for the trainer, and how many characters there were."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            yield _LONE_SURROGATE.sub("\ufffd", text)


def _parsed(definition: str, where: str) -> tokenizers.Tokenizer:
    try:
        inner = tokenizers.Tokenizer.from_str(definition)
    # The library raises Exception itself.
    except Exception as error:
        raise DataError(f"{where}: not a tokenizer.json: {' '.join(str(error).split())}") from error
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    return inner


def _find_specials(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Special token -> id, of those that are there under any of their names."""
    found = {}
    for name, others in SPECIALS.items():
        known = next((each for each in (name, *others) if each in vocabulary), None)
        if known is not None:
            found[name] = vocabulary[known]
    return found
