"""A real gradient scaler: it overflows, halves, and training goes on; what is not finite never reaches the weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from camox.checkpoints.store import list_checkpoints
from camox.experiment import Experiment
from camox.training.processes import build_accelerator, precision_name
from camox.training.step import TOTAL, TrainingStep
from camox.training.trainer import Trainer
from tests.training.test_trainer import rows

pytestmark = pytest.mark.gpu


def run(experiment: Experiment) -> tuple[Path, list[dict[str, Any]]]:
    Trainer(experiment).run()
    lines = (experiment.run_folder / "events.jsonl").read_text().splitlines()
    return experiment.run_folder, [json.loads(line) for line in lines]


def test_a_scale_that_is_far_too_high_comes_down_by_itself(tiny_experiment):
    """2³⁰ times a gradient is beyond half precision: the scale halves until it fits, and no act of recovery follows."""
    experiment = tiny_experiment(
        "precision.dtype='fp16'", f"precision.init_scale={2**30}", "phases.full.epochs=12", "stability.replays=0"
    )
    folder, events = run(experiment)
    scales = [row["amp/scale"] for row in rows(folder) if "amp/scale" in row]
    assert scales[0] < 2**30
    assert scales[-1] < scales[0]
    assert any(event["kind"] == "skipped_step" for event in events)
    assert not any(event["kind"] == "rollback" for event in events)
    losses = [row["train/loss"] for row in rows(folder) if row.get("train/loss") is not None]
    assert losses[-1] == losses[-1]
    for name, value in load_file(list_checkpoints(folder)[-1] / "model.safetensors").items():
        assert not value.is_floating_point() or bool(value.isfinite().all()), name


def test_an_overflow_in_mid_run_is_skipped_and_the_scale_grows_again(tiny_experiment, monkeypatch):
    losses, count = TrainingStep.losses, [0]

    def overflowing(step: TrainingStep, *arguments: Any) -> Any:
        count[0] += 1
        found = losses(step, *arguments)
        return found | {TOTAL: found[TOTAL] * (1e30 if count[0] == 5 else 1.0)}

    monkeypatch.setattr(TrainingStep, "losses", overflowing)
    experiment = tiny_experiment("precision.dtype='fp16'", "precision.growth_interval=4", "phases.full.epochs=8")
    folder, events = run(experiment)
    skipped = [event for event in events if event["kind"] == "skipped_step"]
    assert [event["step"] for event in skipped] == [5]
    scales = [row["amp/scale"] for row in rows(folder) if "amp/scale" in row]
    assert scales[4] == scales[3] / 2
    assert max(scales[5:]) > scales[4]


def test_auto_is_bf16_where_the_hardware_has_it(tiny_experiment):
    expected = "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp16"
    assert precision_name(build_accelerator(tiny_experiment())) == expected


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_what_is_infinite_is_skipped_without_a_scaler(tiny_experiment, monkeypatch, dtype):
    losses, count = TrainingStep.losses, [0]

    def infinite(step: TrainingStep, *arguments: Any) -> Any:
        count[0] += 1
        found = losses(step, *arguments)
        return found | {TOTAL: found[TOTAL] * (float("inf") if count[0] == 2 else 1.0)}

    monkeypatch.setattr(TrainingStep, "losses", infinite)
    folder, events = run(tiny_experiment(f"precision.dtype='{dtype}'"))
    assert [event["step"] for event in events if event["kind"] == "skipped_step"] == [2]
    for value in load_file(list_checkpoints(folder)[-1] / "optimizer.safetensors").values():
        assert bool(value.isfinite().all())
