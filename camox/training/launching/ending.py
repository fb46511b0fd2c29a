"""How a process that was launched ends: with one message and one code, which whoever started it is told."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from camox.errors import CamoxError, TrainingPaused
from camox.training.launching.launcher import EXIT_CODE_FILE
from camox.training.launching.restarts import ended_before, note_end


def to_the_end(action: Callable[[], None]) -> int:
    """Does `action`, unless a start before this one has ended for good, and gives the exit code of the contract.

    Any other error than those that a user can cause, and Ctrl-C, goes on to the caller.
    """
    code = ended_before()
    if code is None:
        code = _attempt(action)
    # The launcher between `camox train` and this process turns every failure into 1.
    if file := os.environ.get(EXIT_CODE_FILE):
        Path(file).write_text(str(code))
    return code


def _attempt(action: Callable[[], None]) -> int:
    try:
        action()
    except CamoxError as error:
        _tell(error)
        if error.is_final:
            note_end(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: go on from the last checkpoint with --resume auto\n")
        return 130
    return 0


def _tell(error: CamoxError) -> None:
    """The main process tells for all; another one only what the main one does not know."""
    is_pause, rank = isinstance(error, TrainingPaused), os.environ.get("RANK", "0")
    if os.environ.get("CAMOX_DEBUG") == "1" and not is_pause:
        traceback.print_exc()
    if rank == "0":
        sys.stderr.write(f"{error}\n" if is_pause else f"error: {error}\n")
    elif error.met_alone:
        sys.stderr.write(f"error on process {rank}: {error}\n")
