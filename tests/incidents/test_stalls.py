"""Incident 10: one of two processes stalls, or raises, while it loads its data."""

import os
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.test_two_ranks import LAUNCH, ROOT, launch
from tests.incidents.conftest import EXPERIMENT, outcome_of
from tests.incidents.test_incidents import survived

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


def test_without_a_watchdog_a_stalled_process_keeps_the_job_waiting(file):
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


@pytest.mark.parametrize("trouble", ["stalls", "raises"])
def test_the_job_ends_and_its_restart_is_as_good_as_a_run_without_trouble(file, clean, trouble):
    done = launch("--max_restarts", "1", *job(file, trouble, LIMIT), timeout=400)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    outcome = outcome_of(file.parent / "incident", error="")
    survived(outcome, clean)
    assert ("stall" in outcome.kinds) == (trouble == "stalls")
