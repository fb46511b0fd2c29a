"""What the coarse mask missed and where its boundary is: reverse attention, boundary uncertainty, refinement."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camox.models.decoder import FusionBlock, depthwise_field

LOG_VARIANCE_LIMIT = 7.0


class ReverseAttention(nn.Module):
    """Features × (1 − σ(coarse logits)): looks where nothing was found yet (Chen et al., 2018).

    The coarse prediction is detached: it is told what it missed by its own loss, not through this gate.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.look = FusionBlock(channels, channels)

    def forward(self, features: Tensor, coarse_logits: Tensor) -> Tensor:
        missed = features * (1 - coarse_logits.detach().sigmoid())
        return features + self.look(missed)


class BoundaryUncertainty(nn.Module):
    """The boundary's mean logit and log-variance for each pixel, both `[B, 1, H, W]`.

    The log-variance is limited smoothly to ±7 so that a proper likelihood of it can neither explode nor vanish.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(channels, channels // 2, 1), nn.GELU())
        self.predict = nn.Conv2d(channels // 2, 2, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.predict(self.head(features)).split(1, dim=1)
        limited = LOG_VARIANCE_LIMIT * torch.tanh(log_variance.float() / LOG_VARIANCE_LIMIT)
        return mean, limited


class Refinement(nn.Module):
    """One step: a residual to the previous logits from features, logits, boundary and uncertainty, all at stride 4.

    Gives fp32 logits, whatever it is given.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.enter = nn.Conv2d(channels + 3, channels // 2, 1)
        self.spatial = depthwise_field(channels // 2)
        self.leave = nn.Conv2d(channels // 2, 1, 1)
        nn.init.normal_(self.leave.weight, std=1e-3)  # the first residuals are next to nothing

    def forward(self, features: Tensor, logits: Tensor, boundary: Tensor, uncertainty: Tensor) -> Tensor:
        # Logits are squashed: a confident ±40 would drown the features.
        clues = [features, torch.tanh(logits / 4).to(features.dtype), boundary.sigmoid().to(features.dtype)]
        x = self.enter(torch.cat([*clues, uncertainty.to(features.dtype)], dim=1))
        # In fp32: beside a logit of 8, half precision rounds a residual below 0.03 (bf16) to nothing.
        return logits.float() + self.leave(F.gelu(self.spatial(F.gelu(x)))).float()


def relative_deviation(log_variance: Tensor, height: int, width: int) -> Tensor:
    """Standard deviation in units of the largest in the same image: `[B, 1, H, W]` → (0, 1].

    Per image, so that a prediction never depends on its batch-mates. Only the first `height` rows and `width` columns
    are looked at for the largest: what was padded is not part of the image, and is limited to 1.
    """
    deviation = (log_variance / 2).exp()
    largest = deviation[..., :height, :width].amax(dim=(1, 2, 3), keepdim=True)
    return (deviation / largest).clamp(max=1)
