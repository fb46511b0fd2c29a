"""How far the predicted map is from the mask in frequency space."""

import torch
from torch import Tensor


def frequency_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean modulus of the difference of two orthonormal spectra, of σ(logits) and of the mask: `[B]`, in [0, 1].

    `Σ_k |F(p) − F(m)| / (H·W)` over all H·W frequencies of `[B, 1, H, W]` maps. An orthonormal transform keeps the sum
    of squares, so the loss is at most the root mean squared error, whatever the size of the image; without it the
    values would grow with the area, and dividing by the area would leave next to nothing of them. The constant
    frequency, which holds the mean of the map, is one of the H·W and weighs as much as any other: left out, a map
    that is wrong everywhere by the same amount would cost nothing; and it cannot drown the others.

    fp32 inside: half precision has no transform for most sizes and overflows at the constant frequency.
    """
    difference = logits.float().sigmoid() - mask.float()
    modulus = torch.fft.rfft2(difference, norm="ortho").abs()
    return (modulus * _multiplicity(mask.shape[-1], mask.device)).sum(dim=(1, 2, 3)) / mask[0].numel()


def _multiplicity(width: int, device: torch.device) -> Tensor:
    """How often each column of a half spectrum stands in the whole one: the spectrum of a real map is symmetric."""
    columns = torch.arange(width // 2 + 1, device=device)
    return torch.where((columns == 0) | (2 * columns == width), 1.0, 2.0)
