"""Where the object's boundary is, and how sure the model may be of it."""

import torch
import torch.nn.functional as F
from torch import Tensor

# exp(7) is the largest variance the model can state; the offset keeps the likelihood term at or above zero.
_LOG_VARIANCE_LIMIT = 7.0


def boundary_band(mask: Tensor) -> Tensor:
    """Pixels whose 3×3 neighbourhood holds both object and background: `[B, 1, H, W]` → the same, in [0, 1].

    The frame of the image is not a boundary: max pooling pads with −inf, so nothing outside counts.
    """
    mask = mask.float()
    dilated = F.max_pool2d(mask, 3, stride=1, padding=1)
    eroded = -F.max_pool2d(-mask, 3, stride=1, padding=1)
    return dilated - eroded


def boundary_loss(logits: Tensor, band: Tensor) -> Tensor:
    """Cross-entropy plus Dice loss on the boundary band, per image: `[B]`, ≥ 0.

    A band is a few per cent of an image; without the Dice part predicting none at all would be nearly free.
    """
    logits, band = logits.float(), band.float()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, band, reduction="none").mean(dim=(1, 2, 3))
    probability = logits.sigmoid()
    overlap = 2 * (probability * band).sum(dim=(1, 2, 3)) + 1
    dice = 1 - overlap / ((probability.square() + band.square()).sum(dim=(1, 2, 3)) + 1)
    return cross_entropy + dice


def uncertainty_loss(log_variance: Tensor, logits: Tensor, band: Tensor) -> Tensor:
    """Gaussian negative log-likelihood of the boundary's own error under the stated variance: `[B]`, ≥ 0.

    `½ (e²·exp(−v) + v)` with `e = σ(logits) − band` detached is a proper score: it is smallest where exp(v) is
    the expected squared error, so the model gains nothing from claiming doubt or certainty it has not.
    """
    error = (logits.detach().float().sigmoid() - band.float()).square()
    log_variance = log_variance.float()
    likelihood = 0.5 * (error * torch.exp(-log_variance) + log_variance + _LOG_VARIANCE_LIMIT)
    return likelihood.mean(dim=(1, 2, 3))
