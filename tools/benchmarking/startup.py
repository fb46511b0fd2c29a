"""Suite `startup`: how long it takes until something happens, in fresh processes, and what of that is camox's own.

**Commands** run to their end: importing torch, camox, and both; the first use of a public name; help and schema.

**To the first step** a launch runs: `camox train` and `accelerate launch camox/train.py` with the quickstart, whose
only change is that each step is logged, until the first line is in the run's `metrics.jsonl`; and a bare script by the
same launcher, until it has written a file after its step. The script is the least that anybody would write with the
same libraries: it imports torch, Accelerate, timm and albumentations, builds the quickstart's backbone from scratch,
frozen as in its first phase, with one 1×1 convolution on it, and takes one step on a batch of noise of the quickstart's
size. It checks, opens, saves, logs and announces nothing, starts no workers, and collects no garbage while it imports,
as camox does not. **camox's own share** is the time of `camox train` less that of the bare script in the same round. So
it holds all that camox does, the libraries that only camox wants (Weights & Biases starts too, offline), workers, the
first batch, and of the first step what experts, decoder and objectives compute: an upper limit, which no import can be
moved out of.

**In parts** one process starts the quickstart as `camox/train.py` does, and is timed on the way
(`benchmarking.start_in_parts`). What a library costs depends on the ones before it.

What counts is wall time, as a person waits; a busy machine makes all of it slower, so the CPU seconds of all processes
are beside it. Commands take turns in each round, launches and parts in every third.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarking.report import Report, Rows, Target
from benchmarking.settings import Settings
from benchmarking.timing import Sample, figures, spread

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.toml"
PERIOD = 0.005
"""Seconds between two looks for the sign of the first step."""
PATIENCE = 600
"""Seconds after which a launch is given up."""
LAUNCHER = ["-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1", "--num_machines", "1"]
LAUNCHER += ["--mixed_precision", "no", "--dynamo_backend", "no"]
BARE_SCRIPT = """\
import gc, sys
gc.disable()
import torch, accelerate, timm, albumentations
gc.freeze()
gc.enable()
accelerator = accelerate.Accelerator()
backbone = timm.create_model("resnet10t", pretrained=False, features_only=True).requires_grad_(False)
head = torch.nn.Conv2d(backbone.feature_info.channels()[-1], 1, 1)
network = torch.nn.ModuleDict({"backbone": backbone, "head": head})
optimizer = torch.optim.AdamW(head.parameters())
network, optimizer = accelerator.prepare(network, optimizer)
images = torch.rand(16, 3, 128, 128)
accelerator.backward(head(backbone(images)[-1]).square().mean())
optimizer.step()
open(sys.argv[1], "w").write("done\\n")
"""

TORCH, BOTH, FIRST, LIBRARIES = "import torch", "import torch, camox", "camox.Trainer", "its libraries alone"
COMMANDS = {
    "python alone": ["-c", "pass"],
    TORCH: ["-c", "import torch"],
    "import camox": ["-c", "import camox"],
    BOTH: ["-c", "import torch, camox"],
    FIRST: ["-c", "import camox; camox.Trainer"],
    LIBRARIES: ["-c", "import torch, accelerate, timm, albumentations"],
    "camox --help": ["-m", "camox", "--help"],
    "camox schema": ["-m", "camox", "schema"],
}
"""Name → arguments of Python."""
BARE, SCRIPT, TRAIN = "bare script", "accelerate launch camox/train.py", "camox train"


def measure_startup(settings: Settings) -> Report:
    """Runs everything in interleaved rounds."""
    launches = max(1, settings.rounds // 3)
    commands = _interleaved({name: _to_the_end(arguments) for name, arguments in COMMANDS.items()}, settings.rounds)
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder:
        starts = _interleaved(_launches(Path(folder)), launches)
        found = [_in_parts(Path(folder) / f"parts_{number}") for number in range(launches)]
    above = {
        f"{BOTH} - {TORCH}": _differences(commands[BOTH], commands[TORCH]),
        f"{FIRST} - {LIBRARIES}": _differences(commands[FIRST], commands[LIBRARIES]),
        f"{SCRIPT} - {BARE}": _differences(starts[SCRIPT], starts[BARE]),
        f"{TRAIN} - {BARE}": _differences(starts[TRAIN], starts[BARE]),
    }
    parts = {name: [Sample(**one["parts"][name], device=None) for one in found] for name in found[0]["parts"]}
    results: dict[str, Rows] = {
        "commands": {name: figures(samples) for name, samples in commands.items()},
        "to the first step": {name: figures(samples) for name, samples in starts.items()},
        "above": {name: figures(samples) for name, samples in above.items()},
        "quickstart, in parts": {name: figures(samples) for name, samples in parts.items()},
        "modules": {name: {"imported": "yes" if is_there else "no"} for name, is_there in found[0]["modules"].items()},
    }
    of_start = [one.wall / other.wall for one, other in zip(starts[TRAIN], starts[BARE], strict=True)]
    ratios: Rows = {"to the first step": {f"{TRAIN} / {BARE}": spread(of_start)}}
    limits = {f"{BOTH} - {TORCH}": 0.5, f"{TRAIN} - {BARE}": 3}
    targets = [
        Target(f"{name}, wall s", limit, results["above"][name]["wall_seconds"]["median"])
        for name, limit in limits.items()
    ]
    return Report(results, ratios, targets, settings.of_targets)


def _differences(samples: Sequence[Sample], others: Sequence[Sample]) -> list[Sample]:
    return [
        Sample(one.process - other.process, one.wall - other.wall, None)
        for one, other in zip(samples, others, strict=True)
    ]


def _interleaved(works: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """Each work once per round, A B C, B C A, …, after one that is not counted: files are in memory then."""
    names = list(works)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            sample = works[name]()
            if number:
                samples[name].append(sample)
    return samples


def _environment() -> dict[str, str]:
    """That of a user without an account at Weights & Biases, and with the threads that `make train` sets."""
    ours = {
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}",
        "WANDB_MODE": "offline",
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }
    return {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "passive", **os.environ, **ours}


def _to_the_end(arguments: Sequence[str]) -> Callable[[], Sample]:
    def run() -> Sample:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], env=_environment(), cwd=ROOT, stdout=subprocess.DEVNULL
        )
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, arguments
        return Sample(used.ru_utime + used.ru_stime, wall, None)

    return run


def _launches(folder: Path) -> dict[str, Callable[[], Sample]]:
    script = folder / "bare.py"
    script.write_text(BARE_SCRIPT, encoding="utf-8")
    numbers = iter(range(1_000_000))

    def to_first_step(arguments: Sequence[str]) -> Callable[[], Sample]:
        def run() -> Sample:
            output = folder / str(next(numbers))
            return _until(
                output / "quickstart" / "metrics.jsonl",
                [*arguments, str(QUICKSTART), "tracking.log_every=1", "--output", str(output)],
            )

        return run

    def bare() -> Sample:
        sign = folder / f"{next(numbers)}.txt"
        return _until(sign, [*LAUNCHER, str(script), str(sign)])

    return {
        BARE: bare,
        SCRIPT: to_first_step([*LAUNCHER, str(ROOT / "camox" / "train.py")]),
        TRAIN: to_first_step(["-m", "camox", "train"]),
    }


def _until(sign: Path, arguments: Sequence[str]) -> Sample:
    """What a launch and all that it starts take until there is something in file `sign`; then all of them are ended.

    Raises:
        RuntimeError: the launch ended before, or took too long.
    """
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = psutil.Popen(
            [sys.executable, *arguments], env=_environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors
        )
        try:
            while not (sign.is_file() and sign.stat().st_size):
                if process.poll() is not None or time.perf_counter() - started > PATIENCE:
                    # A short one may have ended since the last look.
                    if sign.is_file() and sign.stat().st_size:
                        break
                    errors.seek(0)
                    raise RuntimeError(f"{' '.join(arguments)} took no step:\n{errors.read()[-2000:]}")
                time.sleep(PERIOD)
            wall = time.perf_counter() - started
            return Sample(_cpu_seconds(process), wall, None)
        finally:
            _end(process)


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process, of all that it has started, and of those of them that have ended."""
    seconds = 0.0
    for one in [process, *_descendants(process)]:
        with suppress(psutil.Error):
            seconds += sum(one.cpu_times()[:4])
    return seconds


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return list(process.children(recursive=True))
    return []


def _end(process: psutil.Popen) -> None:
    for one in [process, *_descendants(process)]:
        with suppress(psutil.Error):
            one.kill()
    process.wait()


def _in_parts(output: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("start_in_parts.py")
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(script), str(QUICKSTART), str(output)],
            env=_environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        code = process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its workers
        errors.seek(0)
        lines = errors.read().splitlines()
    if code:
        raise RuntimeError("\n".join([f"{script.name} ended with code {code}", *lines[-20:]]))
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
