"""Makes sure that all machines of a run see one run folder."""

import time
import uuid
from pathlib import Path

from accelerate import Accelerator

from camox.errors import ExperimentError
from camox.training.launching.rendezvous import this_process
from camox.training.processes import once, together

# What another machine has just written may take a network's file system that long to show.
_PATIENCE = 60.0


def require_shared(accelerator: Accelerator, folder: Path) -> None:
    """Lets the main process leave a mark in the run folder, and the others look for it. Collective.

    Checkpoints are written by the main process and read by all: when the run is resumed, and when it is rolled back.

    Raises:
        ExperimentError: a process does not see it.
    """
    if accelerator.num_processes == 1:
        return
    mark = folder / f".seen-{uuid.uuid4().hex}"
    mark = once(accelerator, lambda: _leave(mark))
    try:
        together(lambda: _look_for(mark))
    finally:
        if accelerator.is_main_process:
            mark.unlink(missing_ok=True)


def _leave(mark: Path) -> Path:
    mark.touch()
    return mark


def _look_for(mark: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while not mark.exists():
        if time.monotonic() > until:
            raise ExperimentError(
                f"{this_process()} does not see the run folder {mark.parent} of process 0, or another of the same "
                "name: put it where all machines find it under the same path, by --output or experiment.output. "
                "Checkpoints are written by process 0 and read by all"
            )
        time.sleep(0.2)
