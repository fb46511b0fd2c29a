"""Each guard fires when it must, says what it saw, and is silent on what is routine."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from camox.errors import DataError
from camox.stability.guards import BadSamples, Finding, LossScale, NonFiniteSteps, Scores, Spikes, StepReport

SOUND: dict[str, Any] = {"taken": True, "loss": 1.0, "norm": 1.0, "finite": True, "spike": False, "only_routers": False}


def report(step: int, **changes: Any) -> StepReport:
    return StepReport(step, **{**SOUND, "terms": (), **changes})


def skipped(step: int, **changes: Any) -> StepReport:
    return report(step, **{"taken": False, "finite": False, "norm": float("inf"), **changes})


def told(guard: Any, reports: list[StepReport], scale: float | None = None) -> list[Finding]:
    return [finding for one in reports if (finding := guard.after_step(one, scale)) is not None]


@pytest.mark.parametrize("guard", [NonFiniteSteps(3), LossScale(0.02, 1.0), Spikes()])
def test_sound_steps_are_no_finding(guard):
    assert told(guard, [report(step) for step in range(1, 300)], scale=1024.0) == []


def test_too_many_steps_in_a_row_that_are_not_finite_ask_for_a_rollback():
    guard = NonFiniteSteps(most=3)
    findings = told(guard, [report(1), *(skipped(step, terms=("dice",)) for step in range(2, 6))])
    assert [finding.proposal for finding in findings] == ["note", "note", "roll_back"]  # told at 1 and 2 in a row
    last = findings[-1]
    assert "4 steps in a row" in last.message
    assert "dice of the loss was not finite" in last.message
    assert last.sound_until == 1
    assert guard.total == 4


def test_a_sound_step_between_them_starts_the_count_anew():
    steps = [skipped(1), skipped(2), skipped(3), report(4), skipped(5), skipped(6), skipped(7)]
    assert {finding.proposal for finding in told(NonFiniteSteps(most=3), steps)} == {"note"}


@pytest.mark.parametrize(("scale", "terms", "severity"), [
    (1024.0, (), "info"), (None, (), "warning"), (1024.0, ("dice",), "warning"),
])  # fmt: skip
def test_one_overflow_under_fp16_is_routine_and_nothing_else_is(scale, terms, severity):
    (finding,) = told(NonFiniteSteps(20), [skipped(7, terms=terms)], scale)
    assert finding.severity == severity


def test_gradients_that_are_not_finite_in_the_routers_alone_calm_these():
    steps = [skipped(step, only_routers=True) for step in range(1, 4)]
    assert told(NonFiniteSteps(20), steps)[-1].proposal == "calm_routers"
    mixed = [skipped(1, only_routers=True), skipped(2), skipped(3, only_routers=True)]
    assert all(finding.proposal == "note" for finding in told(NonFiniteSteps(20), mixed))


@pytest.mark.parametrize(("every", "fires"), [(100, False), (60, False), (40, True), (5, True)])
def test_one_bad_batch_in_every_few_steps_is_seen_before_the_scale_is_gone(every, fires):
    steps = [skipped(step) if step % every == 0 else report(step) for step in range(1, 400)]
    findings = told(LossScale(0.02, 1.0), steps, scale=1024.0)
    assert bool(findings) == fires
    if fires:
        assert findings[0].proposal == "roll_back"


def test_the_first_hundred_steps_may_look_for_the_scale():
    assert (
        told(LossScale(0.02, 1.0), [skipped(step) if step < 20 else report(step) for step in range(1, 100)], 64) == []
    )


@pytest.mark.parametrize(("scale", "fires"), [(1.0, False), (0.5, True), (None, False)])
def test_a_scale_below_the_least_asks_for_a_rollback(scale, fires):
    assert bool(told(LossScale(0.02, 1.0), [report(1)], scale)) == fires


def test_spikes_that_stay_ask_for_a_rollback_to_before_them():
    findings = told(Spikes(most=5), [report(step) for step in range(1, 30)] + [
        report(step, taken=False, spike=True, loss=9.0) for step in range(30, 35)
    ])  # fmt: skip
    assert [finding.proposal for finding in findings] == ["note", "roll_back"]
    assert findings[-1].sound_until < 28  # the first far steps were taken


IMAGES = np.random.default_rng(0).uniform(0.3, 0.9, 200)


def validations(
    *means: float,
    spread: float = 0.05,
    monitor: str = "iou",
    losses: Sequence[float] = (),
    training: Sequence[float] = (),
    **switches: bool,
) -> list[Finding | None]:
    """What is found when the same images score those means, each image moving a little by itself, while the loss is as
    far from 1 as the mean is from 0 where no other is given; training's is the same but for `training`."""
    losses = losses or [mean if monitor == "mae" else 1 - mean for mean in means]
    training = training or losses
    generator = np.random.default_rng(1)
    guard = Scores(monitor, **({"decline": True, "explosion": True} | switches))
    return [
        guard.after_validation(
            100 * number, list(IMAGES - IMAGES.mean() + mean + generator.normal(0, spread, 200)), loss, of_training
        )
        for number, (mean, loss, of_training) in enumerate(zip(means, losses, training, strict=True), start=1)
    ]


def test_three_falls_in_a_row_lower_the_rate():
    *before, last = validations(0.6, 0.7, 0.69, 0.67, 0.65)
    assert before == [None] * 4
    assert last is not None
    assert last.proposal == "lower_rate"
    assert last.sound_until == 200


@pytest.mark.parametrize("means", [
    (0.6, 0.7, 0.69, 0.67, 0.68), (0.6, 0.7, 0.698, 0.696, 0.694), (0.3, 0.4, 0.5, 0.6, 0.61),
])  # fmt: skip
def test_fewer_or_smaller_falls_are_no_decline(means):
    assert validations(*means) == [None] * 5


