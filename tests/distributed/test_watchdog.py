"""One process of two stalls, or raises, in its data: the job ends, says why, and can go on."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.conftest import TINY_EXPERIMENT
from tests.distributed.test_two_ranks import ROOT, launch

pytestmark = pytest.mark.distributed

SCRIPT = str(ROOT / "tests/distributed/troubled_ranks.py")
STALL = "stability.stall_seconds=10"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_EXPERIMENT.replace("batch_size = 4", "batch_size = 2"))
    return path


def ended(done: subprocess.CompletedProcess[str], run: Path) -> tuple[int, str]:
    """Code and reason in exit.json, for a job that failed within its time."""
    assert done.returncode != 0, done.stdout[-1500:] + done.stderr[-3000:]
    end = json.loads((run / "exit.json").read_text())
    return end["code"], end["reason"]


def kinds(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["kind"] for event in events if event["kind"] in ("start", "stall", "resume", "end")]


def sections(run: Path) -> dict[int, str]:
    """What each process wrote into stacks.txt, by rank."""
    texts = (run / "stacks.txt").read_text().split("==== ")[1:]
    return {int(text.partition("process ")[2].partition(" ")[0]): text for text in texts}


@pytest.mark.slow
def test_an_elastic_launcher_restarts_a_stalled_job_which_goes_on_to_its_end(file):
    """Process 0 stalls as well, in a collective: what each is doing tells them apart."""
    run = file.parent / "tiny"
    done = launch(
        "--max_restarts", "1", SCRIPT, "stalls", str(file), STALL, "--resume", "auto", "--output", str(run.parent)
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert done.stderr.count("error: stalled: no step for") == 1
    assert "process 1: loading data (step 2, after epoch 1)" in done.stderr
    assert kinds(run) == ["start", "stall", "resume", "end"]
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    stacks = sections(run)
    assert stacks.keys() == {0, 1}
    assert "troubled_ranks.py" in stacks[1]
    assert "wait_for_a_disk" in stacks[1]
    assert "wait_for_a_disk" not in stacks[0]
    assert "TrainingStep.__call__" in stacks[0]


@pytest.mark.slow
def test_a_stalled_worker_is_named_and_gone_and_a_second_start_goes_on(file):
    run = file.parent / "tiny"
    options = [STALL, "data.workers=1", "--resume", "auto", "--output", str(run.parent)]
    code, reason = ended(launch(SCRIPT, "stalls", str(file), *options), run)
    assert code == 1
    assert reason.startswith("stalled: no step for")
    assert f"{run / 'stacks.txt'}" in reason
    assert "--resume auto" in reason
    assert kinds(run) == ["start", "stall"]
    main, _, worker = sections(run)[1].partition("worker ")
    assert "wait_for_a_disk" in worker
    assert "wait_for_a_disk" not in main
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(file) in (process.info["cmdline"] or ())]

    done = launch("camox/train.py", str(file), *options)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert kinds(run) == ["start", "stall", "resume", "end"]


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_job_and_is_the_reason_given(file):
    """Not the other's, which only sees a connection close."""
    run = file.parent / "tiny"
    done = launch(SCRIPT, "raises", str(file), "--output", str(run.parent), timeout=200)
    assert ended(done, run) == (1, "process 1: ValueError: the camera bit")


@pytest.mark.slow
def test_memory_that_is_full_in_one_process_is_told_by_that_one(file):
    run = file.parent / "tiny"
    done = launch(SCRIPT, "fills", str(file), "--output", str(run.parent), timeout=200)
    code, reason = ended(done, run)
    assert code == 3
    assert "memory is full: " in reason
    assert f"error on process 1: {reason}" in done.stderr
