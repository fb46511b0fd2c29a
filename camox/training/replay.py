"""A step that was not finite, kept, and taken once more in fp32 to see where the first NaN or Inf comes from."""

import copy
import json
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from camox.data.loading import TrainBatch, TrainSet, collate_train
from camox.data.samples import Source
from camox.data.sources import Subset
from camox.data.streams import Reading
from camox.errors import CheckpointError
from camox.experiment import Experiment
from camox.stability.culprit import Culprit, find_culprit
from camox.stability.guards import StepReport
from camox.training.phases import train_set
from camox.training.step import TOTAL, Controls, TrainingStep

REPLAYS = "replays"
"""Folder in a run's folder where steps are kept."""
_DESCRIPTION = "replay.json"
_STREAMED = "streamed_{rank}.safetensors"
_OF_A_BATCH = ("images", "masks", "indices", "weights")
_VERSION = 2


@dataclass(frozen=True)
class Attempted:
    """All that one process needs to take an optimizer step once more, but for the weights."""

    step: int
    """Number of the step, counted from 1 over the whole run."""
    epoch: int
    """Counted from 0; with a sample's index it gives the sample's augmentation."""
    image_sizes: tuple[int, ...]
    """Of each micro-batch, in pixels."""
    batches: tuple[tuple[int, ...], ...]
    """Indices of the samples of each micro-batch."""
    balance_coefficient: float
    noise_share: float
    generators: dict[str, Tensor]
    """State of torch's random generators before the step."""
    streamed: tuple[TrainBatch, ...] = ()
    """The micro-batches themselves, where they were streamed: such samples cannot be had again by an index."""

    @staticmethod
    def of(step: int, epoch: int, batches: Sequence[TrainBatch], controls: Controls) -> "Attempted":
        """A step that is about to be taken, of batches that are not on the device yet."""
        generators = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            generators["cuda"] = torch.cuda.get_rng_state()
        samples = tuple(tuple(batch.indices.tolist()) for batch in batches)
        streamed = [batch for batch, indices in zip(batches, samples, strict=True) if min(indices) < 0]
        coefficient, noise = controls.balance_coefficient, controls.noise_share
        sizes = tuple(batch.images.shape[-1] for batch in batches)
        return Attempted(step, epoch, sizes, samples, coefficient, noise, generators, tuple(streamed))

    def loaded(self, dataset: TrainSet) -> Iterator[TrainBatch]:
        """The micro-batches."""
        if self.streamed:
            yield from self.streamed
            return
        for size, indices in zip(self.image_sizes, self.batches, strict=True):
            yield collate_train([dataset[self.epoch, index, size] for index in indices])


class Replayed(NamedTuple):
    """What taking a step once more has shown."""

    culprit: Culprit | None
    """None where all was finite this time."""
    samples: tuple[str, ...] = ()
    """Of the micro-batch with the culprit, those that had such values; all of it where that cannot be told."""
    failure: str = ""
    """Why the step could not be taken once more."""

    def plain(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "culprit": None if self.culprit is None else self.culprit.plain(),
            "samples": list(self.samples),
            "failure": self.failure,
        }

    def __str__(self) -> str:
        if self.failure:
            return self.failure
        if self.culprit is None:
            return "all values are finite"
        exact = "of" if self.culprit.rows else "in a batch of"
        return f"{self.culprit}, {exact} {', '.join(self.samples)}"


