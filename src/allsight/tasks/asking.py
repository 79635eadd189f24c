"""Tasks that answer questions of a user: about what one shows and says, among what one names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from allsight.config import ConfigError
from allsight.tasks.base import Task
from allsight.types import Answer, DataError, Image, Modality, Outputs, Query, Question, Sample, Text

ID = "question"
"""Id of the sample that a question becomes."""


@dataclass(frozen=True)
class Asked:
    """A question made ready for a model.

    Args:
        queries: What the model is asked, one after the other.
        answer: From the outputs of all queries, in their order, to the answer.
        notes: What of the question was left out, a line each.
    """

    queries: tuple[Query, ...]
    answer: Callable[[Sequence[Outputs]], Answer]
    notes: tuple[str, ...] = ()


class AskableTask(Task):
    """Base of tasks that can be asked. A task says what it `reads`, and is asked as it predicts.

    Where the user names candidates, `among` gives a task like it that chooses among these.
    """

    verbs: ClassVar[tuple[str, ...]] = ()
    """What people call it, such as `classify`; the first is its own, for the others it stands in."""

    is_own: bool = True
    """Whether its candidates are those it was trained with."""

    @property
    def key(self) -> str:
        """Names its set of candidates, so that features of it are kept."""
        return self.name if self.is_own else f"{self.name}/asked"

    @property
    def reads(self) -> tuple[str, ...]:
        """Inputs of a question: `image` or `video`, and the name of the text, where it reads one."""
        return ("image",)

    @property
    def max_tokens(self) -> int | None:
        """Tokens of the longest text, its end included; None: as many as the model reads."""
        return None

    def among(self, candidates: tuple[str, ...]) -> AskableTask:
        """The same task with other candidates: zero-shot.

        Raises:
            ConfigError: It has no candidates to replace.
        """
        raise ConfigError(f"candidates: task '{self.name}' writes its answers; leave them out")

    def misfit(self, question: Question) -> str:
        """Why it cannot answer; empty if it can."""
        wanted_seen = next((name for name in self.reads if name in ("image", "video")), "")
        wanted_text = next((name for name in self.reads if name not in ("image", "video")), "")
        wanted = {"image": ["a picture"], "video": ["a clip"], "": []}[wanted_seen]
        wanted += ["a text"] if wanted_text else []
        has = "image" if isinstance(question.seen, Image) else "video" if question.seen is not None else ""
        if has != wanted_seen or bool(wanted_text) != (question.text is not None):
            return f"takes {' and '.join(wanted)}"
        if question.candidates is not None:
            if type(self).among is AskableTask.among:
                return "writes its answers, without candidates"
            if not all(isinstance(each, Text) for each in question.candidates):
                return "chooses among texts"
        return ""

    def ask(self, question: Question) -> Asked:
        """Make a question ready for a model.

        Raises:
            ConfigError: It cannot answer, or a candidate is longer than the model reads.
            DataError: A text is longer than the task reads.
        """
        why_not = self.misfit(question)
        if why_not:
            raise ConfigError(f"task '{self.name}' {why_not}; got {question.shape}")
        task: AskableTask = self
        if question.candidates is not None:
            check_lengths(question, self)
            task = self.among(question.names)
        sample = task.prepared(question)
        batch = task.collate([sample])
        return Asked(
            (task.cast(batch),), lambda outputs: task.decode(outputs[0], batch)[0], notes_of([sample])
        )

    def prepared(self, question: Question, *, seen: Modality | None = None) -> Sample:
        """The sample that a question becomes, as the transform of predictions leaves it.

        Args:
            seen: Another picture or clip in place of the question's own.
        """
        inputs: dict[str, Modality] = {}
        shown = question.seen if seen is None else seen
        if shown is not None:
            inputs["image" if isinstance(shown, Image) else "video"] = shown
        text = next((name for name in self.reads if name not in ("image", "video")), "")
        if question.text is not None and text:
            inputs[text] = question.text
        transform = self.as_asked(question).transform("predict")
        try:
            return transform(Sample(ID, inputs), np.random.default_rng(0))
        except DataError as error:
            hint = "long_texts=cut cuts it"
            raise DataError(str(error).replace(hint, "shorten it, or let it be cut: --cut")) from error

    def as_asked(self, question: Question) -> AskableTask:
        """The task with the settings that a question changes."""
        config: Any = self.config
        if question.cut is None or not hasattr(config, "long_texts"):
            return self
        return self.changed({"long_texts": "cut" if question.cut else "refuse"})

    def changed(self, settings: dict[str, Any], *, classes: tuple[str, ...] | None = None) -> AskableTask:
        """The same task with some settings changed, and perhaps with other classes."""
        given = self.given_classes if classes is None else classes
        config = self.config.model_copy(update=settings)
        task = type(self)(config, name=self.name, root=self.root, classes=given)
        task.is_own = self.is_own and classes is None
        return task


def notes_of(samples: Sequence[Sample]) -> tuple[str, ...]:
    """What texts of the samples had no room, a line each."""
    cut = {
        name: text
        for sample in samples
        for name, text in sample.inputs.items()
        if isinstance(text, Text) and text.cut
    }
    return tuple(
        f"{name}: {text.cut:,} of {text.cut + _kept(text):,} tokens left out at the end; only the first "
        f"{_kept(text):,} were read"
        for name, text in cut.items()
    )


def check_lengths(question: Question, task: AskableTask) -> None:
    """Refuse candidates with more tokens than are read.

    Raises:
        ConfigError: One has.
    """
    limits = [limit for limit in (task.max_tokens, question.max_tokens) if limit is not None]
    if task.tokenizer is None or not limits:
        return
    most = min(limits) - 1
    for candidate in question.candidates or ():
        if isinstance(candidate, Text):
            count = len(task.tokenizer.encode(candidate.string))
            if count > most:
                raise ConfigError(
                    f"candidates: {candidate.string[:40]!r}... has {count:,} tokens; expected at most {most} "
                    "and the end; shorten it"
                )


def clip_length(task: Task) -> int:
    """Frames that a task wants of a clip's file."""
    return max(16, int(getattr(task.config, "num_frames", 0)))


def _kept(text: Text) -> int:
    return 0 if text.tokens is None else len(text.tokens) - 1
