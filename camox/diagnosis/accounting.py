"""The memory of a training step on a GPU, counted without one and without computing anything.

The trainer's own step runs on tensors that have shape and type but no values (torch's `FakeTensorMode`), under
autocast by CUDA's rules. A storage counts from the operator that makes it until nothing holds it any more, whole and
once: weights, average, moments, gradients, what autograd keeps, what gradient checkpointing computes again, losses,
clipping, the average's update. `peak` is the most there is at once.

Not counted, because only a card's own libraries know it: the context of CUDA, workspaces inside convolutions and
Fourier transforms, and what the allocator rounds up or cannot use. `camox.diagnosis.estimates` adds an allowance.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from camox.data.loading import TrainBatch
from camox.diagnosis.half_precision import autocast_as_on_a_gpu
from camox.diagnosis.memory import LiveBytes
from camox.experiment import Experiment
from camox.models.camoxpert import CamoXpert
from camox.training.building import build_training_step
from camox.training.phases import TrainingShell
from camox.training.step import Controls

Sizes = Callable[[int, int], list[int]]
"""(choices of all images or regions, experts) → how many of them each expert gets."""


class StepMemory(NamedTuple):
    """Bytes of one optimizer step."""

    weights: int
    """Parameters and buffers."""
    average: int
    """The same again, for the average of the weights, where there is one."""
    moments: int
    """The optimizer's two for each parameter that is or was trained."""
    gradients: int
    kept: int
    """What there is beside weights, average and moments when the backward pass begins: what autograd keeps, the output
    and the batch, and with accumulation the gradients so far."""
    peak: int
    """The most there is at once beside weights, average and moments."""

    @property
    def state(self) -> int:
        """What lives from step to step."""
        return self.weights + self.average + self.moments

    @property
    def total(self) -> int:
        """The most there is at once in all."""
        return self.state + self.peak


def even_sizes(choices: int, experts: int) -> list[int]:
    """Equally many for each expert, as in a balanced run; the first get what is left over."""
    return [choices // experts + (expert < choices % experts) for expert in range(experts)]


class StepAccount:
    """The step of an experiment with its network, as it is on a GPU, for counting; nothing of the network is changed.

    The state grows with the phases, as in a run: count them in their order.

    Args:
        half: whether forward passes run in half precision.
    """

    network: CamoXpert
    """The copy whose tensors have no values."""

    def __init__(self, experiment: Experiment, network: CamoXpert, half: bool):
        self._half = half
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.network = copy.deepcopy(network)
        self.network.zero_grad(set_to_none=True)
        self.network._apply(self._mode.from_tensor)  # on the CPU: autograd asks for a card that a GPU's tensors name
        # Without a fused kernel the step asks the device whether to be taken. Compiled code is not counted.
        fused = experiment.optimizer.model_copy(update={"fused": True})
        self._alone = _Alone()
        with self._mode, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Accessing the data pointer")  # copying asks whether there is one
            self._step = build_training_step(
                experiment.model_copy(update={"optimizer": fused}), cast(Accelerator, self._alone), self.network
            )

    def count(
        self, images: int, size: int, frozen_stages: int, accumulates: bool = False, sizes: Sizes = even_sizes
    ) -> StepMemory:
        """A step of so many images of size² pixels with so many frozen stages of the backbone.

        Args:
            accumulates: whether it is the last micro-batch of several, with the gradients of those before.
            sizes: what the routers decide, which here is told to them.
        """
        network, optimizer = self.network, self._step.optimizer.optimizer
        network.freeze_backbone(frozen_stages)
        network.train()
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kept: list[int] = []
        with self.without_values(images, sizes):
            _give_gradients(trained)
            optimizer.step()  # the first one makes the moments
            optimizer.zero_grad()
            with LiveBytes() as live:
                if accumulates:
                    _give_gradients(trained)
                self._alone.before_backward = lambda: kept.append(live.now)
                self._step(self._shell(), [_batch(images, size)], Controls(0.0, 1.0, noise_share=1.0))
        return StepMemory(
            weights=_bytes(_tensors(network)),
            average=0 if self._step.average is None else _bytes(_tensors(self._step.average.model)),
            moments=_bytes(tensor for state in optimizer.state.values() for tensor in state.values()),
            gradients=_bytes(trained),
            kept=kept[0],
            peak=live.peak,
        )

    @contextmanager
    def without_values(self, images: int, sizes: Sizes = even_sizes) -> Iterator[None]:
        """Inside, operators compute no values, and the routers are told what they decide for so many images."""
        network = self.network
        choices = images * network.grid**2 * int(network.config["top_k"])
        with autocast_as_on_a_gpu(), self._mode, _Told(sizes(choices, len(network.expert_names))):
            yield

    def _shell(self) -> nn.Module:
        shell = TrainingShell(self.network)
        # As Accelerate wraps it: the forward pass alone.
        shell.forward = torch.autocast("cpu", torch.float16, enabled=self._half)(shell.forward)  # type: ignore[method-assign]
        return shell


class _Alone:
    """What a step asks of Accelerate, on one device and without a loss scaler, whose two numbers weigh nothing."""

    device = torch.device("cpu")
    num_processes = 1
    scaler = None
    before_backward: Callable[[], None]

    def prepare(self, optimizer: torch.optim.Optimizer) -> SimpleNamespace:
        return SimpleNamespace(optimizer=optimizer, param_groups=optimizer.param_groups, zero_grad=optimizer.zero_grad)

    def no_sync(self, shell: nn.Module) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.before_backward()
        loss.backward()

    def unscale_gradients(self, optimizer: object) -> None:
        pass

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class _Told(TorchDispatchMode):
    """Answers what the host asks of the device: how many images, or regions, each expert gets. Nothing was computed."""

    def __init__(self, sizes: list[int]):
        super().__init__()
        self._sizes = sizes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            # Number by number, each a view into the table of scales and experts.
            return self._sizes[args[0].storage_offset() % len(self._sizes)]
        return func(*args, **(kwargs or {}))


def _give_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def _batch(images: int, size: int) -> TrainBatch:
    return TrainBatch(
        images=torch.zeros(images, 3, size, size, dtype=torch.uint8),
        masks=torch.zeros(images, 1, size, size, dtype=torch.uint8),
        indices=torch.arange(images),
        weights=torch.ones(images),
        problems=[],
    )


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
