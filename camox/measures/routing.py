"""What the routers do, in numbers: load, balance, and what their choices tell of the image.

A decision is one row of a routing: of a whole image, or of one region where regions are routed by themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DEAD_BELOW = 0.05
STARVED_BELOW = 0.25
PERMUTATIONS = 128


def routing_measures(
    sums: Mapping[str, np.ndarray], costs: Mapping[str, float], learned: bool = True
) -> dict[str, float]:
    """Measures of one router over n decisions, each for k of E experts.

    Args:
        sums: over decisions: "decisions" `[]`, their number; "counts" `[E]`, how often each expert was chosen;
            "pairs" `[E, E]`, how often two were chosen together; "probabilities" `[E]`, of softmaxes that sum to one;
            "entropy" `[]`, of these softmaxes, in nat; "saturated" `[]`, decisions with a logit at its limit.
        costs: name → multiply-adds per pixel of each expert, in order.
        learned: whether there is a router. Without one the probabilities are a matter of form.

    Returns:
        From choices, unless every decision is for all experts and so none is a choice: `usage/<expert>`, f, share of
        choices. `cost/<expert>`, share of the multiply-adds of all experts. `entropy`, H(f) in nat.
        `max_violation`, largest `E·f − 1`. `cv`, standard deviation of f divided by its mean. `dead` and `starved`,
        experts with less than 5 % and 25 % of an equal share (a dead one is also starved). `pair_share`, of the
        most frequent pair, where k > 1.

        From a router's probabilities p: `marginal_entropy`, H(mean p), `conditional_entropy`, mean H(p), and their
        difference `mutual_information` between image and expert, 0 when all are treated alike; all in nat.
        `saturation`, share of decisions with a logit at its limit.

        From both: `load_balance`, `E·Σ f·mean p`: 1 balanced, 3 when two of six experts do everything.

        Nothing without a decision, or where a probability is not finite.
    """
    decisions, counts = float(sums["decisions"]), sums["counts"]
    mean = sums["probabilities"] / max(decisions, 1)
    if decisions == 0 or not np.isfinite(mean).all():
        return {}
    load = counts / counts.sum()
    measures: dict[str, float] = {}
    if counts.sum() < decisions * len(counts):
        measures |= _choice_measures(load, costs)
        if counts.sum() > decisions:
            measures["pair_share"] = float(np.triu(sums["pairs"], 1).max() / decisions)
        if learned:
            measures["load_balance"] = float(len(load) * (load * mean).sum())
    if learned:
        marginal, conditional = _entropy(mean), float(sums["entropy"]) / decisions
        measures |= {
            "marginal_entropy": marginal,
            "conditional_entropy": conditional,
            "mutual_information": max(0.0, marginal - conditional),
            "saturation": float(sums["saturated"]) / decisions,
        }
    return measures


def _choice_measures(load: np.ndarray, costs: Mapping[str, float]) -> dict[str, float]:
    relative, spent = len(load) * load, load * np.array(list(costs.values()))
    return {
        "dead": float((relative < DEAD_BELOW).sum()),
        "starved": float((relative < STARVED_BELOW).sum()),
        "max_violation": float(relative.max() - 1),
        "cv": float(relative.std()),
        "entropy": _entropy(load),
        **{f"usage/{name}": float(share) for name, share in zip(costs, load, strict=True)},
        **{f"cost/{name}": float(share) for name, share in zip(costs, spent / spent.sum(), strict=True)},
    }


def _entropy(distribution: np.ndarray) -> float:
    """In nat; summed over distributions where there are several."""
    positive = distribution[distribution > 0]
    return float(-(positive * np.log(positive)).sum())


@dataclass(frozen=True)
class RoutedImages:
    """What one router decided for n images, for r decisions each: 1, or the regions of an image."""

    indices: np.ndarray
    """`[n]` int64: which images of the dataset."""

    kinds: tuple[str, ...]
    """Kind of each image, "" where it has none."""

    probabilities: np.ndarray
    """`[n, r, E]`, each summing to one."""

    selected: np.ndarray
    """`[n, r, k]` int64: the chosen experts, no matter in which order."""

    saturated: np.ndarray
    """`[n, r]` bool: a logit was at its limit."""

    @classmethod
    def joined(cls, parts: Sequence["RoutedImages"]) -> "RoutedImages":
        """All images of `parts`, one part at least, by their indices."""
        indices = np.concatenate([part.indices for part in parts])
        order = np.argsort(indices, kind="stable")
        kinds = [kind for part in parts for kind in part.kinds]
        return cls(
            indices[order],
            tuple(kinds[position] for position in order),
            np.concatenate([part.probabilities for part in parts])[order],
            np.concatenate([part.selected for part in parts])[order],
            np.concatenate([part.saturated for part in parts])[order],
        )

    def sums(self) -> dict[str, np.ndarray]:
        """Over all decisions, as `routing_measures` takes them."""
        experts = self.probabilities.shape[-1]
        chosen = _chosen(self.selected, experts).reshape(-1, experts).astype(np.float64)
        probabilities = self.probabilities.reshape(-1, experts).astype(np.float64)
        return {
            "decisions": np.array(float(len(chosen))),
            "counts": chosen.sum(axis=0),
            "pairs": chosen.T @ chosen,
            "probabilities": probabilities.sum(axis=0),
            "entropy": np.array(_entropy(probabilities)),
            "saturated": np.array(float(self.saturated.sum())),
        }

    def choice_shares(self) -> np.ndarray:
        """`[n, E]`: the share of each image's choices that went to each expert."""
        return choice_shares(self.selected, self.probabilities.shape[-1])


