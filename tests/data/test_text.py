"""Byte-level BPE: training, foreign files, hostile texts."""

import json
import pickle
import subprocess
import sys

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allsight.config import ConfigError
from allsight.data.corpus import Corpus
from allsight.data.text import SPECIALS, Tokenizer
from allsight.types import DataError

CORPUS = [f"a {colour} {thing} on the {place}" for colour in ("red", "green", "blue", "dark")
          for thing in ("cat", "bus", "tree") for place in ("street", "table", "beach")]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CORPUS, vocab_size=290)


def test_special_tokens_have_the_first_ids_and_further_ones_follow():
    trained = Tokenizer.train(CORPUS, vocab_size=300, specials=("<REGION>",))
    ids = (trained.pad_id, trained.bos_id, trained.eos_id, trained.mask_id, trained.spe_id)
    assert ids == (0, 1, 2, 3, 4)
    assert trained.id_of("<REGION>") == 5
    assert trained.vocab_size == 300
    with pytest.raises(ValueError, match="no token '<NOTHING>' among the 300"):
        trained.id_of("<NOTHING>")


def test_frequent_words_become_single_tokens(tokenizer):
    assert len(tokenizer.encode(" street")) == 1
    assert len(tokenizer.encode(" zebra")) > 1


@settings(max_examples=80, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])), max_tokens=st.integers(0, 12))
def test_any_text_comes_back_as_it_was_and_a_cut_is_a_beginning(tokenizer, text, max_tokens):
    tokens = tokenizer.encode(text)
    assert tokens.dtype is torch.int64
    assert tokenizer.decode(tokens) == text
    assert tokenizer.encode(text, max_tokens).tolist() == tokens[:max_tokens].tolist()


@settings(max_examples=30, deadline=None)
@given(
    words=st.lists(
        st.sampled_from(["a", " cat", "\n", "  ", "'s", "bus" * 40, "\x1c", "\u2003"]), max_size=300
    )
)
def test_a_long_text_is_cut_as_if_it_had_been_encoded_whole(tokenizer, words):
    text = "".join(words)
    assert tokenizer.encode(text, 3).tolist() == tokenizer.encode(text)[:3].tolist()


@pytest.mark.parametrize("name", SPECIALS)
def test_a_text_never_makes_a_special_token(tokenizer, name):
    tokens = tokenizer.encode(f"a {name} cat {name}")
    assert min(tokens.tolist()) >= len(SPECIALS)
    assert tokenizer.decode(tokens) == f"a {name} cat {name}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a\ud800b", "a\ufffdb"),
        ("\x00\x01\x7f\u202e", "\x00\x01\x7f\u202e"),
        ("\ufeffcat", "\ufeffcat"),
        ("é" * 200_000, "é" * 200_000),
    ],
)
def test_hostile_texts_have_defined_tokens(tokenizer, text, expected):
    assert tokenizer.decode(tokenizer.encode(text)) == expected


def test_a_megabyte_of_words_is_looked_at_no_further_than_needed(tokenizer):
    text = "a red cat " * 100_000
    assert len(tokenizer._head(text, 77)) < 5000
    assert len(tokenizer.encode(text, 77)) == 77


def test_decoding_leaves_special_tokens_out_unless_asked(tokenizer):
    tokens = [tokenizer.spe_id, *tokenizer.encode("a cat").tolist(), tokenizer.eos_id]
    assert tokenizer.decode(tokens) == "a cat"
    assert tokenizer.decode(torch.tensor(tokens), keep_specials=True) == "<SPE>a cat<EOS>"
    with pytest.raises(ValueError, match=r"token 290: expected an id of 0\.\.289"):
        tokenizer.decode([290])


def test_rows_are_padded_to_the_length_asked_for_and_never_cut(tokenizer):
    rows = tokenizer.encode_many(["a cat", "", "a red bus"])
    tokens, is_token = tokenizer.pad(rows, 8)
    assert tokens.shape == is_token.shape == (3, 8)
    for row, number in zip(rows, range(3), strict=True):
        assert tokens[number][is_token[number]].tolist() == row.tolist()
        assert (tokens[number][~is_token[number]] == tokenizer.pad_id).all()
    with pytest.raises(ValueError, match=r"row 0: \d tokens do not fit into 1"):
        tokenizer.pad(rows, 1)


