"""Suite `moe`: routers and mixtures of all four scales without the network around them, and each expert at each scale.

Timed are forward and backward. Inputs are noise of the sizes that the backbone and its laterals give. With routing
noise untrained routers choose all experts about equally often. Peak memory and waits for a GPU are those of a whole
step: suite `step` has them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarking.counters import forward_counts
from benchmarking.networks import build_network
from benchmarking.report import Report, Rows, Target, quotient
from benchmarking.settings import Settings
from benchmarking.timing import (
    UNIT,
    Sample,
    Work,
    added_up,
    cost,
    figures,
    interleaved,
    matrix_product,
    ratio,
    significant,
)
from camox.models.backbone import STRIDES
from camox.models.camoxpert import CamoXpert
from camox.models.experts import EXPERTS
from camox.models.moe import plan_dispatch

MIXTURES = ("sparse", "masked", "dense", "static", "random", "per_image_loop")
"""The variants of the network whose mixtures are measured."""


class Mixtures(nn.Module):
    """The routers and mixtures of a network, with the same dispatch."""

    def __init__(self, network: CamoXpert):
        super().__init__()
        self.routers = network.routers
        self.balances = network.balances
        self.mixtures = network.mixtures
        self.experts = len(network.expert_names)
        self.sorted = network.mode in ("sparse", "random") and network.dispatch == "sorted"

    def forward(self, features: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
        """Mixes `maps`, the laterals', as routed by `features`, the backbone's; one of each per scale."""
        routings = [
            router(feature, self.balances[stride].bias) if self.balances else router(feature)
            for (stride, router), feature in zip(self.routers.items(), features, strict=True)
        ]
        plans = plan_dispatch(routings, self.experts) if self.sorted else [None] * len(routings)
        mixtures = self.mixtures.values()
        return [
            mixture(x, routing, plan) for mixture, x, routing, plan in zip(mixtures, maps, routings, plans, strict=True)
        ]


def measure_mixtures(settings: Settings) -> Report:
    """Counts, then times: the mixtures in interleaved rounds, then the experts in theirs."""
    device = settings.torch_device
    mixtures: Rows = {}
    works: dict[str, Work] = {UNIT: matrix_product(device)}
    for name in MIXTURES:
        network = build_network(name, settings)
        features = [
            _noise(settings, channels, stride)
            for channels, stride in zip(network.backbone.channels, STRIDES, strict=True)
        ]
        maps = [_noise(settings, settings.width, stride) for stride in STRIDES]
        mixtures[name], works[name] = _measured(Mixtures(network), (features, maps), settings)
    samples = interleaved(works, settings.rounds, device)

    experts, expert_samples = _measure_experts(settings)
    results: dict[str, Rows] = {
        "mixtures": {name: {**figures(samples[name]), **row} for name, row in mixtures.items()},
        "experts": {name: {**figures(expert_samples[name]), **row} for name, row in experts.items()},
        "unit": {UNIT: figures(samples[UNIT])},
    }
    dearest, cheapest = _extremes({name: cost(expert_samples[name]) for name in experts})
    heaviest, lightest = _extremes({name: row["gmac_per_image"] for name, row in experts.items()})
    others = [name for name in MIXTURES if name != "sparse"]
    ratios: Rows = {
        "time": {f"sparse / {name}": ratio(samples["sparse"], samples[name]) for name in others},
        "operators": {
            f"sparse / {name}": quotient(mixtures, "operators_per_forward", "sparse", name) for name in others
        },
        "expert time": {f"{dearest} / {cheapest}": ratio(expert_samples[dearest], expert_samples[cheapest])},
        "expert GMAC": {f"{heaviest} / {lightest}": quotient(experts, "gmac_per_image", heaviest, lightest)},
    }
    return Report(results, ratios, _targets(mixtures, ratios), settings.of_targets)


def _measure_experts(settings: Settings) -> tuple[Rows, dict[str, list[Sample]]]:
    """Counts of each expert over all scales with its seconds at each, and its samples: those of the scales added up."""
    maps = {stride: _noise(settings, settings.width, stride) for stride in STRIDES}
    rows: Rows = {}
    works: dict[str, Work] = {}
    for name, expert in EXPERTS.items():
        module = AtEachScale(expert(settings.width)).to(settings.torch_device)
        rows[name], _ = _measured(module, (list(maps.values()),), settings)
        for stride, x in maps.items():
            works[f"{name} {stride}"] = _measured(module, ([x],), settings)[1]
    samples = interleaved(works, settings.rounds, settings.torch_device)
    totals = {}
    for name, row in rows.items():
        of_scales = [samples[f"{name} {stride}"] for stride in STRIDES]
        row |= {f"stride {stride}": significant(cost(of)) for stride, of in zip(STRIDES, of_scales, strict=True)}
        totals[name] = [added_up(of_round) for of_round in zip(*of_scales, strict=True)]
    return rows, totals


class AtEachScale(nn.Module):
    """One expert on maps of several sizes."""

    def __init__(self, expert: nn.Module):
        super().__init__()
        self.expert = expert

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The expert's response to each."""
        return [self.expert(x) for x in maps]


def _measured(module: nn.Module, inputs: tuple[Any, ...], settings: Settings) -> tuple[dict[str, Any], Work]:
    """Counts of a forward pass of `module`, and the work of a forward and a backward pass."""

    def forward() -> list[Tensor]:
        with settings.autocast():
            outputs: list[Tensor] = module(*inputs)
        return outputs

    def forward_backward() -> None:
        module.zero_grad()
        outputs = forward()
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])

    return forward_counts(forward, module, settings.batch, settings.torch_device), forward_backward


def _noise(settings: Settings, channels: int, stride: int) -> Tensor:
    # The network pads images to a multiple of 32.
    side = -(-settings.image_size // 32) * 32 // stride
    noise = torch.randn(settings.batch, channels, side, side, device=settings.torch_device)
    return noise.requires_grad_()


def _extremes(values: dict[str, float]) -> tuple[str, str]:
    """Names of the greatest and the least."""
    return max(values, key=values.__getitem__), min(values, key=values.__getitem__)


def _targets(mixtures: Rows, ratios: Rows) -> list[Target]:
    (time,), (work,) = ratios["expert time"].values(), ratios["expert GMAC"].values()
    return [
        Target("time, dearest / cheapest expert", 2, time["median"]),
        Target("GMAC, dearest / cheapest expert", 2, work),
        Target("sparse, host copies per forward", 1, mixtures["sparse"]["host_copies_per_forward"]),
    ]
