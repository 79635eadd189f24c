"""Checks of what comes after the model: losses, answers, truth and metric; and of the query before it."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import torch
from torch import Tensor

from allsight.config import ConfigError
from allsight.tasks.base import Metric, Task
from allsight.tasks.checking.of_data import collated
from allsight.tasks.checking.subject import Fault, NotApplicable, Subject, named
from allsight.types import Answer, Batch, Query

_RELATIVE = 1e-9


def queries_fit(subject: Subject) -> None:
    if type(subject.task).cast is Task.cast:
        raise NotApplicable("it has no cast()")
    labelled = subject.batch(subject.train)
    for batch in (labelled, replace(labelled, targets={})):
        try:
            query = subject.task.cast(batch)
        except ConfigError as missing:
            if type(subject.task).head is Task.head:
                raise
            raise NotApplicable(f"as configured it serves networks with heads only: {missing}") from None
        if not isinstance(query, Query):
            raise Fault(f"cast gave {named(query)}, not a Query")
        if query.read is not None and not 0 <= query.read < len(query.inputs):
            raise Fault(f"the query reads segment {query.read} of {len(query.inputs)}")
        for number, segment in enumerate(query.inputs):
            if len(segment.content) != len(batch):
                raise Fault(f"segment {number} has {len(segment.content)} rows, the batch {len(batch)}")
        if query.labels is not None and len(query.labels) != len(batch):
            raise Fault(f"the query has {len(query.labels)} labels for {len(batch)} rows")


def losses_are_means_with_a_graph(subject: Subject) -> None:
    losses = _losses(subject, subject.batch(subject.train))
    if not losses:
        raise Fault("loss gave no losses; expected {name: mean}")
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.ndim:
            raise Fault(
                f"loss {name!r} is {named(value)} {list(getattr(value, 'shape', ()))}; expected one number"
            )
        if not value.isfinite():
            raise Fault(f"loss {name!r} is {float(value)}")
        if not value.requires_grad:
            raise Fault(f"loss {name!r} has no gradient; compute it from the outputs, without detach or item")


def counts_name_losses(subject: Subject) -> None:
    task, batch = subject.task, subject.batch(subject.train)
    counts = task.counts(batch)
    if set(counts) != set(task.counted):
        raise Fault(
            f"counts(batch) names {sorted(counts)}, the class attribute counted {sorted(task.counted)}"
        )
    for name, count in counts.items():
        if not isinstance(count, float) or not 0 <= count < math.inf:
            raise Fault(f"counts(batch)[{name!r}] is {count!r}; expected a float of 0 or more")
    unknown = set(task.counted) - set(_losses(subject, batch))
    if unknown:
        raise Fault(f"counted names {sorted(unknown)}, which loss() does not give")


def losses_do_not_depend_on_the_split(subject: Subject) -> None:
    task, whole = subject.task, subject.batch(subject.train)
    wanted, totals = _losses(subject, whole), task.counts(whole)
    sums = dict.fromkeys(wanted, 0.0)
    for part in (subject.train[: subject.cut], subject.train[subject.cut :]):
        batch = subject.batch(part)
        counts = task.counts(batch)
        for name, value in _losses(subject, batch).items():
            total = totals.get(name, float(len(whole)))
            share = counts.get(name, float(len(batch))) / total if total else 0.0
            sums[name] += share * float(value.detach())
    for name, value in wanted.items():
        one = float(value.detach())
        if not math.isclose(sums[name], one, rel_tol=_RELATIVE, abs_tol=1e-12):
            raise Fault(
                f"loss {name!r} is {one:.9g} in one batch and {sums[name]:.9g} in two; a mean over "
                f"something else than samples belongs in counted and counts()"
            )


def answers_are_one_a_row(subject: Subject) -> None:
    batch = subject.batch(subject.val)
    with torch.inference_mode():
        outputs = subject.outputs(batch)
        _check_answers(subject.task.decode(outputs, batch), batch, "decode")


def predictions_have_the_form_of_answers(subject: Subject) -> None:
    samples = subject.val[: subject.cut]
    labelled, bare = subject.batch(samples), collated(subject, samples)
    with torch.inference_mode():
        expected = subject.task.decode(subject.outputs(labelled), labelled)
        answers = subject.task.decode(subject.outputs(bare), bare)
    _check_answers(answers, bare, "decode without targets")
    if [type(a) for a in answers] != [type(a) for a in expected]:
        raise Fault(f"without targets answers are {named(answers[0])}, with them {named(expected[0])}")


def truth_has_the_form_of_answers(subject: Subject) -> None:
    batch = subject.batch(subject.val)
    _check_answers(subject.task.truth(batch), batch, "truth")
    with torch.inference_mode():
        answers = subject.task.decode(subject.outputs(batch), batch)
    truth = subject.task.truth(batch)
    if [type(a) for a in answers] != [type(a) for a in truth]:
        raise Fault(f"truth gives {named(truth[0])}, decode {named(answers[0])}")


def metrics_merge(subject: Subject) -> None:
    whole, merged, second = (subject.task.metric() for _ in range(3))
    if not isinstance(whole, Metric):
        raise Fault(f"metric() gave {named(whole)} without update, merge, compute and tables")
    first_batch = subject.batch(subject.val[: subject.cut])
    second_batch = subject.batch(subject.val[subject.cut :])
    # Right and wrong answers, lest both halves score the same and a lost one not be missed.
    for metric, batch, answers in (
        (merged, first_batch, _answers_or_truth(subject, first_batch)),
        (second, second_batch, subject.task.truth(second_batch)),
    ):
        metric.update(answers, batch)
        whole.update(answers, batch)
    merged.merge(pickle.loads(pickle.dumps(second)))
    expected, found = whole.compute(), merged.compute()
    for name, value in expected.items():
        if not isinstance(value, float | int):
            raise Fault(f"compute()[{name!r}] is {named(value)}; expected a number")
        is_same = math.isclose(value, found.get(name, math.nan), rel_tol=_RELATIVE) or (
            math.isnan(value) and math.isnan(found.get(name, math.nan))
        )
        if not is_same:
            raise Fault(f"{name!r} is {value:.9g} in one pass and {found.get(name)} merged from two halves")


def main_metric_is_computed(subject: Subject) -> None:
    metric, batch = subject.task.metric(), subject.batch(subject.val)
    metric.update(subject.task.truth(batch), batch)
    values, main = metric.compute(), subject.task.main_metric()
    if main not in values:
        raise Fault(f"main_metric() is {main!r}; compute() gives {sorted(values)}")


def truth_scores_best(subject: Subject) -> None:
    task, batch = subject.task, subject.batch(subject.val)
    with torch.inference_mode():
        answers = task.decode(subject.outputs(batch), batch)
    scores = []
    for given in (task.truth(batch), answers):
        metric = task.metric()
        metric.update(given, batch)
        scores.append(metric.compute()[task.main_metric()])
    if scores[0] < scores[1] or math.isnan(scores[0]):
        raise Fault(
            f"{task.main_metric()} is {scores[0]:.4g} for the truth, {scores[1]:.4g} for untrained answers"
        )


def _answers_or_truth(subject: Subject, batch: Batch) -> list[Answer]:
    try:
        with torch.inference_mode():
            return subject.task.decode(subject.outputs(batch), batch)
    except NotApplicable:
        return subject.task.truth(batch)


def _losses(subject: Subject, batch: Batch) -> dict[str, Tensor]:
    return subject.task.loss(subject.outputs(batch), batch)


def _check_answers(answers: list[Answer], batch: Batch, what: str) -> None:
    if not all(isinstance(answer, Answer) for answer in answers):
        raise Fault(f"{what} gave {[named(answer) for answer in answers][:4]}; expected Answers")
    if [answer.id for answer in answers] != list(batch.ids):
        raise Fault(
            f"{what} gave answers for {[a.id for a in answers][:4]}; expected one a row, ids in order"
        )
    wrong = next((answer.task for answer in answers if answer.task != batch.task), None)
    if wrong is not None:
        raise Fault(f"{what} gave answers of the task {wrong!r}, the batch is of {batch.task!r}")
