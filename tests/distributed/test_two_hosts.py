"""Two machines: one run, whatever becomes of a process or of the link between them."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from camox.checkpoints import inspection
from camox.checkpoints.store import list_checkpoints
from tests.distributed.test_stopped_ranks import EXPERIMENT, assert_resumes_as
from tests.distributed.test_two_ranks import ROOT, launch
from tests.distributed.two_hosts import PORT, Hosts, Job, two_hosts, unavailable
from tests.training.test_trainer import bits, numbers

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

RESTARTS = ["--max_restarts", "2"]
BACKENDS = {"static": [], "c10d": ["--rdzv_backend", "c10d"]}
STALL = 10
reason_to_skip = cache(unavailable)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    with two_hosts(tmp_path) as both:
        yield both


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes on one machine, without trouble."""
    folder = tmp_path_factory.mktemp("whole")
    done = launch("camox/train.py", str(experiment(folder)), "--output", str(folder))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return folder / "tiny"


def experiment(folder: Path) -> Path:
    file = folder / "tiny.toml"
    file.write_text(EXPERIMENT.replace('name = "full"\nepochs = 1', 'name = "full"\nepochs = 3'))
    return file


def start(hosts: Hosts, folder: Path, options: list[str], *arguments: str, **environment: str) -> list[Job]:
    """The run on both hosts, in a folder that they share."""
    script = ["camox/train.py", str(experiment(folder)), "--output", str(folder), *arguments]
    return [host.launch(*options, *script, **environment) for host in hosts.both]


def wait_for(what: Callable[[], bool], jobs: list[Job], timeout: float = 200) -> None:
    until = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < until, said(jobs)
        time.sleep(0.05)


def said(jobs: list[Job]) -> str:
    return "\n----\n".join(job.text[-3000:] for job in jobs)


def checkpoint(run: Path, epoch: int) -> Callable[[], bool]:
    return (run / "checkpoints" / f"epoch_{epoch:04d}").exists


def assert_same(run: Path, whole: Path) -> None:
    """Numbers and bits of the run that had no trouble, and nothing said twice."""
    assert numbers(run) == numbers(whole)
    assert {path.name: bits(path) for path in list_checkpoints(run)} == {
        path.name: bits(path) for path in list_checkpoints(whole)
    }


def kinds(run: Path) -> list[str]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event["kind"] for event in events if event["kind"] in ("start", "stall", "resume", "end")]


def assert_went_on_once(run: Path) -> None:
    """The process that was left may have come to say how it ended, or not."""
    assert kinds(run) in (["start", "resume", "end"], ["start", "end", "resume", "end"])


def end_of(run: Path) -> dict[str, object]:
    return json.loads((run / "exit.json").read_text())


def test_two_machines_train_what_two_processes_on_one_do(hosts, tmp_path, whole):
    jobs = start(hosts, tmp_path, [])
    assert [job.end(300) for job in jobs] == [0, 0], said(jobs)
    assert_same(tmp_path / "tiny", whole)


@pytest.mark.parametrize(("backend", "victim"), [("static", 0), ("static", 1), ("c10d", 1)])
def test_a_killed_process_is_restarted_with_the_other_and_the_run_is_the_same(hosts, tmp_path, whole, backend, victim):
    """Without --resume: what the launcher restarts goes on by itself, once."""
    run = tmp_path / "tiny"
    jobs = start(hosts, tmp_path, [*RESTARTS, *BACKENDS[backend]])
    wait_for(checkpoint(run, 2), jobs)
    (process,) = jobs[victim].trainers()
    process.kill()
    assert [job.end(300) for job in jobs] == [0, 0], said(jobs)
    assert_went_on_once(run)
    assert_same(run, whole)


def test_on_one_machine_a_killed_process_is_restarted_with_the_other(tmp_path, whole):
    run = tmp_path / "tiny"
    file = experiment(tmp_path)
    script = str(ROOT / "tests/distributed/killed_ranks.py")
    done = launch(*RESTARTS, script, "2", str(file), "--output", str(tmp_path), timeout=400)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    assert_went_on_once(run)
    assert_same(run, whole)


def test_a_link_that_fails_for_some_seconds_makes_no_difference(hosts, tmp_path, whole):
    run = tmp_path / "tiny"
    jobs = start(hosts, tmp_path, [])
    wait_for(checkpoint(run, 2), jobs)
    hosts.cut()
    time.sleep(3)
    hosts.mend()
    assert [job.end(300) for job in jobs] == [0, 0], said(jobs)
    assert kinds(run) == ["start", "end"]
    assert_same(run, whole)


