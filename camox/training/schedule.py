"""Learning rate, balance coefficient and routing noise as functions of how far the run is.

But for `Plateau`, which has to remember scores, nothing here has state: a resumed run, a skipped step or a new phase
cannot leave it at another place. Positions are in epochs, as a fraction: epoch 3 after half its steps is 3.5.
"""

import math
from collections.abc import Sequence
from typing import Any

from camox.checkpoints.store import is_better


def learning_rate(
    position: float,
    total: float,
    peak: float,
    name: str,
    warmup: float = 0,
    floor: float = 0.0,
    factor: float = 1.0,
) -> float:
    """The rate at `position` of `total` epochs. `peak` may change between phases; the shape runs on.

    Rises over `warmup` epochs, linearly from 0, or for "one_cycle" along half a cosine from `peak / 25`. Then it
    follows half a cosine from `peak` to `floor` over all that is left ("cosine", "one_cycle"), or stays ("constant").
    For "multistep" and "plateau" it is `factor` times `peak`, at least `floor`, during the rise too.
    """
    if name in ("multistep", "plateau"):
        peak = max(floor, factor * peak)
    if position < warmup:
        if name == "one_cycle":
            return _half_cosine(peak / 25, peak, position / warmup)
        return peak * position / warmup
    if name in ("cosine", "one_cycle"):
        return _half_cosine(peak, floor, min(1.0, (position - warmup) / max(total - warmup, 1e-9)))
    assert name in ("constant", "multistep", "plateau"), name
    return peak


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def milestones_passed(position: float, milestones: Sequence[float]) -> int:
    """How many milestones, in epochs, lie before `position`. The step that ends an epoch has not passed its end yet."""
    return sum(milestone < position for milestone in milestones)


class Plateau:
    """How often the rate has been lowered because a measure stopped improving.

    Args:
        measure: what is watched; whether more of it is better follows from its name.
        patience: validations in a row without a new best, after which the rate is lowered and counting starts anew.
    """

    def __init__(self, measure: str, patience: int):
        self.measure = measure
        self.patience = patience
        self.reductions = 0
        self._best: float | None = None
        self._stalled = 0

    def observe(self, score: float | None) -> bool:
        """Takes in a validation's score and says whether it lowers the rate. None and NaN are no new best."""
        if score is not None and is_better(score, self._best, self.measure):
            self._best, self._stalled = score, 0
            return False
        self._stalled += 1
        if self._stalled < self.patience:
            return False
        self._stalled = 0
        self.reductions += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "stalled": self._stalled, "reductions": self.reductions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._stalled, self.reductions = state["best"], state["stalled"], state["reductions"]


def warmup_factor(position: float, warmup: float) -> float:
    """Rises linearly from 0 to 1 over `warmup` epochs."""
    return min(1.0, position / warmup) if warmup > 0 else 1.0


def balance_coefficient(position: float, warmup: float, coefficient: float, after: float | None) -> float:
    """Weight of the load-balance loss: warmed up to `coefficient`, then `after` where that is given."""
    if position >= warmup and after is not None:
        return after
    return coefficient * warmup_factor(position, warmup)


def noise_share(position: float, total: float, fraction: float) -> float:
    """What is left of the routers' exploration noise: 1 → 0 over the first `fraction` of the run."""
    return max(0.0, 1 - position / (fraction * total)) if fraction > 0 else 0.0
