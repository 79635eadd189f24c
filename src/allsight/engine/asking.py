"""Questions of a user to a generalist: which task is meant, the query, the answer, and what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from allsight.config import ConfigError, did_you_mean
from allsight.data.decode import PICTURE_SUFFIXES, read_picture
from allsight.data.readers.video import VIDEO_SUFFIXES, decode_video
from allsight.tasks.asking import AskableTask, clip_length
from allsight.tasks.base import Task
from allsight.types import Answer, ClassScores, DataError, Image, Question, Text, Video

_YIELDING = (("retrieve",), ("write",))


def question_of(
    inputs: Sequence[Any],
    *,
    text: str | None = None,
    candidates: Sequence[Any] | None = None,
    frames: int = 16,
    cut: bool | None = None,
    max_tokens: int | None = None,
) -> Question:
    """What a user asks, made of what he gave.

    Args:
        inputs: A picture or clip (path, PIL image, array, tensor), a text, or both. A string that is the name
            of a file or ends like one of a picture or clip is a path, any other a text.
        text: The text, where it is not among the inputs.
        candidates: Texts, or pictures or clips.
        frames: Frames taken of a clip.
        cut, max_tokens: See `Question`.
    Raises:
        ConfigError: Nothing to ask, several pictures or texts, an empty text, or candidates that are empty,
            twice the same, or of different kinds.
        DataError: A picture or clip cannot be read.
    """
    things = [_thing(each, frames) for each in inputs]
    texts = [each for each in things if isinstance(each, Text)]
    if text is not None:
        texts.append(Text(text))
    seen = [each for each in things if not isinstance(each, Text)]
    if len(seen) > 1 or len(texts) > 1:
        what = "pictures or clips" if len(seen) > 1 else "texts"
        raise ConfigError(f"ask: {max(len(seen), len(texts))} {what}; expected one, as one question has one")
    if not seen and not texts:
        raise ConfigError("ask: nothing to ask about; give a picture, a clip or a text")
    if texts and not texts[0].string.strip():
        raise ConfigError("text: it is empty; write what you ask, or leave it out")
    among, names = (None, ()) if candidates is None else _candidates(candidates, frames)
    return Question(seen[0] if seen else None, texts[0] if texts else None, among, names, cut, max_tokens)


def choose_task(tasks: Mapping[str, Task], question: Question, wanted: str | None) -> AskableTask:
    """The task that answers a question.

    Args:
        tasks: Those of the model.
        question: What is asked.
        wanted: Name of a task, or what is to be done (`classify`, `caption` ...); None: whichever fits.
    Raises:
        ConfigError: No such task, none that fits, or several.
    """
    askable = {name: task for name, task in tasks.items() if isinstance(task, AskableTask)}
    pool = dict(askable)
    if wanted is not None:
        verbs = sorted({verb for task in askable.values() for verb in task.verbs})
        if wanted in tasks and wanted not in askable:
            raise ConfigError(f"task: '{wanted}' answers no questions; use `allsight predict`")
        named = [name for name in askable if name == wanted]
        own = [name for name, task in askable.items() if task.verbs[:1] == (wanted,)]
        standing_in = [name for name, task in askable.items() if wanted in task.verbs]
        if not named and not standing_in:
            known = [*tasks, *verbs]
            raise ConfigError(f"task: no task '{wanted}'{did_you_mean(wanted, known)} (tasks, or what to do)")
        order = named or [*own, *(name for name in standing_in if name not in own)]
        pool = {name: askable[name] for name in order}
    if not pool:
        raise ConfigError("ask: no task of this model answers questions; use `allsight predict`")
    misfits = {name: task.misfit(question) for name, task in pool.items()}
    fitting = [name for name, why_not in misfits.items() if not why_not]
    if not fitting:
        if len(pool) == 1:
            (name,) = pool
            raise ConfigError(f"task '{name}' {misfits[name]}; got {question.shape}")
        reasons = "; ".join(f"'{name}' {why_not}" for name, why_not in misfits.items())
        raise ConfigError(f"ask: no task fits {question.shape}: {reasons}")
    if wanted is not None:
        # Those whose own verb it is come first; of these all fit equally well.
        best = [name for name in fitting if pool[name].verbs[:1] == pool[fitting[0]].verbs[:1]]
        if len(best) > 1 and wanted not in tasks:
            raise ConfigError(f"task: '{wanted}' fits several; name one of: {', '.join(best)}")
        return pool[fitting[0]]
    # To compare two things, or to go on with a text, is what one asks for only where nothing else fits.
    fitting = [name for name in fitting if pool[name].verbs[:1] not in _YIELDING] or fitting
    if len(fitting) > 1:
        raise ConfigError(f"task: several fit {question.shape}; name one of: {', '.join(fitting)}")
    return pool[fitting[0]]


def best_of(answer: Answer, top: int | None) -> Answer:
    """An answer with its likeliest candidates alone, best first; probabilities stay those among all.

    Raises:
        ConfigError: Fewer than one.
    """
    if top is None or not isinstance(answer, ClassScores):
        return answer
    if top < 1:
        raise ConfigError(f"top: expected 1 or more, got {top}")
    best = answer.scores.argsort(kind="stable")[::-1][:top]
    names = answer.top(len(best))
    return replace(answer, scores=answer.scores[best].copy(), classes=tuple(name for name, _ in names))


def _candidates(
    candidates: Sequence[Any], frames: int
) -> tuple[tuple[Text | Image | Video, ...], tuple[str, ...]]:
    if isinstance(candidates, str):
        raise ConfigError("candidates: expected several, got one text; put it into a list")
    if not len(candidates):
        raise ConfigError("candidates: there are none; name some, or leave them out")
    given = [each.strip() if isinstance(each, str) else each for each in candidates]
    names = tuple(str(e) if isinstance(e, str | Path) else f"candidate {n}" for n, e in enumerate(given))
    empty = next((number for number, name in enumerate(names, start=1) if not name), None)
    if empty is not None:
        raise ConfigError(f"candidates: number {empty} of {len(names)} is empty; leave it out")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"candidates: {twice[:60]!r} is there {names.count(twice)} times; name each once")
    things = tuple(_thing(each, frames) for each in given)
    if len({type(each) for each in things}) > 1:
        kinds = {type(each): name for each, name in zip(things, names, strict=True)}
        some = ", ".join(f"{name[:40]!r} is a {kind.__name__.lower()}" for kind, name in kinds.items())
        raise ConfigError(f"candidates: expected all of one kind; {some}")
    return things, names


def _thing(given: Any, frames: int) -> Text | Image | Video:
    if isinstance(given, Text | Image | Video):
        return given
    if isinstance(given, str) and not is_path(given):
        return Text(given)
    if isinstance(given, str | Path) and str(given).lower().endswith(VIDEO_SUFFIXES):
        return _read_clip(Path(given), frames)
    return read_picture(given)


def is_path(text: str) -> bool:
    """Whether a string names a picture or clip, or any file that is there."""
    if len(text) > 4096 or "\n" in text or "\0" in text:
        return False
    if text.lower().endswith((*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)):
        return True
    try:
        return Path(text).is_file()
    except OSError:
        return False


def _read_clip(path: Path, frames: int) -> Video:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}", str(path)) from error
    return decode_video(data, str(path), frames)


def frames_of(tasks: Mapping[str, Task]) -> int:
    """Frames that are taken of a clip, so that each task finds enough."""
    return max((clip_length(task) for task in tasks.values()), default=16)
