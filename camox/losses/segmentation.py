"""Region losses: how well a mask is filled.

Every loss here takes logits and a mask of the same size, `[B, 1, H, W]` each, computes in fp32, and returns one value
per image, `[B]`. It is finite with a finite gradient for images without an object and for images that are all object.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def structure_loss(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Weighted binary cross-entropy plus weighted IoU loss, `[B, 1, H, W]` each → `[B]`, ≥ 0.

    After F³Net (Wei et al., 2020). Each pixel keeps its own weight; `structure_legacy_loss` says where it has not.

    Args:
        logits: before the sigmoid, any float type.
        mask: in [0, 1]; may be soft (a mask averaged down to a coarser stride).
        weight: ≥ 1, from `difficulty_weight`.
    """
    return weighted_bce(logits, mask, weight) + weighted_iou_loss(logits, mask, weight)


def structure_legacy_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """The structure loss as much published code computes it: without weights in its cross-entropy. `[B]`, ≥ 0.

    That code passes `reduce='none'` where `reduction='none'` was meant. The old argument is a flag, any string counts
    as true, and the cross-entropy comes back as one mean over batch and pixels; weighting a constant and dividing by
    the weights leaves it as it was. Only the IoU part then looks at boundaries. Kept to repeat results obtained with
    it; here the mean is over each image, which over a batch comes to the same.
    """
    return bce_loss(logits, mask) + weighted_iou_loss(logits, mask, difficulty_weight(mask))


def bce_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean binary cross-entropy over pixels, ≥ 0."""
    return _cross_entropy(logits, mask).mean(dim=(1, 2, 3))


def iou_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """`1 − (Σ p·m + 1) / (Σ (p + m − p·m) + 1)`, in [0, 1)."""
    return tversky_loss(logits, mask, false_positives=1.0, false_negatives=1.0)


def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """`1 − (2 Σ p·m + 2) / (Σ (p + m) + 2)`, in [0, 1)."""
    return tversky_loss(logits, mask, false_positives=0.5, false_negatives=0.5)


def tversky_loss(logits: Tensor, mask: Tensor, false_positives: float = 0.3, false_negatives: float = 0.7) -> Tensor:
    """`1 − (TP + 1) / (TP + α·FP + β·FN + 1)` of soft counts, in [0, 1).

    By default α = 0.3 and β = 0.7 (Salehi et al., 2017): a missed pixel costs more than a false alarm, which small
    objects need. α = β = 1 is the IoU, α = β = ½ the Dice loss. The 1 keeps an image without an object defined: there
    the loss falls with the area predicted.
    """
    probability, mask = logits.float().sigmoid(), mask.float()
    overlap = (probability * mask).sum(dim=(1, 2, 3))
    alarms = (probability * (1 - mask)).sum(dim=(1, 2, 3))
    misses = ((1 - probability) * mask).sum(dim=(1, 2, 3))
    return 1 - (overlap + 1) / (overlap + false_positives * alarms + false_negatives * misses + 1)


def focal_loss(logits: Tensor, mask: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Mean over pixels of `α_t·(1 − p_t)^γ·(−log p_t)`, ≥ 0; α of the object, 1 − α of the background.

    The numbers of Lin et al. (2017); α below ½ goes with γ = 2, which has taken most of the easy background away.
    """
    probability, mask = logits.float().sigmoid(), mask.float()
    missing = probability * (1 - mask) + (1 - probability) * mask
    balance = alpha * mask + (1 - alpha) * (1 - mask)
    return (balance * missing**gamma * _cross_entropy(logits, mask)).mean(dim=(1, 2, 3))


def balanced_bce(logits: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy in which object and background weigh half each, however small the object: `[B]`, ≥ 0.

    The mean of −log p over the object and of −log(1 − p) over the background, each cell of a soft mask counting in both
    by its share. Where there is only one of the two, that one has the whole weight.
    """
    logits, mask = logits.float(), mask.float()
    means, present = [], []
    for part, loss in ((mask, F.softplus(-logits)), (1 - mask, F.softplus(logits))):
        area = part.sum(dim=(1, 2, 3))
        means.append((part * loss).sum(dim=(1, 2, 3)) / torch.where(area > 0, area, 1.0))
        present.append((area > 0).float())
    return torch.stack(means).sum(dim=0) / torch.stack(present).sum(dim=0)


def _cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), mask.float(), reduction="none")


def weighted_bce(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Mean over pixels of the binary cross-entropy with those weights, per image: `[B]`."""
    return (weight * _cross_entropy(logits, mask)).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))


def weighted_iou_loss(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """`1 − (Σ w·p·m + 1) / (Σ w·(p + m − p·m) + 1)` per image, in [0, 1): `[B]`.

    The 1 keeps an image without an object defined: there the loss falls with the area predicted.
    """
    probability, mask = logits.float().sigmoid(), mask.float()
    intersection = (weight * probability * mask).sum(dim=(1, 2, 3))
    union = (weight * (probability + mask - probability * mask)).sum(dim=(1, 2, 3))
    return 1 - (intersection + 1) / (union + 1)


def difficulty_weight(mask: Tensor, stride: int = 1) -> Tensor:
    """`1 + 5·|mean of the 31×31 surroundings − mask|`: up to 6 at boundaries and on thin parts.

    `mask` is `[B, 1, H, W]` in [0, 1]; `stride` says how much coarser than the image it is: there the
    surroundings are an odd number of cells that covers 31 image pixels: 9 at stride 4, 5 at 8, 3 at 16 and 32.
    """
    mask = mask.float()
    size = max(3, round(31 / stride) // 2 * 2 + 1)
    # Two passes instead of one 31×31 window: 62 additions per pixel, not 961. Zeros count at the frame, as in F³Net.
    surroundings = F.avg_pool2d(mask, (size, 1), stride=1, padding=(size // 2, 0))
    surroundings = F.avg_pool2d(surroundings, (1, size), stride=1, padding=(0, size // 2))
    return 1 + 5 * (surroundings - mask).abs()
