"""Incident 10: one of two processes stalls, or raises, while it loads its data."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.test_two_ranks import LAUNCH, ROOT, launch
from tests.incidents.conftest import EXPERIMENT
from tests.incidents.records import Outcome, outcome_of
from tests.incidents.test_incidents import lost, survived

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

SCRIPT = str(ROOT / "tests/distributed/troubled_ranks.py")
LIMIT = 10


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "incident.toml"
    # Two processes with half a batch each: the steps of the clean run.
    path.write_text(EXPERIMENT.replace("batch_size = 8", "batch_size = 4"))
    return path


def job(file: Path, trouble: str, limit: int) -> list[str]:
    settings = f"stability.stall_seconds={limit}"
    return [SCRIPT, trouble, str(file), settings, "--resume", "auto", "--output", str(file.parent)]


def test_without_a_watchdog_a_stalled_process_keeps_the_job_waiting(file, record):
    reached = file.parent / "reached"
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT), "REACHED": str(reached)}
    with subprocess.Popen([*LAUNCH, *job(file, "stalls", limit=0)], env=environment, cwd=ROOT) as launcher:
        try:
            until = time.monotonic() + 300
            while not reached.exists() and launcher.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
            assert reached.exists()
            with pytest.raises(subprocess.TimeoutExpired):
                launcher.wait(2 * LIMIT)
        finally:
            for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                process.kill()
    assert not (file.parent / "incident" / "exit.json").exists()


def test_a_stalled_job_ends_and_its_restart_is_as_good_as_a_run_without_trouble(file, clean_run, record):
    outcome = restarted(file, "stalls")
    survived(outcome, clean_run)
    assert "stall" in outcome.kinds
    # The test above shows it.
    without = f"still waiting after {2 * LIMIT} s, without a word"
    record(10, "One of two processes stands still", without=without, with_guards=outcome, clean=clean_run)


def test_a_process_that_raises_ends_the_job_and_its_restart_is_as_good_as_a_run_without_trouble(
    file, clean_run, record
):
    done = launch(*job(file, "raises", LIMIT), timeout=400)
    assert done.returncode != 0
    without = outcome_of(file.parent / "incident", error="ValueError: the camera bit")
    lost(without, clean_run)
    assert "the camera bit" in done.stderr
    outcome = restarted(file, "raises")
    survived(outcome, clean_run)
    assert "stall" not in outcome.kinds
    record(10, "One of two processes raises an error", without=without, with_guards=outcome, clean=clean_run)


def restarted(file: Path, trouble: str) -> Outcome:
    """How a job ends that the launcher restarts once."""
    done = launch("--max_restarts", "1", *job(file, trouble, LIMIT), timeout=400)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return outcome_of(file.parent / "incident", error="")
