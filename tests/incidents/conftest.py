"""A tiny run that learns: its clean IoU is what every incident is measured against."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from camox.errors import CamoxError
from tests.conftest import fp16_accelerator

EXPERIMENT = """
[experiment]
name = "incident"
seed = 3

[data]
train = [{ synthetic = "habitats", count = 96, size = 48, tiny = 0.0, empty = 0.0, kinds = ["forest"] }]
val_fraction = 0.34
image_size = 48
batch_size = 8
workers = 0

[model]
backbone = "resnet10t"
pretrained = false
width = 16

[optimizer]
lr = 4e-3

[schedule]
warmup_epochs = 1

[[phases]]
name = "full"
epochs = 8

[checkpoints]
every_epochs = 1
monitor = "iou"

[validation]
measures = ["iou"]

[stability]
max_skipped_steps = 3

[stability.policy]
warmup_steps = 5

[tracking]
log_every = 8
wandb = "disabled"
"""
GUARDS_OFF = (
    "stability.nonfinite=false", "stability.loss_scale=false", "stability.spike=false", "stability.decline=false",
    "stability.explosion=false", "stability.collapse=false", "stability.bad_samples=false",
    "stability.policy.max_rollbacks=0",
)  # fmt: skip


class Outcome(NamedTuple):
    """How a run ended."""

    iou: float
    """Of the last validation, the better of raw and averaged weights; 0 where the run ended early or in NaN."""
    error: str
    """What ended it, empty where it reached its last epoch."""
    events: list[dict[str, Any]]

    @property
    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Outcome]:
    """Trains the tiny experiment, with guards or without."""
    return lambda *overrides, **options: train(tmp_path, *overrides, **options)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> float:
    """The IoU that the run reaches when nothing happens."""
    outcome = train(tmp_path_factory.mktemp("clean"))
    assert outcome.error == ""
    assert outcome.iou >= 0.5
    assert {event["severity"] for event in outcome.events} == {"info"}
    return outcome.iou


def train(folder: Path, *overrides: str, guards: bool = True, fp16: bool = False) -> Outcome:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from camox.experiment import Experiment
    from camox.training.trainer import Trainer

    file = folder / "incident.toml"
    file.write_text(EXPERIMENT)
    output = folder / ("with" if guards else "without")
    experiment = Experiment.load(file, [*overrides, *(() if guards else GUARDS_OFF)], output)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator, error = fp16_accelerator() if fp16 else Accelerator(cpu=True), ""
    try:
        Trainer(experiment, None, accelerator).run()
    except CamoxError as failure:
        error = str(failure)
    outcome = outcome_of(experiment.run_folder, error)
    note(os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0], guards, error)
    return outcome


def outcome_of(run: Path, error: str) -> Outcome:
    """What a run's folder tells of how it ended, with `error` or without."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [[row.get(name) or 0.0 for name in ("val/iou", "val_ema/iou")] for row in rows if "val/iou" in row]
    return Outcome(0.0 if error or not scores else max(scores[-1]), error, events)


def note(test: str, guards: bool, error: str) -> None:
    """Kept for the terminal of a failed test."""
    print(f"{test}: {'with' if guards else 'without'} guards: {error or 'reached its end'}")
