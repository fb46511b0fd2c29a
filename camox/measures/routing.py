"""What the routers do, in numbers: from sums over images to load, balance and information."""

from collections.abc import Sequence

import numpy as np

DEAD_BELOW = 0.05


def routing_measures(
    counts: np.ndarray, probabilities: np.ndarray, entropy: float, pairs: np.ndarray, names: Sequence[str]
) -> dict[str, float]:
    """Measures of one router over n images.

    Args:
        counts: `[E]`, how often each expert was chosen.
        probabilities: `[E]`, sum over images of the router's softmax.
        entropy: sum over images of the entropy of that softmax, in nat.
        pairs: `[E, E]`, how often two experts were chosen together (diagonal: chosen at all).
        names: of the experts.

    Returns:
        `load_balance`, `E·Σ f·P`: 1 balanced, 3 when two of six experts do everything, always unscaled.
        `usage/<expert>`, share of choices. `dead`, experts with less than 5 % of an equal share.
        `max_violation`, largest `E·f − 1`. `entropy`, of the mean choice, in nat. `mutual_information` between
        image and expert, `H(mean p) − mean H(p)`, in nat: 0 when all images are treated alike. `pair_share`, of
        the most frequent pair.
    """
    experts, choices, images = len(counts), counts.sum(), probabilities.sum()
    if choices == 0 or not np.isfinite(images) or round(images) == 0:
        return {}
    images = round(images)  # each image's probabilities sum to one, but for rounding
    load, mean = counts / choices, probabilities / images
    together = np.triu(pairs, 1).max() if experts > 1 else images
    return {
        "load_balance": float(experts * (load * mean).sum()),
        "dead": float((experts * load < DEAD_BELOW).sum()),
        "max_violation": float((experts * load).max() - 1),
        "entropy": _entropy(load),
        "mutual_information": max(0.0, _entropy(mean) - entropy / images),
        "pair_share": float(together / images),
        **{f"usage/{name}": float(share) for name, share in zip(names, load, strict=True)},
    }


def _entropy(distribution: np.ndarray) -> float:
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())
