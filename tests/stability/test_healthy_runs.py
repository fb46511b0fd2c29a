"""Guards stay silent where nothing is wrong: a hundred tiny runs, all different, none with an event above info."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fp16_accelerator

RUNS, QUICK = 100, 1
EXPERIMENT = """
[experiment]
name = "healthy"

[data]
train = [{ synthetic = "habitats", count = 72, size = 40 }]
val_fraction = 0.25
image_size = 40
workers = 0

[model]
backbone = "resnet10t"
pretrained = false
width = 16

[validation]
measures = ["iou"]

[checkpoints]
every_epochs = 2
monitor = "iou"

[tracking]
wandb = "disabled"
report = false
"""


def settings_of(number: int) -> list[str]:
    """What one of the runs overrides: drawn from what a careful user might set."""
    draw = random.Random(number)
    batch = draw.choice([4, 6, 8])
    freezing, full = draw.choice([0, 2]), draw.choice([4, 6])
    frozen = f'{{ name = "frozen", epochs = {freezing}, freeze = ["backbone"] }}, ' if freezing else ""
    unfreeze = draw.choice(["all", "progressive"]) if freezing else "all"
    settings: dict[str, Any] = {
        "experiment.seed": number,
        "data.batch_size": batch,
        "data.augment": draw.choice(["[]", '[{ name = "HorizontalFlip", p = 0.5 }]']),
        "model.moe.mode": draw.choice(["'sparse'"] * 4 + ["'dense'", "'static'", "'random'"]),
        "model.moe.balance.kind": draw.choice(["'band'"] * 3 + ["'switch'", "'importance'", "'none'"]),
        "model.moe.balance.warmup_epochs": draw.choice([1, 3]),
        "model.deep_supervision": draw.choice(["true", "false"]),
        "optimizer.lr": draw.choice([3e-4, 1e-3, 2e-3, 4e-3]),
        "optimizer.accumulate": draw.choice([1, 1, 2]),
        "optimizer.clip": draw.choice([0.5, 1.0]),
        "schedule.name": draw.choice(["'cosine'", "'one_cycle'", "'multistep'", "'constant'"]),
        "schedule.milestones": "[3]",
        "schedule.warmup_epochs": 1,
        "ema.enabled": draw.choice(["true", "true", "false"]),
        "tracking.log_every": draw.choice([3, 7]),
        "phases": f'[{frozen}{{ name = "full", epochs = {full}, unfreeze = "{unfreeze}" }}]',
    }
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.mark.parametrize(
    "number", [pytest.param(n, marks=[] if n < QUICK else [pytest.mark.slow]) for n in range(RUNS)]
)
def test_no_event_above_info(number: int, tmp_path: Path):
    from accelerate import Accelerator

    from camox.experiment import Experiment
    from camox.training.trainer import Trainer

    file = tmp_path / "healthy.toml"
    file.write_text(EXPERIMENT)
    experiment = Experiment.load(file, settings_of(number), tmp_path)
    Trainer(experiment, None, fp16_accelerator() if number % 25 == 24 else Accelerator(cpu=True)).run()

    lines = (experiment.run_folder / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["message"] for event in events if event["severity"] != "info"] == []
    assert events[-1]["kind"] == "end"
