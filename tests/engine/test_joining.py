"""Ranks find each other, whatever an earlier attempt left behind; who does not come is named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from allsight.config import ConfigError
from allsight.engine import heartbeat, joining
from allsight.engine.heartbeat import dead_ranks, hung_ranks, start_heartbeat
from allsight.engine.joining import Place, RanksMissing, meet, named
from allsight.engine.network import free_port, interface_towards, is_own_address, is_taken


def _meet_all(places: list[Place], timeout_s: float = 30.0) -> list[object]:
    """What each of several ranks, as threads, gets: its store or its error."""

    def one(place: Place) -> object:
        try:
            return meet(place, timeout_s)
        except (RanksMissing, ConfigError) as error:
            return error

    with ThreadPoolExecutor(len(places)) as threads:
        return list(threads.map(one, places))


@pytest.fixture
def agent() -> tuple[dist.TCPStore, list[Place]]:
    """A store that outlives the ranks, as torchrun keeps one, and three ranks that use it."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store, [Place(rank, 3, "127.0.0.1", store.port, hosts=False) for rank in range(3)]


def test_ranks_meet_in_a_store_of_their_own_attempt(agent) -> None:
    _, places = agent
    first = _meet_all(places)
    first[0].set("address", "of a process that died")
    second = _meet_all(places)
    assert all(isinstance(found, dist.Store) for found in (*first, *second))
    second[1].set("word", "new")
    assert second[2].get("word") == b"new"
    assert not second[0].check(["address"]) and first[2].check(["address"])


def test_what_a_dead_rank_left_is_not_taken_for_the_living_one(agent, monkeypatch) -> None:
    _, places = agent
    _meet_all(places)
    # The second attempt is without rank 2, whose old answer still lies in the store.
    monkeypatch.setattr(joining, "_GRACE_S", 0.5)
    said = _meet_all(places[:2], timeout_s=1.0)
    assert all(isinstance(error, RanksMissing) for error in said)
    assert {str(error).partition(";")[0] for error in said} == {"waited 1 s for rank 2 of 3"}


def test_the_first_rank_keeps_the_store_where_nobody_else_does() -> None:
    port = free_port()
    found = _meet_all([Place(rank, 2, "127.0.0.1", port, hosts=rank == 0) for rank in range(2)])
    found[0].set("a", "b")
    assert found[1].get("a") == b"b"


def test_a_taken_port_is_said_with_one_that_is_free() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert is_taken(port)
        first, second = _meet_all(
            [Place(rank, 2, "127.0.0.1", port, hosts=rank == 0) for rank in range(2)], timeout_s=0.5
        )
    assert isinstance(first, ConfigError) and f"127.0.0.1:{port} is taken" in str(first)
    assert "is free: set it for all ranks" in str(first)
    assert isinstance(second, RanksMissing) and "what answers at" in str(second)


def test_a_missing_first_rank_is_named() -> None:
    (error,) = _meet_all([Place(1, 2, "127.0.0.1", free_port(), hosts=False)], timeout_s=0.2)
    assert str(error).startswith("waited 0.2 s for rank 0 at 127.0.0.1:")


def test_ranks_that_do_not_get_on_are_told_from_those_that_ask_too(agent) -> None:
    store, _ = agent
    with ThreadPoolExecutor(2) as threads:
        found = threads.map(lambda rank: hung_ranks(store, rank, 4, wait_s=0.5), (0, 2))
    assert list(found) == [[1, 3], [1, 3]]


def test_ranks_without_a_heartbeat_are_dead(agent, monkeypatch) -> None:
    store, _ = agent
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.05)
    for rank in (0, 2):
        start_heartbeat(store, rank)
    store.set("beat/3", "7")
    assert dead_ranks(store, 4) == [1, 3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"MASTER_PORT": ""}, "MASTER_PORT: expected what torchrun sets"),
        ({"MASTER_PORT": "http"}, "got 'http'"),
        ({"RANK": "2"}, "RANK: 2 of 2 ranks; expected 0 to 1"),
    ],
)
def test_an_environment_that_is_none_of_a_rank_is_refused(changes, said, monkeypatch) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in {**variables, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=said):
        Place.of_environment()


def test_the_agent_of_torchrun_keeps_the_store(monkeypatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert Place.of_environment().hosts
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert not Place.of_environment().hosts


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([1, 2, 5], "ranks 1, 2, 5"), ([0, 8, 9, 10], "ranks 0, 8-10")],
)
def test_ranks_are_named_shortly(ranks, text) -> None:
    assert named(ranks) == text


def test_this_machine_knows_itself() -> None:
    assert is_own_address("127.0.0.1") and not is_own_address("192.0.2.1")
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("no.such.host.invalid") is None


_LEAVING = """
import atexit
import sys
import torch
import torch.distributed as dist
from allsight.engine.distributed import _start_group
from allsight.engine.joining import Place
from allsight.engine.network import free_port

atexit.register(lambda: print(dist.is_initialized()))
_start_group(Place(0, 1, "127.0.0.1", free_port(), hosts=True), torch.device("cpu"), 20.0)
print(dist.is_initialized())
sys.exit("refused")
"""


def test_groups_end_before_python_does_also_after_a_refusal() -> None:
    """Threads of a group that still run when Python is taken down abort the process now and then."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", _LEAVING], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout.split(), done.stderr.strip(), done.returncode) == (["True", "False"], "refused", 1)
