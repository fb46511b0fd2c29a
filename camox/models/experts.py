"""Six experts, each a real operation on the cue that its name says.

Every expert maps `[B, C, H, W]` to the same shape, works at any size, holds no BatchNorm (the sub-batch it
sees is often one image), and costs about 5·C² multiply-adds per pixel, so that which two the router picks
says nothing about the time a step takes. The residual and the normalisation are outside, in `moe.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Mix(nn.Sequential):
    """Cue responses `[B, inputs, H, W]` → `[B, C, H, W]` through a hidden layer of `hidden` channels."""

    def __init__(self, inputs: int, channels: int, hidden: int | None = None):
        hidden = hidden or channels
        super().__init__(nn.Conv2d(inputs, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))


class TextureExpert(nn.Module):
    """Local patterns at four spatial extents: depthwise 3×3 at dilations 1, 2, 4 and 8, mixed by 1×1."""

    def __init__(self, channels: int):
        super().__init__()
        self.patterns = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels)
            for dilation in (1, 2, 4, 8)
        )
        self.mix = _Mix(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([pattern(x) for pattern in self.patterns], dim=1))


class EdgeExpert(nn.Module):
    """Fixed Sobel and Laplacian responses with their magnitude, and a learned mixture of them."""

    kernels: Tensor

    def __init__(self, channels: int):
        super().__init__()
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / 4
        kernels = torch.stack([sobel, sobel.T, laplacian]).repeat(channels, 1, 1).unsqueeze(1)
        self.register_buffer("kernels", kernels)  # [3C, 1, 3, 3], ordered x, y, Laplacian per channel
        self.mix = _Mix(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        # Replicated borders: zero padding would draw an edge around every image.
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        responses = F.conv2d(padded, self.kernels.to(x.dtype), groups=x.shape[1])
        horizontal, vertical, laplacian = responses.unflatten(1, (-1, 3)).unbind(dim=2)
        # Squares overflow fp16 beyond 256, and the root needs an epsilon to have a gradient at zero.
        squares = horizontal.float().square() + vertical.float().square()
        magnitude = torch.sqrt(squares + 1e-6).to(horizontal.dtype)
        return self.mix(torch.cat([horizontal, vertical, laplacian, magnitude], dim=1))


class ContrastExpert(nn.Module):
    """Centre minus surround at three radii, signed and as deviation from the surround."""

    radii = (1, 3, 7)

    def __init__(self, channels: int):
        super().__init__()
        self.mix = _Mix(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        differences = [x - _box_mean(x, radius) for radius in self.radii]
        deviation = _box_mean(differences[1].abs(), self.radii[1])
        return self.mix(torch.cat([*differences, deviation], dim=1))


class FrequencyExpert(nn.Module):
    """A learned real gain for every radial and angular band of the spectrum, independent of the input's size.

    `rfft2` with `norm="ortho"`, gains interpolated between bands, `irfft2`: all in fp32 with autocast off,
    because half-precision FFTs exist for powers of two only and a large mean overflows fp16. The cast back
    comes after the inverse.
    """

    def __init__(self, channels: int, radial_bands: int = 6, angular_bands: int = 4):
        super().__init__()
        # Around 1 with a spread, so that the bands differ from the first step on.
        self.gains = nn.Parameter(1 + 0.5 * torch.randn(channels, radial_bands, angular_bands))
        self.enter = nn.Conv2d(channels, channels, 1)
        self.mix = _Mix(2 * channels, channels, hidden=channels + channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.fft.rfft2(entered.float(), norm="ortho")
            spectrum = spectrum * self._gain_map(*x.shape[-2:])
            filtered = torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")
        return self.mix(torch.cat([entered, filtered.to(entered.dtype)], dim=1))

    def _gain_map(self, height: int, width: int) -> Tensor:
        """Gains `[C, H, W//2+1]`: linear between radial bands, linear and periodic between orientations."""
        gains = self.gains.float()
        radial, angular = gains.shape[1:]
        vertical = torch.fft.fftfreq(height, device=gains.device)[:, None]
        horizontal = torch.fft.rfftfreq(width, device=gains.device)[None, :]
        radius = (vertical.square() + horizontal.square()).sqrt() / 0.5**0.5 * (radial - 1)
        angle = torch.atan2(vertical, horizontal) / torch.pi % 1.0 * angular  # orientation: period pi
        low_radius, low_angle = radius.floor().long().clamp(max=radial - 2), angle.floor().long() % angular
        along_radius, along_angle = radius - low_radius, angle - angle.floor()
        total = gains.new_zeros(())
        for step_r, weight_r in ((0, 1 - along_radius), (1, along_radius)):
            for step_a, weight_a in ((0, 1 - along_angle), (1, along_angle)):
                corner = gains[:, low_radius + step_r, (low_angle + step_a) % angular]
                total = total + corner * (weight_r * weight_a)
        return total


class AttentionExpert(nn.Module):
    """Cross-covariance (channel) attention: which channels vary together, at a cost linear in pixels.

    After XCiT (El-Nouby et al., 2021) and Restormer (Zamir et al., 2022).
    """

    def __init__(self, channels: int):
        super().__init__()
        # About 32 channels per head, and as many in each: 104 channels have no three equal parts.
        self.heads = next(heads for heads in range(max(1, channels // 32), 0, -1) if channels % heads == 0)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.local = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.temperature = nn.Parameter(torch.ones(self.heads, 1, 1))
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        triple = self.local(self.project(x)).reshape(len(x), 3, self.heads, -1, height * width)
        with torch.autocast(x.device.type, enabled=False):  # sums over all pixels: fp16 would overflow
            query, key, value = triple.float().unbind(dim=1)  # each [B, heads, C/heads, pixels]
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
            attention = (query @ key.transpose(-2, -1) * self.temperature.float()).softmax(dim=-1)
            attended = attention @ value
        return self.leave(attended.reshape(x.shape).to(triple.dtype))


class SemanticExpert(nn.Module):
    """What surrounds a pixel: a large depthwise field (5×5, then 7×7 at dilation 3) and the whole image's mean.

    The large field is that of the visual attention network (Guo et al., 2022).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.context = nn.Linear(channels, channels)
        self.mix = _Mix(2 * channels, channels, hidden=channels + channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        field = self.far(self.near(x))
        context = self.context(x.float().mean(dim=(2, 3)).to(x.dtype))
        return self.mix(torch.cat([x, field + context[:, :, None, None].to(field.dtype)], dim=1))


def _box_mean(x: Tensor, radius: int) -> Tensor:
    """Mean over a (2·radius+1)² box, borders counted as they are. Separable: the cost grows with the radius."""
    size = 2 * radius + 1
    x = F.avg_pool2d(x, (size, 1), stride=1, padding=(radius, 0), count_include_pad=False)
    return F.avg_pool2d(x, (1, size), stride=1, padding=(0, radius), count_include_pad=False)


EXPERTS: dict[str, type[nn.Module]] = {
    "texture": TextureExpert,
    "edge": EdgeExpert,
    "contrast": ContrastExpert,
    "frequency": FrequencyExpert,
    "attention": AttentionExpert,
    "semantic": SemanticExpert,
}
