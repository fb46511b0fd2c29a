"""Which experts an image is sent to: an fp32 router that the task's own gradient trains, and two untrained controls."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Routing(NamedTuple):
    """What one router decided for N images, or regions of images; all fp32, differentiable but for `selected`."""

    raw_logits: Tensor
    """`[N, E]` before they are limited: what the z-loss reads."""

    probabilities: Tensor
    """`[N, E]`, softmax over all experts: what the balance loss reads."""

    selected: Tensor
    """`[N, k]`, int64: the chosen experts, best first."""

    weights: Tensor
    """`[N, k]`, softmax over the chosen experts' logits; sums to 1 for each image unless probabilities have a floor."""


class Router(nn.Module):
    """Top-k routing from the mean and deviation of a backbone feature map `[N, C, H, W]`.

    `z = limit · tanh(gate(LN([mean x ; std x])) / (temperature · limit))`, selection by `z + bias + noise`,
    weights `softmax(z)` over the selected. The bias (see `balance.py`) and the noise choose and never weigh,
    so the gradient of the task is unbiased. Everything is fp32 with autocast off: in half precision
    near-ties would be broken by rounding.

    Args:
        channels: of the features.
        experts: number of experts to choose from.
        top_k: number chosen.
        gate: "mlp" (one hidden layer) or "linear".
        temperature: divides the logits before they are limited.
        logit_limit: logits stay within ± this value.
        logit_limit_mode: "tanh" limits smoothly; "clamp" cuts off, and beyond the limit has no gradient.
        prob_floor: least value of a probability and of a weight. Above 0 they sum to more than one and lose their
            gradient at the floor; kept for experiments that were published with it.
        noise: standard deviation of the selection noise in training, before annealing.
        hidden: width of the hidden layer of the "mlp" gate.
    """

    def __init__(
        self,
        channels: int,
        experts: int,
        top_k: int,
        gate: str = "mlp",
        temperature: float = 1.0,
        logit_limit: float = 10.0,
        logit_limit_mode: str = "tanh",
        prob_floor: float = 0.0,
        noise: float = 0.0,
        hidden: int = 64,
    ):
        super().__init__()
        self.top_k = top_k
        self.temperature = temperature
        self.logit_limit = logit_limit
        self.logit_limit_mode = logit_limit_mode
        self.prob_floor = prob_floor
        self.noise = noise
        self.noise_share = 1.0
        """What is left of the noise, in [0, 1]: the trainer anneals it."""
        self.norm = nn.LayerNorm(2 * channels)
        self.hidden = nn.Linear(2 * channels, hidden) if gate == "mlp" else None
        self.gate = nn.Linear(2 * channels if self.hidden is None else hidden, experts)
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)

    def forward(self, features: Tensor, bias: Tensor) -> Routing:
        """Routes `features` `[N, C, H, W]`; `bias` `[E]` is added for selection only."""
        with torch.autocast(features.device.type, enabled=False):
            raw = self._raw_logits(features.float())
            logits = self._limit(raw)
            scores = logits.detach() + bias
            if self.training and self.noise * self.noise_share > 0:
                scores = scores + self.noise * self.noise_share * torch.randn_like(scores)
            selected = scores.topk(self.top_k, dim=1).indices
            weights = logits.gather(1, selected).softmax(dim=1)
            probabilities = logits.softmax(dim=1)
            if self.prob_floor > 0:
                weights, probabilities = weights.clamp(min=self.prob_floor), probabilities.clamp(min=self.prob_floor)
            return Routing(raw, probabilities, selected, weights)

    def margins(self, raw_logits: Tensor, bias: Tensor) -> Tensor:
        """By how much the last of the chosen beat the first of the others, `[N]`, in units of a logit.

        Infinite where all are chosen. In evaluation, where nothing is drawn; next to zero, rounding decides the choice.
        """
        scores = self._limit(raw_logits) + bias
        if scores.shape[1] == self.top_k:
            return scores.new_full(scores.shape[:1], torch.inf)
        best = scores.topk(self.top_k + 1, dim=1).values
        return best[:, self.top_k - 1] - best[:, self.top_k]

    def _raw_logits(self, features: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(features, dim=(2, 3), correction=0)
        summary = self.norm(torch.cat([mean, deviation], dim=1))
        if self.hidden is not None:
            summary = F.gelu(self.hidden(summary))
        return self.gate(summary) / self.temperature

    def _limit(self, raw: Tensor) -> Tensor:
        if self.logit_limit_mode == "clamp":
            return raw.clamp(-self.logit_limit, self.logit_limit)
        return self.logit_limit * torch.tanh(raw / self.logit_limit)


class StaticRouting(nn.Module):
    """The control that routes nothing: every image passes through the same k experts with equal weights."""

    def __init__(self, top_k: int):
        super().__init__()
        self.top_k = top_k

    def forward(self, images: Tensor) -> Routing:
        """`images` `[N, …]` only says how many there are and where."""
        return _equal_weights(torch.arange(self.top_k, device=images.device).repeat(images.shape[0], 1), self.top_k)


class RandomRouting(nn.Module):
    """The control that routes blindly: k of E experts by chance, with equal weights.

    In training the choice is drawn anew each time. In evaluation it is a hash of the image's own pixels, so that a
    prediction repeats and does not depend on batch-mates; regions of one and the same content are routed alike. `salt`
    keeps scales from choosing alike.
    """

    def __init__(self, experts: int, top_k: int, salt: int):
        super().__init__()
        self.experts = experts
        self.top_k = top_k
        self.salt = salt

    def forward(self, images: Tensor) -> Routing:
        """`images` `[N, 3, h, w]` in [0, 1]."""
        scores = self._draw(images) if self.training else self._hash(images)
        return _equal_weights(scores.topk(self.top_k, dim=1).indices, self.experts)

    def _draw(self, images: Tensor) -> Tensor:
        return torch.rand(len(images), self.experts, device=images.device)

    def _hash(self, images: Tensor) -> Tensor:
        # Whole numbers: their sum is exact in any order, so it is the same in any batch. Weighted by position, or an
        # image and its mirror image would be one.
        pixels = (images.float() * 255).round().long().flatten(1)
        key = (pixels * (torch.arange(pixels.shape[1], device=images.device) % 8191 + 1)).sum(dim=1)
        experts = torch.arange(1, self.experts + 1, device=images.device)
        mixed = key[:, None] * 0x9E3779B1 + experts * 0x85EBCA77 + self.salt
        for _ in range(2):  # the finaliser of a common 32-bit integer hash
            mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
        return mixed ^ (mixed >> 16)


def _equal_weights(selected: Tensor, experts: int) -> Routing:
    images, top_k = selected.shape
    zeros = torch.zeros(images, experts, device=selected.device)
    return Routing(zeros, zeros + 1 / experts, selected, zeros.new_full((images, top_k), 1 / top_k))


def count_choices(selected: Tensor, experts: int) -> Tensor:
    """How often each expert is in `selected` `[N, k]`: int64 `[E]`, without a sync (`bincount` would)."""
    return F.one_hot(selected.flatten(), experts).sum(dim=0)
