"""The experts, each a real operation on the cue that its name says.

Every expert maps `[B, C, H, W]` to the same shape, works at any size, holds no BatchNorm (the sub-batch it sees is
often one image), and at C = 128 costs 8 to 11·C² multiply-adds per pixel, most of them in the two layers that mix the
cue's responses, so that which two the router picks says little about the time a step takes. The residual and the
normalisation are outside, in `moe.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Mix(nn.Sequential):
    """Cue responses `[B, inputs, H, W]` → `[B, C, H, W]` through a hidden layer of `hidden` channels."""

    def __init__(self, inputs: int, channels: int, hidden: int):
        super().__init__(nn.Conv2d(inputs, hidden, 1), nn.GELU(), nn.Conv2d(hidden, channels, 1))


class TextureExpert(nn.Module):
    """Local patterns at four spatial extents, 3×3 to 9×9: a cascade of depthwise 3×3, each read, mixed by 1×1.

    Dilations 1, 2, 4 and 8 of the input reach further with gaps between, and their backward pass takes two and a half
    times as long.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.patterns = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(4))
        for pattern in self.patterns:
            assert isinstance(pattern, nn.Conv2d)
            nn.init.normal_(pattern.weight, std=1 / 3)  # the fourth response to noise is as large as the first
        self.mix = _Mix(4 * channels, channels, hidden=2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        patterns = []
        for pattern in self.patterns:
            x = pattern(x)
            patterns.append(x)
        return self.mix(torch.cat(patterns, dim=1))


class EdgeExpert(nn.Module):
    """Fixed Sobel and Laplacian responses with their magnitude, and a learned mixture of them."""

    kernels: Tensor

    def __init__(self, channels: int):
        super().__init__()
        sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
        laplacian = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]) / 4
        kernels = torch.stack([sobel, sobel.T, laplacian]).repeat(channels, 1, 1).unsqueeze(1)
        self.register_buffer("kernels", kernels)  # [3C, 1, 3, 3], ordered x, y, Laplacian per channel
        self.mix = _Mix(4 * channels, channels, hidden=2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        # Replicated borders: zero padding would draw an edge around every image.
        padded = _continue_border(x, 1, 1, 1, 1)
        responses = F.conv2d(padded, self.kernels.to(x.dtype), groups=x.shape[1])
        horizontal, vertical, laplacian = responses.unflatten(1, (-1, 3)).unbind(dim=2)
        # Squares overflow fp16 beyond 256, and the root needs an epsilon to have a gradient at zero.
        squares = horizontal.float().square() + vertical.float().square()
        magnitude = torch.sqrt(squares + 1e-6).to(horizontal.dtype)
        return self.mix(torch.cat([horizontal, vertical, laplacian, magnitude], dim=1))


class ContrastExpert(nn.Module):
    """Centre minus surround at radii 1, 4 and 13, signed, and the mean absolute deviation within radius 4."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = _Mix(4 * channels, channels, hidden=2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        differences = [x - surround for surround in _box_means(x, levels=3)]
        deviation = _box_means(differences[1].abs(), levels=2)[-1]
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
        self.mix = _Mix(2 * channels, channels, hidden=3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        with torch.autocast(x.device.type, enabled=False):
            filtered = self._filter(entered.float())
        return self.mix(torch.cat([entered, filtered.to(entered.dtype)], dim=1))

    def _filter(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x, norm="ortho") * self._gain_map(*x.shape[-2:])
        return torch.fft.irfft2(spectrum, s=x.shape[-2:], norm="ortho")

    def _gain_map(self, height: int, width: int) -> Tensor:
        """Gains `[C, H, W//2+1]`: linear between radial bands, linear and periodic between orientations."""
        gains = self.gains.float()
        radial, angular = gains.shape[1:]
        vertical, horizontal = self._cycles(height, width)
        radius = (vertical.square() + horizontal.square()).sqrt() / 0.5**0.5 * (radial - 1)
        angle = torch.atan2(vertical, horizontal) / torch.pi % 1.0 * angular  # orientation: period pi
        low_radius, low_angle = radius.floor().long().clamp(max=radial - 2), angle.floor().long() % angular
        along_radius, along_angle = radius - low_radius, angle - angle.floor()
        total = gains.new_zeros(())
        for step_r, weight_r in ((0, 1 - along_radius), (1, along_radius)):
            for step_a, weight_a in ((0, 1 - along_angle), (1, along_angle)):
                corner = gains[:, low_radius + step_r, (low_angle + step_a) % angular]
                total = total + corner * (weight_r * weight_a)
        return _share_gains(total, torch.arange(width // 2 + 1, device=gains.device) * 2 == width)

    def _cycles(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Cycles per pixel of the half spectrum, along columns `[H, 1]` and along rows `[1, W//2+1]`."""
        # Not fftfreq, though the same bits: torch.compile would make a kernel for every size.
        rows = torch.arange(height, device=self.gains.device)[:, None]
        vertical = torch.where(rows > (height - 1) // 2, rows - height, rows) * (1 / height)
        horizontal = torch.arange(width // 2 + 1, device=self.gains.device)[None, :] * (1 / width)
        return vertical, horizontal


class AttentionExpert(nn.Module):
    """Cross-covariance (channel) attention: which channels vary together, at a cost linear in pixels.

    After XCiT (El-Nouby et al., 2021) and Restormer (Zamir et al., 2022).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.local = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.temperature = nn.Parameter(torch.ones(_heads(channels), 1, 1))
        self.mix = _Mix(2 * channels, channels, hidden=3 * channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.local(self.project(x)).chunk(3, dim=1)
        return self.mix(torch.cat([x, _attend_channels(query, key, value, self.temperature)], dim=1))


class SemanticExpert(nn.Module):
    """What surrounds a pixel: a 5×5 over cells of 4×4 pixels, a 3×3 over pixels, and the whole image's mean.

    Strips of 1×21 and 21×1 at full size, as in SegNeXt (Guo et al., 2022), reach as far, and made the expert take
    almost twice the time.
    """

    cell = 4

    def __init__(self, channels: int):
        super().__init__()
        self.near = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.far = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.context = nn.Linear(channels, channels)
        self.mix = _Mix(2 * channels, channels, hidden=3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        cells = F.avg_pool2d(x, self.cell, ceil_mode=True, count_include_pad=False)
        far = F.interpolate(self.far(cells), scale_factor=self.cell, mode="bilinear", align_corners=False)
        far = far[..., : x.shape[-2], : x.shape[-1]]
        context = self.context(x.float().mean(dim=(2, 3)).to(x.dtype))
        return self.mix(torch.cat([x, self.near(x) + far + context[:, :, None, None].to(far.dtype)], dim=1))


class PatchFrequencyExpert(nn.Module):
    """A learned real gain for every frequency of 8×8 patches, and a gate that says where the filtered pattern counts.

    The gated feed-forward of FFTformer (Kong et al., 2023): spectrum of each patch × gains, depthwise 3×3, and one
    half of the channels gates the other by GELU. Where `FrequencyExpert` filters the whole image alike, here a pattern
    is gated where it stands. Sizes that are no multiple of 8 are padded with their border and cropped again.
    """

    patch = 8

    def __init__(self, channels: int):
        super().__init__()
        self.enter = nn.Conv2d(channels, 2 * channels, 1)
        # Around 1 with a spread, as in `FrequencyExpert`; [2C, 8, 5], the half spectrum of a patch.
        self.gains = nn.Parameter(1 + 0.5 * torch.randn(2 * channels, self.patch, self.patch // 2 + 1))
        self.local = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.norm = nn.GroupNorm(1, channels)
        self.mix = _Mix(channels, channels, hidden=3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.local(self._filter(self.enter(x))).chunk(2, dim=1)
        # Without the norm the product would grow as the square of x, and overflow fp16 at 256.
        gate = F.gelu(self._normalise(gate)).to(value.dtype)
        return self.mix(gate * value)

    def _filter(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = _continue_border(x, 0, -width % self.patch, 0, -height % self.patch)
        with torch.autocast(x.device.type, enabled=False):
            patches = padded.float().unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
            filtered = self._filter_patches(patches).flatten(4, 5).flatten(2, 3)[..., :height, :width]
        return filtered.to(x.dtype)

    def _normalise(self, gate: Tensor) -> Tensor:
        normalised: Tensor = self.norm(gate)
        return normalised

    def _filter_patches(self, patches: Tensor) -> Tensor:
        """`[B, 2C, rows of patches, 8, columns of patches, 8]`, fp32."""
        # Along columns and rows in turn: rfft2 of so small a patch takes a fifth longer.
        spectrum = torch.fft.fft(torch.fft.rfft(patches, dim=5, norm="ortho"), dim=3, norm="ortho")
        spectrum = torch.fft.ifft(spectrum * self._symmetric_gains(), dim=3, norm="ortho")
        return torch.fft.irfft(spectrum, n=self.patch, dim=5, norm="ortho")

    def _symmetric_gains(self) -> Tensor:
        """The filter `[2C, 1, 8, 1, 5]`."""
        columns = torch.arange(self.patch // 2 + 1, device=self.gains.device)
        return _share_gains(self.gains.float(), columns % (self.patch // 2) == 0)[:, None, :, None]


class HybridExpert(nn.Module):
    """Several cues at once: local pattern, deviation from the surroundings, what varies together, pooled context.

    Channel attention relates the patterns (queries) to the deviations (keys) and needs no projections of its own; the
    context is the image's mean and mean absolute deviation, added to every pixel's hidden layer.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.pattern = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.temperature = nn.Parameter(torch.ones(_heads(channels), 1, 1))
        self.context = nn.Linear(2 * channels, 2 * channels)
        self.enter = nn.Conv2d(4 * channels, 2 * channels, 1)
        self.leave = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pattern = self.pattern(x)
        deviation = x - _box_means(x, levels=2)[-1]
        attended = _attend_channels(pattern, deviation, x, self.temperature)
        pooled = torch.cat([x, deviation.abs()], dim=1).float().mean(dim=(2, 3)).to(x.dtype)
        hidden = self.enter(torch.cat([x, pattern, deviation, attended], dim=1))
        return self.leave(F.gelu(hidden + self.context(pooled)[:, :, None, None].to(hidden.dtype)))


def _heads(channels: int) -> int:
    """About 32 channels per head, and as many in each: 104 channels have no three equal parts."""
    return next(heads for heads in range(max(1, channels // 32), 0, -1) if channels % heads == 0)


def _attend_channels(query: Tensor, key: Tensor, value: Tensor, temperature: Tensor) -> Tensor:
    """Each channel of `value` `[B, C, H, W]` mixed with others of its head, as queries and keys vary together.

    `temperature` is `[heads, 1, 1]`. The result has the shape of `value` and the dtype of `query`.
    """
    with torch.autocast(query.device.type, enabled=False):  # sums over all pixels: fp16 would overflow
        query_rows, key_rows, value_rows = (
            part.float().unflatten(1, (len(temperature), -1)).flatten(3) for part in (query, key, value)
        )  # each [B, heads, C/heads, pixels]
        if torch.compiler.is_exporting():
            # What the product does to parts of one tensor, but for a single image: an export would be of either case.
            value_rows = value_rows.contiguous()
        query_rows, key_rows = F.normalize(query_rows, dim=-1), F.normalize(key_rows, dim=-1)
        attention = (query_rows @ key_rows.transpose(-2, -1) * temperature.float()).softmax(dim=-1)
        attended = attention @ value_rows
    return attended.reshape(value.shape).to(query.dtype)


def _continue_border(x: Tensor, left: int, right: int, top: int, bottom: int) -> Tensor:
    """`F.pad` with `mode="replicate"`."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return F.pad(x, (left, right, top, bottom), mode="replicate")
    # Inductor takes the gradient of that padding for contiguous, and stops where it is NHWC (torch 2.15, CPU).
    x = torch.cat([x[..., :1].expand(*x.shape[:3], left), x, x[..., -1:].expand(*x.shape[:3], right)], dim=3)
    rows = x.shape[3]
    return torch.cat([x[..., :1, :].expand(-1, -1, top, rows), x, x[..., -1:, :].expand(-1, -1, bottom, rows)], dim=2)


def _share_gains(gains: Tensor, columns: Tensor) -> Tensor:
    """Gains `[C, H, W//2+1]` of a half spectrum, opposite frequencies sharing theirs as those of a real filter do.

    Both of them stand in the first column, and in the last where W is even; elsewhere one of them is implied.
    `columns` says which columns to symmetrise: what an inverse transform makes of one that is not symmetric depends on
    the library.
    """
    opposite = gains.flip(1).roll(1, dims=1)
    return torch.where(columns, (gains + opposite) / 2, gains)


def _box_means(x: Tensor, levels: int) -> list[Tensor]:
    """Means over boxes of 3×3, 9×9, 27×27 … pixels.

    Each is the mean of nine of the boxes before (at borders, of those that are centred inside), so that every level
    costs nine multiply-adds however large its box. Average pooling costs as many as the box is wide: separable, the
    largest box alone takes 2.5 times as long as all three do here.
    """
    channels = x.shape[1]
    kernel, inside = x.new_full((channels, 1, 3, 3), 1 / 9), x.new_ones(1, 1, *x.shape[-2:])
    means = []
    for level in range(levels):
        spacing = 3**level
        total = F.conv2d(x, kernel, padding=spacing, dilation=spacing, groups=channels)
        x = total / F.conv2d(inside, kernel[:1], padding=spacing, dilation=spacing)
        means.append(x)
    return means


EXPERTS: dict[str, type[nn.Module]] = {
    "texture": TextureExpert,
    "edge": EdgeExpert,
    "contrast": ContrastExpert,
    "frequency": FrequencyExpert,
    "attention": AttentionExpert,
    "semantic": SemanticExpert,
    "patch_frequency": PatchFrequencyExpert,
    "hybrid": HybridExpert,
}
