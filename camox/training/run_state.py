"""A run's whole state, to a checkpoint and back: what is resumed is the run that was interrupted."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from camox.checkpoints.store import Checkpoint, TensorGroups, is_better, read_checkpoint
from camox.errors import CheckpointError
from camox.models.camoxpert import CamoXpert
from camox.tracking.console import counted
from camox.training.ema import WeightAverage
from camox.training.meters import Meters
from camox.training.optimization import load_optimizer_tensors, optimizer_tensors
from camox.training.state_entries import StateEntries
from camox.training.telemetry import Scores


class Stateful(Protocol):
    """A part of a run with a JSON-ready state."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


class OfThisRank(Stateful, Protocol):
    """A part of which each rank has its own state."""

    def begin(self, epoch: int, /) -> None:
        """Starts anew, where the states are those of another number of ranks."""


@dataclass
class Position:
    """Where a run is."""

    step: int = 0
    """Optimizer steps attempted so far. Never falls: steps that were rolled back keep their numbers."""

    epoch: int = 0
    """Finished epochs."""

    batch: int = 0
    """Micro-batches of the unfinished epoch that each process has trained on."""

    attempt: int = 0
    """How often the run was rolled back: every attempt has its own order of the data."""

    def __str__(self) -> str:
        """For people, who count epochs from 1."""
        if self.step == 0:
            return "step 0"
        return f"step {self.step}, " + (f"in epoch {self.epoch + 1}" if self.batch else f"after epoch {self.epoch}")


