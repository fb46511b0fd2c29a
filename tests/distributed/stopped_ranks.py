"""Run by `accelerate launch` in two processes: one run as a whole, and one that a signal to rank 1 alone stops.

Arguments: output folder, experiment file, number, and "training" or "validation": of which the step or the batch of
that number brings the signal. Runs `whole`; then `parts`, which the signal ends; the caller resumes it.
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
from camox.training.validation import Validator


def main(output: str, file: str, step: str, where: str) -> None:
    torch.set_num_threads(1)
    whole = Trainer(Experiment.load(file, output=str(Path(output, "whole"))))
    whole.accelerator.end_training = lambda: None  # it would part the processes
    whole.run()

    count: list[int] = []

    def signalling(method: Any) -> Any:
        def called(*arguments: Any) -> Any:
            count.append(1)
            if len(count) == int(step) and whole.accelerator.process_index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return method(*arguments)

        return called

    if where == "validation":
        Validator._loss = signalling(Validator._loss)  # type: ignore[method-assign]
    else:
        TrainingStep.__call__ = signalling(TrainingStep.__call__)  # type: ignore[method-assign]
    try:
        Trainer(Experiment.load(file, output=str(Path(output, "parts")))).run()
    except TrainingPaused:
        whole.accelerator.wait_for_everyone()
        return
    raise AssertionError("the signal did not stop the run")


if __name__ == "__main__":
    main(*sys.argv[1:])
