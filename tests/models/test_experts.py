"""Each expert: any size, any batch, half precision, equal cost, and a response to the cue in its name."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from camox.models.camoxpert import CamoXpert
from camox.models.experts import (
    EXPERTS,
    AttentionExpert,
    ContrastExpert,
    EdgeExpert,
    FrequencyExpert,
    SemanticExpert,
    TextureExpert,
)

every_expert = pytest.mark.parametrize("name", EXPERTS)


def make(expert, channels=16):
    torch.manual_seed(0)
    return (EXPERTS[expert] if isinstance(expert, str) else expert)(channels)


def change(expert, before, after):
    """Largest change of the output, relative to its spread, away from the borders."""
    with torch.no_grad():
        a, b = expert(before), expert(after)
    return ((a - b).abs().max() / a.abs().mean()).item()


def grating(frequency, angle=0.0, size=32, channels=16):
    """A cosine of `frequency` cycles per pixel along `angle`, zero mean, the same in every channel."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    angle = torch.tensor(angle)
    phase = 2 * torch.pi * frequency * (x * angle.cos() + y * angle.sin())
    return phase.cos().expand(1, channels, size, size).contiguous()


@every_expert
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (33, 17)])
@pytest.mark.parametrize("batch", [1, 3])
def test_keeps_the_shape_and_is_finite_at_any_size(name, size, batch):
    expert = make(name)
    x: Any = torch.randn(batch, 16, *size, requires_grad=True)
    y = expert(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in expert.parameters())


@every_expert
@pytest.mark.parametrize("width", [8, 40, 104, 168])
def test_works_at_every_permitted_width(name, width):
    assert make(name, width)(torch.randn(1, width, 4, 4)).shape == (1, width, 4, 4)


@every_expert
def test_an_image_does_not_see_its_batch_mates(name):
    expert = make(name)
    x = torch.randn(3, 16, 9, 6)
    with torch.no_grad():
        alone = torch.cat([expert(image[None]) for image in x])
        together = expert(x)
        with_others = expert(torch.cat([x[:1], 50 * torch.randn(2, 16, 9, 6)]))
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(with_others[:1], alone[:1], atol=1e-5)


@every_expert
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mean", [0.0, 300.0])
def test_half_precision_stays_finite_and_near_fp32_at_large_magnitudes(name, dtype, mean):
    expert = make(name)
    x = (mean + 300 * torch.randn(2, 16, 24, 24)).requires_grad_()
    with torch.no_grad():
        expected = expert(x)
    with torch.autocast("cpu", dtype=dtype):
        y = expert(x.to(dtype))
    assert y.isfinite().all()
    assert (y.float() - expected).abs().max() < 0.05 * expected.abs().max()
    (y.float() / 1e4).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in expert.parameters())
    assert x.grad.isfinite().all()


@every_expert
def test_every_parameter_matters(name):
    """A gradient of exactly zero for random inputs would mean a part that does nothing."""
    expert = make(name)
    (expert(torch.randn(2, 16, 16, 16)) * torch.randn(2, 16, 16, 16)).sum().backward()
    for key, parameter in expert.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


def test_no_batch_norm_outside_the_backbone():
    network = CamoXpert("resnet10t", width=8)
    offending = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and not name.startswith("backbone.")
    ]
    assert not offending


def test_experts_cost_the_same_within_two_times():
    costs = {}
    x = torch.randn(1, 128, 16, 16)
    for name in EXPERTS:
        expert = make(name, 128)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            expert(x)
        costs[name] = counter.get_total_flops()
    assert min(costs.values()) > 0
    assert max(costs.values()) <= 2 * min(costs.values()), costs


# ---- each responds to its cue


def test_texture_responds_to_orientation_at_equal_spectrum():
    stripes = grating(0.125)
    assert change(make(TextureExpert), stripes, stripes.transpose(2, 3)) > 0.1


@pytest.mark.parametrize("distance", [1, 2, 4, 8])
def test_texture_reads_neighbours_at_each_dilation_and_nothing_further(distance):
    expert = make(TextureExpert)
    x = torch.randn(1, 16, 33, 33)
    touched = x.clone()
    touched[..., 16, 16 + distance] += 1
    far = x.clone()
    far[..., 16, 25] += 1  # nine away
    with torch.no_grad():
        centre, near, beyond = (expert(image)[..., 16, 16] for image in (x, touched, far))
    assert not torch.allclose(centre, near, atol=1e-4)
    assert torch.allclose(centre, beyond, atol=1e-6)


