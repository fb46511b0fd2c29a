"""A process that stands still is seen, says what it was doing, and ends; one that beats is left alone."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from camox.stability.watchdog import Watchdog

ROOT = Path(__file__).resolve().parents[2]


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_a_heart_that_stands_still_for_the_limit_is_a_reason(tmp_path):
    clock = FakeClock()
    watchdog = Watchdog(tmp_path, limit=30, clock=clock)
    watchdog.beat("loading data")
    clock.now += 29
    assert watchdog.look() is None
    watchdog.beat("training step")
    clock.now += 29
    assert watchdog.look() is None
    clock.now += 1
    assert watchdog.look() == "no heartbeat for 30 s"


def test_another_process_that_asks_is_a_reason_too(tmp_path):
    clock = FakeClock()
    watchdog = Watchdog(tmp_path, limit=30, clock=clock)
    (tmp_path / ".stall").mkdir()
    clock.now += 4
    assert watchdog.look() == "another process stands still; last heartbeat here 4 s ago"


class Run:
    """Watchdogs of several processes, here in one: what they told, and whether they have ended."""

    def __init__(self, folder: Path):
        self.folder, self.told = folder, []
        self.codes: dict[int, list[int]] = {}
        self.ended: dict[int, threading.Event] = {}

    def watchdog(self, rank: int, ranks: int, limit: float, grace: float = 60) -> Watchdog:
        codes, ended = self.codes.setdefault(rank, []), self.ended.setdefault(rank, threading.Event())

        def abort(code: int) -> None:
            codes.append(code)
            ended.set()

        return Watchdog(
            self.folder,
            limit,
            rank,
            ranks,
            where=lambda: "epoch 3, step 7",
            on_stall=lambda message, details: self.told.append((rank, message, details)),
            grace=grace,
            abort=abort,
        )


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_one_that_beats_dumps_its_stacks_too_when_another_stands_still(run, capfd):
    with run.watchdog(0, 2, limit=3600) as well, run.watchdog(1, 2, limit=0.2) as ill:
        well.beat("saving")
        ill.beat("loading data")
        assert all(run.ended[rank].wait(60) for rank in (0, 1))
    assert run.codes == {0: [1], 1: [1]}
    sections = (run.folder / "stacks.txt").read_text().split("==== ")[1:]
    assert len(sections) == 2
    (of_well,) = [text for text in sections if "process 0 of 2" in text]
    (of_ill,) = [text for text in sections if "process 1 of 2" in text]
    assert "another process stands still" in of_well
    assert "last: saving (epoch 3, step 7)" in of_well
    assert "no heartbeat for" in of_ill
    assert "last: loading data (epoch 3, step 7)" in of_ill
    assert all("thread MainThread" in text and "test_watchdog.py" in text for text in sections)
    # One message, by the first process.
    ((rank, message, details),) = run.told
    assert rank == 0
    assert "process 0: saving (epoch 3, step 7); process 1: loading data (epoch 3, step 7)" in message
    assert str(run.folder / "stacks.txt") in message
    assert details["processes"].keys() == {0, 1}
    assert capfd.readouterr().err == f"error: {message}\n"


def test_where_the_first_process_does_not_answer_the_next_one_tells(run):
    with run.watchdog(1, 2, limit=0.2, grace=0.3):
        assert run.ended[1].wait(60)
    ((rank, message, _),) = run.told
    assert rank == 1
    assert "process 0: does not answer" in message


def test_a_run_folder_that_cannot_be_written_still_ends(run, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no space left on device")

    watchdog = run.watchdog(0, 1, limit=0.2, grace=0.1)
    for name in ("mkdir", "write_text"):
        monkeypatch.setattr(Path, name, refuse)
    with watchdog:
        assert run.ended[0].wait(60)
    assert run.codes[0] == [1]
    assert len(run.told) == 1


@pytest.mark.parametrize("limit", [0, 3600])
def test_a_run_that_ends_well_leaves_nothing(tmp_path, limit):
    before = threading.active_count()
    with Watchdog(tmp_path, limit) as watchdog:
        watchdog.beat("training step")
        assert threading.active_count() == before + (limit > 0)
    assert os.listdir(tmp_path) == []


def test_a_folder_of_an_earlier_stall_stays_readable(tmp_path):
    (tmp_path / "stacks.txt").write_text("==== before\n")
    with Watchdog(tmp_path, 3600):
        pass
    assert (tmp_path / "stacks.txt").read_text() == "==== before\n"


HANG = """
import ctypes, sys, time
from pathlib import Path
from camox.stability.watchdog import Watchdog

def hangs_here():
    {how}

with Watchdog(Path(sys.argv[1]), 0.5, grace=1) as watchdog:
    watchdog.beat("training step")
    hangs_here()
"""


@pytest.mark.parametrize(
    "how", ["time.sleep(3600)", "ctypes.PyDLL(None).sleep(3600)"], ids=["waits", "holds the interpreter"]
)
def test_the_process_really_ends_and_its_stack_is_kept(tmp_path, how):
    """The second one lets no other thread run, not the watchdog's either."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HANG.format(how=how), str(tmp_path)]
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "hangs_here" in (tmp_path / "stacks.txt").read_text()
    notes = tmp_path / ".stall" / "0"
    if "PyDLL" not in how:
        assert json.loads(notes.read_text())["doing"] == "training step"
        assert done.stderr.startswith("error: stalled: no step for")


def test_heartbeats_keep_a_process_alive_that_takes_longer_than_the_limit(run):
    with run.watchdog(0, 1, limit=5.0) as watchdog:
        for _ in range(4 * 8):
            watchdog.beat("validating")
            assert not run.ended[0].wait(0.2)
    assert run.codes[0] == []
