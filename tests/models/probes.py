"""What tests of experts ask them with."""

import torch

from camox.models.experts import EXPERTS


def make(expert, channels=16, seed=0):
    """An expert, by name or class, with the weights of a seed."""
    torch.manual_seed(seed)
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


def given_to(module, expert, x):
    """What a part of the expert is given on the way of x."""
    caught = []
    handle = module.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
    with torch.no_grad():
        expert(x)
    handle.remove()
    return caught[0]
