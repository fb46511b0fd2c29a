"""How a run ends: what counts as stopped by a guard, and the exit code of the contract for each ending."""

from pathlib import Path
from typing import NamedTuple

import torch

from camox.checkpoints.store import list_checkpoints
from camox.errors import CamoxError, DataError, DataLost, OutOfMemory, TrainingStopped
from camox.experiment import Experiment, ResolvedPhase
from camox.training.memory import out_of_memory
from camox.training.run_state import Position


class Stop(NamedTuple):
    """What stops a run that was under way, where the code that failed knows nothing of the run."""

    as_error: type[TrainingStopped]
    kind: str
    """Of the event."""
    reason: str
    """With what to do."""


def stopped_by(error: BaseException, experiment: Experiment, phase: ResolvedPhase | None, at: Position) -> Stop | None:
    """What `error`, met in `phase` at a position, amounts to; None where it tells all itself.

    Data that fail before the first step are a mistake, and nothing is trained: exit code 2. After it there are
    checkpoints to go on from, and the code is 3.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return Stop(OutOfMemory, "memory", out_of_memory(experiment, phase))
    if isinstance(error, DataError) and at.step:
        return Stop(DataLost, "data", str(error))
    return None


def last_clean(run: Path) -> str:
    """Where a run that was stopped can be gone on from, in words."""
    clean = list_checkpoints(run)
    return f"the last clean checkpoint is {clean[-1]}" if clean else "there is no checkpoint yet"


def outcome(error: BaseException | None, rank: int = 0) -> tuple[int, str]:
    """Exit code and reason of a run that ended with this error on process `rank`."""
    if error is None:
        return 0, "done"
    if isinstance(error, CamoxError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    return 1, (f"process {rank}: " if rank else "") + f"{type(error).__name__}: {error}"
