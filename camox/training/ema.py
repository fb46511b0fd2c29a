"""An exponential moving average of the weights, with a decay that warms up and buffers that follow."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from camox.models.camoxpert import CamoXpert


class WeightAverage:
    """`average ← d·average + (1 − d)·weights` with `d = min(decay, (1 + n) / (10 + n))` at the n-th taken step.

    Without that warm-up an average with decay 0.9999 over a short run is still the random start, and its falling
    scores look like a collapse of the model. Running statistics of norms are averaged like weights; the routers'
    balance state is copied, since an averaged selection bias belongs to no router. The form of the warm-up is
    that of TensorFlow's ExponentialMovingAverage.

    `model` is the averaged network, in eval mode and without gradients. All is done on the device.
    """

    def __init__(self, network: CamoXpert, decay: float, warmup: bool):
        self.model: CamoXpert = copy.deepcopy(network)
        self.model.eval().requires_grad_(False)
        self.decay = decay
        self.warmup = warmup
        self.updates = torch.zeros((), device=next(network.parameters()).device)
        self._pairs = list(_pair(network, self.model, averaged=True))
        self._copies = list(_pair(network, self.model, averaged=False))

    @torch.no_grad()
    def update(self, taken: Tensor) -> None:
        """Follows the weights after an optimizer step; does nothing where `taken` (0-dim bool) is false."""
        decay = torch.full_like(self.updates, self.decay)
        if self.warmup:
            decay = torch.minimum(decay, (1 + self.updates) / (10 + self.updates))
        share = torch.where(taken, 1 - decay, 0.0)
        self.updates += taken
        # a + share·(w − a): with share 0 the average keeps its bits, as long as the weights are finite.
        (average_one_by_one if share.device.type == "cpu" else average_in_lists)(self._pairs, share)
        for weight, average in self._copies:
            average.copy_(weight)

    def state_tensors(self) -> dict[str, Tensor]:
        """The averaged network's weights and buffers by name."""
        return dict(self.model.state_dict())


Pairs = Sequence[tuple[Tensor, Tensor]]
"""Weight and average of each tensor."""


def average_one_by_one(pairs: Pairs, share: Tensor) -> None:
    """Moves each average by `share` (0-dim) of the way to its weight, in one pass over both; a GPU would launch a
    kernel for each."""
    for weight, average in pairs:
        average.lerp_(weight, share)


def average_in_lists(pairs: Pairs, share: Tensor) -> None:
    """The same in a few kernels for all of them, by way of a copy of the model; that costs a CPU several times as
    much."""
    ours, theirs = [average for _, average in pairs], [weight for weight, _ in pairs]
    difference = torch._foreach_sub(theirs, ours)
    torch._foreach_mul_(difference, share)
    torch._foreach_add_(ours, difference)


def _pair(network: CamoXpert, average: CamoXpert, averaged: bool) -> list[tuple[Tensor, Tensor]]:
    ours = average.state_dict(keep_vars=True)
    return [
        (weight.detach(), ours[name].detach())
        for name, weight in network.state_dict(keep_vars=True).items()
        if (weight.is_floating_point() and not name.startswith("balances.")) == averaged
    ]
