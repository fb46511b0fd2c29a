from collections.abc import Callable
from pathlib import Path

import pytest

from camox.experiment import Experiment

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], None),
        (["schedule.warmup_epochs=2"], "warmup_epochs = 2.0 is no less than the run's 2 epochs"),
        (
            ["model.pretrained=false", 'phases.full.freeze=["backbone"]'],
            "random weights and is frozen in every phase",
        ),
        (["model.weights=b.safetensors", "model.pretrained=false", 'phases.full.freeze=["backbone"]'], None),
        (["ema.decay=0.9999", "ema.warmup=false"], "half-life of 6931 steps, but the run at most 24"),
        (["ema.decay=0.9999", "ema.warmup=true"], None),
        (["ema.decay=0.9999", "ema.warmup=false", "ema.enabled=false"], None),
        (["ema.decay=0.9999", "ema.warmup=false", 'data.train=[{layout="cod10k",path="x"}]'], None),
        (["phases.full.batch_size=64", "phases.full.accumulate=2"], "128 images, but there are only 90"),
    ],
)
def test_warnings(write: Write, minimal: str, overrides: list[str], expected: str | None):
    warnings = Experiment.load(write(minimal), overrides).warnings
    if expected is None:
        assert warnings == ()
    else:
        (warning,) = warnings
        assert expected in warning


def test_constant_schedule_needs_no_lowest_rate(write: Write, minimal: str):
    experiment = Experiment.load(write(minimal), ["schedule.name=constant", "optimizer.lr=1e-6"])
    assert experiment.optimizer.lr == 1e-6


def test_unused_default_rate_may_be_below_the_lowest(write: Write, minimal: str):
    experiment = Experiment.load(write(minimal), ["phases.full.lr=1e-3", "optimizer.lr=1e-6"])
    assert experiment.phases_resolved()[0].lr == 1e-3
