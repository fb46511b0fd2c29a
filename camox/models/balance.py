"""Keeps experts alive without forcing them to equal shares: loads over a window of images, a band, a bias.

A batch of 8 to 12 images says nothing about balance (uniform random routing of 8 images already shows a
violation of 0.72), so counts are smoothed over a window of images and the batch itself is never judged.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from camox.models.router import Routing, count_choices

BALANCE_KINDS = ("band", "switch", "importance", "none")


class LoadBalance(nn.Module):
    """The load of each expert over the last images, and the selection bias that the band rule derives from it.

    Both are fp32 buffers, saved with the model: a resumed run routes as the interrupted one did.
    `load` is the smoothed share of (image, choice) pairs per expert and sums to 1; `bias` is centred and
    limited to ±`bias_limit` (scaled down as a whole, which keeps it centred), in `CamoXpert` the limit of the logits: a
    smaller one leaves experts dead whose logits have fallen behind by more.
    """

    load: Tensor
    bias: Tensor
    bias_decay = 1e-3

    def __init__(
        self,
        experts: int,
        top_k: int,
        window_images: float = 512,
        band: tuple[float, float] = (0.5, 2.0),
        bias_rate: float = 5e-2,
        bias_limit: float = 10.0,
    ):
        super().__init__()
        self.top_k = top_k
        self.window_images = window_images
        self.band = band
        self.bias_rate = bias_rate
        self.bias_limit = bias_limit
        self.register_buffer("load", torch.full((experts,), 1 / experts))
        self.register_buffer("bias", torch.zeros(experts))

    @torch.no_grad()
    def update(self, counts: Tensor, taken: Tensor) -> None:
        """Takes in the choices of one optimizer step over all micro-batches and ranks.

        Args:
            counts: `[E]` fp32, how often each expert was chosen, in images: a region of a grid is its share of one.
            taken: `[]` bool; where false (the step was skipped) nothing changes. Read on the device: no sync.
        """
        experts = len(counts)
        images = counts.sum() / self.top_k
        keep = torch.exp2(-images / self.window_images)
        load = keep * self.load + (1 - keep) * counts / counts.sum().clamp(min=1)
        relative = experts * load
        low, high = self.band
        push = (low - relative).clamp(min=0) - (relative - high).clamp(min=0)
        bias = (1 - self.bias_decay) * self.bias + self.bias_rate * images / 24 * push
        bias = bias - bias.mean()
        bias = bias * (self.bias_limit / bias.abs().max().clamp(min=self.bias_limit))
        valid = taken & (images > 0)
        self.load.copy_(torch.where(valid, load, self.load))
        self.bias.copy_(torch.where(valid, bias, self.bias))


class RoutingObjective:
    """What routers are asked beside the task: balance, few large logits, and, if wanted, use of all experts.

    Gradients that are averaged over ranks are those of the batch of all ranks. "band" and "z_loss" are means over
    images, loads being global and constant, so these are exact by themselves, over micro-batches too. The others are
    functions of the batch's own shares, which are therefore averaged over ranks first, those of each micro-batch by
    itself: what the other micro-batches of the step will choose is not known yet. The terms, each the mean over scales:

    * "balance" by `kind`, with `P` the mean probability of each of E experts over the batch:
      "band" `E · Σ load·P − 1`, load smoothed over a window of images and all ranks: 0 when balanced, 2 when two of six
      experts do everything; "switch" the same with the batch's own choices as load (Fedus et al., 2021);
      "importance" `Σ (P − 1/E)²`; "none" is 0.
    * "z_loss" `mean (logsumexp z)²` of the raw logits (Zoph et al., 2022): keeps them small where the limit has no
      gradient left.
    * "entropy" `log E − H(P)` ≥ 0: all experts used over the batch. Of a single image it asks for indecision.
    * "mutual_information" `mean H(p) − H(P)` ≤ 0: moreover each image decided. Of a single image it is 0.
    """

    def __init__(self, kind: str, z_loss: float, entropy: float = 0.0, mutual_information: float = 0.0):
        assert kind in BALANCE_KINDS, kind
        self.kind = kind
        weights = {"z_loss": z_loss, "entropy": entropy, "mutual_information": mutual_information}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}

    @property
    def reads_the_batch(self) -> bool:
        """Whether a term is no mean over images."""
        return self.kind in ("switch", "importance") or not {"entropy", "mutual_information"}.isdisjoint(self.weights)

    def __call__(
        self,
        routings: Mapping[int, Routing],
        loads: Mapping[int, Tensor],
        coefficient: float,
        mean_over_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum and the unweighted terms, 0-dimensional.

        Args:
            routings: stride → decision for the batch.
            loads: stride → `[E]`, the running load of that scale.
            coefficient: weight of "balance" at this step.
            mean_over_ranks: of a tensor, which carries no gradient; collective. Called once if `reads_the_batch`, else
                never. Ranks have batches of one size. Without it the batch is this rank's.
        """
        shares = {stride: _shares(routing, self.kind == "switch") for stride, routing in routings.items()}
        if mean_over_ranks is not None and self.reads_the_batch:
            shares = _of_all_ranks(shares, mean_over_ranks)
        terms = {
            name: torch.stack(
                [self._term(name, routing, shares[stride], loads[stride]) for stride, routing in routings.items()]
            ).mean()
            for name in ("balance", *self.weights)
        }
        total = coefficient * terms["balance"]
        for name, weight in self.weights.items():
            total = total + weight * terms[name]
        return total, terms

    def _term(self, name: str, routing: Routing, shares: "_Shares", load: Tensor) -> Tensor:
        mean = shares.probabilities
        match name:
            case "balance":
                return self._balance(shares, load)
            case "z_loss":
                return z_loss(routing.raw_logits)
            case "entropy":
                return math.log(len(mean)) - torch.special.entr(mean).sum()
            case "mutual_information":
                return torch.special.entr(routing.probabilities).sum(dim=1).mean() - torch.special.entr(mean).sum()
        raise AssertionError(name)

    def _balance(self, shares: "_Shares", load: Tensor) -> Tensor:
        mean = shares.probabilities
        match self.kind:
            case "band":
                return len(mean) * (load * mean).sum() - 1
            case "switch":
                assert shares.choices is not None
                return len(mean) * (shares.choices * mean).sum() - 1
            case "importance":
                return (mean - 1 / len(mean)).square().sum()
        return mean.new_zeros(())