def replay(
    step: TrainingStep, attempted: Attempted, experiment: Experiment, source: Source | Subset | Reading
) -> Replayed:
    """Takes one process's part of a step once more, in fp32, on a copy of the network; changes nothing.

    Args:
        source: the training samples of the experiment.
    """
    dataset = train_set(experiment, attempted.image_sizes[0], source)
    device = step.accelerator.device
    cuda = [device] if device.type == "cuda" else []
    try:
        network = copy.deepcopy(step.network)
        network.zero_grad(set_to_none=True)
        network.anneal_routing_noise(attempted.noise_share)
        with torch.random.fork_rng(cuda):
            torch.set_rng_state(attempted.generators["cpu"])
            if cuda and "cuda" in attempted.generators:
                torch.cuda.set_rng_state(attempted.generators["cuda"], device)
            for loaded in attempted.loaded(dataset):
                batch = loaded.to(device)
                images = batch.images.float() / 255

                def compute(images: Tensor = images, batch: Any = batch) -> None:
                    output = network(images)
                    step.losses(output, batch, attempted.balance_coefficient)[TOTAL].backward()

                culprit = find_culprit(network, {"images": images}, compute)
                if culprit is not None:
                    rows = culprit.rows or range(len(batch.names))
                    return Replayed(culprit, tuple(batch.names[row] for row in rows))
    except torch.OutOfMemoryError:
        return Replayed(None, failure="the step does not fit in this device's memory in fp32: replay it on a CPU")
    except Exception as error:  # noqa: BLE001  other processes wait for what this one has found, and a run must go on
        return Replayed(None, failure=f"the step could not be taken again: {type(error).__name__}: {error}")
    return Replayed(None)


class Replays:
    """Decides which steps of a run are taken once more, and keeps them.

    Under a loss scale single overflows are routine: there it takes two in a row, or a loss that is not finite itself.

    Args:
        source: the training samples of the experiment.
        scaled: whether there is a loss scale.
    """

    def __init__(self, experiment: Experiment, source: Source | Subset | Reading, scaled: bool):
        self.experiment = experiment
        self.source = source
        self.scaled = scaled
        self.left = experiment.stability.replays
        """How many more steps may be kept."""
        self._attempted: deque[Attempted] = deque(maxlen=256)
        self._in_a_row = 0
        self._done = False
        """Whether a step of this row of bad ones was wanted already: the others have the same cause."""

    def note(self, attempted: Attempted) -> None:
        """Takes in a step that is about to be taken."""
        if self.left:
            self._attempted.append(attempted)

    def after_steps(
        self, step: TrainingStep, reports: Sequence[StepReport], weights_after: int
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Replays, on all processes, and keeps the first step that calls for it; what is to be told of it, and its
        details. Collective.

        Args:
            weights_after: number of the step after which the network has the weights it has now.
        """
        attempted = self._wanted(reports)
        if attempted is not None:
            yield self._take_again(step, attempted, weights_after)

    def _wanted(self, reports: Sequence[StepReport]) -> Attempted | None:
        steps = {attempted.step: attempted for attempted in self._attempted}
        wanted = None
        for report in reports:
            self._in_a_row = 0 if report.finite else self._in_a_row + 1
            self._done = self._done and not report.finite
            routine = self.scaled and self._in_a_row < 2 and not report.terms
            if report.finite or routine or self._done or wanted is not None or not self.left:
                continue
            wanted, self._done = steps.get(report.step), True
        self._attempted.clear()
        self.left -= wanted is not None
        return wanted

    def _take_again(self, step: TrainingStep, attempted: Attempted, weights_after: int) -> tuple[str, dict[str, Any]]:
        found = replay(step, attempted, self.experiment, self.source)
        of_ranks: list[tuple[Attempted, Replayed]] = gather_object([(attempted, found)])
        folder = self.experiment.run_folder / REPLAYS / f"step_{attempted.step:07d}"
        kept = ""
        if step.accelerator.is_main_process:
            try:
                _keep(folder, step, of_ranks, weights_after)
                kept = f"; once more by: camox diagnose --replay {folder}"
            except (OSError, SafetensorError) as error:  # a full disk must not end a run that a skip has saved
                kept = f"; it could not be kept in {folder}: {error}"
        rank, first = next(
            ((rank, found) for rank, (_, found) in enumerate(of_ranks) if found.culprit or found.failure), (0, found)
        )
        where = f" (process {rank})" if rank else ""
        text = _sentence(first, self.scaled, weights_after - attempted.step)
        details = {"folder": str(folder), "ranks": [found.plain() for _, found in of_ranks]}
        return f"step {attempted.step} once more in fp32{where}: {text}{kept}", details


class Kept(NamedTuple):
    """A step as it was kept: what each process had, and the weights."""

    of_ranks: list[Attempted]
    weights: dict[str, Tensor]
    weights_after: int
    frozen_stages: int
    loss_weights: dict[str, float]


def read_kept(folder: Path) -> Kept:
    """Reads a step that a run has kept.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        table = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        if table["version"] != _VERSION:
            raise CheckpointError(f"{folder}: kept by another version of camox (format {table['version']!r})")
        of_ranks = [
            Attempted(
                table["step"],
                table["epoch"],
                tuple(table["image_sizes"]),
                tuple(tuple(batch) for batch in entry["batches"]),
                table["balance_coefficient"],
                table["noise_share"],
                load_file(folder / f"rng_{rank}.safetensors"),
                _streamed(folder, rank, entry.get("names", ())),
            )
            for rank, entry in enumerate(table["ranks"])
        ]
        return Kept(
            of_ranks,
            load_file(folder / "model.safetensors"),
            table["weights_after"],
            table["frozen_stages"],
            table["loss_weights"],
        )
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} is no step that a run has kept: {error.filename or error} is missing"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: the step that was kept here cannot be read: {error}") from error


