"""All checks in their order, and how each ended."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from allsight.config import ConfigError
from allsight.tasks.base import Task
from allsight.tasks.checking import of_answers, of_data
from allsight.tasks.checking.subject import Answering, Fault, NotApplicable, Subject
from allsight.types import DataError


@dataclass(frozen=True)
class Finding:
    """How one check ended.

    Args:
        promise: What was checked, as a sentence that should be true.
        problem: What is wrong; empty if nothing is.
        skipped: Why it was not checked; empty if it was.
    """

    promise: str
    problem: str = ""
    skipped: str = ""

    def __str__(self) -> str:
        if self.problem:
            return f"FAULT    {self.promise}: {self.problem}"
        return f"skipped  {self.promise}: {self.skipped}" if self.skipped else f"ok       {self.promise}"


_Check = Callable[[Subject], None]

# A fault of those that are needed (True) leaves the later ones nothing to look at.
_CHECKS: tuple[tuple[str, _Check, bool], ...] = (
    ("its settings survive being written and read", of_data.settings_survive, False),
    ("train and val can be read", of_data.splits_can_be_read, True),
    ("a sample read twice is the same", of_data.readings_repeat, False),
    ("samples have different ids", of_data.ids_differ, False),
    ("streams add up to the reader's length", of_data.streams_add_up, False),
    ("training is random only through its generator", of_data.training_is_random_through_its_generator, True),
    ("evaluation is not random", of_data.evaluation_is_not_random, False),
    ("transforms leave the samples they are given alone", of_data.transforms_leave_their_input, False),
    ("transforms can be sent to workers", of_data.transforms_travel, False),
    ("mixing repeats and keeps the number of samples", of_data.mixing_repeats, False),
    ("batches hold the samples they are made of", of_data.batches_hold_their_samples, True),
    ("a row does not depend on the others of its batch", of_data.rows_do_not_depend_on_the_batch, False),
    ("predictions need no targets", of_data.predictions_need_no_targets, False),
    ("queries fit their batch, with and without targets", of_answers.queries_fit, False),
    ("losses are finite means with a gradient", of_answers.losses_are_means_with_a_graph, True),
    ("counts are given for the losses named in counted", of_answers.counts_name_losses, False),
    ("losses do not depend on how a batch is split", of_answers.losses_do_not_depend_on_the_split, False),
    ("there is one answer a row, in order", of_answers.answers_are_one_a_row, True),
    ("answers without targets have the same form", of_answers.predictions_have_the_form_of_answers, False),
    ("the truth has the form of answers", of_answers.truth_has_the_form_of_answers, True),
    ("metrics of two halves merge to one pass", of_answers.metrics_merge, True),
    ("the main metric is computed", of_answers.main_metric_is_computed, True),
    ("no answers score better than the truth", of_answers.truth_scores_best, False),
)


def check_task(task: Task, answering: Answering | None = None) -> Iterator[Finding]:
    """Check what every task promises, on the first samples of its data.

    Args:
        task: The task, built with its data.
        answering: Float64 outputs of a batch, for tasks without a head (a model that reads their queries);
            None builds the task's head, and skips what needs outputs where there is none.
    Yields:
        One finding a promise, in a fixed order; after a fault that leaves the rest nothing to look at, one
        that says so.
    Raises:
        ConfigError, DataError: Its data cannot be opened.
    """
    subject = Subject(task, answering)
    for split in ("train", "val"):
        try:
            subject.reader(split)
        except (ConfigError, DataError):
            raise
        # What else goes wrong is a fault of the task, which the checks will find and place.
        except Exception:
            break
    for number, (promise, check, is_needed) in enumerate(_CHECKS, start=1):
        finding = _finding(promise, check, subject)
        yield finding
        if finding.problem and is_needed and number < len(_CHECKS):
            rest = len(_CHECKS) - number
            yield Finding(f"the {rest} promises after it", skipped=f"not before '{promise}' is mended")
            return


def _finding(promise: str, check: _Check, subject: Subject) -> Finding:
    try:
        check(subject)
    except NotApplicable as reason:
        return Finding(promise, skipped=str(reason))
    except (Fault, ConfigError, DataError) as fault:
        return Finding(promise, problem=" ".join(str(fault).split()))
    # A user's task may raise anything; what it raised is the finding.
    except Exception as error:
        return Finding(
            promise, problem=f"{' '.join(f'{type(error).__name__}: {error}'.split())} ({_place(error)})"
        )
    return Finding(promise)


def _place(error: Exception) -> str:
    """Where in the task's code an error came from: the innermost line outside the checks and packages."""
    frames = traceback.extract_tb(error.__traceback__)
    here = Path(__file__).parent
    outside = [f for f in frames if Path(f.filename).parent != here and "site-packages" not in f.filename]
    frame = (outside or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"