def test_the_same_corpus_gives_the_same_file_in_any_order_and_process(tokenizer, tmp_path):
    other = Tokenizer.train(reversed(CORPUS), vocab_size=290)
    assert other.hash == tokenizer.hash
    code = (
        "import sys, json; from allsight.data.text import Tokenizer;"
        "print(Tokenizer.train(json.loads(sys.argv[1]), vocab_size=290).hash)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CORPUS)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == tokenizer.hash
    assert Tokenizer.train(CORPUS[:-1], vocab_size=290).hash != tokenizer.hash


def test_a_saved_tokenizer_is_the_same_when_loaded_pickled_or_reformatted(tokenizer, tmp_path):
    file = tokenizer.save(tmp_path)
    assert file == tmp_path / "tokenizer.json"
    pretty = tmp_path / "pretty.json"
    pretty.write_text(json.dumps(json.loads(file.read_text()), indent=2))
    for again in (
        Tokenizer.from_file(tmp_path),
        Tokenizer.from_file(pretty, add_missing=False),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert again.hash == tokenizer.hash
        assert again.encode("a red cat").tolist() == tokenizer.encode("a red cat").tolist()


def foreign(tmp_path, *specials):
    """A word-piece tokenizer as others make them: own names, template, truncation and padding."""
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {"[UNK]": 0, "cat": 1, **{s: i + 2 for i, s in enumerate(specials)}}, unk_token="[UNK]"
        )
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    inner.add_special_tokens(list(specials))
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    file = tmp_path / "tokenizer.json"
    inner.save(str(file))
    return file


def test_a_foreign_tokenizer_keeps_its_special_tokens_and_gets_those_it_lacks(tmp_path):
    file = foreign(tmp_path, "[PAD]", "[CLS]", "[SEP]", "[MASK]")
    loaded = Tokenizer.from_file(file)
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id, loaded.mask_id, loaded.spe_id) == (2, 3, 4, 5, 6)
    assert loaded.vocab_size == 7
    # Its own truncation and padding would cut and fill in silence.
    assert loaded.encode("cat cat cat dog").tolist() == [1, 1, 1, 0]
    assert loaded.encode("cat cat cat dog", 2).tolist() == [1, 1]
    loaded.save(tmp_path)
    assert Tokenizer.from_file(tmp_path, add_missing=False).hash == loaded.hash


def test_a_text_makes_no_special_token_of_a_foreign_vocabulary_either(tmp_path):
    file = foreign(tmp_path, "[PAD]", "[CLS]", "[SEP]", "[MASK]")
    tree = json.loads(file.read_text())
    tree["pre_tokenizer"] = {"type": "WhitespaceSplit"}
    file.write_text(json.dumps(tree))
    loaded = Tokenizer.from_file(file)
    assert loaded.encode("cat [PAD] cat [CLS] <SPE>").tolist() == [1, 1, 0]
    assert loaded.encode("[SEP] cat [PAD] cat", 2).tolist() == [1, 1]


def test_a_foreign_tokenizer_without_the_special_tokens_can_be_refused(tmp_path):
    file = foreign(tmp_path, "<pad>")
    with pytest.raises(
        DataError, match=r"no special token <BOS>, <EOS>, <MASK>, <SPE>; load it with Tokenizer.from"
    ):
        Tokenizer.from_file(file, add_missing=False)


@pytest.mark.parametrize("content", ["", "{}", "[1", '{"model": 3}', "\x00"])
def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json") as error:
        Tokenizer.from_file(file)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"nothing\.json: no such file; train one with"):
        Tokenizer.from_file(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"vocab_size": 260},
            ConfigError,
            "260 ids do not hold the 256 bytes and 5 special tokens; set at least 261",
        ),
        (
            {"vocab_size": 300, "specials": ("<SPE>",)},
            ConfigError,
            "special tokens: expected different names",
        ),
        ({"vocab_size": 300, "texts": []}, DataError, "holds no text"),
    ],
)
def test_training_refuses_what_cannot_work(arguments, error, message):
    with pytest.raises(error, match=message):
        Tokenizer.train(**{"texts": CORPUS, **arguments})


def test_a_corpus_is_lines_json_lines_or_captions(tmp_path):
    lines, pairs, captions = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.json"
    lines.write_bytes(b"one\r\n\n  two\nbad \xff byte")
    pairs.write_text('{"text": "three"}\n{"text": ["four", "five"]}\n')
    captions.write_text(json.dumps({"annotations": [{"id": 1, "caption": "six \ud800"}]}))
    corpus = Corpus([lines, pairs, captions])
    expected = ["one", "  two", "bad \ufffd byte", "three", "four\nfive", "six \ud800"]
    assert list(corpus) == list(corpus) == expected
    assert (corpus.texts, corpus.replaced) == (6, 1)
    assert Tokenizer.train(corpus, vocab_size=300).vocab_size > 256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "\n\n", "holds no text; leave it out"),
        ("a.txt", "caf\udce9\n\udcff\udcd8\nplain", "most of it is not UTF-8"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"txt": 3}\n',
            r"a\.jsonl, line 2: no text in caption or text; it has txt; name the",
        ),
        ("a.jsonl", "not json\n", r"a\.jsonl, line 1: not JSON"),
        ("a.json", '{"images": []}', "expected a list, or an object with a list 'annotations'"),
        ("a.json", "[3]", r"a\.json, entry 0: no text"),
        ("a.json", "[" * 100_000, "not JSON"),
    ],
)
def test_damaged_corpora_are_refused_with_the_place(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=message) as error:
        list(Corpus([file]))
    assert "\n" not in str(error.value)


def test_folders_and_missing_files_are_no_corpus(tmp_path):
    with pytest.raises(DataError, match="a folder; give its files"):
        Corpus([tmp_path])
    with pytest.raises(DataError, match="no such file"):
        Corpus([tmp_path / "a.txt"])
