"""Sums become means under the names of the contract."""

import time

import numpy as np
import pytest

from camox.training.telemetry import Clock, score_values, training_values
from tests.training.test_trainer import rows, train

COSTS = {"texture": 1.0, "edge": 1.0, "contrast": 2.0}


def batch_sums(**changes: object) -> dict[str, np.ndarray]:
    """Of 2 micro-batches with 8 images in all."""
    sums: dict[str, object] = {
        "images": 8.0, "iou": 4.0, "batches": 2.0, "loss/loss": 3.0, "router/balance_loss": 1.0, "router/z_loss": 0.5,
        "loss/structure": 2.0, "4/counts": [8.0, 4.0, 4.0], "4/probabilities": [4.0, 2.0, 2.0], "4/entropy": 8.0,
        "4/pairs": [[8.0, 4.0, 4.0], [4.0, 4.0, 0.0], [4.0, 0.0, 4.0]], "4/decisions": 8.0, "4/saturated": 2.0,
    }  # fmt: skip
    return {name: np.array(value, float) for name, value in (sums | changes).items()}


def step_sums(taken: float = 2.0) -> dict[str, np.ndarray]:
    sums = {
        "steps": 2.0,
        "taken": taken,
        "norm/total": 3.0,
        "norm/router": 1.0,
        "clipped/router": 1.0,
        "clipped/rest": 0.0,
    }
    return {name: np.array(value) for name, value in sums.items()}


def test_means_over_batches_images_and_taken_steps():
    values = training_values(batch_sums(), step_sums(), COSTS, [4])
    assert values["train/loss"] == 1.5
    assert values["train/loss/structure"] == 1.0
    assert values["train/iou"] == 0.5
    assert values["router/z_loss"] == 0.25
    assert values["grad_norm/total"] == 1.5
    assert values["grad_norm/clipped/router"] == 0.5
    assert values["amp/skip_rate"] == 0.0
    assert values["router/load_balance"] == values["router/stride_4/load_balance"]
    assert values["router/stride_4/saturation"] == 0.25
    assert values["router/stride_4/usage/texture"] == 0.5
    assert values["router/stride_4/cost/contrast"] == 0.4  # 2 · 4 of 1 · 8 + 1 · 4 + 2 · 4
    assert "train/loss/balance" not in values


def test_experts_that_no_router_chose_have_no_load_balance():
    assert "router/load_balance" not in training_values(batch_sums(), step_sums(), COSTS, [4], learned=False)
    assert "router/load_balance" not in training_values(batch_sums(), step_sums(), COSTS, [])


def test_norms_are_means_over_taken_steps_only():
    values = training_values(batch_sums(), step_sums(taken=1.0), COSTS, [4])
    assert values["grad_norm/total"] == 3.0
    assert values["amp/skip_rate"] == 0.5
    assert "grad_norm/total" not in training_values(batch_sums(), step_sums(taken=0.0), COSTS, [4])


def test_a_loss_that_is_not_finite_is_not_hidden():
    nan = {"loss/loss": np.nan, "4/probabilities": [np.nan] * 3}
    values = training_values(batch_sums(**nan), step_sums(), COSTS, [4])
    assert np.isnan(values["train/loss"])


def test_scores_are_flat_and_the_empty_images_apart():
    summary = {
        "count": 3,
        "iou": 0.5,
        "loss": 1.0,
        "groups": {"forest": {"count": 3, "iou": 0.5}},
        "empty": {"count": 1, "false_positive_area": 0.02, "false_positive_rate": 1.0},
    }
    assert score_values({"val": summary}) == {
        "val/count": 3, "val/iou": 0.5, "val/loss": 1.0, "val/forest/iou": 0.5, "val/false_positive_area": 0.02,
    }  # fmt: skip


def test_an_fp16_scale_is_logged_beside_what_it_must_not_fall_below(tiny_experiment):
    scaled = [row for row in rows(train(tiny_experiment("precision.min_scale=2"), fp16=True)) if "amp/scale" in row]
    assert {row["amp/reference/min_scale"] for row in scaled} == {2.0}
    assert all(row["amp/scale"] >= row["amp/reference/min_scale"] for row in scaled)
    assert scaled


def test_the_clock_tells_waiting_from_working():
    clock = Clock()
    with clock.waiting():
        time.sleep(0.02)
    time.sleep(0.02)
    clock.images = 6
    lap = clock.lap(processes=2)
    assert 0 < lap["train/data_wait"] < 1
    assert 0 < lap["train/images_per_second"] < 12 / 0.04
    assert clock.lap(processes=2) == {"train/images_per_second": 0.0, "train/data_wait": pytest.approx(0.0)}
