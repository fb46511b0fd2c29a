"""Part of suite `options`: choices that torch's libraries read once, when a process starts.

Processes with one setting each take turns: one takes a step while the others are stopped, for threads that spin would
take the cores from it. Some rounds are taken beside another busy process, as a notebook or a shared machine has it.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarking.settings import Settings
from benchmarking.step import prepare
from benchmarking.timing import ROUTINGS, Sample, timed

NEIGHBOUR = "beside a busy process"
_NAMES = ("OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
SETTINGS: dict[str, dict[str, str]] = {
    "camox": dict(zip(_NAMES, ("passive", "16384"), strict=True)),
    "small cache": dict(zip(_NAMES, ("passive", "1024"), strict=True)),
    "spinning": dict(zip(_NAMES, ("active", "16384"), strict=True)),
}
"""Process → what is set for it."""


class StepProcess:
    """A process that takes a step of the sparse network whenever it is asked to, and is stopped otherwise."""

    def __init__(self, settings: Settings, environment: Mapping[str, str]):
        tools = Path(__file__).resolve().parents[1]
        path = os.pathsep.join([str(tools), str(tools.parent), os.environ.get("PYTHONPATH", "")])
        arguments = json.dumps(dataclasses.asdict(settings) | {"threads": torch.get_num_threads()})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarking.step_process", arguments],
            env={**os.environ, "PYTHONPATH": path, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def step(self, seed: int) -> Sample:
        """Lets it take a step, with random numbers from that seed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        self._process.send_signal(signal.SIGCONT)
        stdin.write(f"{seed}\n")
        stdin.flush()
        line = stdout.readline()
        self._process.send_signal(signal.SIGSTOP)
        if not line:
            raise RuntimeError(f"a measured process ended with code {self._process.wait()}")
        return Sample(*json.loads(line))

    def close(self) -> None:
        """Ends it."""
        self._process.kill()
        self._process.wait()


def measure_processes(settings: Settings, rounds: int) -> dict[str, tuple[list[Sample], list[Sample]]]:
    """Choice → steps with it and without."""
    processes: dict[str, StepProcess] = {}
    alone: dict[str, list[Sample]] = {name: [] for name in SETTINGS}
    beside: dict[str, list[Sample]] = {"camox": [], "spinning": []}
    try:
        for name, environment in SETTINGS.items():
            processes[name] = StepProcess(settings, environment)
            for seed in range(ROUTINGS):
                processes[name].step(seed)
        names = list(SETTINGS)
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                alone[name].append(processes[name].step(number % ROUTINGS))
            with busy_process():
                for name, samples in beside.items():
                    samples.append(processes[name].step(number % ROUTINGS))
    finally:
        for process in processes.values():
            process.close()
    return {
        "16384 primitives kept": (alone["camox"], alone["small cache"]),
        "threads that sleep": (alone["camox"], alone["spinning"]),
        f"threads that sleep, {NEIGHBOUR}": (beside["camox"], beside["spinning"]),
    }


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process takes all that it gets of one core while the block runs."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(arguments: list[str]) -> int:
    """Takes a step for each line of standard input, which holds a seed, and tells on standard output what it took."""
    given = json.loads(arguments[0])
    torch.set_num_threads(given.pop("threads"))
    settings = Settings(**given)
    step = prepare("sparse", settings).step
    for line in sys.stdin:
        torch.manual_seed(int(line))
        samples: list[Sample] = []
        with timed(samples, settings.torch_device):
            step()
        sys.stdout.write(json.dumps(samples[0]) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
