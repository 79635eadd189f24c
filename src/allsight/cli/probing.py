"""`allsight eval --probe`: how good the features of a run's backbone are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allsight.cli.words import metric_lines, print_json

if TYPE_CHECKING:
    from allsight.engine.config import ProbeKind
    from allsight.engine.predictor import Predictor
    from allsight.engine.probing import ProbeScore
    from allsight.tasks import Task


def probe_and_say(
    run: str,
    predictor: Predictor,
    kind: ProbeKind,
    *,
    names: list[str] | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Probe the features on the run's pictures with classes or on other data; say and note the results.

    Raises:
        ConfigError: No such task, none that classifies, the model has no backbone, or for zero-shot no
            captions.
        DataError: The data cannot be read.
    """
    scores = []
    for task in _tasks(predictor, names, data):
        score = _probed(predictor, kind, task)
        for bad in score.corrupt:
            print(f"note: {bad.task}: {bad.id}: {bad.reason}; left out", file=sys.stderr)
        _note(predictor, score, task.config.data)
        scores.append(score)
    if as_json:
        found: dict[str, Any] = {"run": run, "weights": predictor.weights, "probe": kind}
        print_json({**found, "tasks": {score.task: score.noted() for score in scores}})
        return
    print(f"{run}: {predictor.weights}")
    for score in scores:
        training = f"{score.train_samples:,} training and " if score.train_samples else ""
        print(
            f"{score.task}: {kind} probe of {training}{score.val_samples:,} validation pictures in "
            f"{score.seconds:.0f} s"
        )
        print("\n".join(metric_lines(score.values)))


def _probed(predictor: Predictor, kind: ProbeKind, task: Task) -> ProbeScore:
    from allsight.config import ConfigError
    from allsight.engine.building import shared_tokenizer
    from allsight.engine.probing import Extraction, probe, zero_shot
    from allsight.models.features import backbone_of

    config = predictor.config
    how = Extraction(
        predictor.device, config.precision, max_corrupt_fraction=config.data.max_corrupt_fraction
    )
    if kind != "zero_shot":
        return probe(backbone_of(predictor.model), task, kind, how=how)
    tokenizer = shared_tokenizer(predictor.tasks)
    if tokenizer is None:
        raise ConfigError(
            "--probe zero_shot: no task of this run has a tokenizer, so it has seen no captions"
        )
    return zero_shot(predictor.model, task, tokenizer, how=how)


def _tasks(predictor: Predictor, names: list[str] | None, data: str | None) -> list[Task]:
    """The tasks to probe with."""
    from allsight.config import ConfigError, did_you_mean
    from allsight.tasks import Classification

    # Other data is seen as the run's own task (the one that was named, else the first) sees its pictures.
    found = {name: task.for_probes(data or "") for name, task in predictor.tasks.items()}
    own = {name: task for name, task in found.items() if task is not None}
    for name in names or []:
        if name not in own:
            reason = "does not classify" if name in predictor.tasks else "is not there"
            raise ConfigError(f"task: '{name}' {reason}, which --probe needs{did_you_mean(name, own)}")
    if data is not None:
        plain = Classification(Classification.Config(), root=predictor.config.data.folder())
        return [own[name] for name in names or own][:1] or [plain.for_probes(data)]
    own = {name: own[name] for name in names or own if own[name].classes}
    if not own:
        raise ConfigError(
            "--probe: this run has no pictures with classes; name a set with --data, such as "
            "imagefolder:tiny_imagenet20"
        )
    return list(own.values())


def _note(predictor: Predictor, score: ProbeScore, data: str) -> None:
    """Write the result into the diary of the run, where there is one."""
    from allsight.engine.events import EventLog

    if predictor.folder is None:
        return
    found = re.match(r"step-(\d+)", predictor.weights)
    events = EventLog(predictor.folder, 0)
    try:
        events.write(
            "probe",
            int(found[1]) if found else 0,
            task=score.task,
            values=score.noted(),
            text=f"{score.kind} on {data}, weights {Path(predictor.weights).name}",
        )
    finally:
        events.close()
    if events.lost:
        print(f"note: {predictor.folder}: the result could not be written into events.jsonl", file=sys.stderr)
