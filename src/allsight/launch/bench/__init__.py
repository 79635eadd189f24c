"""`allsight bench ops`: how much faster the operators are than other ways to compute the same.

Everything is compared before anything is timed: where an output or a gradient differs there is no speed-up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from allsight import ops
from allsight.config.errors import ConfigError
from allsight.launch.bench.cases import BOTH, CALL, FORWARD, OURS, QUICK, Case, Goal, Inputs, Way, select
from allsight.launch.bench.compare import Difference, compare, gradient_like, with_gradients
from allsight.launch.bench.measure import Samples, interleave

ONE_THREAD = "allsight, 1 thread"
TORCH_ADD = "torch.add"
ISA_VARIABLE = "ALLSIGHT_CPU_ISA"


@dataclass(frozen=True)
class Row:
    """One work of one case, measured.

    Args:
        samples: Seconds of all ways, taken in turns.
        goals: Way -> the bar of our ratio to it; of calls, the key is ours and the bar in microseconds.
        difference: The largest difference found in this case.
    """

    case: str
    about: str
    work: str
    samples: Samples
    goals: Mapping[str, Goal]
    difference: float

    def ratio(self, against: str) -> float:
        """How many times as long the other way took."""
        return self.samples.ratio(against, OURS)

    def verdict(self, against: str) -> str:
        """Which part of the bar was reached: `stretch`, `must`, `missed`; empty where there is none."""
        goal = self.goals.get(against)
        if goal is None:
            return ""
        if self.work == CALL:
            microseconds = 1e6 * self.samples.median(OURS)
            return (
                "stretch"
                if microseconds <= goal.stretch
                else "must"
                if microseconds <= goal.must
                else "missed"
            )
        ratio = self.ratio(against)
        return "stretch" if ratio >= goal.stretch else "must" if ratio >= goal.must else "missed"


@dataclass(frozen=True)
class Results:
    """What `bench_ops` found: either differences that are not allowed, or rows."""

    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]
    threads: int
    pairs: int


def bench_ops(
    names: Sequence[str] = (),
    *,
    pairs: int = 20,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Compare, then measure.

    Args:
        names: Cases or the first words of them; all where empty.
        pairs: Samples of every way, taken in turns.
        threads: With one, the clock is its CPU time; with several, wall time, and the only bar is that of
            a further thread.
        on_progress: Called with the pieces of work done and their number.

    Raises:
        ConfigError: Unknown name, or an ALLSIGHT_CPU_ISA that this machine does not have.
    """
    _check_instruction_set()
    cases = select(names)
    total, done = len(cases) + sum(len(case.works) for case in cases), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, total)

    with _threads(threads):
        largest, wrong = {}, []
        for case in cases:
            differences = compare(case)
            largest[case.name] = max(d.relative for d in differences)
            wrong += [d for d in differences if not d.is_allowed]
            tick()
        if wrong:
            return Results((), tuple(wrong), threads, pairs)
        rows = []
        for case in cases:
            for work in case.works:
                rows.append(_measure(case, work, pairs, threads, largest[case.name]))
                tick()
    return Results(tuple(rows), (), threads, pairs)


def instruction_set() -> str | None:
    """That of the compiled kernels; None where they are not used."""
    status = ops.status()["dcnv3"]
    if (status.forced or status.chosen) != "cpu":
        return None
    found = re.search(r"compiled, (\w+)", status.backends["cpu"].why)
    return found[1] if found else None


def _check_instruction_set() -> None:
    """Otherwise the reference would be measured against itself."""
    wish, status = forced_instruction_set(), ops.status()["dcnv3"]
    if wish and status.forced is None and instruction_set() != wish:
        raise ConfigError(f"bench ops: {status.backends['cpu'].why}")


def _measure(case: Case, work: str, pairs: int, threads: int, difference: float) -> Row:
    ways = case.ways()
    clock, isa = "cpu" if threads == 1 else "wall", instruction_set()
    if work == CALL:
        inputs = case.make(False)
        tasks = {
            OURS: _forward(ways[OURS], inputs, True),
            TORCH_ADD: lambda: torch.add(inputs[0], inputs[0]),
        }
    else:
        softmax = work == FORWARD and case.softmax
        inputs = case.make(not softmax)
        make_task = _both if work == BOTH else _forward
        tasks = {name: make_task(way, inputs, softmax) for name, way in ways.items()}
        if threads > 1:
            tasks[ONE_THREAD] = _on_one_thread(tasks[OURS], threads)
    with torch.no_grad() if work != BOTH else torch.enable_grad():
        samples = interleave(tasks, pairs=pairs, clock=clock)
    goals = {name: case.goal(work, name, isa) for name in tasks} if threads == 1 else {}
    if ONE_THREAD in tasks and case.name == "dcnv3-224-b1-s1" and work == BOTH:
        goals[ONE_THREAD] = Goal(1.4, 1.7)
    known = {name: goal for name, goal in goals.items() if goal is not None}
    return Row(case.name, case.about, work, samples, known, difference)


def _forward(way: Way, inputs: Inputs, softmax: bool) -> Callable[[], object]:
    return partial(way, *inputs, softmax)


def _both(way: Way, inputs: Inputs, softmax: bool) -> Callable[[], object]:
    inputs = with_gradients(inputs)
    with torch.no_grad():
        grad = gradient_like(way(*inputs, softmax))
    return lambda: torch.autograd.grad(way(*inputs, softmax), inputs, grad)


def _on_one_thread(task: Callable[[], object], threads: int) -> Callable[[], object]:
    def run() -> None:
        torch.set_num_threads(1)
        task()
        torch.set_num_threads(threads)

    return run


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def forced_instruction_set() -> str | None:
    """What the environment asks for."""
    return os.environ.get(ISA_VARIABLE) or None


__all__ = ["QUICK", "Results", "Row", "bench_ops"]
