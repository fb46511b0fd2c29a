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
    validations: list[dict[str, float]]
    """Of each validation "step", "iou" of the raw weights and "iou_ema" of their average, where there is one; NaN is
    0."""

    @property
    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Outcome]:
    """Trains the tiny experiment, with guards or without."""
    return lambda *overrides, **options: train(tmp_path, *overrides, **options)


@pytest.fixture(scope="session")
def clean_run(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The run to which nothing happens."""
    outcome = train(tmp_path_factory.mktemp("clean"))
    assert outcome.error == ""
    assert outcome.iou >= 0.5
    assert {event["severity"] for event in outcome.events} == {"info"}
    return outcome


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Writes what an incident's test has seen for tools/stability_page.py, as `write_record` takes it; does nothing
    unless the environment names a folder for it in CAMOX_INCIDENTS."""
    folder = os.environ.get("CAMOX_INCIDENTS", "")
    return lambda number, title, **seen: write_record(folder, request.node.name, number, title, **seen)


def write_record(
    folder: str,
    test: str,
    number: int,
    title: str,
    without: Outcome | str,
    with_guards: Outcome | str,
    clean: Outcome | None = None,
) -> None:
    """Writes one JSON file into `folder`, "" for nowhere.

    Args:
        folder: made where it is missing.
        test: name of the test, which names the file.
        number: of the incident, 1 to 14.
        title: what happens, in a few words.
        without, with_guards: how the run ended without guards and with them; where that is no curve, a sentence with
            the numbers that were measured.
        clean: the run to compare with.
    """
    if not folder:
        return
    seen = {"without": without, "with": with_guards, "clean": clean}
    runs = {name: _json_ready(what) for name, what in seen.items() if what is not None}
    name = "".join(letter if letter.isalnum() else "_" for letter in test).strip("_")
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"number": number, "title": title, "test": test, **runs}, indent=1, allow_nan=False)
    Path(folder, f"{number:02d}_{name}.json").write_text(text, encoding="utf-8")


def _json_ready(seen: Outcome | str) -> dict[str, Any]:
    if isinstance(seen, str):
        return {"told": seen}
    told = [
        {name: event[name] for name in ("kind", "step", "severity", "message")}
        for event in seen.events
        if event["severity"] != "info"
    ]
    return {"error": seen.error, "iou": seen.iou, "validations": seen.validations, "events": told}


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


def outcome_of(run: Path, error: str) -> Outcome:
    """What a run's folder tells of how it ended, with `error` or without. Of paths only the run's part is left."""
    events, rows = _lines(run / "events.jsonl"), _lines(run / "metrics.jsonl")
    for event in events:
        event["message"] = event["message"].replace(f"{run}/", "")
    names = {"iou": "val/iou", "iou_ema": "val_ema/iou"}
    validations = [
        {"step": row["step"]} | {name: row[logged] or 0.0 for name, logged in names.items() if logged in row}
        for row in rows
        if "val/iou" in row
    ]
    last = validations[-1] if validations and not error else {}
    iou = max(last.get("iou", 0.0), last.get("iou_ema", 0.0))
    return Outcome(iou, error.replace(f"{run}/", ""), events, validations)


def note(test: str, guards: bool, error: str) -> None:
    """Kept for the terminal of a failed test."""
    print(f"{test}: {'with' if guards else 'without'} guards: {error or 'reached its end'}")


def _lines(file: Path) -> list[dict[str, Any]]:
    """None where a run ended before it had any."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
