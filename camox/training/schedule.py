"""Learning rate, balance coefficient and routing noise as pure functions of how far the run is.

Nothing here has state: a resumed run, a skipped step or a new phase cannot leave it at another place. Positions
are in epochs, as a fraction: epoch 3 after half its steps is 3.5.
"""

import math


def learning_rate(
    position: float, total: float, peak: float, name: str, warmup: float = 0, floor: float = 0.0
) -> float:
    """The rate at `position` of `total` epochs.

    Rises linearly over `warmup` epochs, then stays ("constant") or follows half a cosine from `peak` to
    `floor` over all that is left ("cosine"). `peak` may change between phases; the shape runs on.
    """
    if position < warmup:
        return peak * position / warmup
    if name == "constant":
        return peak
    assert name == "cosine", name
    share = min(1.0, (position - warmup) / max(total - warmup, 1e-9))
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * share))


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
