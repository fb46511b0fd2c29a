"""What routers decide: summed up during training, measured and judged after each evaluation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from camox.measures.collapse import WHAT_TO_DO, CollapseVerdict, collapse_signs, is_uniform
from camox.measures.routing import RoutedImages, churn, kind_information, routing_measures
from camox.models.camoxpert import CamoXpert
from camox.models.costs import expert_costs
from camox.models.router import Router, Routing

PROBE_IMAGES = 64
LEARNING_STEPS = 500
"""Routers treat all images alike at first, and learn slowly: the quickstart's use all experts after some 250 steps."""


def routing_sums(routing: Routing, logit_limit: float) -> dict[str, Tensor]:
    """Sums over decisions as `routing_measures` takes them, on the device, which is not waited for."""
    probabilities, saturated = _distributions(routing, logit_limit)
    experts = torch.arange(probabilities.shape[1], device=probabilities.device)
    chosen = (routing.selected[:, :, None] == experts).any(dim=1).float()
    return {
        "decisions": torch.ones_like(chosen[:, 0]).sum(),
        "counts": chosen.sum(dim=0),
        "pairs": chosen.T @ chosen,
        "probabilities": probabilities.sum(dim=0),
        "entropy": torch.special.entr(probabilities).sum(),
        "saturated": saturated.sum(),
    }


def routed_images(routing: Routing, logit_limit: float, indices: Tensor, kinds: Sequence[str]) -> RoutedImages:
    """The decisions for a batch of `indices` `[B]`, on the host; regions of an image are put together."""
    probabilities, saturated = _distributions(routing, logit_limit)
    images = len(indices)
    return RoutedImages(
        indices.numpy(force=True),
        tuple(kinds),
        probabilities.unflatten(0, (images, -1)).numpy(force=True),
        routing.selected.unflatten(0, (images, -1)).numpy(force=True),
        saturated.unflatten(0, (images, -1)).numpy(force=True),
    )


def _distributions(routing: Routing, logit_limit: float) -> tuple[Tensor, Tensor]:
    """Probabilities `[N, E]` that sum to one even where they have a floor, and whether a decision is saturated `[N]`.

    It is where a logit, before it is limited, reaches the limit: "clamp" then gives the router no gradient for it,
    and "tanh" less than half of one.
    """
    probabilities = routing.probabilities / routing.probabilities.sum(dim=1, keepdim=True)
    return probabilities, (routing.raw_logits.abs() >= logit_limit).any(dim=1)


class Collapse(NamedTuple):
    """A router that has just collapsed, or still is collapsed."""

    message: str
    """The scale, the reasons with their numbers, what to look at and what to do."""

    details: dict[str, Any]
    """The same for machines: "stride", "reasons" by sign, "measures", "in_a_row", and "uniform", whether the router
    prefers no expert in any image."""


class RoutingWatch:
    """Measures a network's routers after each evaluation and says when one has collapsed.

    Between evaluations it keeps the choices for up to 64 images, spread evenly over the held-out ones, and what the
    last evaluation showed. `state_dict` is JSON-ready and belongs into a checkpoint.
    """

    def __init__(self, network: CamoXpert):
        self.network = network
        self.costs = expert_costs(network.expert_names, network.config["width"])
        """Name → multiply-adds per pixel of each expert, in order."""
        self._probe: dict[int, np.ndarray] = {}
        self._verdict = CollapseVerdict()

    def evaluate(self, routed: Mapping[int, RoutedImages], step: int) -> tuple[dict[str, float], list[Collapse]]:
        """Values under their logged names, and the routers whose collapse is to be told with this evaluation.

        Only the sparse mode is judged, and only once training no longer adds noise to the selection: until then an
        expert that evaluation never takes is not lost to training. Before `router.noise_fraction` of the run and 500
        steps, only routers are judged that were sound before.

        Args:
            routed: stride → what its router decided for all held-out images.
            step: optimizer steps so far.
        """
        of_scale = {stride: self._measures(stride, images) for stride, images in routed.items()}
        values = {
            f"val/router/stride_{stride}/{name}": value
            for stride, measures in of_scale.items()
            for name, value in measures.items()
        }
        routers = [router for router in self.network.routers.values() if isinstance(router, Router)]
        exploring = any(router.noise * router.noise_share > 0 for router in routers)
        if not of_scale or self.network.mode != "sparse" or exploring:
            return values, []
        signs = {
            stride: collapse_signs(
                measures, len(self.costs), routed[stride].selected.shape[-1], len(routed[stride].indices)
            )
            for stride, measures in of_scale.items()
        }
        early = step < LEARNING_STEPS or any(router.noise_share > 0 for router in routers)
        collapsed = self._verdict.update(signs, early)
        collapses = [
            _collapse(stride, row, signs[stride], of_scale[stride], len(self.costs))
            for stride, row in collapsed.items()
        ]
        return values | {"val/router/collapsed": float(len(self._verdict.collapsed))}, collapses

    def _measures(self, stride: int, images: RoutedImages) -> dict[str, float]:
        measures = routing_measures(images.sums(), self.costs, self.network.learns_routing)
        experts, top_k = images.probabilities.shape[-1], images.selected.shape[-1]
        if not measures or top_k == experts:  # all experts for all images: no choice that could tell or change
            return measures
        of_kind = [position for position, kind in enumerate(images.kinds) if kind]
        kinds = [images.kinds[position] for position in of_kind]
        if len(set(kinds)) > 1:
            information, by_chance = kind_information(images.choice_shares()[of_kind], kinds)
            measures["kind_information"] = information - by_chance
        if self.network.learns_routing:
            probe = np.linspace(0, len(images.indices) - 1, min(PROBE_IMAGES, len(images.indices))).round().astype(int)
            choices = images.selected[probe]
            before = self._probe.get(stride)
            if before is not None and before.shape == choices.shape:  # data may have been added since a resumed start
                measures["churn"] = churn(before, choices)
            self._probe[stride] = choices
        return measures

    def state_dict(self) -> dict[str, Any]:
        """The probe's choices and the standing of each scale."""
        probe = {str(stride): choices.tolist() for stride, choices in self._probe.items()}
        return {"probe": probe, "verdict": self._verdict.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over a saved state; an empty one, of a checkpoint without, begins anew."""
        probe = state.get("probe", {})
        self._probe = {int(stride): np.array(choices, dtype=np.int64) for stride, choices in probe.items()}
        self._verdict.load_state_dict(state.get("verdict", {}))


def _collapse(
    stride: int, in_a_row: int, signs: Mapping[str, str], measures: Mapping[str, float], experts: int
) -> Collapse:
    uniform = "uninformed" in signs and is_uniform(measures, experts)
    remedies = "; or ".join(dict.fromkeys(WHAT_TO_DO[sign] for sign in (["uninformed"] if uniform else signs)))
    message = (
        f"the router at stride {stride} has collapsed, for {in_a_row} evaluations in a row: "
        f"{'; '.join(signs.values())}. Look at val/router/stride_{stride}/ in metrics.jsonl; to do: {remedies}"
    )
    details = {"stride": stride, "reasons": dict(signs), "measures": dict(measures)}
    return Collapse(message, details | {"in_a_row": in_a_row, "uniform": uniform})
