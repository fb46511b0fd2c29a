"""Every guard has a switch: with it on, what the guard is for is found; with it off, nothing is."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from camox.errors import DataError
from camox.stability.guards import Finding
from camox.training.routing import Collapse, RoutingWatch
from camox.training.watching import Watch
from tests.stability.test_guards import IMAGES, report, skipped
from tests.training.test_trainer import train


def after_validations(*means: float) -> Callable[[Watch], list[Finding]]:
    def watched(watch: Watch) -> list[Finding]:
        found = []
        for step, mean in enumerate(means, start=1):
            watch.after_steps([report(step, loss=1 - mean)], None)
            found += watch.after_validation(step, list(IMAGES - IMAGES.mean() + mean), 1 - mean)
        return found

    return watched


CASES: dict[str, tuple[Callable[[Watch], list[Finding]], str]] = {
    "nonfinite": (lambda watch: watch.after_steps([skipped(1)], None), "skipped_step"),
    "loss_scale": (lambda watch: watch.after_steps([report(1)], 0.5), "loss_scale"),
    "spike": (lambda watch: watch.after_steps([report(1, taken=False, spike=True)], None), "spike"),
    "decline": (after_validations(0.6, 0.7, 0.69, 0.67, 0.65), "decline"),
    "explosion": (after_validations(0.6, 0.7, 0.3), "explosion"),
}


@pytest.mark.parametrize("guard", CASES)
def test_on_it_finds_and_off_it_does_not(tiny_experiment, guard):
    watched, kind = CASES[guard]
    assert [finding.kind for finding in watched(Watch(tiny_experiment()))] == [kind]
    assert watched(Watch(tiny_experiment(f"stability.{guard}=false"))) == []


@pytest.mark.parametrize("on", [True, False])
def test_a_collapsed_router_is_told_in_any_case_and_helped_only_with_the_guard(tiny_experiment, monkeypatch, on):
    collapse = Collapse("the router at stride 8 has collapsed", {"stride": 8})
    monkeypatch.setattr(RoutingWatch, "evaluate", lambda *_: ({}, [collapse]))
    experiment = tiny_experiment(f"stability.collapse={str(on).lower()}")
    run = train(experiment)
    kinds = [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds.count("router_collapse") == 2  # one in each epoch
    assert ("recovery" in kinds) == on


def test_without_the_guard_of_bad_samples_the_first_one_ends_the_run(tiny_experiment):
    problem = "sample 3 (frog.jpg): truncated"
    watch = Watch(tiny_experiment())
    watch.met([problem])
    assert [finding.kind for finding in watch.after_epoch(watch.problems, 500)] == ["bad_sample"]
    with pytest.raises(DataError, match="frog"):
        Watch(tiny_experiment("stability.bad_samples=false")).met([problem])


def test_bad_samples_of_an_epoch_under_way_survive_a_resume_and_those_named_stay_named(tiny_experiment):
    problems = [f"sample {number} (frog_{number}.jpg): truncated" for number in range(3)]
    watch, resumed = Watch(tiny_experiment()), Watch(tiny_experiment())
    watch.met(problems[:1])
    assert len(watch.after_epoch(watch.problems, 500)) == 1
    watch.met(problems[:2])
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    resumed.met(problems[1:])
    found = [finding.message for finding in resumed.after_epoch(resumed.problems, 500)]
    assert [message.split(":")[0] for message in found] == ["sample 1 (frog_1.jpg)", "sample 2 (frog_2.jpg)"]
    assert resumed.problems == []


def test_the_training_loss_is_that_since_the_last_validation_and_survives_a_resume(tiny_experiment):
    def details(watch: Watch) -> Any:
        (finding,) = watch.after_validation(9, list(IMAGES - IMAGES.mean() + 0.3), 2.0)
        return finding.details

    watch, twin = Watch(tiny_experiment()), Watch(tiny_experiment())
    watch.after_steps([report(1, loss=0.5)], None)
    watch.after_validation(1, list(IMAGES - IMAGES.mean() + 0.7), 1.0)
    watch.after_steps([report(2, loss=2.0), skipped(3, loss=float("nan")), report(4, loss=4.0)], None)
    twin.load_state_dict(watch.state_dict())
    assert details(watch)["training_loss"] == details(twin)["training_loss"] == 3.0


def test_losses_that_are_not_finite_do_not_keep_a_checkpoint_from_being_written(tiny_experiment):
    """Where all steps of an epoch were skipped there is no loss of training; NaN in a state is refused."""
    watch = Watch(tiny_experiment())
    watch.after_steps([skipped(1, loss=float("nan"))], None)
    watch.after_validation(1, list(IMAGES), float("nan"))
    state = watch.state_dict()
    json.dumps(state, allow_nan=False)
    Watch(tiny_experiment()).load_state_dict(state)


def test_steps_that_were_not_taken_are_counted_whatever_the_reason_and_after_a_rollback_too(tiny_experiment):
    watch, resumed = Watch(tiny_experiment()), Watch(tiny_experiment())
    sound = watch.state_dict()
    watch.after_steps([report(1), skipped(2), report(3, taken=False, spike=True), report(4)], None)
    assert (watch.skipped_batches, watch.nonfinite.total) == (2, 1)
    resumed.load_state_dict(watch.state_dict())
    watch.load_state_dict(sound)
    for counted in (watch, resumed):
        assert (counted.skipped_batches, counted.nonfinite.total) == (2, 1)


def test_streamed_samples_are_no_suspects_for_they_cannot_be_left_out(tiny_experiment):
    watch = Watch(tiny_experiment())
    watch.began(1, [-1, -1])
    watch.after_steps([skipped(1)], None)
    assert watch.suspects() == (set(), set())


def test_samples_of_sound_steps_are_no_suspects(tiny_experiment):
    watch = Watch(tiny_experiment())
    for step, samples in enumerate([[1, 2], [3, 4], [2, 5]], start=1):
        watch.began(step, samples)
    watch.after_steps([report(1), skipped(2), skipped(3)], None)
    assert watch.suspects() == ({2, 3, 4, 5}, {1, 2})
