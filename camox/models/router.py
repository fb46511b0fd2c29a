"""Which experts an image is sent to: an fp32 router that the task's own gradient trains."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Routing(NamedTuple):
    """What one router decided for a batch; all fp32, differentiable but for `selected`."""

    raw_logits: Tensor
    """`[B, E]` before the soft cap: what the z-loss reads."""

    probabilities: Tensor
    """`[B, E]`, softmax over all experts: what the balance loss reads."""

    selected: Tensor
    """`[B, k]`, int64: the chosen experts, best first."""

    weights: Tensor
    """`[B, k]`, softmax over the chosen experts' logits; sums to 1 for each image."""


class Router(nn.Module):
    """Per-image top-k routing from the mean and deviation of a backbone feature map `[B, C, H, W]`.

    `z = limit · tanh(MLP(LN([mean x ; std x])) / (temperature · limit))`, selection by `z + bias + noise`,
    weights `softmax(z)` over the selected. The bias (see `balance.py`) and the noise choose and never weigh,
    so the gradient of the task is unbiased. Everything is fp32 with autocast off: in half precision
    near-ties would be broken by rounding.
    """

    def __init__(
        self,
        channels: int,
        experts: int,
        top_k: int,
        temperature: float = 1.0,
        logit_limit: float = 10.0,
        noise: float = 1.0,
        hidden: int = 64,
    ):
        super().__init__()
        self.top_k = top_k
        self.temperature = temperature
        self.logit_limit = logit_limit
        self.noise = noise
        self.noise_share = 1.0
        """What is left of the noise, in [0, 1]: the trainer anneals it."""
        self.norm = nn.LayerNorm(2 * channels)
        self.hidden = nn.Linear(2 * channels, hidden)
        self.gate = nn.Linear(hidden, experts)
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.zeros_(self.gate.bias)

    def forward(self, features: Tensor, bias: Tensor) -> Routing:
        """Routes `features` `[B, C, H, W]`; `bias` `[E]` is added for selection only."""
        with torch.autocast(features.device.type, enabled=False):
            deviation, mean = torch.std_mean(features.float(), dim=(2, 3), correction=0)
            summary = self.norm(torch.cat([mean, deviation], dim=1))
            raw = self.gate(nn.functional.gelu(self.hidden(summary))) / self.temperature
            logits = self.logit_limit * torch.tanh(raw / self.logit_limit)
            scores = logits.detach() + bias
            if self.training and self.noise * self.noise_share > 0:
                scores = scores + self.noise * self.noise_share * torch.randn_like(scores)
            selected = scores.topk(self.top_k, dim=1).indices
            weights = logits.gather(1, selected).softmax(dim=1)
            return Routing(raw, logits.softmax(dim=1), selected, weights)
