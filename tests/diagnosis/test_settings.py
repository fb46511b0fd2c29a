"""Arithmetic on settings: what is usual passes, what is not is named with a remedy."""

import math
from pathlib import Path

import pytest

from camox.diagnosis.settings import check_average, check_settings, phase_steps, usual_learning_rate
from camox.experiment import Experiment
from camox.experiment.schema import Ema

ROOT = Path(__file__).resolve().parents[2]


def test_settings_of_the_tiny_experiment_pass(tiny_experiment):
    finding = check_settings(tiny_experiment(), 8, 1)
    assert finding.status == "pass", finding.problems
    assert finding.values["steps"] == 4


@pytest.mark.parametrize("recipe", ["quickstart", "sparse_moe_416", "small_batch_384", "large_batch_384", "dense_416"])
def test_shipped_recipes_pass_with_cod10k(recipe):
    experiment = Experiment.load(ROOT / "experiments" / f"{recipe}.toml")
    for processes in (1, 2):
        finding = check_settings(experiment, 2736, processes)
        assert finding.status == "pass", finding.problems


def test_the_rate_follows_the_square_root_of_the_batch():
    assert usual_learning_rate(24) == 8e-4
    assert usual_learning_rate(96) == pytest.approx(2 * usual_learning_rate(24))


def test_steps_count_whole_batches_and_the_short_window_at_the_end(tiny_experiment):
    experiment = tiny_experiment("data.batch_size=3", "optimizer.accumulate=2")
    steps = phase_steps(experiment, 17, 1)[0]
    assert (steps.effective_batch, steps.steps_per_epoch) == (6, 3)  # 5 batches: windows of 2, 2, 1
    steps = phase_steps(experiment, 17, 2)[0]
    assert (steps.effective_batch, steps.steps_per_epoch) == (12, 1)


@pytest.mark.parametrize(
    ("overrides", "images", "processes", "status", "said"),
    [
        (["optimizer.lr=1.0"], 8, 1, "warn", "lr 1 is 3.06e+03 times what the square-root rule gives"),
        (["optimizer.lr=2e-5"], 8, 1, "warn", "1/16.3 of what the square-root rule gives"),
        (["phases.full.batch_size=9"], 8, 1, "fail", "phase full: batch_size 9 × 1 processes exceeds the 8"),
        ([], 6, 2, "fail", "lower batch_size to at most 3"),
        (["optimizer.accumulate=2"], 12, 2, "warn", "a step takes 16 images, but there are only 12"),
        (["schedule.warmup_epochs=1.5"], 8, 1, "warn", "is 75% of the run"),
        (["schedule.warmup_epochs=0"], 80, 1, "warn", "is 0 steps"),
        (["schedule.warmup_epochs=3"], 8, 1, "warn", "never leaves its warm-up → shorten it"),
    ],
)
def test_what_is_hardly_meant_is_named(tiny_experiment, messages, overrides, images, processes, status, said):
    finding = check_settings(tiny_experiment(*overrides), images, processes)
    assert finding.status == status
    assert said in messages(finding)


def test_what_the_file_itself_remarks_is_said_once(tiny_experiment, messages):
    finding = check_settings(tiny_experiment("optimizer.accumulate=3"), 8, 1)
    assert messages(finding).count("phase full: a step takes") == 1


def test_rare_logging_is_a_note(tiny_experiment):
    finding = check_settings(tiny_experiment("tracking.log_every=50"), 8, 1)
    assert finding.status == "pass"
    assert "tracking.log_every = 50" in finding.notes[-1]


# ---- average


@pytest.mark.parametrize(
    ("ema", "steps", "status"),
    [
        (Ema(), 4, "pass"),
        (Ema(), 540, "pass"),
        (Ema(decay=0.9999), 100, "pass"),
        (Ema(decay=0.9999, warmup=False), 100, "fail"),
        (Ema(decay=0.9999, warmup=False), 50_000, "pass"),
        (Ema(decay=0.9, warmup=False), 100, "pass"),
        (Ema(decay=0.0, warmup=False), 1, "pass"),
        (Ema(enabled=False, decay=0.9999, warmup=False), 100, "pass"),
    ],
)
def test_an_average_of_the_untrained_weights_fails(ema, steps, status):
    assert check_average(ema, steps).status == status


def test_the_share_is_that_of_the_formula():
    without = check_average(Ema(decay=0.99, warmup=False), 120)
    assert without.values["initial_share"] == pytest.approx(0.99**120, rel=1e-4)
    warmed = check_average(Ema(decay=0.8), 6)
    expected = math.prod(min(0.8, (1 + n) / (10 + n)) for n in range(6))
    assert warmed.values["initial_share"] == pytest.approx(expected, rel=1e-4)


def test_the_remedy_for_the_average_is_one(messages):
    finding = check_average(Ema(decay=0.9999, warmup=False), 100)
    assert "99.0% of the average are still the untrained weights" in messages(finding)
    decay = float(messages(finding).split("at most ")[1])
    assert check_average(Ema(decay=decay, warmup=False), 100).status == "pass"
