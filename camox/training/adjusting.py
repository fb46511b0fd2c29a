"""What recovery has changed, made to hold in the parts that the controls of a step do not reach."""

from camox.experiment.network import MixtureOfExperts
from camox.losses.composite import SegmentationObjective
from camox.models.camoxpert import CamoXpert
from camox.stability.recovery import Adjustments


def apply_adjustments(
    adjustments: Adjustments, network: CamoXpert, objective: SegmentationObjective, moe: MixtureOfExperts
) -> None:
    """Sets the balance's bias rate, the routers' noise and deep supervision; `moe` is what the experiment says."""
    for stride in network.scales if network.learns_routing and moe.balance.kind == "band" else ():
        network.balance(stride).bias_rate = moe.balance.bias_rate * adjustments.bias_rate
    if adjustments.noise_from is not None:
        network.set_routing_noise(max(1.0, moe.router.noise))
    if not adjustments.deep_supervision:
        objective.leave_out_deep()
