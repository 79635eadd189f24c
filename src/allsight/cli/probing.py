"""`allsight eval --probe`: how good the features of a run's backbone are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allsight.cli.words import metric_lines, print_json

if TYPE_CHECKING:
    from allsight.engine.predictor import Predictor
    from allsight.engine.probing import ProbeKind, ProbeScore
    from allsight.tasks import Classification


def probe_and_say(
    run: str,
    predictor: Predictor,
    kind: ProbeKind,
    *,
    names: list[str] | None,
    data: str | None,
    as_json: bool,
) -> None:
    """Probe the features on the run's classification tasks or on other data; say and note the results.

    Raises:
        ConfigError: No such task, none that classifies, or the model has no backbone.
        DataError: The data cannot be read.
    """
    from allsight.engine.probing import probe
    from allsight.models.features import backbone_of

    backbone = backbone_of(predictor.model)
    scores = []
    for task in _tasks(predictor, names, data):
        score = probe(
            backbone,
            task,
            kind,
            device=predictor.device,
            precision=predictor.config.precision,
            max_corrupt_fraction=predictor.config.data.max_corrupt_fraction,
        )
        for bad in score.corrupt:
            print(f"note: {bad.task}: {bad.id}: {bad.reason}; left out", file=sys.stderr)
        _note(predictor, score, task.config.data)
        scores.append(score)
    if as_json:
        found: dict[str, Any] = {"run": run, "weights": predictor.weights, "probe": kind}
        print_json({**found, "tasks": {score.task: {**score.values, **_counts(score)} for score in scores}})
        return
    print(f"{run}: {predictor.weights}")
    for score in scores:
        print(
            f"{score.task}: {kind} probe of {score.train_samples:,} training and {score.val_samples:,} "
            f"validation pictures in {score.seconds:.0f} s"
        )
        print("\n".join(metric_lines(score.values)))


def _tasks(predictor: Predictor, names: list[str] | None, data: str | None) -> list[Classification]:
    """The tasks to probe with."""
    from allsight.config import ConfigError, did_you_mean, replace
    from allsight.data.subsets import Subset
    from allsight.tasks import Classification

    found = {name: task.for_probes() for name, task in predictor.tasks.items()}
    own = {name: task for name, task in found.items() if isinstance(task, Classification)}
    for name in names or []:
        if name not in own:
            reason = "does not classify" if name in predictor.tasks else "is not there"
            raise ConfigError(f"task: '{name}' {reason}, which --probe needs{did_you_mean(name, own)}")
    if data is None:
        own = {name: own[name] for name in names or own if own[name].classes}
        if not own:
            raise ConfigError(
                "--probe: this run has no pictures with classes; name a set with --data, such as "
                "imagefolder:tiny_imagenet20"
            )
        return list(own.values())
    # Other data, seen as the run's own task (the one that was named, else the first) sees its pictures.
    like = own[names[0]].config if names else next((task.config for task in own.values()), None)
    config = Classification.Config() if like is None else like
    settings = {"data": data, "num_classes": None, "class_weights": None, "labels": "auto", "leave_out": ()}
    settings["subset"] = Subset()
    folder = predictor.config.data.folder()
    return [Classification(replace(config, settings), name=data.partition(":")[2] or data, root=folder)]


def _counts(score: ProbeScore) -> dict[str, float]:
    return {"train_samples": score.train_samples, "val_samples": score.val_samples, "seconds": score.seconds}


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
            values={**score.values, **_counts(score)},
            text=f"{score.kind} on {data}, weights {Path(predictor.weights).name}",
        )
    finally:
        events.close()
    if events.lost:
        print(f"note: {predictor.folder}: the result could not be written into events.jsonl", file=sys.stderr)