def _streamed(folder: Path, rank: int, names: Sequence[list[str]]) -> tuple[TrainBatch, ...]:
    if not names:
        return ()
    tensors = load_file(folder / _STREAMED.format(rank=rank))
    return tuple(
        TrainBatch(**{name: tensors[f"{number}.{name}"] for name in _OF_A_BATCH}, problems=[], names=of_batch)
        for number, of_batch in enumerate(names)
    )


def newest_kept(path: Path) -> Path:
    """`path` itself, or, if it is a run's folder, the newest of the steps that it has kept.

    Raises:
        CheckpointError: it has kept none.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such folder: give a run's, or that of a step in its {REPLAYS}/")
    if not (path / "experiment.toml").exists():
        return path
    kept = sorted(folder for folder in (path / REPLAYS).glob("*") if (folder / _DESCRIPTION).exists())
    if not kept:
        raise CheckpointError(f"{path} has kept no step: all that it took were finite, or stability.replays is 0")
    return kept[-1]


def _keep(folder: Path, step: TrainingStep, of_ranks: Sequence[tuple[Attempted, Replayed]], weights_after: int) -> None:
    attempted = of_ranks[0][0]
    table = {
        "version": _VERSION,
        "step": attempted.step,
        "epoch": attempted.epoch,
        "image_sizes": attempted.image_sizes,
        "balance_coefficient": attempted.balance_coefficient,
        "noise_share": attempted.noise_share,
        "frozen_stages": step.network.backbone.frozen_stages,
        "loss_weights": step.objective.weights,
        "weights_after": weights_after,
        "ranks": [
            {"batches": ranks.batches, "found": found.plain(), "names": [batch.names for batch in ranks.streamed]}
            for ranks, found in of_ranks
        ],
    }
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    weights = {name: tensor.detach().cpu().clone() for name, tensor in step.network.state_dict().items()}
    save_file(weights, staging / "model.safetensors")
    for rank, (ranks, _) in enumerate(of_ranks):
        save_file(ranks.generators, staging / f"rng_{rank}.safetensors")
        if ranks.streamed:
            tensors = {
                f"{number}.{name}": getattr(batch, name).contiguous()
                for number, batch in enumerate(ranks.streamed)
                for name in _OF_A_BATCH
            }
            save_file(tensors, staging / _STREAMED.format(rank=rank))
    (staging / _DESCRIPTION).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


def _sentence(found: Replayed, scaled: bool, later: int) -> str:
    if found.culprit is not None or found.failure:
        return str(found)
    if scaled:
        return "all values are finite: they were too large for fp16, or for it times the loss scale"
    return f"all values are finite, with the weights that the network had {later} steps later"
