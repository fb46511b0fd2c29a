"""The networks that are measured against each other."""

from typing import Any

import torch

from benchmarking.rivals import PerImageLoop
from benchmarking.settings import Settings
from camox.models.camoxpert import CamoXpert
from camox.models.moe import MixtureOfExperts

VARIANTS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "masked": {"dispatch": "masked"},
    "dense": {"mode": "dense"},
    "static": {"mode": "static"},
    "random": {"mode": "random"},
    "no_experts": {"scales": ()},
    "channels_last": {"channels_last": True},
    "checkpointed": {"gradient_checkpointing": True},
    "per_image_loop": {"dispatch": "masked"},
    "sparse_compiled": {"compile": True},
    "dense_compiled": {"mode": "dense", "compile": True},
    "static_compiled": {"mode": "static", "compile": True},
}
"""Name → what is different from the default network; in `per_image_loop` a rival takes the mixtures' place."""


def build_network(name: str, settings: Settings) -> CamoXpert:
    """One of `VARIANTS` on its device, in training mode; what they have in common is initialised alike."""
    torch.manual_seed(0)
    # Without noise, untrained routers send the whole batch to one and the same pair.
    network = CamoXpert(settings.backbone, width=settings.width, noise=1.0, **VARIANTS[name])
    if name == "per_image_loop":
        for stride, mixture in network.mixtures.items():
            assert isinstance(mixture, MixtureOfExperts)
            network.mixtures[stride] = PerImageLoop(mixture)
    return network.to(settings.torch_device).train()
