"""The tokenizer of a run: in its folder, in its checkpoints, and the same to the end."""

import pytest
from small_run import Signs, small_run

from allsight.config import ConfigError, Mixture, replace
from allsight.data.text import Tokenizer
from allsight.engine.trainer import Trainer
from allsight.types import CheckpointError

WORDS = {"cats": ["a red cat", "a green cat"], "dogs": ["one loud dog", "two loud dogs"]}


class Worded(Signs):
    """Has a tokenizer, as tasks with texts do."""

    class Config(Signs.Config):
        words: str = ""

    @property
    def tokenizer(self):
        return Tokenizer.train(WORDS[self.config.words], vocab_size=270) if self.config.words else None


def worded(a="cats", b=""):
    tasks = Mixture(a=Worded.Config(batch_size=8, words=a), b=Worded.Config(batch_size=8, words=b))
    return replace(small_run(tasks=tasks), {"schedule.steps": 4, "checkpoint.every_steps": 2})


def run(config, folder, **options):
    trainer = Trainer(config, folder=folder, **options)
    try:
        trainer.fit()
    finally:
        trainer.close()


def test_a_run_keeps_the_tokenizer_of_its_tasks(tmp_path):
    run(worded("cats", "cats"), tmp_path / "run")
    kept = Tokenizer.from_file(tmp_path / "run", add_missing=False)
    assert kept.hash == Tokenizer.train(WORDS["cats"], vocab_size=270).hash
    run(worded("", ""), tmp_path / "plain")
    assert not (tmp_path / "plain" / "tokenizer.json").exists()


def test_tasks_of_different_tokenizers_are_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"config\.tasks\.b: its tokenizer \(\w{12}\) is not that of task 'a'"
    ):
        Trainer(worded("cats", "dogs"), folder=tmp_path / "run")


@pytest.mark.parametrize(("before", "after"), [("cats", "dogs"), ("cats", ""), ("", "cats")])
def test_a_run_is_not_resumed_with_another_tokenizer(tmp_path, monkeypatch, before, after):
    monkeypatch.setitem(WORDS, "mine", WORDS.get(before, []))
    with monkeypatch.context() as patch:
        if not before:
            patch.setattr(Worded, "tokenizer", None)
        run(worded("mine"), tmp_path / "run")
    if before:
        run(worded("mine"), tmp_path / "run", resume=True)
    monkeypatch.setitem(WORDS, "mine", WORDS.get(after, []))
    if not after:
        monkeypatch.setattr(Worded, "tokenizer", None)
    with pytest.raises(
        CheckpointError, match=r"trained with (no tokenizer|the tokenizer \w{12}), now there is"
    ) as error:
        run(worded("mine"), tmp_path / "run", resume=True)
    assert "tokenizer.json of the run folder" in str(error.value)
