"""Each expert sees the cue in its name; those that have no means to see it do not: six cues, each by itself.

Asked is what an expert hands to its mixing layers: these are two ordinary layers, and make something of any difference.
"""

from typing import Any

import pytest
import torch
from torch import nn

from tests.models.probes import given_to, grating, make

SIZE, CHANNELS, BATCH = 48, 8, 8


def noise():
    """White noise of random phases and equal amplitudes: its spectrum is flat exactly, not on average."""
    spectrum = torch.fft.rfft2(torch.randn(BATCH, CHANNELS, SIZE, SIZE))
    return torch.fft.irfft2(spectrum / spectrum.abs(), s=(SIZE, SIZE), norm="ortho")


def distance_from_centre():
    """Of each pixel, in the maximum norm: half pixels, because the side is even."""
    offset = torch.arange(SIZE) - (SIZE - 1) / 2
    return torch.maximum(offset.abs()[:, None], offset.abs()[None, :])


def texture_cue():
    """Noise that repeats two pixels on, along one diagonal or the other: its magnitudes of slope are the same."""
    x = noise()
    return x + x.roll((2, 2), (2, 3)), x + x.roll((2, -2), (2, 3))


def edge_cue():
    """A slope up or down: every pixel stands as far from its surroundings in both."""
    slope = torch.linspace(-1, 1, SIZE)
    return 0.1 * noise() + slope, 0.1 * noise() - slope


def contrast_cue():
    """A bright frame 12 to 16 pixels from the centre, darkness outside: the image's mean stays as it was."""
    x, distance = noise(), distance_from_centre()
    frame = ((distance > 12) & (distance < 16)).float()
    outside = (distance > 16).float()
    return x, x + 4 * (frame - outside * frame.sum() / outside.sum())


def frequency_cue():
    """Noise whose energy lies around one diagonal of the spectrum, or its mirror image."""
    vertical, horizontal = torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None, :]
    angle = torch.atan2(vertical, horizontal) / torch.pi % 1
    spectrum = torch.fft.rfft2(noise(), norm="ortho") * ((angle > 0.125) & (angle < 0.375))
    one = torch.fft.irfft2(spectrum, s=(SIZE, SIZE), norm="ortho")
    return one, one.flip(3)


def attention_cue():
    """Channels that are equal in pairs, or the same ones with every second shifted: only covariances differ."""
    pairs = noise()[:, ::2].repeat_interleave(2, dim=1)
    apart = pairs.clone()
    apart[:, 1::2] = apart[:, 1::2].roll(17, dims=3)
    return pairs, apart


def semantic_cue():
    """Another brightness 16 pixels from the centre and further out."""
    x = noise()
    return x, x + (distance_from_centre() > 16)


CUES = {
    "texture": texture_cue,
    "edge": edge_cue,
    "contrast": contrast_cue,
    "frequency": frequency_cue,
    "attention": attention_cue,
    "semantic": semantic_cue,
}
SEEN_FROM_THE_CENTRE = ("contrast", "semantic")
BLIND = {
    "texture": ("edge", "contrast"),
    "edge": ("contrast", "frequency"),
    "contrast": ("texture", "edge", "semantic"),
    "frequency": ("edge", "contrast"),
    "attention": ("texture", "edge", "contrast", "frequency", "semantic"),
    "semantic": ("texture", "edge", "contrast"),
}
"""Cue → the experts that cannot see it. The others see some of it: filters that are learned read a spectrum too."""


def cue_response(name, x, seed):
    """The expert's response before it mixes channels."""
    expert: Any = make(name, CHANNELS, seed)
    with torch.no_grad():
        if name == "frequency":
            nn.init.dirac_(expert.enter.weight)
    response = given_to(expert.mix, expert, x)
    if name in ("frequency", "attention", "semantic"):
        response = response[:, CHANNELS:]  # beside x itself
    return response


def statistics(response, cue):
    """Mean and spread `[2, …]` of each channel, at the image's centre where the cue surrounds it."""
    if cue in SEEN_FROM_THE_CENTRE:
        middle = slice(SIZE // 2 - 1, SIZE // 2 + 1)
        response = response[..., middle, middle]
    return torch.stack([response.mean(dim=(0, 2, 3)), response.std(dim=(0, 2, 3))])


def moved(before, after):
    return ((before - after).norm() / before.norm()).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("cue", CUES)
def test_a_cue_moves_what_its_expert_sees_and_not_what_those_blind_to_it_see(cue, seed):
    torch.manual_seed(100 + seed)
    pair = CUES[cue]()
    own, *others = (moved(*(statistics(cue_response(name, x, seed), cue) for x in pair)) for name in (cue, *BLIND[cue]))
    assert own > 0.08
    assert own > 10 * max(others), (own, dict(zip(BLIND[cue], others, strict=True)))


@pytest.mark.parametrize("cue", ["contrast", "attention", "semantic"])
def test_hybrid_responds_to_several_cues(cue):
    torch.manual_seed(100)
    expert = make("hybrid", CHANNELS)
    with torch.no_grad():
        before, after = ((x, expert(x)) for x in CUES[cue]())
    of_input, of_output = (moved(*(statistics(x, cue) for x in pair)) for pair in zip(before, after, strict=True))
    assert of_input < 0.01  # what its input says by itself
    assert of_output > 0.05


def test_patch_frequency_tells_spectra_apart_where_they_are():
    """Two gratings, one in each half of the image, exchanged: each patch's response follows its own."""
    expert = make("patch_frequency", CHANNELS)
    slow, fast = (grating(cycles, size=SIZE, channels=CHANNELS) for cycles in (1 / 8, 3 / 8))
    halves = torch.arange(SIZE) < SIZE // 2
    with torch.no_grad():
        one, other = expert(torch.where(halves, slow, fast)), expert(torch.where(halves, fast, slow))
    left, right = slice(8, SIZE // 2 - 8), slice(SIZE // 2 + 8, SIZE - 8)
    slow_left, slow_right, fast_left = (
        response.std(dim=(0, 2, 3)) for response in (one[..., left], other[..., right], other[..., left])
    )
    assert moved(slow_left, slow_right) < 0.05  # it follows its pattern, not its place
    assert moved(slow_left, fast_left) > 0.1


@pytest.mark.parametrize(("name", "radius"), [("texture", 4), ("edge", 1), ("contrast", 13)])
def test_a_local_expert_sees_its_radius_and_nothing_further(name, radius):
    expert = make(name)
    x = torch.randn(1, 16, 33, 33)
    near, far = x.clone(), x.clone()
    near[..., 16, 16 + radius] += 20
    far[..., 17 + radius :] += 20
    with torch.no_grad():
        centre, seen, unseen = (expert(image)[..., 16, 16] for image in (x, near, far))
    assert not torch.allclose(centre, seen, atol=1e-4)
    assert torch.allclose(centre, unseen, atol=1e-6)


@pytest.mark.parametrize("name", ["frequency", "attention", "semantic", "patch_frequency", "hybrid"])
def test_a_global_expert_sees_the_farthest_pixel(name):
    expert = make(name)
    x = torch.randn(1, 16, 33, 33)
    touched = x.clone()
    touched[..., 32, 32] += 20
    with torch.no_grad():
        assert (expert(x) - expert(touched))[..., 8, 8].abs().max() > 1e-5
