"""One process of suite `scaling`: a trainer that takes steps when it is told to, and says what they took.

python tools/benchmarking/trainer_in_turns.py EXPERIMENT.toml FOLDER [table.key=value …]

The environment tells it, as torchrun would, which of how many processes it is. It reads turns from its standard input,
one JSON object per line, and answers each with another; where there are no more, it ends.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from benchmarking.loop import noise
from benchmarking.settings import Settings
from camox.data.loading import TrainBatch
from camox.experiment import Experiment, ResolvedPhase
from camox.training.step import Controls
from camox.training.trainer import Trainer


class TrainerInTurns(Trainer):
    """A trainer whose loader hands out one batch of noise as many times as a turn has steps, and times these.

    What runs between two batches is all that a run does for a step. Validates and saves nothing.
    """

    def __init__(self, experiment: Experiment, answers: IO[str]):
        super().__init__(experiment)
        self.answers = answers

    def _enter(self, phase: ResolvedPhase) -> None:
        super()._enter(phase)
        self.loader: Any = self._batches(noise(Settings(image_size=phase.image_size, batch=phase.batch_size)))

    def _controls(self, position: float, step: int) -> Controls:
        return replace(super()._controls(position, step), noise_share=1.0)

    def _batches(self, batch: TrainBatch) -> Iterator[TrainBatch]:
        parameters = sum(one.numel() for one in self.network.parameters() if one.requires_grad)
        exchanged = torch.zeros(parameters)
        for line in sys.stdin:
            turn = json.loads(line)
            torch.manual_seed(turn["seed"] + 1000 * self.accelerator.process_index)  # each process routes its own way
            self.shell.require_backward_grad_sync = turn["exchange"]
            process, wall = time.process_time(), time.perf_counter()
            for _ in range(turn["steps"]):
                yield batch
            for _ in range(turn["exchanges"]):
                dist.all_reduce(exchanged)
            taken = {"process": time.process_time() - process, "wall": time.perf_counter() - wall}
            self.answers.write(json.dumps(taken | {"parameters": parameters}) + "\n")
            self.answers.flush()
        raise SystemExit


def main(file: str, folder: str, *overrides: str) -> None:
    """Runs the experiment; what the trainer says to people is kept off the standard output."""
    experiment = Experiment.load(file, overrides, Path(folder))
    assert sys.__stdout__ is not None
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        TrainerInTurns(experiment, sys.__stdout__).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
