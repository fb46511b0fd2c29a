"""Region losses: how well a mask is filled, with more weight where filling it is hard.

Every loss here takes logits and a mask of the same size, computes in fp32, and returns one value per image.
"""

import torch.nn.functional as F
from torch import Tensor


def structure_loss(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Weighted binary cross-entropy plus weighted IoU loss, `[B, 1, H, W]` each → `[B]`, ≥ 0.

    After F³Net (Wei et al., 2020). Several public versions pass `reduce='none'` to the cross-entropy, which
    averages it to a scalar before the weights apply; here each pixel keeps its own weight.

    Args:
        logits: before the sigmoid, any float type.
        mask: in [0, 1]; may be soft (a mask averaged down to a coarser stride).
        weight: ≥ 1, from `difficulty_weight`.
    """
    return weighted_bce(logits, mask, weight) + weighted_iou_loss(logits, mask, weight)


def weighted_bce(logits: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Mean over pixels of the binary cross-entropy with those weights, per image: `[B]`."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), mask.float(), reduction="none")
    return (weight * loss).sum(dim=(1, 2, 3)) / weight.sum(dim=(1, 2, 3))


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
    surroundings are the odd number of cells nearest to 31 image pixels, at least 3.
    """
    mask = mask.float()
    size = max(3, round(31 / stride) // 2 * 2 + 1)
    # Two passes instead of one 31×31 window: 62 additions per pixel, not 961. Zeros count at the frame, as in F³Net.
    surroundings = F.avg_pool2d(mask, (size, 1), stride=1, padding=(size // 2, 0))
    surroundings = F.avg_pool2d(surroundings, (1, size), stride=1, padding=(0, size // 2))
    return 1 + 5 * (surroundings - mask).abs()
