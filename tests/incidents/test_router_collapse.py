"""Incident 8: routers that come to use one pair of experts, and routers that come to prefer nothing.

On this task a collapse costs no IoU within so few steps, so what is lost and won is the use of the experts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from camox.models.router import Router
from camox.training.step import TrainingStep

pytestmark = pytest.mark.slow

SETTINGS = (
    "model.moe.scales=[32]",
    'model.moe.experts=["texture","edge","contrast","semantic"]',
    "phases.full.epochs=14",
    "schedule.name=constant",
    # As many images as an epoch has, and a bias that is as fast against it: the run is that short.
    "model.moe.balance.window_images=64",
    "model.moe.balance.bias_rate=0.5",
    "ema.enabled=false",
)
SOUND_STEPS = 28
PLACE = "val/router/stride_32"


@contextmanager
def after_each_step(change: Callable[[Router], None]) -> Iterator[None]:
    """Changes each router after every step from `SOUND_STEPS` on."""
    take = TrainingStep.__call__
    count = [0]

    def changed(step: TrainingStep, *arguments: object) -> None:
        take(step, *arguments)
        count[0] += 1
        if count[0] > SOUND_STEPS:
            with torch.no_grad():
                for router in step.network.routers.values():
                    change(router)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingStep, "__call__", changed)
        # 500 in a run of usual length: until then routers are not judged.
        patch.setattr("camox.training.routing.LEARNING_STEPS", SOUND_STEPS)
        yield


def favour_a_pair(router: Router) -> None:
    """More each step than the balance takes back."""
    router.gate.bias[:2] += 0.2


def forget(router: Router) -> None:
    """Faster than the router learns."""
    router.gate.weight *= 0.7
    router.gate.bias *= 0.7
