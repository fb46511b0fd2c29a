"""Suite `inspect`: the whole command `tools/inspect_checkpoint.py`, from start to exit, against the usual scripts.

A checkpoint of random numbers, of shapes that networks have, is written by camox's own writer into a temporary folder,
and once more as one file of `torch.save`. Every command is a process of its own and reads from the file cache, which a
round that is not counted has filled. Anonymous memory, which no file stands behind, is asked of the system every few
milliseconds. What counts is the wall time that a person waits, so a busy machine makes all of it slower.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarking.report import Report, Rows, Target, quotient
from benchmarking.settings import Settings
from benchmarking.timing import Sample, figures, spread, wall_ratio
from camox.checkpoints.store import TensorGroups, write_checkpoint
from camox.errors import CheckpointError

SCRIPT = Path(__file__).resolve().parents[1] / "inspect_checkpoint.py"
SHARES = {"model": 0.25, "ema": 0.25, "optimizer": 0.5}
"""File of a checkpoint → its part of all bytes."""
SHAPES = [(160, 160, 3, 3), (304, 1216), (304, 1, 9, 9), (1216,), *[(304,)] * 4]
"""Of the tensors, in turn: 0.3 MB each on average."""
PERIOD = 0.002
"""Seconds between two looks at a process's memory."""

TORCH_LOAD = """\
import sys, torch
groups = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
bad = [name for group in groups.values() for name, tensor in group.items() if torch.isnan(tensor).any()]
print(len(bad), "tensors with NaN")
"""
LOAD_FILE = """\
import sys, torch
from safetensors.torch import load_file
bad = []
for path in sys.argv[1:]:
    bad += [name for name, tensor in load_file(path).items() if not torch.isfinite(tensor).all()]
print(len(bad), "tensors with NaN or Inf")
"""

OURS, ONLY_COUNTED, TWICE = "camox", "camox, no hashes", "camox, twice as large"
RIVALS = ("torch.load + isnan", "load_file + isfinite")


class Run(NamedTuple):
    """What one process took; `anonymous` is its peak of anonymous memory in bytes."""

    sample: Sample
    anonymous: int


def measure_inspection(settings: Settings) -> Report:
    """Writes the files, runs all commands in interleaved rounds and judges our own."""
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        commands, sizes = _prepare(Path(folder), settings.megabytes * 10**6)
        runs = _interleaved(commands, settings.rounds)
    rows: Rows = {name: _row(runs[name], sizes[name]) for name in commands}
    samples = {name: [run.sample for run in found] for name, found in runs.items()}
    ratios: Rows = {
        "time": {
            f"{name} / {rival}": wall_ratio(samples[name], samples[rival])
            for name in (OURS, ONLY_COUNTED)
            for rival in RIVALS
        },
        "anonymous memory": {f"{TWICE} / {OURS}": quotient(rows, "anonymous_bytes", TWICE, OURS)},
    }
    return Report({"commands": rows}, ratios, _targets(rows), settings.of_targets)


def _prepare(folder: Path, size: int) -> tuple[dict[str, list[str | Path]], dict[str, int]]:
    """Name → the command, and → the bytes of weights that it reads."""
    weights = _weights(size)
    pickle = folder / "checkpoint.pth"
    torch.save(dict(weights), pickle)
    checkpoint = _written(folder / "run", weights)
    twice = _written(folder / "twice", _weights(2 * size))
    files = sorted(checkpoint.glob("*.safetensors"))
    (folder / "plain").mkdir()
    for file in files:
        (folder / "plain" / file.name).symlink_to(file)
    python = sys.executable
    commands: dict[str, list[str | Path]] = {
        OURS: [python, SCRIPT, checkpoint],
        ONLY_COUNTED: [python, SCRIPT, folder / "plain"],
        TWICE: [python, SCRIPT, twice],
        RIVALS[0]: [python, "-c", TORCH_LOAD, pickle],
        RIVALS[1]: [python, "-c", LOAD_FILE, *files],
    }
    held = sum(file.stat().st_size for file in files)
    sizes = dict.fromkeys(commands, held) | {TWICE: sum(file.stat().st_size for file in twice.glob("*.safetensors"))}
    return commands, sizes


def _written(run: Path, weights: TensorGroups) -> Path:
    return write_checkpoint(
        run, "epoch_0001", weights, state={}, config={}, measures={}, experiment_fingerprint="", step=1, epoch=1
    )


def _weights(size: int) -> TensorGroups:
    """About `size` bytes of normally distributed fp32, by file."""
    generator = torch.Generator().manual_seed(0)
    return {stem: dict(_tensors(int(share * size), generator)) for stem, share in SHARES.items()}


def _tensors(size: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    for number, shape in enumerate(cycle(SHAPES)):
        if size <= 0:
            return
        tensor = torch.randn(shape, generator=generator)
        size -= tensor.nbytes
        yield f"layers.{number // len(SHAPES)}.{number % len(SHAPES)}.weight", tensor


def _interleaved(commands: Mapping[str, list[str | Path]], rounds: int) -> dict[str, list[Run]]:
    """Each command once per round, A B C, B C A, …, after a round that is not counted."""
    names = list(commands)
    for name in names:
        run_process(commands[name])
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            runs[name].append(run_process(commands[name]))
    return runs


def run_process(command: Sequence[str | Path]) -> Run:
    """Runs a command from start to exit and watches its memory.

    Raises:
        CheckpointError: it failed.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        anonymous = ended = 0
        while not ended:
            anonymous = max(anonymous, _anonymous_bytes(process.pid))
            time.sleep(PERIOD)
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise CheckpointError(f"{command[1]} ended with code {process.returncode}: {lines[-1] if lines else ''}")
    return Run(Sample(used.ru_utime + used.ru_stime, wall, None), anonymous)


def _anonymous_bytes(process: int) -> int:
    """What the process holds of anonymous memory now, 0 once it has ended."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _row(runs: Sequence[Run], size: int) -> dict[str, object]:
    samples = [run.sample for run in runs]
    return {
        "weights_bytes": size,
        "seconds_per_gigabyte": spread([sample.wall / (size / 1e9) for sample in samples]),
        **figures(samples),
        "anonymous_bytes": max(run.anonymous for run in runs),
    }


def _targets(rows: Rows) -> list[Target]:
    """Stated for 1 GB and a warm file cache."""
    return [
        *(
            Target(f"{name}: seconds per GB, start to exit", 1, rows[name]["seconds_per_gigabyte"]["median"])
            for name in (OURS, TWICE)
        ),
        *(Target(f"{name}: anonymous MB", 150, rows[name]["anonymous_bytes"] / 1e6) for name in (OURS, TWICE)),
    ]
