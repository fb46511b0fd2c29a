"""Each expert: any size, any batch, half precision, one graph, equal cost; and it computes what it says."""

from typing import Any

import pytest
import torch
from torch import nn

from camox.models.camoxpert import DEFAULT_EXPERTS, CamoXpert
from camox.models.costs import expert_costs
from camox.models.experts import (
    EXPERTS,
    AttentionExpert,
    ContrastExpert,
    EdgeExpert,
    HybridExpert,
    SemanticExpert,
    TextureExpert,
    _box_means,
)
from tests.models.probes import change, given_to, grating, make

every_expert = pytest.mark.parametrize("name", EXPERTS)


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


@every_expert
def test_no_batch_norm_in_an_expert(name):
    assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in make(name).modules())


def test_no_batch_norm_outside_the_backbone():
    network = CamoXpert("resnet10t", width=8)
    offending = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and not name.startswith("backbone.")
    ]
    assert not offending


@every_expert
def test_compiles_as_one_graph(name):
    torch._dynamo.reset()
    expert = make(name)
    compiled = torch.compile(expert, backend="eager", fullgraph=True)  # raises at a graph break
    x = torch.randn(2, 16, 9, 12, requires_grad=True)
    y = compiled(x)
    assert torch.allclose(y, expert(x), atol=1e-6)
    y.sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert compiled(x).dtype == torch.bfloat16


@pytest.mark.parametrize("channels", [32, 128])
def test_experts_cost_the_same_within_two_times(channels):
    costs = expert_costs(EXPERTS, channels)
    assert max(costs.values()) <= 2 * min(costs.values()), costs


def test_the_default_experts_cost_eight_to_eleven_square_widths():
    for name, cost in expert_costs(DEFAULT_EXPERTS, 128).items():
        assert 7.9 < cost / 128**2 < 11, name


# ---- each expert by itself


def test_texture_responds_to_orientation_at_equal_spectrum():
    stripes = grating(0.125)
    assert change(make(TextureExpert), stripes, stripes.transpose(2, 3)) > 0.1


def test_texture_reads_patterns_of_four_extents():
    """What the mixture is given of a single bright pixel: responses of 3×3, 5×5, 7×7 and 9×9."""
    expert = make(TextureExpert)
    for pattern in expert.patterns:
        nn.init.zeros_(pattern.bias)
    spot = torch.zeros(1, 16, 17, 17)
    spot[..., 8, 8] = 1
    for extent, response in zip((3, 5, 7, 9), given_to(expert.mix, expert, spot).chunk(4, dim=1), strict=True):
        rows, columns = (response[0].abs().sum(dim=0) > 0).nonzero().unbind(dim=1)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (*2 * (8 - extent // 2, 8 + extent // 2),)


def test_texture_patterns_of_noise_are_equally_large_at_first():
    expert = make(TextureExpert, 128)
    spreads = [part.std() for part in given_to(expert.mix, expert, torch.randn(2, 128, 32, 32)).chunk(4, dim=1)]
    assert max(spreads) < 1.5 * min(spreads)


def test_edge_kernels_are_sobel_and_laplacian():
    """Against the closed form: on a plane the gradient is its slope, on a parabola the Laplacian is constant."""
    expert = make(EdgeExpert, 8)
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    plane, parabola = (
        given_to(expert.mix, expert, surface.expand(1, 8, 9, 9))[0, :, 4, 4].view(4, 8)[:, 0]
        for surface in (3 * x + 5 * y, x.square() + y.square())
    )
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
    spot = torch.zeros(1, 8, 31, 31)
    spot[..., 15, 15] = 1.0
    at_centre = given_to(expert.mix, expert, spot)[0, :, 15, 15].view(4, 8)[:, 0]
    expected = [1 - 1 / (2 * radius + 1) ** 2 for radius in (1, 4, 13)]
    assert torch.allclose(at_centre[:3], torch.tensor(expected), atol=1e-5)
    assert at_centre[3] > 0


def test_box_means_equal_the_plain_mean_where_the_box_lies_inside():
    x = torch.randn(2, 3, 31, 29)
    for radius, means in zip((1, 4, 13), _box_means(x, levels=3), strict=True):
        size = 2 * radius + 1
        expected = x.unfold(2, size, 1).unfold(3, size, 1).mean(dim=(4, 5))
        assert torch.allclose(means[..., radius:-radius, radius:-radius], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (40, 33)])
def test_box_means_of_a_flat_image_are_its_value_even_at_the_border(size):
    for means in _box_means(torch.full((1, 2, *size), 300.0), levels=3):
        assert torch.allclose(means, torch.tensor(300.0), rtol=1e-6)


def test_attention_does_not_see_where_pixels_stand():
    """Which channels vary together is the same for any order of the pixels."""
    expert = make(AttentionExpert)
    with torch.no_grad():
        expert.local.weight.zero_()
        expert.local.weight[:, :, 1, 1] = 1
        x, order = torch.randn(2, 16, 48), torch.randperm(48)
        shuffled = expert(x[..., order].view(2, 16, 6, 8)).flatten(2)
        assert torch.allclose(shuffled, expert(x.view(2, 16, 6, 8)).flatten(2)[..., order], atol=1e-5)


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
        expected = expert.mix(torch.cat([x, attended.view(2, 64, 5, 6)], dim=1))
        assert torch.allclose(expert(x), expected, atol=1e-5)


def test_semantic_field_is_five_cells_wide_without_the_mean():
    """And one cell more where two are interpolated: from pixel 16, the first of its cell, pixels 4 to 27."""
    expert = make(SemanticExpert)
    nn.init.zeros_(expert.context.weight)
    x = torch.randn(1, 16, 33, 33)
    for row, seen in ((3, False), (4, True), (27, True), (28, False)):
        touched = x.clone()
        touched[..., row, 16] += 20
        with torch.no_grad():
            before, after = (expert(image)[..., 16, 16] for image in (x, touched))
        assert torch.allclose(before, after, atol=1e-6) is not seen, row


def test_hybrid_reads_patterns_deviations_and_what_varies_together():
    expert = make(HybridExpert, 64)
    x = torch.randn(2, 64, 12, 13)
    cues = given_to(expert.enter, expert, x).chunk(4, dim=1)
    with torch.no_grad():
        pattern, deviation = expert.pattern(x), x - _box_means(x, levels=2)[1]
        attended = torch.empty_like(x)
        for image in range(2):
            for head in range(2):
                own = slice(32 * head, 32 * head + 32)
                query, key = (nn.functional.normalize(cue[image, own].flatten(1)) for cue in (pattern, deviation))
                mixed = (query @ key.T * expert.temperature[head]).softmax(dim=-1) @ x[image, own].flatten(1)
                attended[image, own] = mixed.view(32, 12, 13)
    for cue, expected in zip(cues, (x, pattern, deviation, attended), strict=True):
        assert torch.allclose(cue, expected, atol=1e-5)


def test_hybrid_adds_the_pooled_context_to_every_pixel():
    expert = make(HybridExpert)
    x = torch.randn(2, 16, 9, 7)
    deviation = x - _box_means(x, levels=2)[1]
    pooled = torch.cat([x.mean(dim=(2, 3)), deviation.abs().mean(dim=(2, 3))], dim=1)
    assert torch.allclose(given_to(expert.context, expert, x), pooled, atol=1e-6)
    before = given_to(expert.leave, expert, x)
    with torch.no_grad():
        expert.context.bias += 100  # far beyond where GELU bends
        expert.enter.bias += 100
    after = given_to(expert.leave, expert, x)
    assert (after - before > 150).all()