class _Shares(NamedTuple):
    """Of the E experts in a batch, `[E]` each, fp32."""

    probabilities: Tensor
    """Mean over images, with the gradient of this rank's."""

    choices: Tensor | None = None
    """Share of all (image, choice) pairs, where it is asked for; a constant."""


def _shares(routing: Routing, choices: bool) -> _Shares:
    mean = routing.probabilities.mean(dim=0)
    if not choices:
        return _Shares(mean)
    return _Shares(mean, count_choices(routing.selected, len(mean)) / routing.selected.numel())


def _of_all_ranks(shares: Mapping[int, _Shares], mean_over_ranks: Callable[[Tensor], Tensor]) -> dict[int, _Shares]:
    """Shares in the batch of all ranks, by one reduction for all scales.

    Their values are those of all ranks, their gradients those of this rank's images. Of R ranks, `P = Σ P_r / R`, so
    the gradient wanted is `Σ ∂L/∂P · ∂P_r / R`: the mean over ranks of the one here, and nothing to reduce in the
    backward pass.
    """
    ours = torch.stack([torch.stack([of for of in shared if of is not None]) for shared in shares.values()])
    theirs = mean_over_ranks(ours.detach()) - ours.detach()
    return {stride: _Shares(*values.unbind()) for stride, values in zip(shares, ours + theirs, strict=True)}


def z_loss(raw_logits: Tensor) -> Tensor:
    """`mean (logsumexp z)²` of raw router logits `[N, E]`."""
    return raw_logits.logsumexp(dim=1).square().mean()
