"""Names in a trace for the parts of a training step, put on a trainer's parts only while it is profiled."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.profiler import record_function

from camox.models.camoxpert import CamoXpert
from camox.models.moe import MixtureOfExperts

if TYPE_CHECKING:
    from camox.training.trainer import Trainer

PREFIX = "camox: "
"""How the names of all labels begin in a trace."""

WAITING = "waiting for data"
COPY = "copy to the device"
BACKBONE = "backbone"
ROUTERS = "routers"
DISPATCH = "dispatch"
EXPERTS = "experts"
DECODER = "decoder"
REFINEMENT = "refinement"
LOSSES = "losses"
BACKWARD = "backward, rest of"
REDUCTION = "gradient reduction"
CLIPPING = "clipping"
OPTIMIZER = "optimizer"
AVERAGE = "weight average"
GUARDS = "guards"
METERS = "meters"
LOGGING = "logging"
REQUESTS = "signals, checkpoints"
DEVICE = "wait at the end"
BETWEEN = "in between"

PARTS = (
    *(WAITING, COPY, BACKBONE, ROUTERS, DISPATCH, EXPERTS, DECODER, REFINEMENT, LOSSES, BACKWARD, REDUCTION),
    *(CLIPPING, OPTIMIZER, AVERAGE, GUARDS, METERS, LOGGING, REQUESTS, DEVICE, BETWEEN),
)
"""The parts of a step, about in the order in which they come. What has no label is `BETWEEN`."""


def expert_label(name: str, stride: int) -> str:
    """The label of one expert at one scale."""
    return f"{EXPERTS}: {name}, stride {stride}"


def part_of(label: str) -> str:
    """The part that a label, without the prefix, belongs to: one of `PARTS`."""
    return label.partition(":")[0]


class Labels:
    """Puts labels on functions and modules, and notes how much GPU memory each part keeps for the backward pass.

    Args:
        device: where the memory is; on a CPU none is noted.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.kept: dict[str, int] = {}
        """Part → bytes that its forward pass left allocated since `kept` was last cleared."""
        self._inner: list[int] = []
        self._in_backward = False

    @contextmanager
    def on(self, label: str) -> Iterator[None]:
        """The block has that label in the trace."""
        before = self._allocated()
        self._inner.append(0)
        outside, self._in_backward = self._in_backward, self._in_backward or label == BACKWARD
        try:
            with record_function(PREFIX + label):
                yield
        finally:
            grown, inner = self._allocated() - before, self._inner.pop()
            if self._inner:
                self._inner[-1] += grown
            if not self._in_backward:
                part = part_of(label)
                self.kept[part] = self.kept.get(part, 0) + grown - inner
            self._in_backward = outside

    def put(self, owner: Any, name: str, label: str) -> None:
        """Every later call of that method of this one object has the label."""
        method: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(method)
        def labelled(*args: Any, **kwargs: Any) -> Any:
            with self.on(label):
                return method(*args, **kwargs)

        setattr(owner, name, labelled)

    def put_module(self, module: nn.Module, label: str) -> None:
        """Every later forward pass of that module has the label, also where the backward pass computes it again."""
        # Around what is compiled: inside of it a label would be compiled away, or break the graph.
        self.put(module, "forward" if module._compiled_call_impl is None else "_compiled_call_impl", label)

    def put_on(self, trainer: "Trainer") -> None:
        """Labels all parts of a step of a trainer that has been built."""
        step, on_gpu = trainer.training_step, self.device.type == "cuda"
        self.put(trainer, "_window", WAITING)
        self.put(trainer, "_to_device", COPY)
        self._put_on_network(trainer.network)
        self.put(step, "losses", LOSSES)
        self.put(trainer.accelerator, "backward", BACKWARD)
        self.put(step, "_clip", CLIPPING)
        self.put(step, "_step_or_skip", OPTIMIZER)
        self.put(step, "_update_balance", ROUTERS)
        if trainer.average is not None:
            self.put(trainer.average, "update", AVERAGE)
        for name in ("_shared", "_judge", "_restore"):
            self.put(step, name, GUARDS)
        self.put(trainer.watch, "began", GUARDS)
        self.put(trainer.replays, "note", GUARDS)
        for name in ("_meter_batch", "_meter_step"):
            self.put(step, name, METERS)
        self.put(step.batch_meters, "take", METERS)
        # On a GPU they look at the steps only when these are logged, now and then.
        self.put(trainer, "_watch_steps", LOGGING if on_gpu else GUARDS)
        self.put(trainer, "_values", LOGGING)
        self.put(trainer.reporter, "log", LOGGING)

    def _put_on_network(self, network: CamoXpert) -> None:
        self.put_module(network.backbone, BACKBONE)
        self.put(network, "_route", ROUTERS)
        self.put(network, "_mix", DISPATCH)
        for stride in network.scales:
            mixture = network.mixtures[f"stride_{stride}"]
            assert isinstance(mixture, MixtureOfExperts)
            shared = {} if mixture.shared is None else {"shared": mixture.shared}
            for name, expert in {**dict(mixture.experts.items()), **shared}.items():
                self.put_module(expert, expert_label(name, stride))
        for module in (*network.laterals, network.search, network.decoder, *network.heads):
            self.put_module(module, DECODER)
        for module in (network.reverse_attention, network.boundary, *network.refinements):
            self.put_module(module, REFINEMENT)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0
