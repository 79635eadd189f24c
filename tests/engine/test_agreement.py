"""Ranks that would not do the same are refused before they start, with what differs and where."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier

import pytest
from small_run import Signs, small_run

from allsight.config import ConfigError, Mixture, replace
from allsight.engine import agreement
from allsight.engine.agreement import SharedFault, check_same_data, check_same_run, together
from allsight.engine.building import build_run
from allsight.engine.distributed import Ranks
from allsight.types import DataError


@dataclass(frozen=True)
class Threads(Ranks):
    """Ranks that are threads of this process."""

    table: list = field(default_factory=list)
    barrier: Barrier | None = None

    def gather(self, value):
        self.table[self.rank] = value
        self.barrier.wait()
        found = list(self.table)
        self.barrier.wait()
        return found


def said_by_all(world: int, act: Callable[[Threads], None]) -> list[str]:
    """What each rank is refused with; empty where it is not."""
    table, barrier = [None] * world, Barrier(world)

    def one(rank: int) -> str:
        try:
            act(Threads(rank, world, table=table, barrier=barrier))
        except SharedFault as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(one, range(world)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(agreement, "_SECONDS_TO_SPEAK", 0.0)


def _said_of_settings(changes: dict, *, of_rank: int = 2, world: int = 4) -> set[str]:
    def act(ranks: Threads) -> None:
        mine = changes if ranks.rank == of_rank else {}
        check_same_run(replace(small_run(), mine), ranks, resume=False)

    return set(said_by_all(world, act))


def test_a_setting_that_differs_is_named_with_its_ranks() -> None:
    assert _said_of_settings({"optim.lr": 0.5}) == {
        "ranks disagree on settings: config.optim.lr is 0.1 on ranks 0, 1, 3 and 0.5 on rank 2; "
        "start all ranks with the same command"
    }


def test_many_differences_are_counted() -> None:
    (said,) = _said_of_settings({"optim.lr": 0.5, "seed": 3, "name": "x", "precision": "fp32"})
    assert said.count(" on rank 2") == 3 and "; and 1 more;" in said


def test_what_belongs_to_a_machine_may_differ() -> None:
    assert _said_of_settings({"data.root": "/elsewhere", "data.workers": 2, "train.threads": 1}) == {""}


def test_going_on_and_beginning_differ() -> None:
    said = said_by_all(2, lambda ranks: check_same_run(small_run(), ranks, resume=ranks.rank == 1))
    assert "--resume is False on rank 0 and True on rank 1" in said[0]


def test_code_and_versions_that_differ_are_named(monkeypatch) -> None:
    calls: list[int] = []

    def other(*_):
        calls.append(1)
        return {"file allsight/engine/trainer.py": str(len(calls))}

    monkeypatch.setattr(agreement, "_code", other)
    (said,) = _said_of_settings({})
    assert said.startswith("ranks disagree on code: file allsight/engine/trainer.py is ")
    monkeypatch.setattr(agreement, "_versions", lambda: {"torch": str(calls.append(1) or len(calls))})
    assert "ranks disagree on versions: torch is " in next(iter(_said_of_settings({})))


def test_the_file_of_a_users_own_class_is_code() -> None:
    files = agreement._code(small_run())
    assert "file small_run.py" in files and "file allsight/engine/trainer.py" in files


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 47}, "size of the training set of a is 48 on rank 0 and 47 on rank 1"),
        ({"reader_seed": 2}, "sample 0 of the training set of a is vectors/0 ("),
        ({"broken": (24,)}, "and unusable on rank 1"),
    ],
)
def test_data_that_differ_are_named(changes, said) -> None:
    def act(ranks: Threads) -> None:
        tasks = Mixture(a=Signs.Config(batch_size=8, **(changes if ranks.rank else {})))
        built = build_run(small_run(tasks=tasks), Ranks())
        check_same_data(built.tasks, built.plan, ranks)

    assert all("ranks disagree on data: " in text and said in text for text in said_by_all(2, act))


def test_a_fault_of_one_rank_ends_all_and_says_whose_it_is() -> None:
    def act(ranks: Threads) -> None:
        with together(ranks):
            if ranks.rank == 1:
                raise DataError("a.jpg: is missing", "a.jpg")

    assert set(said_by_all(3, act)) == {"rank 1: a.jpg: is missing"}


def test_a_fault_of_all_ranks_is_said_once_without_their_names() -> None:
    def act(ranks: Threads) -> None:
        with together(ranks):
            raise ConfigError("config.x: wrong")

    assert set(said_by_all(3, act)) == {"config.x: wrong"}


def test_one_process_is_left_alone() -> None:
    with pytest.raises(DataError), together(Ranks()):
        raise DataError("broken", "x")
