"""From four enriched feature maps to a coarse mask: search & identification, then a decoder with skips."""

import torch.nn.functional as F
from torch import Tensor, nn


def depthwise_field(channels: int) -> nn.Sequential:
    """A 5×5 field of each channel, as two of 3×3: half the time of one 5×5, whose backward pass is slow on a CPU."""
    return nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False) for _ in range(2)))


class FusionBlock(nn.Module):
    """A depthwise field and a pointwise layer, normalised, with a residual: `[B, inputs, H, W]` → `[B, C, H, W]`."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.enter = nn.Conv2d(inputs, channels, 1)
        self.spatial = depthwise_field(channels)
        self.norm = nn.GroupNorm(8, channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.leave = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(self.enter(x))

    def fuse(self, entered: Tensor) -> Tensor:
        """What follows the first convolution."""
        return entered + self.leave(F.gelu(self.widen(self.norm(self.spatial(entered)))))


class SearchIdentification(nn.Module):
    """Looks where an object may be at stride 32, then identifies it with the features found there.

    The gate `(1 + σ(search)) / 2` lies in [0.5, 1]: a wrong search weakens features and never erases them.
    After the search-and-identification idea of SINet (Fan et al., 2020).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.search = nn.Sequential(FusionBlock(channels, channels), nn.GELU(), nn.Conv2d(channels, 1, 1))
        self.identify = FusionBlock(channels, channels)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`[B, C, H, W]` → identified features of that shape and search logits `[B, 1, H, W]`."""
        search = self.search(x)
        return self.identify(x * (1 + search.sigmoid()) / 2), search


class Decoder(nn.Module):
    """Strides 32 → 16 → 8 → 4, at each a skip from the mixture of that scale.

    Returns the features at strides 16, 8 and 4, each `[B, C, H/s, W/s]`.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(2 * channels, channels) for _ in range(3))

    def forward(self, deepest: Tensor, skips: list[Tensor]) -> list[Tensor]:
        decoded, x = [], deepest
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            assert isinstance(block, FusionBlock)
            x = block.fuse(_enter_both(block.enter, x, skip))
            decoded.append(x)
        return decoded


def _enter_both(enter: nn.Conv2d, coarse: Tensor, skip: Tensor) -> Tensor:
    """`enter(cat([upsampled coarse, skip]))`, as the sum of its halves.

    A 1×1 convolution and bilinear interpolation may be exchanged, so the coarse half is computed before it grows:
    a quarter of its work, and no concatenation to copy and keep.
    """
    of_coarse, of_skip = enter.weight.split([coarse.shape[1], skip.shape[1]], dim=1)
    grown = F.interpolate(F.conv2d(coarse, of_coarse), size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return F.conv2d(skip, of_skip, enter.bias) + grown
