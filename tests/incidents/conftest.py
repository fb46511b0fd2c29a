"""A tiny run that learns: its clean IoU is what every incident is measured against."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from camox.errors import CamoxError
from tests.conftest import fp16_accelerator
from tests.incidents.records import Outcome, outcome_of

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
report = false
"""
GUARDS_OFF = (
    "stability.nonfinite=false", "stability.loss_scale=false", "stability.spike=false", "stability.decline=false",
    "stability.explosion=false", "stability.collapse=false", "stability.bad_samples=false",
    "stability.policy.max_rollbacks=0",
)  # fmt: skip


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Outcome]:
    """Trains the tiny experiment, with guards or without."""
    return lambda *overrides, **options: train(tmp_path, *overrides, **options)


@pytest.fixture
def run_both(run_tiny: Callable[..., Outcome]) -> Callable[..., tuple[Outcome, Outcome]]:
    """Does something to the tiny experiment without guards, then with them.

    The first argument makes the context in which it happens, anew for each of the two runs; `guarded` are overrides of
    the second alone.
    """

    def run(
        trouble: Callable[[], AbstractContextManager[None]],
        *overrides: str,
        guarded: Sequence[str] = (),
        **options: Any,
    ) -> tuple[Outcome, Outcome]:
        with trouble():
            without = run_tiny(*overrides, guards=False, **options)
        with trouble():
            return without, run_tiny(*overrides, *guarded, **options)

    return run


@pytest.fixture(scope="session")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run to which nothing happens."""
    outcome = train(tmp_path_factory.mktemp("clean"))
    assert outcome.error == ""
    assert outcome.iou >= 0.5
    assert {event["severity"] for event in outcome.events} == {"info"}
    return outcome


def train(
    folder: Path, *overrides: str, guards: bool = True, fp16: bool = False, experiment: str = EXPERIMENT
) -> Outcome:
    """Trains an experiment, given as TOML, in this process."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    from camox.experiment import Experiment
    from camox.training.trainer import Trainer

    file = folder / "incident.toml"
    file.write_text(experiment)
    output = folder / ("with" if guards else "without")
    loaded = Experiment.load(file, [*overrides, *(() if guards else GUARDS_OFF)], output)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    accelerator, error = fp16_accelerator() if fp16 else Accelerator(cpu=True), ""
    try:
        Trainer(loaded, None, accelerator).run()
    except CamoxError as failure:
        error = str(failure)
    outcome = outcome_of(loaded.run_folder, error)
    note(os.environ.get("PYTEST_CURRENT_TEST", "").partition(" ")[0], guards, error)
    return outcome


def note(test: str, guards: bool, error: str) -> None:
    """Kept for the terminal of a failed test."""
    print(f"{test}: {'with' if guards else 'without'} guards: {error or 'reached its end'}")
