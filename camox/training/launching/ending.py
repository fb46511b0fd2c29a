"""How a process that was launched ends: with one message and one code, which whoever started it is told."""

import os
import sys
import traceback
from collections.abc import Callable

from camox.errors import CamoxError, TrainingPaused
from camox.training.launching.launcher import forget_earlier_attempts, tell_exit_code
from camox.training.launching.restarts import ended_before, note_end


def to_the_end(action: Callable[[], None]) -> int:
    """Does `action`, unless a start before this one has ended for good, and gives the exit code of the contract.

    Any other error than those that a user can cause, and Ctrl-C, goes on to the caller.
    """
    forget_earlier_attempts()
    code = ended_before()
    if code is None:
        code = _attempt(action)
    tell_exit_code(code)
    return code


def _attempt(action: Callable[[], None]) -> int:
    try:
        action()
    except CamoxError as error:
        _tell(error)
        if error.is_final:
            _end_for_good(error.exit_code)
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: go on from the last checkpoint with --resume auto\n")
        _end_for_good(130)  # a launcher that restarts would go on with what was just stopped
        return 130
    return 0


def _end_for_good(code: int) -> None:
    note_end(code)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from camox.training.launching.rendezvous import tell_machines  # brings torch along, as ever with several

        tell_machines(code)


def _tell(error: CamoxError) -> None:
    """The main process tells for all; another one only what the main one does not know.

    Before they have met that is everything: then one process of each machine tells.
    """
    is_pause, rank = isinstance(error, TrainingPaused), os.environ.get("RANK", "0")
    if os.environ.get("CAMOX_DEBUG") == "1" and not is_pause:
        traceback.print_exc()
    if rank == "0":
        sys.stderr.write(f"{error}\n" if is_pause else f"error: {error}\n")
    elif error.met_alone or (os.environ.get("LOCAL_RANK") == "0" and not _have_met()):
        sys.stderr.write(f"error on process {rank}: {error}\n")


def _have_met() -> bool:
    import torch.distributed as dist  # seconds, which another machine's process has

    return dist.is_initialized()
