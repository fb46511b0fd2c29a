"""Keeps experts alive without forcing them to equal shares: loads over a window of images, a band, a bias.

A batch of 8 to 12 images says nothing about balance (uniform random routing of 8 images already shows a
violation of 0.72), so counts are smoothed over a window of images and the batch itself is never judged.
"""

import torch
from torch import Tensor, nn


class LoadBalance(nn.Module):
    """The load of each expert over the last images, and the selection bias that the band rule derives from it.

    Both are fp32 buffers, saved with the model: a resumed run routes as the interrupted one did.
    `load` is the smoothed share of (image, choice) pairs per expert and sums to 1; `bias` is centred and
    limited to ±`bias_limit` (scaled down as a whole, which keeps it centred).
    """

    load: Tensor
    bias: Tensor
    bias_limit = 2.0
    bias_decay = 1e-3

    def __init__(
        self,
        experts: int,
        top_k: int,
        window_images: float = 512,
        band: tuple[float, float] = (0.5, 2.0),
        bias_rate: float = 1e-2,
    ):
        super().__init__()
        self.top_k = top_k
        self.window_images = window_images
        self.band = band
        self.bias_rate = bias_rate
        self.register_buffer("load", torch.full((experts,), 1 / experts))
        self.register_buffer("bias", torch.zeros(experts))

    @torch.no_grad()
    def update(self, counts: Tensor, taken: Tensor) -> None:
        """Takes in the choices of one optimizer step over all micro-batches and ranks.

        Args:
            counts: `[E]` fp32, how often each expert was chosen.
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

    def loss(self, probabilities: Tensor) -> Tensor:
        """`E · Σ load·P − 1`: 0 when balanced, 2 when two of six experts do everything.

        `P` is this rank's mean of `probabilities` `[B, E]` and carries the gradient; `load` is global and
        constant, so averaging gradients over ranks is exact.
        """
        return probabilities.shape[1] * (self.load * probabilities.mean(dim=0)).sum() - 1


def z_loss(raw_logits: Tensor) -> Tensor:
    """`mean (logsumexp z)²` of raw router logits `[B, E]`: keeps them small where the soft cap has no gradient left.

    After ST-MoE (Zoph et al., 2022).
    """
    return raw_logits.logsumexp(dim=1).square().mean()