def test_edge_kernels_are_sobel_and_laplacian():
    """Against the closed form: on a plane the gradient is its slope, on a parabola the Laplacian is constant."""
    expert = make(EdgeExpert, 8)
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    caught = []
    expert.mix.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    expert((3 * x + 5 * y).expand(1, 8, 9, 9))
    expert((x.square() + y.square()).expand(1, 8, 9, 9))
    plane, parabola = (cues[0, :, 4, 4].view(4, 8)[:, 0] for cues in caught)
    assert torch.allclose(plane, torch.tensor([3.0, 5.0, 0.0, 34**0.5]), atol=1e-4)
    assert parabola[2].item() == pytest.approx(1.0)  # (2 + 2) / 4


def test_edge_responds_at_a_step_and_nowhere_on_a_flat_even_at_the_border():
    expert = make(EdgeExpert)
    step = torch.zeros(1, 16, 16, 16)
    step[..., 8:] = 1
    with torch.no_grad():
        flat, other_flat, at_step = expert(torch.zeros_like(step)), expert(torch.full_like(step, 3.0)), expert(step)
    assert torch.allclose(flat, flat[..., :1, :1].expand_as(flat), atol=1e-6)
    assert torch.allclose(flat, other_flat, atol=1e-5)
    moved = (at_step - flat).abs().amax(dim=(0, 1, 2))
    assert (moved[7:9] > 1e-2).all()
    assert (moved[:6] < 1e-5).all()
    assert (moved[10:] < 1e-5).all()


def test_edge_gradient_is_finite_on_a_flat_image():
    x: Any = torch.zeros(1, 16, 4, 4, requires_grad=True)
    make(EdgeExpert)(x).sum().backward()
    assert x.grad.isfinite().all()


def test_contrast_ignores_brightness_and_responds_to_a_spot_in_proportion():
    expert = make(ContrastExpert)
    x = torch.randn(1, 16, 24, 24)
    assert change(expert, x, x + 5) < 1e-3
    assert change(expert, x, 3 * x) > 0.3


def test_contrast_is_centre_minus_mean_of_the_surround_at_three_radii():
    expert = make(ContrastExpert, 8)
    caught = []
    expert.mix.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    spot = torch.zeros(1, 8, 31, 31)
    spot[..., 15, 15] = 1.0
    expert(spot)
    at_centre = caught[0][0, :, 15, 15].view(4, 8)[:, 0]
    expected = [1 - 1 / (2 * radius + 1) ** 2 for radius in (1, 3, 7)]
    assert torch.allclose(at_centre[:3], torch.tensor(expected), atol=1e-5)
    assert at_centre[3] > 0


def test_attention_responds_to_the_covariance_of_channels_alone():
    """Same channels, the same values in each, but one channel rolled: only what varies together has changed."""
    expert = make(AttentionExpert)
    with torch.no_grad():  # each channel by itself from here on: only attention can mix them
        for parameter in (expert.project.weight, expert.local.weight):
            parameter.zero_()
        for part in range(3):
            expert.project.weight[part * 16 : (part + 1) * 16, :, 0, 0] = torch.eye(16)
        expert.local.weight[:, :, 1, 1] = 1
    x = torch.randn(1, 16, 8, 8)
    x[:, 1] = x[:, 0] + 0.1 * x[:, 1]
    apart = x.clone()
    apart[:, 1] = apart[:, 1].roll(3, dims=-1)
    caught = []
    expert.leave.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    expert(x)
    expert(apart)
    together, separate = (attended[:, 0] for attended in caught)
    assert (together - separate).abs().max() > 0.01 * together.abs().max()


def test_attention_equals_the_plain_formula():
    expert = make(AttentionExpert, 64)
    x = torch.randn(2, 64, 5, 6)
    with torch.no_grad():
        query, key, value = expert.local(expert.project(x)).flatten(2).chunk(3, dim=1)
        attended = torch.empty(2, 64, 30)
        for image in range(2):
            for head in range(2):
                own = slice(32 * head, 32 * head + 32)
                q, k = (nn.functional.normalize(part[image, own], dim=-1) for part in (query, key))
                attended[image, own] = (q @ k.T * expert.temperature[head]).softmax(dim=-1) @ value[image, own]
        expected = expert.leave(attended.view(2, 64, 5, 6))
        assert torch.allclose(expert(x), expected, atol=1e-5)


def test_semantic_sees_the_farthest_pixel():
    expert = make(SemanticExpert)
    x = torch.randn(1, 16, 64, 64)
    touched = x.clone()
    touched[..., 63, 63] += 20
    with torch.no_grad():
        difference = (expert(x) - expert(touched))[..., 0, 0].abs().max()
    assert difference > 1e-4


