"""The exportable form gives what the model gives; its exports are in tests/inference/exporting/test_export.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.edgenext import PositionalEncodingFourier

from camox.models.experts import EXPERTS
from camox.models.exportable import (
    ExportableCamoXpert,
    IndexedMixture,
    MatrixMixture,
    SizedPositions,
    filter_by_matrices,
)
from camox.models.moe import MixtureOfExperts
from camox.models.router import Routing

sides = st.integers(1, 40)


@given(height=sides, width=sides, seed=st.integers(0, 100))
def test_filtering_by_matrices_is_filtering_by_fft(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, height, width, generator=generator)
    gains = torch.randn(3, height, width // 2 + 1, generator=generator)
    # Symmetric, as a real filter's are: of others the inverse transform is not defined.
    whole = torch.fft.irfft2(gains.to(torch.complex64), s=(height, width))
    gains = torch.fft.rfft2(whole).real
    expected = torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho") * gains, s=(height, width), norm="ortho")
    assert torch.allclose(filter_by_matrices(x, gains), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(17, 88), (104, 88), (1, 300)])
def test_large_maps_keep_their_digits(size):
    x = torch.randn(1, 2, *size, generator=torch.Generator().manual_seed(0))
    gains = torch.ones(2, size[0], size[1] // 2 + 1)
    assert (filter_by_matrices(x, gains) - x).abs().max() < 1e-5


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("size", [(16, 24), (9, 7), (1, 1)])
def test_each_expert_has_an_equal_form(name, size):
    torch.manual_seed(0)
    expert, form = EXPERTS[name](16), MatrixMixture.kinds[name](16)
    form.load_state_dict(expert.state_dict())
    x = torch.randn(3, 16, *size)
    with torch.no_grad():
        assert torch.allclose(form(x), expert(x), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 4, 7), (1, 1, 1), (3, 44, 13)])
@pytest.mark.parametrize("temperature", [10000.0, 20.0])
def test_positions_are_those_of_timm(shape, temperature):
    torch.manual_seed(0)
    positions, form = (kind(8, 24, temperature) for kind in (PositionalEncodingFourier, SizedPositions))
    form.load_state_dict(positions.state_dict())
    with torch.no_grad():
        assert torch.allclose(form(shape), positions(shape), atol=1e-5)


def test_the_form_of_an_edgenext_holds_no_positions_of_timm(build, images):
    model = build(backbone="edgenext_xx_small").eval()
    form = ExportableCamoXpert(model)
    kinds = [type(module) for module in form.modules() if isinstance(module, PositionalEncodingFourier)]
    assert kinds
    assert set(kinds) == {SizedPositions}
    batch = images(3, 40, 71)
    with torch.no_grad():
        assert torch.allclose(form(batch)[0], model(batch).logits, atol=1e-4)


@pytest.mark.parametrize("selected", [[[0, 1], [1, 2], [0, 2]], [[3, 1], [3, 1], [3, 1]], [[2, 0]]])
def test_the_dispatch_by_index_is_that_by_mask(selected):
    torch.manual_seed(0)
    names = ["texture", "frequency", "contrast", "attention"]
    mixture, form = MixtureOfExperts(16, names), IndexedMixture(16, names)
    form.load_state_dict(mixture.state_dict())
    chosen = torch.tensor(selected)
    probabilities = torch.full((len(chosen), 4), 0.25)
    routing = Routing(probabilities, probabilities, chosen, torch.rand(len(chosen), 2))
    x = torch.randn(len(chosen), 16, 12, 10)
    with torch.no_grad():
        assert torch.allclose(form(x, routing, None), mixture(x, routing, None), atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"granularity": 2, "shared": True, "channels_last": True},
        {"mode": "dense", "experts": ["patch_frequency", "hybrid"]},
        {"mode": "static"},
        {"mode": "random", "gradient_checkpointing": True},
        {"scales": [], "refinement_steps": 0, "deep_supervision": False},
    ],
    ids=str,
)
def test_the_form_of_a_network_says_what_the_network_says(build, images, arguments):
    model = build(**arguments).eval()
    form = ExportableCamoXpert(model)
    batch = images(3, 40, 71)
    with torch.no_grad():
        output, (logits, uncertainty) = model(batch), form(batch)
    assert torch.allclose(logits, output.logits, atol=1e-5)
    assert torch.allclose(uncertainty, output.uncertainty, atol=1e-5)


def test_making_the_form_draws_nothing_and_leaves_the_model(build):
    model = build()
    before, state = model.state_dict(), torch.get_rng_state()
    ExportableCamoXpert(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_margins_tell_ties(build, images):
    model = build().eval()
    with torch.no_grad():
        for router in model.routers.values():
            router.gate.weight.zero_()
            router.gate.bias.copy_(torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0, 0.0]))
        tied = model.routing_margins(model(images(2)))
        model.balance(8).bias[1] += 0.25
        model.routers["stride_4"].gate.bias[2] -= 0.5
        assert torch.all(tied == 0)
        assert torch.all(model.routing_margins(model(images(2))) == 0)  # strides 16 and 32 are tied still
    assert torch.isinf(build(mode="dense").eval().routing_margins(model(images(2)))).all()
