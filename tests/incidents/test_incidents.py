"""What killed runs before camox, on purpose: lost without guards, and with them as good as a run without trouble."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from camox.data.loading import TrainSet
from camox.training.step import TOTAL, TrainingStep
from camox.training.trainer import Trainer
from tests.incidents.conftest import Outcome

STEPS = 7
"""In an epoch."""


@contextmanager
def losses_times(factor_of: Callable[[int, Any], float]) -> Iterator[None]:
    """Multiplies the loss of each attempted step, counted from 1, before its backward pass."""
    losses, count = TrainingStep.losses, [0]

    def changed(step: TrainingStep, output: Any, batch: Any, coefficient: float) -> dict[str, torch.Tensor]:
        count[0] += 1
        found = losses(step, output, batch, coefficient)
        return found | {TOTAL: found[TOTAL] * factor_of(count[0], batch)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "losses", changed)
        yield


def survived(outcome: Outcome, clean: float) -> None:
    assert outcome.error == ""
    assert outcome.iou >= clean - 0.05


def lost(outcome: Outcome, clean: float) -> None:
    assert outcome.error or outcome.iou < clean / 2


def test_infinite_gradients_now_and_then(run_tiny, clean):
    """Incident 1: what the loss scale does under fp16, and any overflow in fp32."""

    def factor(step: int, batch: Any) -> float:
        return float("inf") if step % 10 == 0 else 1.0

    with losses_times(factor):
        lost(run_tiny(guards=False), clean)
    with losses_times(factor):
        outcome = run_tiny()
    survived(outcome, clean)
    assert outcome.kinds.count("skipped_step") == 5
    assert "rollback" not in outcome.kinds


@pytest.mark.slow
def test_overflow_under_fp16(run_tiny, clean):
    """Incident 1 as it was met: a gradient that overflows half precision ended the run at epochs 26, 10 and 4."""

    def factor(step: int, batch: Any) -> float:
        return 1e6 if step in (20, 33) else 1.0

    with losses_times(factor):
        lost(run_tiny(guards=False, fp16=True), clean)
    with losses_times(factor):
        outcome = run_tiny(fp16=True)
    survived(outcome, clean)
    assert "skipped_step" in outcome.kinds


@pytest.mark.slow
def test_an_image_that_shows_nothing_and_one_that_cannot_be_read(run_tiny, clean, monkeypatch):
    """Incident 2: one file among many."""
    load = TrainSet._load

    def broken(dataset: TrainSet, epoch: int, index: int) -> Any:
        if index == 5:
            dataset.source[len(dataset.source)]  # a file that is not there
        return load(dataset, epoch, index)

    def missing(self: Any, index: int) -> Any:
        from camox.errors import DataError

        if index >= len(self):
            raise DataError("leaf.jpg: the JPEG is truncated")
        return self.source[self.indices[index]]

    monkeypatch.setattr(TrainSet, "_load", broken)
    monkeypatch.setattr("camox.data.sources.Subset.__getitem__", missing)
    lost(run_tiny(guards=False), clean)
    outcome = run_tiny("stability.max_bad_samples=0.05")
    survived(outcome, clean)
    bad = [event for event in outcome.events if event["kind"] == "bad_sample"]
    assert len(bad) == 1
    assert "leaf.jpg" in bad[0]["message"]


@pytest.mark.slow
def test_a_term_that_is_nan_for_some_masks(run_tiny, clean):
    """Incident 3: here for all batches that hold sample 7."""

    def factor(step: int, batch: Any) -> float:
        return float("nan") if 7 in batch.indices.tolist() else 1.0

    with losses_times(factor):
        lost(run_tiny(guards=False), clean)
    with losses_times(factor):
        survived(run_tiny(), clean)


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


def test_a_rate_far_too_high_for_ten_steps(run_tiny, clean):
    """Incident 4. Clipping alone survives 50 times the rate (IoU 0.60, where a clean run has 0.76); 200 times it does
    not. Late in the run, so that what is lost cannot be learned again, and without an average that remembers."""
    steps = range(5 * STEPS + 1, 5 * STEPS + 11)
    with rates_times(200.0, steps):
        lost(run_tiny("ema.enabled=false", guards=False), clean)
    with rates_times(200.0, steps):
        outcome = run_tiny("ema.enabled=false")
    survived(outcome, clean)
    assert "rollback" in outcome.kinds


@pytest.mark.slow
def test_weights_that_are_nan_in_mid_run(run_tiny, clean, monkeypatch):
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
    lost(run_tiny(guards=False), clean)
    poisoned.clear()
    outcome = run_tiny()
    survived(outcome, clean)
    assert outcome.kinds.count("rollback") == 1


@pytest.mark.slow
def test_one_bad_batch_in_every_few_steps_under_fp16(run_tiny, clean):
    """Incident 7: each halves the loss scale, which grows far more slowly, until no gradient is left."""

    def factor(step: int, batch: Any) -> float:
        return float("inf") if {3, 40} & set(batch.indices.tolist()) else 1.0

    small = ("precision.min_scale=64",)
    with losses_times(factor):
        lost(run_tiny(*small, guards=False, fp16=True), clean)
    with losses_times(factor):
        outcome = run_tiny(*small, fp16=True)
    survived(outcome, clean)