def test_semantic_field_reaches_eleven_pixels_without_the_mean():
    expert = make(SemanticExpert)
    nn.init.zeros_(expert.context.weight)
    x = torch.randn(1, 16, 33, 33)
    near, far = x.clone(), x.clone()
    near[..., 16, 27] += 20
    far[..., 16, 28] += 20
    with torch.no_grad():
        centre, seen, unseen = (expert(image)[..., 16, 16] for image in (x, near, far))
    assert not torch.allclose(centre, seen, atol=1e-5)
    assert torch.allclose(centre, unseen, atol=1e-6)


# ---- frequency


def filter_of(expert, x):
    """The filter part by itself: what the mixture is given beside the unfiltered features."""
    caught = []
    handle = expert.mix.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    nn.init.dirac_(expert.enter.weight)
    nn.init.zeros_(expert.enter.bias)
    with torch.no_grad():
        expert(x)
    handle.remove()
    return caught[0].chunk(2, dim=1)[1]


@pytest.mark.parametrize("size", [(16, 16), (15, 22), (1, 1), (1, 7)])
def test_gains_of_one_are_the_identity(size):
    expert = make(FrequencyExpert)
    nn.init.ones_(expert.gains)
    x = torch.randn(2, 16, *size)
    assert torch.allclose(filter_of(expert, x), x, atol=1e-5)


@pytest.mark.parametrize("size", [(12, 12), (9, 14), (14, 9), (7, 7)])
def test_equals_an_explicit_complex_transform(size):
    expert = make(FrequencyExpert, 8)
    x = torch.randn(2, 8, *size)
    height, width = size
    half = expert._gain_map(height, width).detach()
    full = torch.empty(8, height, width)
    for row in range(height):
        for column in range(width):  # a real filter: opposite frequencies share their gain
            mirrored = column >= half.shape[-1]
            full[:, row, column] = half[:, -row % height, width - column] if mirrored else half[:, row, column]
    expected = torch.fft.ifft2(torch.fft.fft2(x.to(torch.complex128)) * full).real.float()
    assert torch.allclose(filter_of(expert, x), expected, atol=1e-5)


def test_gain_maps_of_two_sizes_agree_on_common_frequencies():
    expert = make(FrequencyExpert)
    with torch.no_grad():
        small, large = expert._gain_map(8, 12), expert._gain_map(24, 36)
    rows = [0, 3, 6, 9, 12, 15, 18, 21]  # fftfreq(24)[3k] = fftfreq(8)[k]
    assert torch.allclose(large[:, rows, ::3], small, atol=1e-5)


def test_gain_map_is_continuous_across_the_turn_of_orientation():
    """0° and 180° are one orientation: no seam between bands there."""
    expert = make(FrequencyExpert)
    with torch.no_grad():
        gains = expert._gain_map(512, 512)
    assert (gains[:, 1, 100] - gains[:, -1, 100]).abs().max() < 0.1


def test_each_band_scales_its_own_frequencies_alone():
    expert = make(FrequencyExpert)
    nn.init.ones_(expert.gains)
    with torch.no_grad():
        expert.gains[:, 0] = 0.0  # radius 0: the mean, fading out to the next band
    x = grating(0.375)
    assert torch.allclose(filter_of(expert, x), x, atol=1e-4)
    assert filter_of(expert, torch.ones(1, 16, 32, 32)).abs().max() < 1e-5


@pytest.mark.parametrize(("band", "removed", "kept"), [(0, 0.0, torch.pi / 2), (2, torch.pi / 2, 0.0)])
def test_an_orientation_band_scales_its_own_orientation_alone(band, removed, kept):
    expert = make(FrequencyExpert)
    nn.init.ones_(expert.gains)
    with torch.no_grad():
        expert.gains[:, :, band] = 0.0
    across, along = grating(0.25, removed), grating(0.25, kept)
    assert filter_of(expert, across).abs().max() < 1e-4
    assert torch.allclose(filter_of(expert, along), along, atol=1e-4)


def test_opposite_frequencies_share_their_gain():
    """Both stand in the first column: gains that differ there would not be those of a real filter."""
    with torch.no_grad():
        column = make(FrequencyExpert)._gain_map(15, 8)[:, 1:, 0]
    assert torch.allclose(column, column.flip(1), atol=1e-5)


def test_every_gain_is_used():
    expert = make(FrequencyExpert)
    expert._gain_map(32, 32).sum().backward()
    used = expert.gains.grad
    assert used is not None
    assert (used[:, 1:] > 0).all()
    assert (used[:, 0, 0] > 0).all()


def test_frequency_responds_to_a_change_of_the_spectrum():
    assert change(make(FrequencyExpert), grating(0.125), grating(0.25)) > 0.1
