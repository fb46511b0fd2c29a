"""Suite `checkpoint`: how long a save keeps training waiting, against one copy of the state to host memory.

The state is that of a run of the default network: weights, average, both moments of the optimizer, generators, tables.
The writer is idle before each save. A save of camox is timed until training could go on, and until everything is safe
on the disk; the first one of a run also has to get the host memory that later ones use again. The plain copy goes into
memory that is there already (on a GPU page-locked). Of the rivals training waits for the whole; they check nothing and
hash nothing, and are asked to be safe on the disk too. What counts is wall time, so a busy machine makes all slower.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from benchmarking.experiments import LEARNING_RATE, benchmark_experiment
from benchmarking.loop import noise
from benchmarking.report import Report, Rows, Target
from benchmarking.settings import PRECISIONS, Settings
from benchmarking.timing import spread
from camox.experiment import Experiment
from camox.training.building import build_network, build_state, build_training_step, wrap_for_training
from camox.training.run_state import Position, RunState
from camox.training.saving import Saved, Saver
from camox.training.step import Controls, TrainingStep

COPY, FIRST, LATER, PICKLE, STATE = (
    "plain host copy",
    "camox, first save",
    "camox, later saves",
    "torch.save",
    "accelerator.save_state",
)


class Way(NamedTuple):
    """One way to save the state: `start` returns when training may change it, `finish` when it is safe on the disk."""

    start: Callable[[], object]
    finish: Callable[[], Path | None] = lambda: None
    """Gives the file or folder, None where nothing is written."""


class Run(NamedTuple):
    """What one save took, in seconds from its start, and the bytes that it wrote."""

    blocked: float
    safe: float
    size: int


def measure_checkpoints(settings: Settings) -> Report:
    """Saves by all ways in interleaved rounds."""
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        ways = prepare(settings, Path(folder))
        runs = _interleaved(ways, settings)
    rows: Rows = {name: _row(found, written=name != COPY) for name, found in runs.items()}
    blocked = {
        f"{name} / {COPY}": spread([one.blocked / copy.blocked for one, copy in zip(found, runs[COPY], strict=True)])
        for name, found in runs.items()
        if name != COPY
    }
    target = Target(f"training waits, {LATER} / {COPY}", 1.3, blocked[f"{LATER} / {COPY}"]["median"])
    return Report({"ways to save": rows}, {"training waits": blocked}, [target], settings.of_targets)


def prepare(settings: Settings, folder: Path) -> dict[str, Way]:
    """The ways to save the state of a network that has taken one step."""
    experiment = benchmark_experiment(settings, folder)
    accelerator = Accelerator(cpu=not settings.on_gpu, mixed_precision=PRECISIONS[settings.precision])
    step = _trained(experiment, accelerator, settings)
    state = build_state(experiment, step, {})
    positions = (Position(step=epoch, epoch=epoch) for epoch in count(1))
    return {
        COPY: _plain_copy(state),
        FIRST: _camox(experiment, step, state, positions, anew=True),
        LATER: _camox(experiment, step, state, positions, anew=False),
        PICKLE: _torch_save(state, folder / "checkpoint.pth"),
        STATE: _save_state(step, folder / "state"),
    }


def _trained(experiment: Experiment, accelerator: Accelerator, settings: Settings) -> TrainingStep:
    """A training step that was called once: before that, there are no moments."""
    torch.manual_seed(0)
    network = build_network(experiment, accelerator.device)
    step = build_training_step(experiment, accelerator, network)
    shell = wrap_for_training(network, accelerator, frozen_stages=0)
    batch = noise(replace(settings, image_size=64)).to(accelerator.device)  # the state is the same after any image
    step(shell, [batch], Controls(LEARNING_RATE, balance_coefficient=0.0, noise_share=1.0))
    assert [report.taken for report in step.reports(last=1)] == [True], "without moments there is less to save"
    return step


def _plain_copy(state: RunState) -> Way:
    sources = [tensor.detach() for group in state.tensors().values() for tensor in group.values()]
    targets = [torch.zeros(source.shape, dtype=source.dtype, pin_memory=source.is_cuda) for source in sources]

    def start() -> None:
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return Way(start)


def _camox(
    experiment: Experiment, step: TrainingStep, state: RunState, positions: Iterator[Position], anew: bool
) -> Way:
    """The trainer's own saver; `anew` takes a new one, without any host memory yet, for each save."""
    saved: list[Saved] = []

    def saver() -> Saver:
        config, fingerprint = step.network.config, experiment.fingerprint()
        folder, settings = experiment.run_folder, experiment.checkpoints
        return Saver(folder, settings, config, fingerprint, step.accelerator, saved.append)

    savers = [saver()]

    def start() -> None:
        savers[0].save(next(positions), state, {}, improved=False)

    def finish() -> Path:
        savers[0].settle(wait=True)
        if anew:
            savers[0] = saver()
        return saved.pop().path

    return Way(start, finish)


def _torch_save(state: RunState, file: Path) -> Way:
    """The usual way: one pickle, in place of the last one."""

    def start() -> None:
        torch.save(state.tensors(), file)

    return Way(start, lambda: _forced_to_disk(file))


def _save_state(step: TrainingStep, folder: Path) -> Way:
    """Accelerate's way, which knows the prepared network and optimizer, and is told of the average."""
    assert step.average is not None, "the default"
    step.accelerator.register_for_checkpointing(step.average.model)
    return Way(lambda: step.accelerator.save_state(str(folder)), lambda: _forced_to_disk(folder))


def _forced_to_disk(path: Path) -> Path:
    for file in _files(path):
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    return path


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _interleaved(ways: Mapping[str, Way], settings: Settings) -> dict[str, list[Run]]:
    """Each way once per round, A B C, B C A, …, after a round that is not counted."""
    names = list(ways)
    for name in names:
        _run(ways[name], settings)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(settings.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(_run(ways[name], settings))
    return runs


def _run(way: Way, settings: Settings) -> Run:
    if settings.on_gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    way.start()
    blocked = time.perf_counter() - started
    path = way.finish()
    safe = time.perf_counter() - started
    return Run(blocked, safe, 0 if path is None else sum(file.stat().st_size for file in _files(path)))


def _row(runs: Sequence[Run], written: bool) -> dict[str, object]:
    row: dict[str, object] = {"blocked_seconds": spread([run.blocked for run in runs])}
    if written:
        row |= {"safe_seconds": spread([run.safe for run in runs]), "disk_bytes": runs[-1].size}
    return row
