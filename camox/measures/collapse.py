"""Whether a router has collapsed: signs in the measures of one evaluation, and their persistence over two."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from camox.measures.routing import DEAD_BELOW

PAIR_SHARE_ABOVE = 0.9
INFORMATION_BELOW = 0.002
"""In nat. Untrained routers show up to 0.0005; the quickstart's, whose choices matter, 0.01 to 0.07 at its end."""
EFFECTIVE_EXPERTS_BELOW = 3.0
SATURATION_ABOVE = 0.5
FEWEST_IMAGES = 32
"""Evaluations over fewer say nothing: an expert with half of an equal share often gets none of them."""

UNIFORM_ABOVE = 0.95
"""Of the entropy of equal probabilities: from there on a router prefers nothing, in no image."""

WHAT_TO_DO = {
    "dead": "lower optimizer.router_lr_mult or raise model.moe.balance.bias_rate (of kind band)",
    "one_pair": "lower optimizer.router_lr_mult or raise model.moe.balance.bias_rate (of kind band)",
    "few_experts": "lower optimizer.router_lr_mult or raise model.moe.balance.bias_rate (of kind band)",
    "uninformed": "raise optimizer.router_lr_mult or lower model.moe.balance.coefficient",
    "saturated": "raise model.moe.balance.z_loss or lower optimizer.router_lr_mult",
}
"""A first remedy for each sign, in the words of an experiment file."""


class CollapseLimits(NamedTuple):
    """Where the signs of collapse begin for a router of some size."""

    dead_below: float
    """Of an equal share of the choices."""
    pair_share_above: float | None
    """Of the decisions; None where a decision takes other than two experts, and says nothing."""
    effective_experts_below: float
    """`exp(H(f))`."""
    information_below: float
    """In nat."""
    saturation_above: float
    """Of the decisions."""


def collapse_limits(experts: int, top_k: int) -> CollapseLimits:
    """The limits for a router that takes `top_k` of so many experts: one place for the verdict and for pages."""
    return CollapseLimits(
        dead_below=DEAD_BELOW,
        pair_share_above=PAIR_SHARE_ABOVE if top_k == 2 else None,
        effective_experts_below=min(EFFECTIVE_EXPERTS_BELOW, experts / 2),
        information_below=INFORMATION_BELOW,
        saturation_above=SATURATION_ABOVE,
    )


def collapse_signs(measures: Mapping[str, float], experts: int, top_k: int, images: int) -> dict[str, str]:
    """Signs of collapse that one evaluation of one learned router shows, each with a sentence for people.

    * "dead": an expert gets less than 5 % of an equal share of the choices.
    * "one_pair": of two experts per decision, one pair takes more than 90 % of the decisions. (With more experts per
      decision a pair may be in all of them and leave the others free.)
    * "few_experts": `exp(H(f))`, the number of experts in effect, is below 3, or below half of fewer than six.
    * "uninformed": the mutual information between image and expert is below 0.002 nat: the router treats all
      alike. Perfect balance may hide that.
    * "saturated": in more than half of the decisions a logit is at its limit.

    Args:
        measures: of `routing_measures`; what it left out shows no sign.
        experts: E; a single one is no choice and shows no sign.
        top_k: experts per decision.
        images: how many the measures are of; below 32 there is no sign.
    """
    if experts < 2 or images < FEWEST_IMAGES:
        return {}
    limits = collapse_limits(experts, top_k)
    signs: dict[str, str] = {}
    least = min(
        ((share, name) for name, share in measures.items() if name.startswith("usage/")), default=(float("inf"), "")
    )
    if experts * least[0] < limits.dead_below:
        name, of_equal = least[1].removeprefix("usage/"), experts * least[0]
        limit = f"limit {limits.dead_below:.0%}"
        signs["dead"] = f'expert "{name}" gets {of_equal:.1%} of an equal share of the choices ({limit})'
    most = limits.pair_share_above
    if most is not None and (pair := measures.get("pair_share", 0.0)) > most:
        signs["one_pair"] = f"one pair of experts takes {pair:.1%} of the decisions (limit {most:.0%})"
    effective, fewest = np.exp(measures.get("entropy", np.inf)), limits.effective_experts_below
    if effective < fewest:
        signs["few_experts"] = f"{effective:.2f} of {experts} experts do the work in effect (limit {fewest:g})"
    if (information := measures.get("mutual_information", np.inf)) < limits.information_below:
        limit = f"limit {limits.information_below:g}"
        signs["uninformed"] = f"experts tell {information:.4f} nat about the image ({limit}): all are treated alike"
    if (saturation := measures.get("saturation", 0.0)) > limits.saturation_above:
        limit = f"limit {limits.saturation_above:.0%}"
        signs["saturated"] = f"in {saturation:.1%} of the decisions a logit is at its limit ({limit})"
    return signs


def is_uniform(measures: Mapping[str, float], experts: int) -> bool:
    """Whether a router gives all experts about the same probability in every image: it needs to learn faster, and
    more balance would only hold it where it is. The choice may still be one pair's, by a hair."""
    return measures.get("conditional_entropy", 0.0) > UNIFORM_ABOVE * np.log(experts)


class CollapseVerdict:
    """Collapse of a scale: a sign, whichever, at that scale in two evaluations in a row.

    One evaluation alone may catch a router in passing; and one that has learned nothing yet shows every sign, so that
    early in a run only scales are judged that showed none before. One that lasts is told again after 4, 8, 16 …
    evaluations in a row: what was done about it has had its time. `state_dict` is JSON-ready; a resumed run goes on
    with what the last evaluation said.
    """

    def __init__(self) -> None:
        self._in_a_row: dict[int, int] = {}
        self._were_healthy: set[int] = set()

    def update(self, signs: Mapping[int, Mapping[str, str]], early: bool = False) -> dict[int, int]:
        """Takes in the signs of one evaluation, stride → sign → sentence; gives the strides whose collapse is to be
        told, each with the number of evaluations in a row that showed it."""
        self._were_healthy |= {stride for stride, found in signs.items() if not found}
        judged = [stride for stride, found in signs.items() if found and (stride in self._were_healthy or not early)]
        self._in_a_row = {stride: self._in_a_row.get(stride, 0) + 1 for stride in judged}
        return {stride: count for stride, count in self._in_a_row.items() if count >= 2 and count & (count - 1) == 0}

    @property
    def collapsed(self) -> list[int]:
        """Strides that are collapsed as of the last evaluation."""
        return [stride for stride, count in self._in_a_row.items() if count >= 2]

    def state_dict(self) -> dict[str, Any]:
        in_a_row = {str(stride): count for stride, count in self._in_a_row.items()}
        return {"in_a_row": in_a_row, "were_healthy": sorted(self._were_healthy)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._in_a_row = {int(stride): count for stride, count in state.get("in_a_row", {}).items()}
        self._were_healthy = set(state.get("were_healthy", ()))
