from collections.abc import Callable
from pathlib import Path

import pytest

from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.experiment.lint import FINAL_TERMS
from camox.losses import composite

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
        (["schedule.name=constant", "schedule.min_lr=1e-6"], 'min_lr has no effect with name = "constant", only with'),
        (["schedule.name=constant", "schedule.min_lr=1e-5"], None),
        (["schedule.milestones=[1]"], 'milestones has no effect with name = "cosine", only with "multistep"'),
        (["schedule.gamma=0.5"], 'gamma has no effect with name = "cosine", only with "multistep", "plateau"'),
        (
            ["schedule.name=multistep", "schedule.milestones=[1]", "schedule.patience=2"],
            'patience has no effect with name = "multistep", only with "plateau"',
        ),
        (["schedule.name=multistep", "schedule.milestones=[1]", "schedule.gamma=0.5"], None),
        (
            ["schedule.name=multistep", "schedule.milestones=[1, 2, 3.5]"],
            "milestones has 2, 3.5, but the run ends after 2 epochs",
        ),
        (
            ["schedule.name=plateau", "phases.full.epochs=5", "schedule.patience=4"],
            "patience = 4 is too long for the run's 5 validations",
        ),
        (["schedule.name=plateau", "phases.full.epochs=5", "schedule.patience=3", "schedule.gamma=0.5"], None),
        (
            ["schedule.name=plateau", "phases.full.epochs=9", "schedule.patience=3", "validation.every_epochs=3"],
            "too long for the run's 3 validations",
        ),
        (["schedule.name=one_cycle"], None),
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


def test_one_cycle_needs_epochs_to_rise_in(write: Write, minimal: str):
    with pytest.raises(ExperimentError, match=r'warmup_epochs = 0 .*"one_cycle".*about 30 %'):
        Experiment.load(write(minimal), ["schedule.name=one_cycle", "schedule.warmup_epochs=0"])


def test_any_term_for_the_final_logits_trains_the_prediction(write: Write, minimal: str):
    assert set(FINAL_TERMS) == set(composite.FINAL_TERMS)
    for term in FINAL_TERMS:
        Experiment.load(write(minimal), ["loss.structure=0", f"loss.{term}=1"])


def test_every_term_of_the_loss_has_a_weight_in_the_file(write: Write, minimal: str):
    assert set(Experiment.load(write(minimal)).loss.plain()) == set(composite.TERMS)