def choice_shares(selected: np.ndarray, experts: int) -> np.ndarray:
    """Share of each image's choices that went to each expert, `[n, E]`, from `selected` `[n, k]` or `[n, r, k]`."""
    shares = _chosen(selected, experts).reshape(len(selected), -1, experts).mean(axis=1)
    return shares / selected.shape[-1]


def kind_information(
    shares: np.ndarray, kinds: Sequence[str], permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[float, float]:
    """Mutual information between an image's kind and its experts, and how much of it chance alone would give.

    `I = Σ p(kind, e) log (p(kind, e) / p(kind) p(e))` in nat, where `p(kind, e)` draws an image and then one of its
    choices. A finite sample of independent kinds and choices shows some too; the second number is the mean of `I`
    over random permutations of the kinds, and the difference of the two is what the choices really tell.

    Args:
        shares: `[n, E]`, each image's choices, as `choice_shares` gives them; a row sums to one.
        kinds: of the n images.
        permutations: number of them.
        seed: of the permutations.
    """
    assert len(shares) == len(kinds) > 0, (len(shares), len(kinds))
    labels, sizes = np.unique(np.asarray(kinds), return_inverse=True, return_counts=True)[1:]
    order = np.argsort(labels, kind="stable")
    # Images in the order of their kinds, and a permutation of them: sums over runs of rows are the tables.
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(order, (permutations, 1)), axis=1)
    starts = np.concatenate([[0], sizes.cumsum()[:-1]])
    tables = np.add.reduceat(shares[np.concatenate([order[None], orders])], starts, axis=1) / len(shares)
    information = _table_information(tables)
    return float(information[0]), float(information[1:].mean())


def _table_information(joint: np.ndarray) -> np.ndarray:
    """`[…]` from joint distributions `[…, kinds, E]`, in nat."""
    independent = joint.sum(axis=-1, keepdims=True) * joint.sum(axis=-2, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return (joint * np.log(ratio)).sum(axis=(-2, -1))


def churn(before: np.ndarray, after: np.ndarray) -> float:
    """Share of choices that are others than before, from `selected` `[…, k]` of the same images twice."""
    assert before.shape == after.shape, (before.shape, after.shape)
    kept = (before[..., :, None] == after[..., None, :]).any(axis=-1)
    return float(1 - kept.mean())


def _chosen(selected: np.ndarray, experts: int) -> np.ndarray:
    """`[…, E]` bool from `selected` `[…, k]`."""
    return (selected[..., None] == np.arange(experts)).any(axis=-2)
