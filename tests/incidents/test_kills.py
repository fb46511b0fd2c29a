"""Incident 11: a run killed at any moment, also while it writes a checkpoint, loses the steps since the last one."""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from camox.checkpoints.folders import list_checkpoints
from camox.checkpoints.manifest import read_manifest
from tests.conftest import TINY_EXPERIMENT
from tests.incidents import killed

FEW, MANY = 5, 50
LONGEST = 300
"""Seconds after which a run counts as hanging."""
STEPS, EPOCHS = 2, 5
"""Steps in an epoch, and epochs, of which the first has the backbone frozen."""
OPTIONS = (f"phases.full.epochs={EPOCHS - 1}", "--resume", "auto")


class Reference(NamedTuple):
    """The run that nobody kills."""

    seconds: float
    write_seconds: float
    """That a checkpoint's write took, the median of all."""
    files: dict[str, str]
    """sha256 by name, of what the last checkpoint holds."""
    logged: list[tuple[int, float]]
    """Step and loss of every row with a loss."""


class Run:
    """One experiment in one folder, started as often as it takes."""

    def __init__(self, folder: Path, *options: str):
        file = folder / "tiny.toml"
        file.write_text(TINY_EXPERIMENT, encoding="utf-8")
        self.path = folder / "tiny"
        self.log = folder / "log.txt"
        self.arguments = (str(file), "--output", str(folder), *OPTIONS, *options)

    def start(self) -> BaseProcess:
        return killed.start(self.arguments, self.log)

    def finish(self) -> None:
        """Runs it to its end."""
        process = self.start()
        process.join(LONGEST)
        assert process.exitcode == 0, self.log.read_text()[-3000:]

    def kill(self, process: BaseProcess) -> None:
        process.kill()
        process.join()

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What is in a file of lines; of the last one, which a kill may have torn, only if it is whole."""
        file = self.path / name
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def logged(self) -> list[tuple[int, float]]:
        return [(row["step"], row["train/loss"]) for row in self.rows("metrics.jsonl") if "train/loss" in row]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes a run; a quarter of a GB of checkpoints is not kept after the test."""
    yield lambda *options: Run(tmp_path, *options)
    shutil.rmtree(tmp_path / "tiny", ignore_errors=True)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    run = Run(tmp_path_factory.mktemp("reference"))
    killed.start(["--help"], run.log).join()  # imports what all others begin with
    started = time.monotonic()
    run.finish()
    seconds = time.monotonic() - started
    writes = sorted(row["checkpoint/seconds"] for row in run.rows("metrics.jsonl") if "checkpoint/seconds" in row)
    reference = Reference(seconds, writes[len(writes) // 2], contents(run), run.logged())
    assert [step for step, _ in reference.logged] == list(range(1, STEPS * EPOCHS + 1))
    shutil.rmtree(run.path)
    return reference


def contents(run: Run) -> dict[str, str]:
    """sha256 of each file of the newest checkpoint: weights, their average, moments, generators, and the state."""
    return {name: record.sha256 for name, record in read_manifest(list_checkpoints(run.path)[-1]).files.items()}


def newest_step(run: Run) -> int:
    """Step of the newest finished checkpoint, 0 before the first."""
    return max((read_manifest(path).step for path in list_checkpoints(run.path)), default=0)


def kill_in_write(run: Run, chance: random.Random, reference: Reference) -> None:
    """Kills the run while it writes one of the checkpoints that it has not written yet."""
    name = f"epoch_{chance.randint(newest_step(run) // STEPS + 1, EPOCHS):04d}"
    moment = chance.uniform(0, reference.write_seconds)
    process = run.start()
    until = time.monotonic() + LONGEST
    while process.is_alive() and not any((run.path / "checkpoints").glob(f".tmp-{name}-*")):
        assert time.monotonic() < until, f"{name} is never written"
        time.sleep(0.001)
    process.join(moment)
    run.kill(process)


def kill_at_any_moment(run: Run, chance: random.Random, reference: Reference) -> None:
    process = run.start()
    process.join(chance.uniform(0, reference.seconds))
    run.kill(process)


@pytest.mark.parametrize(
    "seed", [*range(FEW), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(FEW, MANY))]
)
def test_a_killed_run_goes_on_from_its_newest_checkpoint_to_the_same_end(begin, reference, record, seed):
    run, chance = begin(), random.Random(1000 + seed)
    kills = [kill_in_write if seed % 2 == 0 else kill_at_any_moment]
    kills += [chance.choice([kill_in_write, kill_at_any_moment])] if seed % 3 == 2 else []
    saved = 0
    for kill in kills:
        kill(run, chance, reference)
        told = [row["step"] for row in run.rows("metrics.jsonl") if "checkpoint/seconds" in row]
        assert newest_step(run) >= max([saved, *told])
        saved = newest_step(run)
        print(f"{kill.__name__}: left {sorted(path.name for path in (run.path / 'checkpoints').glob('*'))}")

    run.finish()
    begun = [event for event in run.rows("events.jsonl") if event["kind"] in ("start", "resume")][-1]
    assert (begun["kind"], begun["step"]) == ("resume" if saved else "start", saved)
    assert run.logged() == reference.logged
    assert contents(run) == reference.files
    hidden = [path.name for path in run.path.rglob(".*") if path.name != ".lock"]
    assert hidden == []
    assert not list(run.path.rglob("*.partial"))
    told = "went on from its newest checkpoint to the bits of the run that nobody kills"
    record(11, "`kill -9` at a random moment, or within a checkpoint's write", with_guards=told)


def test_no_data_worker_outlives_a_killed_run(begin):
    run = begin("data.workers=2")
    process = run.start()
    until = time.monotonic() + LONGEST
    workers: list[psutil.Process] = []
    while len(workers) < 2:
        assert time.monotonic() < until
        assert process.is_alive(), run.log.read_text()[-3000:]
        with suppress(psutil.NoSuchProcess):
            workers = psutil.Process(process.pid).children()
    run.kill(process)
    _, left = psutil.wait_procs(workers, timeout=LONGEST)
    assert not left
