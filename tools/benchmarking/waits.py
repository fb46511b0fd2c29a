"""How often the trainer's loop makes the host wait for a GPU between two logged steps: `Trainer.run` as it is."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarking import cuda
from benchmarking.experiments import benchmark_experiment
from benchmarking.loop import MeasuredTrainer
from benchmarking.settings import Settings
from camox.data.loading import TrainBatch

LOG_EVERY = 10
"""Steps from one logged one to the next: fewer than `stability.max_skipped_steps`, which waits on purpose."""


class WatchedTrainer(MeasuredTrainer):
    """A trainer whose loader watches the steps between the first two that are logged."""

    per_step = float("nan")

    def _batches(self) -> Iterator[TrainBatch]:
        batch = self.batch.pin_memory() if self.settings.on_gpu else self.batch
        for _ in range(LOG_EVERY):
            yield batch  # allocates and chooses kernels; the last of these steps is logged
        with cuda.counted_waits() as count:
            for _ in range(LOG_EVERY - 1):
                yield batch
            self.per_step = count() / (LOG_EVERY - 1)
        yield batch


def trainer_waits(settings: Settings, dispatch: str) -> float:
    """Waits per step; the sorted dispatch copies the routing once in each forward pass, the masked one never."""
    with tempfile.TemporaryDirectory(prefix="camox-benchmark-") as folder, Path(os.devnull).open("w") as nowhere:
        experiment = benchmark_experiment(
            settings, Path(folder), 2 * LOG_EVERY, LOG_EVERY, [f'model.moe.dispatch="{dispatch}"']
        )
        trainer: Any = WatchedTrainer(experiment, settings)
        with contextlib.redirect_stdout(nowhere):
            trainer.run()
    return float(trainer.per_step)
