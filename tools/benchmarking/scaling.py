"""Suite `scaling`: two processes with one thread each against one process with two, on one machine's CPU.

The same experiment and the same images per step: each of two processes has half of them. Both run `Trainer.run` with
all that it does from one batch to the next; only data loading is left out, by a loader that hands out the same noise
again (`benchmarking.trainer_in_turns`). All processes are there from the beginning and take turns of `STEPS` steps, of
which one is logged: the others wait meanwhile, and a slow minute of the machine is one for both. What counts is the
wall time of a turn, that of the slower process where there are two; beside it is the CPU time of all.

Two more turns show what the exchange of gradients costs: steps of two processes that leave it out, each then training
by itself, and an all-reduce of as many numbers by itself, with nothing to hide behind. The share of the exchange is
what steps with it take longer than steps without.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarking.experiments import LEARNING_RATE, benchmark_experiment
from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import ROUTINGS, Sample, figures, ratio, spread, wall_ratio
from camox.errors import ExperimentError

ROOT = Path(__file__).resolve().parents[2]
PROCESS = Path(__file__).with_name("trainer_in_turns.py")
QUICKSTART = "quickstart"
STEPS = 2
"""Steps of a turn, one of which is logged."""
ONE, TWO, APART, EXCHANGE = "one process", "two processes", "two, no exchange", "exchange alone"
LEAST = 0.85
"""Images per second of two processes for one of one process: what was asked for."""


class Case(NamedTuple):
    """What is trained: an experiment and the images of a step, over all processes."""

    file: Path
    overrides: list[str]
    batch: int


class Turns(NamedTuple):
    """What a case's turns took, by their names, in rounds, per step; and the numbers exchanged in one."""

    samples: dict[str, list[Sample]]
    parameters: int


def measure_scaling(settings: Settings) -> Report:
    """The quickstart and the default network, one after the other."""
    results: dict[str, Rows] = {}
    wall, process, share = dict[str, Any](), dict[str, Any](), dict[str, Any]()
    gradients: Rows = {}
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        for title, case in _cases(settings, Path(folder)).items():
            turns = _take_turns(case, settings.rounds, Path(folder) / title)
            samples = turns.samples
            results[title] = {name: _row(name, found, case.batch) for name, found in samples.items()}
            wall[title] = wall_ratio(samples[TWO], samples[ONE])
            process[title] = ratio(samples[TWO], samples[ONE])
            share[title] = _share(samples)
            gradients[title] = {"parameters_millions": turns.parameters / 1e6, "exchanged_bytes": 4 * turns.parameters}
    results["gradients"] = gradients
    pair = f"{TWO} / {ONE}"
    ratios: Rows = {
        "wall time": {f"{title}: {pair}": value for title, value in wall.items()},
        "CPU time": {f"{title}: {pair}": value for title, value in process.items()},
        "of a step": {f"{title}: exchange of gradients": value for title, value in share.items()},
    }
    targets = [
        Target(f"time per image, {title}, {pair} (1 / {LEAST})", 1 / LEAST, value["median"])
        for title, value in wall.items()
    ]
    return Report(results, ratios, targets, settings.of_targets)


def _cases(settings: Settings, folder: Path) -> dict[str, Case]:
    if settings.batch % 2:
        raise ExperimentError(
            f"--batch {settings.batch}: two processes share the images of a step; give an even number"
        )
    steps = STEPS * (ROUTINGS + settings.rounds) * 2 + 1
    benchmark_experiment(settings, folder, steps, log_every=STEPS)
    quickstart = [
        f'data.train=[{{ synthetic = "habitats", count = {steps * 16}, size = 32 }}]',
        'data.val=[{ synthetic = "habitats", count = 1, size = 32, seed = 1 }]',
        "data.test=[]",
        "data.workers=0",
        "phases.frozen.freeze=[]",
        f"optimizer.lr={LEARNING_RATE}",
        "model.moe.router.noise=1.0",
        'tracking.wandb="disabled"',
        "tracking.report=false",
        f"tracking.log_every={STEPS}",
    ]
    return {
        QUICKSTART: Case(ROOT / "experiments" / "quickstart.toml", quickstart, 16),
        f"{settings.backbone}, {settings.image_size}²": Case(folder / "benchmark.toml", [], settings.batch),
    }


def _take_turns(case: Case, rounds: int, folder: Path) -> Turns:
    """All kinds of turns in interleaved rounds, after some that are not counted."""
    samples: dict[str, list[Sample]] = {name: [] for name in (ONE, TWO, APART, EXCHANGE)}
    parameters = 0
    with _group(case, 1, folder / "one") as one, _group(case, 2, folder / "two") as two:
        for number in range(ROUTINGS + rounds):
            seed = number % ROUTINGS
            turns = {
                ONE: (one, {"steps": STEPS, "exchanges": 0, "exchange": True, "seed": seed}),
                TWO: (two, {"steps": STEPS, "exchanges": 0, "exchange": True, "seed": seed}),
                APART: (two, {"steps": STEPS, "exchanges": 0, "exchange": False, "seed": seed}),
                EXCHANGE: (two, {"steps": 0, "exchanges": STEPS, "exchange": True, "seed": seed}),
            }
            for name in list(turns)[:: 1 if number % 2 == 0 else -1]:
                sample, parameters = _turn(*turns[name])
                if number >= ROUTINGS:
                    samples[name].append(sample.divided(STEPS))
    return Turns(samples, parameters)


@contextmanager
def _group(case: Case, processes: int, folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that train the case together, with two threads in all."""
    # Apart, processes have other norms: one must not skip a step by itself, or it waits for the other for good.
    overrides = [*case.overrides, f"data.batch_size={case.batch // processes}", "stability.spike_threshold=1e9"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = list[subprocess.Popen[str]]()
    try:
        for rank in range(processes):
            environment = {"OMP_NUM_THREADS": 2 // processes, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
            environment |= {"ACCELERATE_USE_CPU": "true", "OMP_WAIT_POLICY": "passive"}
            if processes > 1:
                environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, str(PROCESS), str(case.file), str(folder), *overrides]
            group.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_with(environment)
                )
            )
        yield group
    finally:
        for process in group:
            process.kill()
            process.communicate()


def _with(environment: dict[str, object]) -> dict[str, str]:
    return {**os.environ, **{name: str(value) for name, value in environment.items()}}


def _turn(group: Sequence[subprocess.Popen[str]], turn: dict[str, Any]) -> tuple[Sample, int]:
    """What all processes of a group take together, and the numbers exchanged in a step."""
    for process in group:
        assert process.stdin is not None
        process.stdin.write(json.dumps(turn) + "\n")
        process.stdin.flush()
    answers = list[dict[str, Any]]()
    for process in group:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{PROCESS.name} ended with code {process.wait()}")
        answers.append(json.loads(line))
    took = Sample(sum(answer["process"] for answer in answers), max(answer["wall"] for answer in answers), None)
    return took, answers[0]["parameters"]


def _row(name: str, samples: Sequence[Sample], batch: int) -> dict[str, Any]:
    row: dict[str, Any] = {**figures(samples)}
    if name != EXCHANGE:
        row["images_per_second"] = spread([batch / sample.wall for sample in samples])
    return row


def _share(samples: dict[str, list[Sample]]) -> dict[str, float]:
    pairs = zip(samples[TWO], samples[APART], strict=True)
    return spread([1 - apart.wall / together.wall for together, apart in pairs])