class RunState:
    """Collects the state of a run's parts, and puts it back.

    Tensors: `model`, `ema`, `optimizer`, and for each rank `rng_<rank>` with what is its own: its random generators,
    the sums of the logging interval that is under way, of several ranks in mid-epoch the running statistics of norms,
    and the JSON text of its place in streamed data. Everything else is in tables, which hold no tensor.

    Args:
        parts: name → part whose table goes into `state.json` under that name.
        meters: name → running sums.
        image_size: that of evaluation, for who has the checkpoint without its run.
        stream: how far this rank has read, where data are streamed.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        network: CamoXpert,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage | None,
        parts: Mapping[str, Stateful],
        meters: Mapping[str, Meters],
        image_size: int,
        stream: OfThisRank | None = None,
    ):
        self.accelerator = accelerator
        self.network = network
        self.optimizer = optimizer
        self.average = average
        # Walked once: a walk for each save takes as long as to copy a tenth of a gigabyte.
        self._parameters = list(network.named_parameters())
        self._network_state = StateEntries(network)
        self._average_state = None if average is None else StateEntries(average.model)
        self.parts = parts
        self.meters = meters
        self.image_size = image_size
        self.stream = stream

    def tables(self, position: Position) -> dict[str, Any]:
        """What `state.json` holds. Waits for the device."""
        scaler = self.accelerator.scaler
        return {
            **asdict(position),
            "scaler": None if scaler is None else scaler.state_dict(),
            "ema_updates": None if self.average is None else self.average.updates.item(),
            "ranks": self.accelerator.num_processes,
            "image_size": self.image_size,
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def tensors(self) -> TensorGroups:
        """The tensors themselves, not copies. Collective; the same on all ranks but for what is a rank's own."""
        groups: dict[str, Mapping[str, Tensor]] = {"model": self._network_state.tensors()}
        if self._average_state is not None:
            groups["ema"] = self._average_state.tensors()
        groups["optimizer"] = optimizer_tensors(self._parameters, self.optimizer)
        of_ranks = gather_object([self._of_this_rank()])
        return groups | {f"rng_{rank}": tensors for rank, tensors in enumerate(of_ranks)}

    def remember(self, position: Position) -> "Remembered":
        """A copy of the state in host memory. Collective."""
        tensors = self.tensors()
        copies = {stem: {name: t.detach().cpu().clone() for name, t in of.items()} for stem, of in tensors.items()}
        return Remembered(self.tables(position), copies)

    def restore(self, state: Mapping[str, Any], tensors: "TensorSource", name: object) -> Position:
        """Puts a state back and gives the position it was taken at; `name` is what messages call it.

        On another number of ranks than it was taken on, random generators and what else is a rank's own start anew.

        Raises:
            CheckpointError: it is not of this experiment's model.
        """
        load_into(self.network, tensors.tensors("model"), f"{name}/model.safetensors")
        if self.average is not None:
            load_into(self.average.model, tensors.tensors("ema"), f"{name}/ema.safetensors")
            self.average.updates.fill_(state["ema_updates"])
        load_optimizer_tensors(self.network, self.optimizer, tensors.tensors("optimizer"))
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for part, stateful in self.parts.items():
            stateful.load_state_dict(state[part])
        position = Position(**{key: state[key] for key in asdict(Position())})
        for meters in self.meters.values():
            meters.load({})
        if state["ranks"] == self.accelerator.num_processes:
            self._restore_rank(tensors.tensors(f"rng_{self.accelerator.process_index}"))
        elif self.stream is not None:
            self.stream.begin(position.epoch)
        return position

    def _of_this_rank(self) -> dict[str, Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state()
        for name, meters in self.meters.items():
            state |= {f"{name}:{key}": value.cpu() for key, value in meters.state().items()}
        if self.stream is not None:
            text = json.dumps(self.stream.state_dict()).encode()
            state["stream"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        return state | {f"statistics:{key}": value.cpu() for key, value in self._own_statistics().items()}

    def _restore_rank(self, tensors: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(tensors["cpu"])
        if "cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["cuda"])
        for name, meters in self.meters.items():
            meters.load(_below(name, tensors, self.accelerator.device))
        if self.stream is not None and "stream" in tensors:
            self.stream.load_state_dict(json.loads(bytes(tensors["stream"].tolist())))
        ours = self._own_statistics()
        for key, value in _below("statistics", tensors, self.accelerator.device).items():
            ours[key].copy_(value)

    def _own_statistics(self) -> dict[str, Tensor]:
        """Running statistics of norms, which ranks share only from one epoch's end to the next."""
        if self.accelerator.num_processes == 1:
            return {}
        models = {"model": self.network} | ({} if self.average is None else {"ema": self.average.model})
        return {
            f"{model}/{key}": buffer
            for model, module in models.items()
            for key, buffer in module.named_buffers()
            if "running_" in key or "num_batches_tracked" in key
        }


@dataclass(frozen=True)
class Remembered:
    """A state in host memory, as a checkpoint has it."""

    state: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """The tensors of one group by name."""
        return self.groups[stem]


class TensorSource(Protocol):
    """Where a state's tensors come from."""

    def tensors(self, stem: str, /) -> dict[str, Tensor]:
        """The tensors of one group by name."""


def batch_on_other_ranks(batch: int, accumulate: int, before: int, now: int) -> int:
    """Where `now` ranks go on in an epoch of which each of `before` ranks has trained on `batch` micro-batches: at the
    same sample, or at the last whole step of `accumulate` micro-batches before it."""
    return batch * before // now // accumulate * accumulate


def other_ranks_notice(before: int, now: int) -> str:
    """What a person should know where a run goes on with another number of ranks."""
    return (
        f"the checkpoint was written by {counted(before, 'process')} and {now} go on: effective batch, random "
        "numbers and which samples share a batch are others, and streamed data begin anew, so the run is not the "
        "one it would have been"
    )


def open_to_resume(path: Path) -> Checkpoint:
    """Verifies and opens a checkpoint to go on from.

    Raises:
        CheckpointError: it is damaged, or holds weights alone.
    """
    checkpoint = read_checkpoint(path)
    if "optimizer" not in checkpoint.stems:
        raise CheckpointError(
            f"{path} holds weights alone, as a converted checkpoint does, and no state of a training to go on from: "
            "resume the run that it was made of; start a new run from it with experiment.init_from; evaluate it or "
            "predict with it as it is"
        )
    state, manifest = checkpoint.state, checkpoint.manifest
    for key, expected in (("step", manifest.step), ("epoch", manifest.epoch)):
        if type(state.get(key)) is not int or state[key] != expected:
            raise CheckpointError(f"{path}/state.json: {key} is {state.get(key)!r}, in the manifest {expected}")
    return checkpoint


def load_into(module: torch.nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Loads a checkpoint's tensors into a module of the same structure.

    Raises:
        CheckpointError: names or shapes differ.
    """
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{what} does not fit the experiment's model: {error}") from error


def better_weights(scores: Scores, monitor: str) -> tuple[str, float | None]:
    """Which weights scored better on held-out data, "raw" or "ema", and how well; None without a score.

    A score that is missing or NaN never wins.
    """
    best, weights = None, "raw"
    for prefix, name in (("val", "raw"), ("val_ema", "ema")):
        score = scores.get(prefix, {}).get(monitor)
        if score is not None and is_better(score, best, monitor):
            best, weights = score, name
    return weights, best


def _below(prefix: str, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {key.partition(":")[2]: value.to(device) for key, value in tensors.items() if key.startswith(f"{prefix}:")}