def test_without_a_link_both_machines_end_in_time_and_a_second_start_is_the_same_run(hosts, tmp_path, whole):
    run = tmp_path / "tiny"
    jobs = start(hosts, tmp_path, [], f"stability.stall_seconds={STALL}")
    wait_for(checkpoint(run, 2), jobs)
    hosts.cut()
    cut = time.monotonic()
    assert all(job.end(120) != 0 for job in jobs), said(jobs)
    assert time.monotonic() - cut < 90
    end = end_of(run)
    assert end["code"] == 1
    assert str(end["reason"]).startswith("stalled: no step for 1")
    assert end["last_clean_checkpoint"] == str(list_checkpoints(run)[-1])
    assert sum(job.text.count("error: stalled") for job in jobs) == 1
    assert [inspection.main([str(path)]) for path in list_checkpoints(run)] == [0] * len(list_checkpoints(run))

    hosts.mend()
    assert_resumes_as(whole, run, tmp_path / "tiny.toml")


def test_a_launcher_goes_on_by_itself_once_the_link_is_back(hosts, tmp_path, whole):
    run = tmp_path / "tiny"
    jobs = start(hosts, tmp_path, RESTARTS, f"stability.stall_seconds={STALL}")
    wait_for(checkpoint(run, 2), jobs)
    hosts.cut()
    wait_for((run / "exit.json").exists, jobs)
    time.sleep(5)
    hosts.mend()
    assert [job.end(300) for job in jobs] == [0, 0], said(jobs)
    assert kinds(run) == ["start", "stall", "resume", "end"]
    assert_same(run, whole)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("machine", [0, 1])
def test_a_machine_alone_ends_when_its_time_is_over(hosts, tmp_path, backend, machine):
    options = ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(machine), "--cpu"]
    meeting = ["--main_process_ip", "camox-a", "--main_process_port", str(PORT), *BACKENDS[backend]]
    line = [sys.executable, "-m", "camox", "train", str(experiment(tmp_path)), "--output", str(tmp_path), "--"]
    job = hosts.both[machine].start(*line, *options, *meeting, CAMOX_JOIN_SECONDS="3")
    assert job.end(100) == 2, job.text
    (message,) = [line for line in job.text.splitlines() if line.startswith("error")]
    assert f"machine {machine} could not meet the others at camox-a, port {PORT}, within 3 s" in message
    assert "Traceback" not in job.text
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_machine_does_not_wait_for_one_where_the_run_has_ended(hosts, tmp_path, backend):
    """The second has no experiment of that name, which its restarts would not change."""
    options, patient = [*RESTARTS, *BACKENDS[backend], "camox/train.py"], {"CAMOX_JOIN_SECONDS": "1000"}
    first = hosts.both[0].launch(*options, str(experiment(tmp_path)), "--output", str(tmp_path), **patient)
    second = hosts.both[1].launch(*options, str(tmp_path / "nowhere.toml"), **patient)
    assert all(job.end(120) != 0 for job in (first, second)), said([first, second])
    told = [[line for line in job.text.splitlines() if line.startswith("error")] for job in (first, second)]
    assert told[0] == ["error: the run has ended on camox-b with code 2, which says why"], said([first, second])
    assert len(told[1]) == 1, told
    assert "nowhere.toml" in told[1][0]
    assert not (tmp_path / "tiny").exists()


def test_a_run_folder_that_only_one_machine_has_is_refused(hosts, tmp_path):
    """Each its own disk under the same path."""
    runs = tmp_path / "runs"
    runs.mkdir()
    script = [str(ROOT / "tests/distributed/hasty_ranks.py"), str(experiment(tmp_path)), "--output", str(runs)]
    jobs = [host.launch(*script, own=runs if host.number else None) for host in hosts.both]
    assert all(job.end(120) != 0 for job in jobs), said(jobs)
    told = [line for job in jobs for line in job.text.splitlines() if line.startswith("error")]
    assert len(told) == 1, told
    assert f"process 1 on camox-b does not see the run folder {runs / 'tiny'} of process 0" in told[0]
    end = end_of(runs / "tiny")
    assert (end["code"], end["last_clean_checkpoint"]) == (2, None)


def test_a_checkpoint_that_only_one_machine_has_is_refused(hosts, tmp_path, whole):
    disk = tmp_path / "disk"
    shutil.copytree(whole, disk / "tiny")
    script = ["camox/train.py", str(experiment(tmp_path)), "--output", str(tmp_path / "shared")]
    script += ["--resume", str(disk / "tiny" / "checkpoints" / "epoch_0002")]
    jobs = [host.launch(*script, own=disk if host.number else None) for host in hosts.both]
    assert all(job.end(120) != 0 for job in jobs), said(jobs)
    told = [line for job in jobs for line in job.text.splitlines() if line.startswith("error")]
    assert len(told) == 1, told
    assert "process 1" in told[0]
    assert "epoch_0002" in told[0]
