"""Small networks of the full model class."""

from typing import Any

import pytest
import torch

from camox.models.camoxpert import CamoXpert


@pytest.fixture
def build():
    """Builds the same small network at each call: equal arguments give equal weights."""

    def make(seed=0, **arguments):
        torch.manual_seed(seed)
        settings: dict[str, Any] = {"backbone": "resnet10t", "width": 16, "noise": 0.0} | arguments
        return CamoXpert(**settings)

    return make


@pytest.fixture
def images():
    """Random images `[count, 3, height, width]` from a seed."""

    def make(count=2, height=64, width=64, seed=1):
        return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def host_copies(monkeypatch):
    """Names of the calls, from here on, that would wait for a device to hand values to Python."""
    copies: list[str] = []

    def counted(name):
        original = getattr(torch.Tensor, name)

        def call(self, *arguments):
            copies.append(name)
            return original(self, *arguments)

        return call

    for name in ("tolist", "cpu", "item", "numpy", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    return copies
