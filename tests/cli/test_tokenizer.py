"""`allsight data tokenizer`, as a user calls it."""

from allsight.cli import main
from allsight.data.text import Tokenizer

LINES = [f"the {colour} {thing} is near the {other}" for colour in ("red", "blue") for thing in ("cat", "bus")
         for other in ("tree", "house", "river")]  # fmt: skip


def test_a_corpus_becomes_a_tokenizer(tmp_path, capsys):
    corpus, out = tmp_path / "texts.txt", tmp_path / "new" / "tokenizer.json"
    corpus.write_text("\n".join(LINES))
    words = ["data", "tokenizer", str(corpus), "--out", str(out), "--special", "<BOX>"]
    assert main([*words, "--vocab", "280"]) == 0
    tokenizer = Tokenizer.from_file(out, add_missing=False)
    assert tokenizer.id_of("<BOX>") == 5
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}: 280 tokens from 12 texts in ")
    assert said.out.rstrip().endswith(tokenizer.hash[:12])
    assert said.err == ""
    assert main([*words, "--vocab", "5000"]) == 0
    assert "tokens, not 5000; more text would give more" in capsys.readouterr().err


def test_texts_that_were_no_utf_8_are_counted(tmp_path, capsys):
    corpus = tmp_path / "texts.txt"
    corpus.write_bytes(b"one\ntwo\ncaf\xe9\nfour\n")
    assert main(["data", "tokenizer", str(corpus), "--vocab", "261", "--out", str(tmp_path / "t.json")]) == 0
    assert "1 of 4 texts were not UTF-8; their bad bytes became U+FFFD" in capsys.readouterr().err


def test_what_cannot_work_is_said_in_one_line(tmp_path, capsys):
    corpus = tmp_path / "texts.txt"
    corpus.write_text("one\n")
    assert main(["data", "tokenizer", str(corpus), "--vocab", "10"]) == 2
    assert main(["data", "tokenizer", str(tmp_path / "none.txt")]) == 2
    vocabulary, missing = capsys.readouterr().err.splitlines()
    assert vocabulary.startswith("vocab_size: 10 ids do not hold the 256 bytes")
    assert missing == f"{tmp_path / 'none.txt'}: no such file"
