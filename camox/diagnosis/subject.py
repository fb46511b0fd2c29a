"""The experiment under examination: its data, and its network as it is before the first step."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from camox.data.loading import TrainBatch
from camox.data.samples import Source
from camox.data.sources import Subset
from camox.data.streams import Reading
from camox.errors import DataError
from camox.experiment import Experiment, ResolvedPhase
from camox.models.camoxpert import CamoXpert
from camox.models.router import Routing
from camox.training.building import build_network, build_training_step, open_data, wrap_for_training
from camox.training.phases import batches_of, frozen_stages, phase_loader
from camox.training.processes import build_accelerator
from camox.training.step import Controls, TrainingStep

_FEWEST_IMAGES, _MOST_IMAGES = 4, 8


@dataclass(frozen=True)
class Subject:
    """What checks look at. They train copies of `network`, never itself."""

    experiment: Experiment
    accelerator: Accelerator
    network: CamoXpert
    source: Source | Subset | Reading
    held_out: Source | Subset

    @property
    def phase(self) -> ResolvedPhase:
        """The last phase, which trains the most of the network."""
        return self.experiment.phases_resolved()[-1]

    @property
    def frozen_by_phase(self) -> list[int]:
        """Backbone stages that are frozen in each phase's last epoch, which trains the most of it."""
        phases = self.experiment.phases_resolved()
        return [frozen_stages(end - 1, phases) for end in accumulate(phase.epochs for phase in phases)]

    @property
    def frozen_stages(self) -> int:
        """Backbone stages that are frozen at the end of the run."""
        return self.frozen_by_phase[-1]

    @property
    def images(self) -> int:
        """Images that a check looks at: a batch, but 4 to 8, and enough for every expert to get one."""
        wanted = max(_FEWEST_IMAGES, images_for_all_experts(self.network), min(self.phase.batch_size, _MOST_IMAGES))
        return min(wanted, len(self.source))

    def batches(self, images: int, image_size: int | None = None) -> Iterator[TrainBatch]:
        """Training batches of `images` on the device, as augmented as the run's, epoch after epoch without end.

        Raises:
            DataError: a sample cannot be read.
        """
        phase = self.phase
        size = image_size or phase.image_size
        sized = ResolvedPhase(phase.name, phase.epochs, phase.freeze, images, phase.accumulate, phase.lr, size)
        sampler = batches_of(self.source, images, self.experiment.experiment.seed)
        without_workers = self.experiment.data.model_copy(update={"workers": 0})
        experiment = self.experiment.model_copy(update={"data": without_workers})
        loader = phase_loader(experiment, sized, self.source, sampler, pin_memory=False)
        epoch = 0
        while True:
            sampler.set_position(epoch)
            for batch in loader:
                if batch.problems:
                    raise DataError(batch.problems[0])
                sampler.consumed(1)
                yield batch.to(self.accelerator.device)
            epoch += 1

    def batch(self, images: int | None = None, image_size: int | None = None) -> TrainBatch:
        """The first batch."""
        return next(self.batches(images or self.images, image_size))

    def copy(self) -> CamoXpert:
        """The network with weights of its own, in training mode."""
        network = copy.deepcopy(self.network)
        network.zero_grad(set_to_none=True)
        return network.train()

    def trial(self, stages: int | None = None) -> "Trial":
        """A copy of the network with the run's own step, and so many frozen stages; by default those of its end."""
        self.accelerator.free_memory()  # drops the last trial's
        network, frozen = self.copy(), self.frozen_stages if stages is None else stages
        step = build_training_step(self.experiment, self.accelerator, network)
        step.spikes = None  # where a loss diverges is what a trial wants to see
        return Trial(network, step, wrap_for_training(network, self.accelerator, frozen))


class Trial:
    """A copy of the network with the step that trains it."""

    def __init__(self, network: CamoXpert, step: TrainingStep, shell: nn.Module):
        self.network = network
        self.step = step
        self.shell = shell
        self.steps = 0
        self.skipped = 0
        """Steps that were skipped, of all."""

    def take_step(self, batch: TrainBatch, learning_rate: float, balance_coefficient: float = 0.0) -> float:
        """Trains on one batch and gives the task's loss before it. Waits for the device."""
        controls = Controls(learning_rate, balance_coefficient, noise_share=0.0)
        self.step(self.shell, [batch], controls)
        self.steps += 1
        report = self.step.reports(self.steps)[-1]
        self.skipped += not report.taken
        return report.loss


def build_subject(experiment: Experiment) -> Subject:
    """Opens the data and builds the network as the trainer would, without compiling it.

    Raises:
        CamoxError: what would keep the run from starting.
    """
    accelerator = build_accelerator(experiment)
    set_seed(experiment.experiment.seed)
    source, held_out = open_data(experiment)
    # Compiled code computes the same, minutes later.
    plain = experiment.model_copy(update={"model": experiment.model.model_copy(update={"compile": False})})
    network = build_network(plain, accelerator.device)
    return Subject(plain, accelerator, network, source, held_out)


def images_for_all_experts(network: CamoXpert) -> int:
    """How many images it takes for every expert to be chosen equally often, by `cycled_routing`."""
    experts, top_k = len(network.expert_names), _chosen(network)
    return math.lcm(experts, top_k) // top_k if network.scales else 1


def cycled_routing(network: CamoXpert, images: Tensor) -> dict[int, Routing] | None:
    """A routing of `[B, 3, H, W]` that gives experts their turn, with equal weights; None where there are no experts.

    An untrained router may choose two experts for all images, and would leave the others unseen.
    """
    if not network.scales:
        return None
    experts, top_k = len(network.expert_names), _chosen(network)
    rows = len(images) * network.grid**2
    turns = torch.arange(rows * top_k, device=images.device) % experts
    zeros = torch.zeros(rows, experts, device=images.device)
    weights = zeros.new_full((rows, top_k), 1 / top_k)
    routing = Routing(zeros, zeros + 1 / experts, turns.view(rows, top_k), weights)
    return dict.fromkeys(network.scales, routing)


def _chosen(network: CamoXpert) -> int:
    experts = len(network.expert_names)
    return experts if network.mode in ("dense", "static") else int(network.config["top_k"])
