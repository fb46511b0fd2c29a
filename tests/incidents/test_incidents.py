"""What killed runs before camox, on purpose: lost without guards, and with them as good as a run without trouble."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from camox.data.loading import TrainSet
from camox.training.step import TOTAL, TrainingStep
from camox.training.trainer import Trainer
from tests.incidents.conftest import train
from tests.incidents.records import Outcome

STEPS = 7
"""In an epoch."""


@contextmanager
def losses_times(factor_of: Callable[[int, Any], float]) -> Iterator[None]:
    """Multiplies the loss of each attempted step, counted from 1, before its backward pass."""
    losses, count = TrainingStep.losses, [0]

    def changed(step: TrainingStep, output: Any, batch: Any, *arguments: Any) -> dict[str, torch.Tensor]:
        count[0] += 1
        found = losses(step, output, batch, *arguments)
        return found | {TOTAL: found[TOTAL] * factor_of(count[0], batch)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "losses", changed)
        yield


def survived(outcome: Outcome, clean: Outcome) -> None:
    assert outcome.error == ""
    assert outcome.iou >= clean.iou - 0.05


def lost(outcome: Outcome, clean: Outcome) -> None:
    assert outcome.error or outcome.iou < clean.iou / 2


@pytest.mark.slow
def test_infinite_gradients_now_and_then(run_both, clean_run, record):
    """Incident 1: what the loss scale does under fp16, and any overflow in fp32."""

    def factor(step: int, batch: Any) -> float:
        return float("inf") if step % 10 == 0 else 1.0

    without, outcome = run_both(lambda: losses_times(factor))
    lost(without, clean_run)
    survived(outcome, clean_run)
    assert outcome.kinds.count("skipped_step") == 5
    assert "rollback" not in outcome.kinds
    record(1, "Every tenth step has an infinite gradient", without=without, with_guards=outcome, clean=clean_run)


@pytest.mark.slow
def test_overflow_under_fp16(run_both, clean_run, record):
    """Incident 1 as it was met: a gradient that overflows half precision ended the run at epochs 26, 10 and 4."""

    def factor(step: int, batch: Any) -> float:
        return 1e6 if step in (20, 33) else 1.0

    without, outcome = run_both(lambda: losses_times(factor), fp16=True)
    lost(without, clean_run)
    survived(outcome, clean_run)
    assert "skipped_step" in outcome.kinds
    record(1, "Gradients that overflow fp16, twice in a run", without=without, with_guards=outcome, clean=clean_run)


@pytest.mark.slow
def test_an_image_that_shows_nothing_and_one_that_cannot_be_read(run_tiny, clean_run, record, monkeypatch):
    """Incident 2: one file among many."""
    load = TrainSet._load

    def broken(dataset: TrainSet, source: Any, index: int, *rest: int) -> Any:
        if index == 5:
            source[len(source)]  # a file that is not there
        return load(dataset, source, index, *rest)

    def missing(self: Any, index: int) -> Any:
        from camox.errors import DataError

        if index >= len(self):
            raise DataError("leaf.jpg: the JPEG is truncated")
        return self.source[self.indices[index]]

    monkeypatch.setattr(TrainSet, "_load", broken)
    monkeypatch.setattr("camox.data.sources.Subset.__getitem__", missing)
    without = run_tiny(guards=False)
    outcome = run_tiny("stability.max_bad_samples=0.05")
    lost(without, clean_run)
    survived(outcome, clean_run)
    bad = [event for event in outcome.events if event["kind"] == "bad_sample"]
    assert len(bad) == 1
    assert "leaf.jpg" in bad[0]["message"]
    record(2, "One image that cannot be read", without=without, with_guards=outcome, clean=clean_run)


@pytest.mark.slow
def test_a_term_that_is_nan_for_some_masks(run_both, clean_run, record):
    """Incident 3: here for all batches that hold sample 7."""

    def factor(step: int, batch: Any) -> float:
        return float("nan") if 7 in batch.indices.tolist() else 1.0

    without, outcome = run_both(lambda: losses_times(factor))
    lost(without, clean_run)
    survived(outcome, clean_run)
    record(3, "A loss that is NaN for one mask", without=without, with_guards=outcome, clean=clean_run)


@contextmanager
def rates_times(factor: float, steps: range) -> Iterator[None]:
    controls = Trainer._controls

    def changed(trainer: Trainer, position: float, step: int) -> Any:
        found = controls(trainer, position, step)
        if step not in steps:
            return found
        return type(found)(**{**vars(found), "learning_rate": factor * found.learning_rate})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_controls", changed)
        yield


@pytest.mark.slow
def test_a_rate_far_too_high_for_ten_steps(run_both, clean_run, record):
    """Incident 4. Clipping alone survives 50 times the rate (IoU 0.60, where a clean run has 0.76); 200 times it does
    not. Late in the run, so that what is lost cannot be learned again, and without an average that remembers."""
    steps = range(5 * STEPS + 1, 5 * STEPS + 11)
    without, outcome = run_both(lambda: rates_times(200.0, steps), "ema.enabled=false")
    lost(without, clean_run)
    survived(outcome, clean_run)
    assert "rollback" in outcome.kinds
    record(4, "A rate 200 times too high for ten steps", without=without, with_guards=outcome, clean=clean_run)


@contextmanager
def rates_that_rise(to: float, after: float) -> Iterator[None]:
    """The rate rises 2.5-fold in each epoch after epoch `after`, up to `to` times what the schedule says."""
    controls = Trainer._controls

    def changed(trainer: Trainer, position: float, step: int) -> Any:
        found = controls(trainer, position, step)
        factor = min(to, 2.5 ** max(0.0, position - after))
        return type(found)(**{**vars(found), "learning_rate": factor * found.learning_rate})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_controls", changed)
        yield


@pytest.mark.slow
def test_a_rate_that_becomes_too_high_and_stays_so(run_both, record, tmp_path):
    """Incident 5: scores sink for some epochs before they collapse. A run of 14 epochs has no time for the four
    rollbacks that 0.7 each would take to undo a rate 30 times too high."""
    settings = ("phases.full.epochs=14", "schedule.name=constant", "ema.enabled=false")
    (tmp_path / "clean").mkdir()
    clean = train(tmp_path / "clean", *settings)
    without, outcome = run_both(
        lambda: rates_that_rise(30.0, after=6), *settings, guarded=["stability.policy.rate_factor=0.1"]
    )
    lost(without, clean)
    survived(outcome, clean)
    scores = [validation["iou"] for validation in without.validations[5:9]]
    assert min(scores) > clean.iou / 2  # a slow decline at first
    assert {"decline", "explosion"} & set(outcome.kinds)
    assert "rollback" in outcome.kinds
    record(5, "A rate that becomes too high and stays so", without=without, with_guards=outcome, clean=clean)


@pytest.mark.slow
def test_weights_that_are_nan_in_mid_run(run_tiny, clean_run, record, monkeypatch):
    """Incident 14: a score of NaN is never the best, and the run goes on from the last clean checkpoint."""
    train_epoch, poisoned = Trainer._train_epoch, []

    def poison(trainer: Trainer, *arguments: Any) -> None:
        train_epoch(trainer, *arguments)
        if trainer.at.epoch == 4 and len(poisoned) < limit:
            poisoned.append(1)
            with torch.no_grad():
                trainer.network.decoder.blocks[0].enter.weight[0, 0] = float("nan")

    monkeypatch.setattr(Trainer, "_train_epoch", poison)
    limit = 1
    without = run_tiny(guards=False)
    poisoned.clear()
    outcome = run_tiny()
    lost(without, clean_run)
    survived(outcome, clean_run)
    assert outcome.kinds.count("rollback") == 1
    record(14, "Weights turn NaN before a validation", without=without, with_guards=outcome, clean=clean_run)


@pytest.mark.slow
def test_one_bad_batch_in_every_few_steps_under_fp16(run_both, clean_run, record):
    """Incident 7: each halves the loss scale, which grows far more slowly, until no gradient is left."""

    def factor(step: int, batch: Any) -> float:
        return float("inf") if {3, 40} & set(batch.indices.tolist()) else 1.0

    small = ("precision.min_scale=64",)
    without, outcome = run_both(lambda: losses_times(factor), *small, fp16=True)
    lost(without, clean_run)
    survived(outcome, clean_run)
    record(
        7,
        "A bad batch every few steps drives the fp16 loss scale down",
        without=without,
        with_guards=outcome,
        clean=clean_run,
    )
