"""Lets the processes of a run find each other: all of them, each as started last, within a limit of time."""

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import DistBackendError, DistError, PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from camox.errors import EndedElsewhere, ExperimentError, PeersMissing
from camox.training.launching.launched import port_taken

_SCHEME = "camox"
INIT_METHOD = f"{_SCHEME}://"
"""What `init_process_group` is to use.

An elastic launcher serves one store for all restarts, on one machine as on several and with each of its backends, and
there the processes of before have left their addresses: the new ones would wait for these, or call them in vain. The
number of the restart does not tell starts apart, since each machine's launcher counts its own.
"""
_ENDED = "ended"
_LIMIT = "CAMOX_JOIN_SECONDS"
REMEDY = (
    ": start the same command on every machine, each with its own --machine_rank and with the same --main_process_ip, "
    f"--main_process_port and --num_processes; {_LIMIT} is how long they wait for each other"
)


def join_seconds() -> float:
    """Seconds that the processes wait for each other at the start.

    Raises:
        ExperimentError: what the environment says of it is no positive number.
    """
    text = os.environ.get(_LIMIT, "300")
    try:
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    except ValueError:
        pass
    raise ExperimentError(f"{_LIMIT}={text}: give the seconds that processes wait for each other at the start")


def this_process() -> str:
    """Rank and machine, for people."""
    return f"process {os.environ.get('RANK', '0')} on {socket.gethostname()}"


@contextmanager
def connecting() -> Iterator[None]:
    """A block that connects processes to each other.

    Raises:
        PeersMissing: they get no connection within the time-out that the block gives them.
    """
    try:
        yield
    except RuntimeError as error:
        of_network = isinstance(error, DistBackendError) or "connect" in str(error).lower()
        if os.environ.get("WORLD_SIZE", "1") == "1" or not of_network:
            raise
        raise _told_once(
            f"the processes have found each other, but {this_process()} gets no connection to the others "
            f"({first_line(error)}): let them through the firewall, and name the network interface in "
            "GLOO_SOCKET_IFNAME, with GPUs in NCCL_SOCKET_IFNAME too"
        ) from error


def be_patient(patience: timedelta, group: Any = None) -> None:
    """Gives a process group another time-out than the one that it was connected with."""
    # Under a public name only since torch 2.14.
    set_timeout = getattr(dist, "set_timeout", None) or dist.distributed_c10d._set_pg_timeout
    set_timeout(patience, group)


def roll_call(store: Store, rank: int, ranks: int, seconds: float) -> str:
    """Waits until every process has come, and gives the name of this start, the same on all and never given before.

    Each leaves a name of its own, new with every start. Process 0 calls all by the names that it finds, anew where one
    was of a process that is gone and another has come, until all have answered to the same call.

    Raises:
        PeersMissing: some did not come within `seconds`.
        EndedElsewhere: some will not come any more.
    """
    until = time.monotonic() + seconds
    mine = f"{socket.gethostname()}/{uuid.uuid4().hex}"
    store.set(f"here/{rank}", mine)
    start = None
    while time.monotonic() < until:
        start = _call(store, ranks) if rank == 0 else _answer(store, rank, mine)
        # Process 0 answers to itself last, and so decides for all which call counts.
        if start is not None and rank == 0 and not _silent(store, ranks, start):
            store.set(f"{start}/0", "")
        if start is not None and store.check([f"{start}/0"]):
            return start
        _require_going_on(store)
        # Slower where many ask the one store.
        time.sleep(max(0.05, ranks / 1000))
    late = f"of {ranks} processes, {this_process()} was not joined by all the others"
    if rank == 0:
        silent = ", ".join(map(str, _silent(store, ranks, start)))
        late = f"of {ranks} processes, {silent} did not come"
    raise _told_once(f"{late} within {seconds:g} s{REMEDY}")


def tell_machines(code: int) -> None:
    """Tells those who wait in a roll call of this launch, if its store can be reached, that the run has ended for good.

    Launchers of other machines know nothing of that: in each restart their processes would wait for this one.
    """
    here, everywhere = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if here == everywhere or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    host, port, limit = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), 5.0
    try:
        # A launcher that is gone refuses at once, where a store would go on trying.
        socket.create_connection((host, port), timeout=limit).close()
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=limit))
        store.set(_ENDED, f"{code} {socket.gethostname()}")
    except (OSError, DistError):
        pass  # they wait, and then say who did not come


def _require_going_on(store: Store) -> None:
    if not store.check([_ENDED]):
        return
    code, machine = store.get(_ENDED).decode().split()
    error = EndedElsewhere(f"the run has ended on {machine} with code {code}, which says why", int(code))
    error.met_alone = os.environ.get("LOCAL_RANK", "0") == "0"
    raise error


def _call(store: Store, ranks: int) -> str | None:
    """Calls those who are there, if all are or have been; gives the name of the start that would be theirs."""
    here = [f"here/{rank}" for rank in range(ranks)]
    if not store.check(here):
        return None
    names = store.multi_get(here)
    start = hashlib.sha256(b" ".join(names)).hexdigest()[:16]
    store.multi_set([f"called/{name.decode()}" for name in names], [start] * ranks)  # type: ignore[attr-defined]
    return start


def _answer(store: Store, rank: int, mine: str) -> str | None:
    """Answers to the last call of this process, if there was one."""
    if not store.check([f"called/{mine}"]):
        return None
    start = store.get(f"called/{mine}").decode()
    store.set(f"{start}/{rank}", "")
    return start


def _silent(store: Store, ranks: int, start: str | None) -> list[int]:
    """Which processes but the first have not answered to a call; without one, which have never come."""
    keys = {rank: f"here/{rank}" if start is None else f"{start}/{rank}" for rank in range(1, ranks)}
    if not keys or store.check(list(keys.values())):
        return []
    return [rank for rank, key in keys.items() if not store.check([key])]


def _meet(url: str, timeout: timedelta, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """What `init_process_group` calls for `INIT_METHOD`: a part of the launcher's store that is this start's alone."""
    seconds = join_seconds()
    try:
        store, rank, ranks = next(iter(rendezvous("env://", timeout=timedelta(seconds=seconds), **options)))
        start = roll_call(store, rank, ranks, seconds)
    except DistError as error:
        if "EADDRINUSE" in str(error):
            raise port_taken(error) from error
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise _told_once(
            f"{this_process()} could not meet the others at {where} within {seconds:g} s ({first_line(error)}){REMEDY}"
        ) from error
    store.set_timeout(timeout)
    yield PrefixStore(start, store), rank, ranks


def _told_once(message: str) -> PeersMissing:
    """An error that each machine tells: none of them may be left to tell it for all."""
    error = PeersMissing(message)
    error.met_alone = os.environ.get("LOCAL_RANK", "0") == "0"
    return error


def first_line(error: Exception) -> str:
    """What an error says before its details."""
    return str(error).strip().partition("\n")[0].rstrip(".")


register_rendezvous_handler(_SCHEME, _meet)
