"""How processes find each other, in threads that share a launcher's store."""

import os
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore, Store, TCPStore

from camox.errors import DataError, ExperimentError, OutOfMemory, PeersMissing
from camox.training.launching import rendezvous
from camox.training.launching.ending import to_the_end
from camox.training.launching.rendezvous import be_patient, join_seconds, roll_call, tell_machines


@pytest.fixture(scope="module")
def server():
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))


class Launcher:
    """A launcher's store, and those who meet there."""

    def __init__(self, server: TCPStore, name: str):
        self._server, self._name = server, name

    def store(self) -> Store:
        """A connection of its own: one waits for the answers to another's questions."""
        client = TCPStore("127.0.0.1", self._server.port, is_master=False, wait_for_workers=False)
        return rendezvous.PrefixStore(self._name, client)

    def meet(self, ranks: Iterable[int], of: int, seconds: float = 20.0) -> list[str | PeersMissing]:
        """What becomes of processes of these ranks that come at the same time."""

        def come(rank: int) -> str | PeersMissing:
            try:
                return roll_call(self.store(), rank, of, seconds)
            except PeersMissing as error:
                return error

        with ThreadPoolExecutor(of) as pool:
            return list(pool.map(come, ranks))


@pytest.fixture
def launcher(server, request):
    return Launcher(server, f"{request.node.name}-{time.monotonic_ns()}")


def test_all_of_a_start_get_one_name_and_each_start_another(launcher):
    names = [launcher.meet(range(3), of=3) for _ in range(3)]
    assert [len(set(of_start)) for of_start in names] == [1, 1, 1]
    assert len({of_start[0] for of_start in names}) == 3


@settings(max_examples=8)
@given(gone=st.lists(st.sets(st.integers(0, 2), min_size=1, max_size=2), max_size=2))
def test_processes_that_came_and_died_before_all_had_met_leave_no_trace(server, gone):
    """Whichever they were: those who come after them find each other alone."""
    launcher = Launcher(server, f"gone-{time.monotonic_ns()}")
    for ranks in gone:
        assert all(isinstance(answer, PeersMissing) for answer in launcher.meet(ranks, of=3, seconds=0.15))
    (name,) = set(launcher.meet(range(3), of=3))
    assert isinstance(name, str)


def test_who_waits_is_joined_by_one_that_comes_again(launcher):
    """As on a machine whose launcher has restarted its process twice, where the other's has once."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(launcher.meet, [0], 2)
        # No time at all: one that has answered before it goes is counted, whatever becomes of it.
        assert isinstance(launcher.meet([1], of=2, seconds=0)[0], PeersMissing)
        assert launcher.meet([1], of=2) == waiting.result()


@pytest.mark.parametrize("ranks", [[0], [0, 2]], ids=str)
def test_the_first_process_names_those_that_do_not_come(launcher, ranks):
    missing = sorted({1, 2} - set(ranks))
    error = launcher.meet(ranks, of=3, seconds=0.3)[0]
    assert f"of 3 processes, {', '.join(map(str, missing))} did not come within 0.3 s" in str(error)


def test_the_first_process_names_those_that_came_to_an_earlier_start_alone(launcher):
    launcher.meet(range(3), of=3)
    assert "of 3 processes, 1 did not come" in str(launcher.meet([0, 2], of=3, seconds=0.3)[0])


def test_a_process_without_the_first_says_that_it_waited(launcher, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    (error,) = launcher.meet([1], of=2, seconds=0.3)
    assert "process 1 on" in str(error)
    assert "was not joined by all the others within 0.3 s" in str(error)


def test_each_machine_tells_once_that_others_are_missing(launcher, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert launcher.meet([1], of=2, seconds=0.01)[0].met_alone
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert not launcher.meet([1], of=2, seconds=0.01)[0].met_alone


@pytest.fixture
def one_of_two_machines(monkeypatch):
    """This process is the second machine's, by a launcher whose store it gives."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    place |= {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    return store


@pytest.mark.parametrize(
    ("error", "code"), [(OutOfMemory("full"), 3), (DataError("gone"), 2), (KeyboardInterrupt(), 130)]
)
def test_who_waits_for_a_machine_where_the_run_has_ended_ends_with_its_code(one_of_two_machines, capsys, error, code):
    def fail() -> None:
        raise error

    assert to_the_end(fail) == code
    capsys.readouterr()
    assert to_the_end(lambda: roll_call(one_of_two_machines, 0, 4, seconds=3.0)) == code
    said = capsys.readouterr().err
    assert said == f"error on process 2: the run has ended on {socket.gethostname()} with code {code}, which says why\n"


def test_what_may_go_well_in_a_restart_is_no_end_for_others(one_of_two_machines):
    assert to_the_end(lambda: roll_call(one_of_two_machines, 0, 4, seconds=0.01)) == 2
    with pytest.raises(PeersMissing):
        roll_call(one_of_two_machines, 0, 4, seconds=0.01)


def test_a_launcher_that_is_gone_is_told_nothing(one_of_two_machines, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    tell_machines(3)


@pytest.mark.parametrize("text", ["", "0", "-3", "soon", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("CAMOX_JOIN_SECONDS", text)
    with pytest.raises(ExperimentError, match="CAMOX_JOIN_SECONDS"):
        join_seconds()


def test_the_limit_is_five_minutes_unless_said_otherwise(monkeypatch):
    monkeypatch.delenv("CAMOX_JOIN_SECONDS", raising=False)
    assert join_seconds() == 300
    monkeypatch.setitem(os.environ, "CAMOX_JOIN_SECONDS", "2.5")
    assert join_seconds() == 2.5


def test_a_group_has_more_patience_once_it_is_connected():
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=3))
    try:
        be_patient(timedelta(seconds=50))
        group = dist.distributed_c10d._get_default_group()._get_backend(torch.device("cpu"))
        assert group.options._timeout == timedelta(seconds=50)
    finally:
        dist.destroy_process_group()
