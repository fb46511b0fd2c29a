"""Run by `accelerate launch` in two processes: one run as a whole, and one that a signal to rank 1 alone stops.

Arguments: output folder, experiment file, step. Runs `whole`; then `parts`, which `step` ends; the caller resumes it.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from camox.errors import TrainingPaused
from camox.experiment import Experiment
from camox.training.step import TrainingStep
from camox.training.trainer import Trainer


def main(output: str, file: str, step: str) -> None:
    torch.set_num_threads(1)
    whole = Trainer(Experiment.load(file, output=str(Path(output, "whole"))))
    whole.accelerator.end_training = lambda: None  # it would part the processes
    whole.run()

    take, count = TrainingStep.__call__, []

    def take_and_signal(training_step: TrainingStep, *arguments: Any) -> None:
        count.append(1)
        if len(count) == int(step) and whole.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        take(training_step, *arguments)

    TrainingStep.__call__ = take_and_signal  # type: ignore[assignment, method-assign]
    try:
        Trainer(Experiment.load(file, output=str(Path(output, "parts")))).run()
    except TrainingPaused:
        whole.accelerator.wait_for_everyone()
        return
    raise AssertionError("the signal did not stop the run")


if __name__ == "__main__":
    main(*sys.argv[1:])
