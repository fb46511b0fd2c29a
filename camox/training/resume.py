"""A run's whole state, to a checkpoint and back: what is resumed is the run that was interrupted."""

from pathlib import Path

import torch
from accelerate.utils import gather_object
from torch import Tensor

from camox.checkpoints.store import Checkpoint, is_better, read_checkpoint
from camox.errors import CheckpointError
from camox.training.telemetry import Scores


def open_to_resume(path: Path) -> Checkpoint:
    """Verifies and opens a checkpoint to go on from.

    Raises:
        CheckpointError: it is damaged, or holds weights alone.
    """
    checkpoint = read_checkpoint(path)
    if "optimizer" not in checkpoint.stems:
        raise CheckpointError(
            f"{path} holds weights alone, as a converted checkpoint does, and no state of a training to go on from: "
            "resume the run that it was made of; evaluate it or predict with it as it is"
        )
    return checkpoint


def generator_states(ranks: int) -> dict[str, dict[str, Tensor]]:
    """The random generators of every rank, gathered: `rng_<rank>` → device → state. Collective."""
    ours = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        ours["cuda"] = torch.cuda.get_rng_state()
    states = gather_object([ours])
    assert len(states) == ranks, (len(states), ranks)
    return {f"rng_{rank}": state for rank, state in enumerate(states)}


def restore_generators(checkpoint: Checkpoint, rank: int, ranks: int) -> None:
    """Puts this rank's generators back.

    Raises:
        CheckpointError: the checkpoint was written by another number of processes; order and batches would differ.
    """
    written = checkpoint.state["ranks"]
    if written != ranks:
        raise CheckpointError(
            f"{checkpoint.path} was written by {written} process(es) and cannot be resumed exactly by {ranks}: "
            f"start {written} process(es)"
        )
    states = checkpoint.tensors(f"rng_{rank}")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


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
