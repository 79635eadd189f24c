"""Using trained weights: pictures in, answers out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from allsight.config import ConfigError, did_you_mean
from allsight.data.decode import read_picture
from allsight.data.text import FILE_NAME
from allsight.engine.asking import best_of, choose_task, frames_of, question_of
from allsight.engine.building import build_model
from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks, pick_device
from allsight.engine.evaluator import Evaluator, TaskScore
from allsight.engine.events import EventLog
from allsight.engine.interference import Interference, measure_interference
from allsight.engine.precision import Precision
from allsight.engine.run_folder import read_classes, read_run_config
from allsight.engine.starting import own_weights, run_weights
from allsight.engine.training_state import load_weights
from allsight.models.base import AnswersQueries, TaskModel
from allsight.tasks.asking import notes_of
from allsight.tasks.base import Task, build_tasks
from allsight.types import Answer, Batch, CheckpointError, DataError, Image, Rig, Sample, State
from allsight.types.batches import map_tensors
from allsight.weights import read_weights

_BATCH = 16
"""Pictures that `predict_many` runs at once."""


class Predictor:
    """A model with weights, ready to answer.

    Args:
        config: The run the weights belong to.
        model: The bare model with its weights.
        tasks: Its tasks, with class names.
        device: Where the model is.
        weights: Which weights these are, for people.
        folder: Run folder they came from; None where they came from elsewhere.
        notes: What people should know of how they were chosen, such as damaged newer ones.
    """

    def __init__(
        self,
        config: RunConfig,
        model: TaskModel,
        tasks: Mapping[str, Task],
        device: torch.device,
        *,
        weights: str,
        folder: Path | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.config, self.model, self.tasks = config, model.eval(), dict(tasks)
        self.device, self.weights, self.folder, self.notes = device, weights, folder, tuple(notes)
        self.texts_cut = 0
        """Texts that were cut so far, since there was no room for all of them."""
        self._precision = Precision(config.precision, device)
        self._transforms = {name: task.transform("predict") for name, task in self.tasks.items()}

    def predict(self, x: Any, task: str | None = None) -> Answer:
        """The answer for one picture.

        Args:
            x: Path, PIL image, [h, w, 3] uint8 array or [3, h, w] tensor; for tasks on camera rigs a `Rig`;
                or a whole `Sample`, whose targets are not looked at.
            task: Which of the model's tasks; may be left out where there is one.
        Raises:
            ConfigError: No such task.
            DataError: The picture cannot be read.
        """
        return next(self.predict_many([x], task))

    def predict_many(self, xs: Iterable[Any], task: str | None = None) -> Iterator[Answer]:
        """Answers for many pictures, as they become ready, in order.

        Args:
            xs: Each as for `predict`; an iterator is read as it is needed.
            task: As for `predict`.
        Raises:
            ConfigError: No such task, or one path in place of several pictures.
            DataError: A picture cannot be read; answers before it have been given.
        """
        if isinstance(xs, str | Path):
            raise ConfigError(f"expected several pictures, got one path: {xs}; use predict for one")
        name = self._task_name(task)
        waiting: list[Sample] = []
        for number, x in enumerate(xs):
            sample = self._transforms[name](_sample(x, number), np.random.default_rng(0))
            # Pictures of one size go through the model together.
            if waiting and (len(waiting) == _BATCH or not _same_size(waiting[0], sample)):
                yield from self._answer(name, waiting)
                waiting = []
            waiting.append(sample)
        if waiting:
            yield from self._answer(name, waiting)

    @torch.inference_mode()
    def predict_stream(self, xs: Iterable[Any], task: str | None = None) -> Iterator[Answer]:
        """Answers for the frames of one stream, as they come; the model remembers the frames before.

        Args:
            xs: Rigs, samples, or what `predict` takes, in the order of time; an iterator is read as it is
            needed.
            task: As for `predict`.
        Raises:
            ConfigError: No such task.
            DataError: A frame cannot be read; answers before it have been given.
        """
        name = self._task_name(task)
        state: State = None
        for number, x in enumerate(xs):
            sample = self._transforms[name](_sample(x, number), np.random.default_rng(0))
            batch = replace(
                self.tasks[name].collate([sample]).to(self.device),
                starts=torch.tensor([number == 0], device=self.device),
            )
            with self._precision.forward():
                outputs, state = self.model(batch, state)
            yield self.tasks[name].decode(self._precision.widen(outputs), batch)[0]

    def ask(
        self,
        *inputs: Any,
        task: str | None = None,
        text: str | None = None,
        candidates: Sequence[Any] | None = None,
        top: int | None = None,
        cut: bool | None = None,
    ) -> Answer:
        """The answer to a question, for models that read queries.

        ```python
        generalist.ask("photo.jpg", task="classify", candidates=["cat", "dog", "fox"])
        generalist.ask("photo.jpg", text="how many dogs are there?")
        generalist.ask("a red bus", task="retrieve", candidates=photo_paths, top=5)
        ```

        Args:
            inputs: A picture or clip (as for `predict`, clips by their file), a text, or both.
            task: One of the model's tasks, or what is to be done: classify, caption, answer, retrieve, fill,
                write. May be left out where one task fits.
            text: The text, such as a question.
            candidates: What may be answered, also what no training has named: texts, pictures or clips.
            top: Only so many of the candidates, best first.
            cut: Cut a text that is too long, and say so in the answer's `notes` and in an event of the run;
                False refuses it; None does as the task was set.
        Raises:
            ConfigError: No task fits, a text is empty, or candidates are empty or twice the same.
            DataError: A picture or clip cannot be read, or a text is too long.
        """
        if not isinstance(self.model, AnswersQueries) or not self.model.max_text:
            raise ConfigError(
                f"ask: model '{type(self.model).__name__}' reads no questions; use `allsight predict`"
            )
        question = question_of(
            inputs,
            text=text,
            candidates=candidates,
            frames=frames_of(self.tasks),
            cut=cut,
            max_tokens=self.model.max_text,
        )
        chosen = choose_task(self.tasks, question, task)
        asked = chosen.ask(question)
        outputs = []
        with torch.inference_mode():
            for query in asked.queries:
                moved = map_tensors(lambda tensor: tensor.to(self.device), query)
                with self._precision.forward():
                    found = self.model.answer(moved, task=chosen.name)
                outputs.append(self._precision.widen(found))
        answer = best_of(asked.answer(outputs), top)
        return self._noted(answer, asked.notes)

    def _noted(self, answer: Answer, notes: tuple[str, ...]) -> Answer:
        """The answer with what was left out of its question, which is counted and written down."""
        if not notes:
            return answer
        self.texts_cut += len(notes)
        if self.folder is not None:
            try:
                events = EventLog(self.folder, 0)
            except OSError:
                # A run folder that may only be read; the answer says it all the same.
                return replace(answer, notes=notes)
            events.write(
                "ask",
                0,
                task=answer.task,
                values={"texts_cut": self.texts_cut},
                text="; ".join(notes),
            )
            events.close()
        return replace(answer, notes=notes)

    def interference(self, *, batches: int = 2, batch_size: int = 16, step: float = 1e-3) -> Interference:
        """How the model's tasks help or hurt each other, see `measure_interference`; on validation samples.

        Args:
            batches: Held-out batches of each task.
            batch_size: Samples of one; rounded up to whole groups of the task.
            step: Length of a step in units of the parameters' norm.
        Raises:
            ConfigError: There is one task only.
            DataError: Validation samples cannot be read.
        """
        if len(self.tasks) < 2:
            raise ConfigError("interference: this model has one task; it takes two to help or to hurt")
        losses = {
            name: [
                partial(self._loss, task, batch)
                for batch in _held_out(task, batches, batch_size, self.device)
            ]
            for name, task in self.tasks.items()
        }
        return measure_interference(self.model, losses, step=step)

    def _loss(self, task: Task, batch: Batch) -> torch.Tensor:
        with self._precision.forward():
            outputs, _ = self.model(batch)
        return torch.stack(list(task.loss(self._precision.widen(outputs), batch).values())).sum()

    def evaluate(self, names: list[str] | None = None) -> dict[str, float]:
        """`{"task/metric": value}` over the validation samples, which must be at hand.

        Args:
            names: Tasks to judge; None judges all.
        Raises:
            ConfigError: No such task, or its data is not there.
            DataError: The data cannot be read, or more of it cannot than `data.max_corrupt_fraction` allows.
        """
        return flat(self.score(names))

    def score(self, names: list[str] | None = None) -> dict[str, TaskScore]:
        """As `evaluate`, with the samples that were left out because they cannot be read."""
        for name in names or []:
            self._task_name(name)
        evaluator = Evaluator(self.config, self.tasks, self._precision, Ranks(device=self.device), None)
        scores = evaluator.evaluate(self.model, 0, names)
        excess = next((score.excess for score in scores.values() if score.excess), None)
        if excess is not None:
            raise DataError(excess)
        return scores

    @torch.inference_mode()
    def _answer(self, name: str, samples: list[Sample]) -> list[Answer]:
        task = self.tasks[name]
        batch = task.collate(samples).to(self.device)
        with self._precision.forward():
            outputs, _ = self.model(batch)
        answers = task.decode(self._precision.widen(outputs), batch)
        return [
            self._noted(answer, notes_of([sample])) for answer, sample in zip(answers, samples, strict=True)
        ]

    def _task_name(self, task: str | None) -> str:
        if task is None:
            if len(self.tasks) == 1:
                return next(iter(self.tasks))
            raise ConfigError(f"task: this model has several tasks, name one of: {', '.join(self.tasks)}")
        if task not in self.tasks:
            raise ConfigError(f"task: no task '{task}'{did_you_mean(task, self.tasks)}")
        return task


def flat(scores: Mapping[str, TaskScore]) -> dict[str, float]:
    """Scores as `{"task/metric": value}`."""
    return {f"{name}/{key}": value for name, score in scores.items() for key, value in score.values.items()}


def load(
    run: RunConfig | Path | str,
    weights: str | Path | None = None,
    classes: str | Path | Mapping[str, tuple[str, ...]] | None = None,
    *,
    device: str | None = None,
    trust: bool = False,
) -> Predictor:
    """A predictor from a run folder, or from a configuration and weights.

    Args:
        run: Run folder, or a configuration.
        weights: `best` (default: the best evaluated ones, averaged if the run kept an average), `last`, `raw`
            (newest, not averaged), `random`, or a file of weights.
        classes: File with one class name a line (or a JSON list of them), or names per task; default those of
            the run.
        device: `cpu`, `cuda`, ...; default the fastest there is.
        trust: Allow the run folder to name code outside allsight.
    Raises:
        ConfigError: Not a run, a configuration without weights, class names that do not fit, or a device that
            is not there.
        CheckpointError: The weights cannot be read or do not fit.
    """
    folder = None if isinstance(run, RunConfig) else Path(run)
    config = run if isinstance(run, RunConfig) else read_run_config(Path(run), trust=trust)
    names = dict(read_classes(folder)) if folder is not None else {}
    for task, given in _given_classes(classes, list(config.tasks)).items():
        number = len(names.get(task, ())) or _set_classes(config, task)
        if number not in (None, len(given)):
            raise ConfigError(
                f"--classes: {len(given)} names for task '{task}', which has {number} classes; give one name "
                "for each, in their order"
            )
        names[task] = given
    place = pick_device(device, 0)
    tasks = build_tasks(_with_own_tokenizer(config, folder), config.data.folder(), names)
    if folder is None and weights is None:
        raise ConfigError(
            f"weights: recipe '{config.name}' alone has no weights; give --weights FILE (or 'random')"
        )
    model = build_model(config, tasks, place)
    notes: list[str] = []
    said = _load_weights(model, config, folder, str(weights or "best"), notes.append)
    return Predictor(config, model, tasks, place, weights=said, folder=folder, notes=notes)


def _held_out(task: Task, count: int, size: int, device: torch.device) -> list[Batch]:
    """The first validation samples in batches of whole groups, those that cannot be read left out."""
    reader, transform = task.reader("val"), task.transform("val")
    group = task.config.group_size
    size = -(-size // group) * group
    samples: list[Sample] = []
    for index in range(len(reader)):
        if len(samples) == count * size:
            break
        try:
            samples.append(transform(reader[index], np.random.default_rng(index)))
        except DataError:
            continue
    whole = len(samples) - len(samples) % group
    if not whole:
        raise DataError(
            f"interference: task '{task.name}' has {len(samples)} usable validation samples; expected a "
            f"group of {group}"
        )
    parts = [samples[first : min(first + size, whole)] for first in range(0, whole, size)]
    return [replace(task.collate(part).to(device), group_size=group) for part in parts]


def _with_own_tokenizer(config: RunConfig, folder: Path | None) -> Mapping[str, Any]:
    """The settings of the tasks, with the tokenizer that the run has kept: its data need not be here."""
    own = None if folder is None else folder / FILE_NAME
    if own is None or not own.is_file():
        return config.tasks
    path = str(own.absolute())
    return {
        name: task.model_copy(update={"tokenizer": path}) if getattr(task, "tokenizer", "") else task
        for name, task in config.tasks.items()
    }


def _load_weights(
    model: TaskModel, config: RunConfig, folder: Path | None, which: str, tell: Callable[[str], None]
) -> str:
    """Put the chosen weights into the model; what they are, in words."""
    if which == "random":
        return "random"
    if which not in ("best", "last", "raw"):
        if not Path(which).exists():
            raise CheckpointError(
                f"weights: {which}: no such file; expected best, last, raw, random, or a file"
            )
        found = read_weights(Path(which))
        own = own_weights(model, found, where=which)
        load_weights(model, own, where=which, likely=partial(model.cause_of_misfit, found))
        return which
    if folder is None:
        raise ConfigError(f"weights: '{which}' needs a run folder; give a file")
    averaged = which != "raw" and config.eval.weights != "raw"
    found, path = run_weights(folder, which, averaged=averaged, tell=tell)
    load_weights(model, found, where=path)
    return f"{Path(path).name} ({which})"


def _given_classes(
    classes: str | Path | Mapping[str, tuple[str, ...]] | None, tasks: list[str]
) -> dict[str, tuple[str, ...]]:
    if classes is None:
        return {}
    if isinstance(classes, Mapping):
        for task in classes:
            if task not in tasks:
                raise ConfigError(f"classes: no task '{task}'{did_you_mean(task, tasks)}")
        return {task: tuple(names) for task, names in classes.items()}
    if len(tasks) != 1:
        raise ConfigError(f"classes: one file of names needs one task; this model has {', '.join(tasks)}")
    return {tasks[0]: _read_names(Path(classes))}


def _set_classes(config: RunConfig, task: str) -> int | None:
    """How many classes the settings of a task or of its model state; None: its data or the names tell."""
    stated = getattr(config.tasks[task], "num_classes", None)
    return stated or (getattr(config.model, "num_classes", None) if len(config.tasks) == 1 else None)


def _read_names(file: Path) -> tuple[str, ...]:
    """Class names from a file: a line each, or a JSON list."""
    expected = "expected one class name a line, or a JSON list of names"
    try:
        text = file.read_text(encoding="utf-8")
        names = json.loads(text) if file.suffix == ".json" else [line.strip() for line in text.splitlines()]
    except FileNotFoundError:
        raise ConfigError(f"classes: {file}: no such file; {expected}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"classes: {file}: cannot be read ({error}); {expected}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not any(names):
        raise ConfigError(f"classes: {file}: {expected}")
    return tuple(name for name in names if name)


def _sample(x: Any, number: int) -> Sample:
    if isinstance(x, Sample):
        return replace(x, targets={})
    if isinstance(x, Rig):
        return Sample(f"input {number}", {"rig": x})
    image: Image = read_picture(x)
    return Sample(str(x) if isinstance(x, str | Path) else f"input {number}", {"image": image})


def _same_size(a: Sample, b: Sample) -> bool:
    sizes = [
        {name: [image.hw_px for image in _images(one)] for name, one in sample.inputs.items()}
        for sample in (a, b)
    ]
    return sizes[0] == sizes[1]


def _images(modality: Any) -> tuple[Image, ...]:
    if isinstance(modality, Rig):
        return modality.images
    return (modality,) if isinstance(modality, Image) else ()
