"""The network in a form that ONNX and `torch.export` can hold: no FFT, and a dispatch that asks the host nothing.

The same parameters under the same names, and the same results to rounding. Training never sees this form.
"""

import math
from typing import ClassVar

import torch
from timm.models.edgenext import PositionalEncodingFourier
from torch import Tensor, nn

from camox.models.camoxpert import CamoXpert
from camox.models.experts import EXPERTS, FrequencyExpert, PatchFrequencyExpert
from camox.models.moe import MixtureOfExperts
from camox.models.router import Routing


class ExportableCamoXpert(nn.Module):
    """`images` float `[B, 3, H, W]`, RGB in [0, 1], any size → `logits` and `uncertainty`, each float `[B, 1, H, W]`.

    A copy of `model`: on the CPU, in eval mode, without gradients.
    """

    def __init__(self, model: CamoXpert):
        super().__init__()
        settings = {"dispatch": "masked", "channels_last": False, "gradient_checkpointing": False}
        with torch.random.fork_rng(devices=[]):
            self.model = CamoXpert(**{**model.config, **settings})
            _replace_positions(self.model.backbone)
            form = IndexedMixture if model.mode in ("sparse", "random") else MatrixMixture
            for key, mixture in self.model.mixtures.items():
                assert isinstance(mixture, MixtureOfExperts)
                channels, shared = mixture.scale.shape[1], mixture.shared is not None
                self.model.mixtures[key] = form(channels, list(mixture.experts), shared, mixture.grid)
        self.model.load_state_dict(model.state_dict())
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The two maps at the images' size; all else that the model tells is for its losses."""
        output = self.model(images)
        return output.logits, output.uncertainty


class SizedPositions(PositionalEncodingFourier):
    """EdgeNeXt's encoding of positions without a slice of the last row, whose height PyTorch 2.14 cannot tell.

    Formula of timm's module: sine and cosine of 2π(i + 1) / n at the wavelengths of the temperature.
    """

    def forward(self, shape: tuple[int, int, int]) -> Tensor:
        """`(N, H, W)` → `[N, dim, H, W]`."""
        images, height, width = shape
        exponents = torch.arange(self.hidden_dim) // 2 * 2 / self.hidden_dim
        wavelengths = self.temperature**exponents
        rows = _waves(height, wavelengths)[:, None].expand(height, width, -1)
        columns = _waves(width, wavelengths)[None].expand(height, width, -1)
        waves = torch.cat((rows, columns), dim=2).permute(2, 0, 1)
        return self.token_projection(waves[None]).expand(images, -1, -1, -1)