def test_falls_within_chance_are_no_decline():
    assert validations(0.6, 0.7, 0.69, 0.68, 0.67, spread=0.3) == [None] * 5


def test_a_decline_that_goes_on_at_the_lower_rate_asks_for_a_rollback():
    findings = [finding for finding in validations(0.7, 0.69, 0.67, 0.65, 0.63, 0.61, 0.59) if finding]
    assert [finding.proposal for finding in findings] == ["lower_rate", "roll_back"]


def test_the_second_validation_alone_may_fall_too_far():
    assert [finding.proposal for finding in validations(0.5, 0.4) if finding] == ["lower_rate"]
    assert validations(0.5, 0.46) == [None, None]


def test_less_than_half_of_the_best_is_an_explosion():
    *_, last = validations(0.6, 0.7, 0.3)
    assert last is not None
    assert (last.proposal, last.kind, last.sound_until) == ("roll_back", "explosion", 200)


def test_on_a_plateau_an_explosion_goes_back_to_its_end_and_not_to_the_best():
    """Of a best that is long gone there may be no checkpoint any more, and the whole run would begin anew."""
    *_, last = validations(0.6, 0.7, *20 * [0.69], 0.5, 0.3, decline=False)
    assert last is not None
    assert (last.kind, last.sound_until) == ("explosion", 2200)


def test_a_measure_that_falls_alone_while_the_loss_does_too_is_a_model_that_has_hardly_begun():
    *before, dip = validations(0.2, 0.21, 0.07, losses=(1.55, 1.53, 1.50))
    assert before == [None] * 2
    assert dip is not None
    assert (dip.kind, dip.proposal, dip.severity) == ("dip", "note", "info")
    assert validations(0.6, 0.7, 0.69, 0.67, 0.65, losses=(0.9, 0.8, 0.79, 0.78, 0.77)) == [None] * 5
    assert validations(0.5, 0.4, losses=(1.0, 0.9)) == [None] * 2


def test_a_validation_that_is_bad_while_training_goes_well_is_a_dip():
    """As where running statistics of norms lag behind the weights."""
    (dip,) = [finding for finding in validations(0.1, 0.4, 0.1, training=(1.3, 1.2, 1.1)) if finding]
    assert (dip.kind, dip.severity) == ("dip", "info")
    assert validations(0.5, 0.4, training=(1.3, 1.2)) == [None] * 2


@pytest.mark.parametrize("losses", [(0.5, 0.4, math.nan), (0.5, math.nan, 0.1), (0.5, math.inf, 0.1)])
def test_a_loss_that_is_not_finite_keeps_no_guard_from_firing(losses):
    found = validations(0.6, 0.7, 0.3, losses=losses)
    assert [finding.kind for finding in found if finding] == ["explosion"]
    found = validations(0.6, 0.7, 0.3, losses=(0.5, 0.4, 0.6), training=losses)
    assert [finding.kind for finding in found if finding] == ["explosion"]


def test_of_the_mean_absolute_error_less_is_better():
    assert validations(0.3, 0.2, 0.15, monitor="mae") == [None] * 3
    assert [f.kind for f in validations(0.1, 0.12, 0.4, monitor="mae", decline=False) if f] == ["explosion"]
    assert [f.kind for f in validations(0.2, 0.21, 0.23, 0.26, monitor="mae", explosion=False) if f] == ["decline"]


def test_switched_off_they_say_nothing():
    assert validations(0.7, 0.6, 0.5, 0.1, decline=False, explosion=False) == [None] * 4


@pytest.mark.parametrize("guard", [NonFiniteSteps(3), LossScale(0.02, 1.0), Spikes()])
def test_a_state_goes_on_after_a_resume(guard):
    steps = [skipped(1), report(2), skipped(3, spike=True), skipped(4, spike=True)]
    told(guard, steps, scale=1024.0)
    twin = type(guard)(*{NonFiniteSteps: (3,), LossScale: (0.02, 1.0), Spikes: ()}[type(guard)])
    twin.load_state_dict(guard.state_dict())
    later = [skipped(step, spike=True) for step in range(5, 9)]
    assert told(guard, later, 0.5) == told(twin, later, 0.5) != []


def test_the_scores_go_on_after_a_resume():
    guard, twin = (Scores("iou", decline=True, explosion=True) for _ in range(2))
    for step, mean in enumerate((0.7, 0.69, 0.67)):
        guard.after_validation(step, list(IMAGES + mean), 1 - mean, 1 - mean)
    twin.load_state_dict(guard.state_dict())
    ours, theirs = (each.after_validation(4, list(IMAGES + 0.6), 0.4, 0.4) for each in (guard, twin))
    assert ours == theirs is not None


def test_a_bad_sample_is_named_once_and_training_goes_on():
    guard = BadSamples(most=0.01)
    (finding,) = guard.after_epoch(["sample 3 (frog.jpg): truncated"], samples=200)
    assert "frog.jpg" in finding.message
    assert finding.proposal == "note"
    assert guard.after_epoch(["sample 3 (frog.jpg): truncated"], samples=200) == []


def test_too_many_bad_samples_in_an_epoch_end_the_run():
    problems = [f"sample {number} (frog_{number}.jpg): truncated" for number in range(3)]
    with pytest.raises(DataError, match=r"frog_0\.jpg.* and 2 more: 3 of 200 .*max_bad_samples = 0\.01"):
        BadSamples(most=0.01).after_epoch(problems, samples=200)


def test_a_bad_sample_that_is_met_again_after_a_rollback_counts_once():
    (finding,) = BadSamples(most=0.01).after_epoch(2 * ["sample 3 (frog.jpg): truncated"], samples=100)
    assert finding.kind == "bad_sample"
