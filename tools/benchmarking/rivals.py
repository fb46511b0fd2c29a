"""What to measure against: another way to do what camox does, and the backbones that other networks are built on."""

import timm
import torch
from torch import Tensor, nn

from benchmarking.settings import Settings
from benchmarking.timing import Work
from camox.models.moe import Dispatch, MixtureOfExperts
from camox.models.router import Routing


class PerImageLoop(nn.Module):
    """A mixture of experts that goes through images one by one and calls each of their experts on a batch of one.

    The usual first way to write a sparse mixture. Gives what `mixture`, whose weights it uses, gives; every choice is
    a copy of its own to the host, and no convolution sees more than one image.
    """

    def __init__(self, mixture: MixtureOfExperts):
        super().__init__()
        assert mixture.grid == 1, "written for the routing of whole images"
        assert mixture.shared is None, "written for a mixture without a shared expert"
        self.mixture = mixture

    def forward(self, x: Tensor, routing: Routing, dispatch: Dispatch | None) -> Tensor:
        """Like `MixtureOfExperts.forward`; a plan for the dispatch is not used."""
        normalised = self.mixture.norm(x).to(x.dtype)
        experts = list(self.mixture.experts.values())
        mixed = []
        for image, selected, weights in zip(normalised.split(1), routing.selected, routing.weights, strict=True):
            responses = [
                weight.to(image.dtype) * experts[int(number)](image)
                for number, weight in zip(selected, weights, strict=True)
            ]
            mixed.append(torch.stack(responses).sum(dim=0))
        return x + self.mixture.scale.to(x.dtype) * torch.cat(mixed)


BACKBONES = {
    "edgenext_base": "camox",
    "res2net50_26w_4s": "SINet-V2",
    "pvt_v2_b2": "HitNet",
    "efficientnet_b1": "DGNet",
}
"""timm's name of a backbone → who uses it. A network takes at least the time of its backbone."""


def backbone_step(name: str, settings: Settings) -> Work:
    """Forward and backward pass of a backbone alone, without an optimizer's step, on a batch of noise."""
    network = timm.create_model(name, features_only=True, pretrained=False).to(settings.torch_device).train()
    images = torch.rand(settings.batch, 3, settings.image_size, settings.image_size, device=settings.torch_device)

    def step() -> None:
        with settings.autocast():
            features = network(images)
        torch.stack([feature.float().mean() for feature in features]).sum().backward()
        network.zero_grad()

    return step