class MatrixFrequencyExpert(FrequencyExpert):
    """The same filter without an FFT."""

    def _filter(self, x: Tensor) -> Tensor:
        return filter_by_matrices(x, self._gain_map(*x.shape[-2:]))

    def _cycles(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        rows = torch.arange(height, device=self.gains.device).float()
        columns = torch.arange(width, device=self.gains.device).float()
        vertical = torch.where(2 * rows >= _count(rows), rows - _count(rows), rows) / _count(rows)
        return vertical[:, None], (columns / _count(columns))[None, : width // 2 + 1]


class MatrixPatchFrequencyExpert(PatchFrequencyExpert):
    """The same filter without an FFT, and the same norm without the reshaping that fails for an empty batch."""

    def _normalise(self, gate: Tensor) -> Tensor:
        variance, mean = torch.var_mean(gate, dim=(1, 2, 3), correction=0, keepdim=True)
        weight, bias = (parameter[:, None, None] for parameter in (self.norm.weight, self.norm.bias))
        return (gate - mean) * (variance + self.norm.eps).rsqrt() * weight + bias

    def _filter_patches(self, patches: Tensor) -> Tensor:
        gains = self._symmetric_gains().squeeze(3).unsqueeze(1)  # [2C, 1, 1, 8, 5]
        return filter_by_matrices(patches.transpose(3, 4), gains).transpose(3, 4)


class MatrixMixture(MixtureOfExperts):
    """A mixture whose experts can be exported; every one of them sees every image."""

    kinds: ClassVar[dict[str, type[nn.Module]]] = {
        **EXPERTS,
        "frequency": MatrixFrequencyExpert,
        "patch_frequency": MatrixPatchFrequencyExpert,
    }


class IndexedMixture(MatrixMixture):
    """Each expert on the images that chose it, which may be none: in a graph, sub-batches have a size of their own."""

    def _masked(self, x: Tensor, routing: Routing) -> Tensor:
        weights = torch.zeros_like(routing.probabilities).scatter(1, routing.selected, routing.weights)
        chosen = torch.zeros_like(routing.probabilities).scatter(1, routing.selected, 1.0)
        mixed = torch.zeros_like(x)
        for index, expert in enumerate(self.experts.values()):
            rows = chosen[:, index].nonzero()[:, 0]
            response = expert(x.index_select(0, rows))
            mixed = mixed.index_add(0, rows, response * weights[:, index].index_select(0, rows)[:, None, None, None])
        return mixed


def filter_by_matrices(x: Tensor, gains: Tensor) -> Tensor:
    """`irfft2(rfft2(x) * gains)` over the last two dimensions, `[…, H, W]`, by products with cosines and sines.

    `gains` `[…, H, W//2+1]` are real. A cost of H + W multiply-adds for each value and transform, where an FFT takes
    their logarithm; at the strides of the model both are little beside the rest of an expert.
    """
    height, width = x.shape[-2:]
    half = width // 2 + 1
    row_cos, row_sin = cosines_and_sines(width, x.device)
    column_cos, column_sin = cosines_and_sines(height, x.device)
    turned_gains = gains.transpose(-2, -1)
    # Matrices stand on the right alone: such a product of an empty batch is one that every runtime can do.
    real, imaginary = (x @ row_cos[:, :half]).transpose(-2, -1), (x @ -row_sin[:, :half]).transpose(-2, -1)
    filtered_real = (real @ column_cos + imaginary @ column_sin) * turned_gains
    filtered_imaginary = (imaginary @ column_cos - real @ column_sin) * turned_gains
    real = (filtered_real @ column_cos - filtered_imaginary @ column_sin).transpose(-2, -1)
    imaginary = (filtered_imaginary @ column_cos + filtered_real @ column_sin).transpose(-2, -1)
    # All but the first column, and the last where W is even, stand for the opposite frequency too.
    column = torch.arange(half, device=x.device)
    count = torch.where((column == 0) | (2 * column == width), 1.0, 2.0)
    return (real * count) @ row_cos[:half] - (imaginary * count) @ row_sin[:half]


def cosines_and_sines(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos(2πjk/size) and sin(2πjk/size) over √size, both `[size, size]` and symmetric."""
    index = torch.arange(size, device=device).float()
    count = _count(index)
    product = index[:, None] * index[None, :]
    # Reduced to one turn first, in whole numbers, which fp32 has up to a size of 4096: the cosine of thousands of turns
    # would have lost its digits.
    turns = product - torch.floor(product / count) * count
    angle = turns * (2 * math.pi) / count
    return angle.cos() / count.sqrt(), angle.sin() / count.sqrt()


def _replace_positions(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, PositionalEncodingFourier):
                setattr(module, name, SizedPositions(child.hidden_dim, child.dim, child.temperature))


def _waves(size: int, wavelengths: Tensor) -> Tensor:
    """`[size, len(wavelengths)]`: even columns are sines, odd ones cosines."""
    index = torch.arange(size).float()
    angle = ((index + 1) / (_count(index) + 1e-6) * (2 * math.pi))[:, None] / wavelengths
    return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)


def _count(index: Tensor) -> Tensor:
    """The length of `arange(length)` as a tensor: an ONNX graph multiplies and divides by tensors, not by sizes."""
    return index[-1] + 1
