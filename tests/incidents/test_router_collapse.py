"""Incident 8: routers that come to use one pair of experts, and routers that come to prefer nothing.

On this task a collapse costs no IoU within so few steps, so what is lost and won is the use of the experts.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from camox.measures.collapse import FEWEST_IMAGES, collapse_signs
from camox.models.router import Router
from camox.training.step import TrainingStep
from tests.incidents.conftest import train
from tests.incidents.records import Outcome
from tests.incidents.test_incidents import survived

pytestmark = pytest.mark.slow

EXPERTS = ("texture", "edge", "contrast", "semantic")
SETTINGS = (
    "model.moe.scales=[32]",
    f"model.moe.experts={json.dumps(EXPERTS)}",
    "phases.full.epochs=14",
    "schedule.name=constant",
    # As many images as an epoch has, and a bias that is faster by as much: the run is that short.
    "model.moe.balance.window_images=64",
    "model.moe.balance.bias_rate=0.27",
    # The loss that asks for balance undoes in one epoch what is done to the few weights of these routers.
    "model.moe.balance.coefficient=0",
    "ema.enabled=false",
)
SOUND_STEPS = 28
"""Before the trouble; and those after which routers are judged, 500 in a run of usual length."""
DRIVEN_STEPS = 28


@contextmanager
def after_steps(change: Callable[[Router], None], count: int) -> Iterator[None]:
    """Changes each router after so many steps from `SOUND_STEPS` on."""
    take, taken = TrainingStep.__call__, [0]

    def changed(step: TrainingStep, *arguments: Any) -> None:
        take(step, *arguments)
        taken[0] += 1
        if SOUND_STEPS < taken[0] <= SOUND_STEPS + count:
            with torch.no_grad():
                for router in step.network.routers.values():
                    change(router)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", changed)
        patch.setattr("camox.training.routing.LEARNING_STEPS", SOUND_STEPS)
        yield


def favour_a_pair(router: Router) -> None:
    """By more in each step than the balance takes back."""
    router.gate.bias[:2] += 0.3


def forget(router: Router) -> None:
    """Faster than the router learns."""
    router.gate.weight *= 0.7
    router.gate.bias *= 0.7


def signs_of(outcome: Outcome) -> list[set[str]]:
    """The signs of collapse at each validation."""
    return [set(collapse_signs(row["router"], len(EXPERTS), 2, FEWEST_IMAGES)) for row in outcome.validations]


def collapsed_at_end(outcome: Outcome) -> bool:
    """As the verdict has it, which is not given while routers choose with noise."""
    return all(signs_of(outcome)[-2:])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = train(tmp_path_factory.mktemp("undisturbed"), *SETTINGS)
    assert outcome.error == ""
    assert outcome.iou >= 0.5
    return outcome


def test_routers_that_come_to_use_one_pair(run_both, undisturbed, record):
    without, outcome = run_both(lambda: after_steps(favour_a_pair, DRIVEN_STEPS), *SETTINGS)
    assert collapsed_at_end(without), signs_of(without)
    survived(outcome, undisturbed)
    assert "router_collapse" in outcome.kinds
    assert "the balance bias moves four times as fast" in acts(outcome)
    assert not collapsed_at_end(outcome), signs_of(outcome)
    shown = [showing("pair_share", "with one pair in {:.0%} of decisions", of) for of in (without, outcome)]
    record(
        8,
        "Routers that come to use one pair of experts",
        without=shown[0],
        with_guards=shown[1],
        clean=undisturbed,
        plotted="share of the commonest pair",
    )


def test_routers_that_come_to_prefer_nothing(run_both, undisturbed, record):
    without, outcome = run_both(lambda: after_steps(forget, 10**6), *SETTINGS)
    assert all("uninformed" in signs for signs in signs_of(without)[-2:])
    survived(outcome, undisturbed)
    assert "router_collapse" in outcome.kinds
    assert "the routers' learning rate × 4" in acts(outcome)
    assert not any("uninformed" in signs for signs in signs_of(outcome)[-2:])
    shown = [showing("mutual_information", "where choices tell {:.4f} nat", of) for of in (without, outcome)]
    record(
        8,
        "Routers that come to prefer nothing",
        without=shown[0],
        with_guards=shown[1],
        clean=undisturbed,
        plotted="what choices tell, nat",
    )


def showing(measure: str, words: str, outcome: Outcome) -> Outcome:
    """The outcome with a measure of the router in the place of the score."""
    values = [row["router"][measure] for row in outcome.validations]
    rows = [row | {"plotted": value} for row, value in zip(outcome.validations, values, strict=True)]
    return outcome._replace(measured=words.format(values[-1]), validations=rows)


def acts(outcome: Outcome) -> str:
    return " ".join(event["message"] for event in outcome.events if event["kind"] == "recovery")
