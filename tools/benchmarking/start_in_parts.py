"""One process of suite `startup`: starts the quickstart as `camox/train.py` does and says what each part of it took.

python tools/benchmarking/start_in_parts.py EXPERIMENT.toml FOLDER [table.key=value …]

Writes `{"parts": {name: {"process": s, "wall": s}}, "modules": {name: whether it was imported}}` to its standard error
after the second step, and ends there. What lies in no part is "the rest".
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "accelerate", "timm", "albumentations")
"""What training the quickstart needs, in the order in which their costs are told: each above those before it."""
OTHERS = ("torchvision", "wandb", "scipy", "cv2", "matplotlib", "datasets", "pyarrow", "pandas", "jinja2")
"""Of these it is only told whether they were imported."""

OF_TRAINER = {
    "open_data": "open the data",
    "build_network": "build the network",
    "build_training_step": "optimizer, average, objectives",
    "announce": "announcement",
    "phase_loader": "loader",
    "wrap_for_training": "loader",
}
"""Name in `camox.training.trainer` → the part that its calls belong to."""

REST = "the rest"

_BEGAN = time.process_time(), time.perf_counter()
_taken: dict[str, list[float]] = {}


@contextmanager
def part(name: str) -> Iterator[None]:
    """Adds what the block takes to part `name`. Parts do not lie within each other."""
    process, wall = time.process_time(), time.perf_counter()
    yield
    of_part = _taken.setdefault(name, [0.0, 0.0])
    of_part[0] += time.process_time() - process
    of_part[1] += time.perf_counter() - wall


def as_part(name: str, function: Any) -> Any:
    """`function`, whose calls belong to part `name`."""

    def timed(*arguments: Any, **options: Any) -> Any:
        with part(name):
            return function(*arguments, **options)

    return timed


def main(file: str, folder: str, *overrides: str) -> None:
    """Starts the run; ends the process after its second step."""
    gc.disable()
    for name in LIBRARIES:
        with part(f"import {name}"):
            importlib.import_module(name)
    with part("read and check the experiment"):
        from camox.experiment import Experiment

        experiment = Experiment.load(file, overrides, Path(folder))
    with part("import camox"):
        from camox.training import reporting, step, trainer

        gc.freeze()
        gc.enable()

    for name, of_part in OF_TRAINER.items():
        setattr(trainer, name, as_part(of_part, getattr(trainer, name)))
    reporting.WandbTracker = as_part("start wandb", reporting.WandbTracker)  # type: ignore[misc]

    step.TrainingStep.__call__ = _numbered("step", step.TrainingStep.__call__)  # type: ignore[method-assign]
    trainer.Trainer._window = _numbered("batch", trainer.Trainer._window)  # type: ignore[method-assign]
    trainer.Trainer._heed_requests = _end_after_two_steps  # type: ignore
    trainer.Trainer(experiment).run()


def _numbered(name: str, function: Any) -> Any:
    """`function`, whose first call is a part, and whose second one is another."""
    numbers = iter(("first", "second"))

    def timed(*arguments: Any) -> Any:
        with part(f"{next(numbers)} {name}"):
            return function(*arguments)

    return timed


def _end_after_two_steps(run: Any) -> None:
    if run.at.step == 2:
        whole = time.process_time() - _BEGAN[0], time.perf_counter() - _BEGAN[1]
        _taken[REST] = [whole[kind] - sum(took[kind] for took in _taken.values()) for kind in (0, 1)]
        parts = {name: {"process": process, "wall": wall} for name, (process, wall) in _taken.items()}
        answer = {"parts": parts, "modules": {name: name in sys.modules for name in (*LIBRARIES, *OTHERS)}}
        sys.stderr.write(json.dumps(answer) + "\n")
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
