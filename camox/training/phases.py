"""Where in the run an epoch lies, and the part of the network that is trained there."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from camox.experiment import ResolvedPhase
from camox.models.camoxpert import CamoXpert


class TrainingShell(nn.Module):
    """A thin wrapper around the raw network, made anew at each phase.

    Freezing changes which parameters have gradients. DDP fixes that set when it wraps a module, and
    Accelerate silently skips a module it has prepared before; a new shell around the same network is wrapped
    afresh, while the raw network, its optimizer and its average live on.
    """

    def __init__(self, network: CamoXpert):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images)


def phase_of(epoch: int, phases: Sequence[ResolvedPhase]) -> ResolvedPhase:
    """The phase that `epoch`, counted from 0 over the whole run, belongs to."""
    assert epoch >= 0, epoch
    last = 0
    for phase in phases:
        last += phase.epochs
        if epoch < last:
            return phase
    raise AssertionError(epoch)


def apply_freeze(network: CamoXpert, phase: ResolvedPhase) -> None:
    """Freezes what the phase freezes and nothing else."""
    network.freeze_backbone("backbone" in phase.freeze)
