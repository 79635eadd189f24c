"""Language: each word of a text from those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from allsight.data.transforms import Compose
from allsight.tasks.asking import ID, Asked
from allsight.tasks.base import Split, Transform
from allsight.tasks.texts import AnyText, padded
from allsight.tasks.words import WordsTask
from allsight.tasks.writing import continuation, written
from allsight.types import Batch, Query, Question, Sample, Segment, Vocabulary


class Language(WordsTask):
    """Texts (input `text`, else a caption) word by word, all in one pass. Asked, it goes on with a text."""

    verbs = ("write",)

    class Config(WordsTask.Config):
        pass

    config: Config

    @property
    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def transform(self, split: Split) -> Transform:
        return Compose(AnyText(split), self.encoded("text"))

    def collate(self, samples: Sequence[Sample]) -> Batch:
        words, is_word = padded(samples, "text", self.tokenizer, self.config.max_tokens)
        inputs = {"words": words, "is_word": is_word}
        labels = words.masked_fill(~is_word, -100)
        return Batch(self.name, tuple(s.id for s in samples), inputs, {"labels": labels})

    def cast(self, batch: Batch) -> Query:
        text = Segment("text", batch.inputs["words"], batch.inputs["is_word"], causal=True)
        return Query((text,), Vocabulary(), 0, batch.targets.get("labels"), self.config.temperature)

    def ask(self, question: Question) -> Asked:
        asked = super().ask(question)
        (query,) = asked.queries
        (text,) = query.inputs
        assert text.mask is not None
        # The words without the end behind them: where the model is to go on.
        begun = replace(text, content=text.content[:, : int(text.mask.sum()) - 1], mask=None)
        room = max(1, self.config.max_tokens - begun.content.shape[1])
        how = continuation(self.tokenizer, room, goes_on=True)
        asking = replace(query, inputs=(begun,), labels=None, continuation=how)
        return replace(
            asked,
            queries=(asking,),
            answer=lambda outputs: written(outputs[0], (ID,), self.name, self.tokenizer)[0],
        )
