"""What can go wrong because of something outside the code, and the exit code each ends with.

Messages say what is wrong, where, and what to do. Everything else that fails is a bug and keeps its traceback.
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn


class CamoxError(Exception):
    """Base of every error a user can cause or cure; commands print its message without a traceback."""

    exit_code = 2
    met_alone = False
    """Whether one of several processes may meet it while the others know nothing of it: that one has to tell."""
    is_final = True
    """Whether another start by an elastic launcher would end the same way."""


class ExperimentError(CamoxError):
    """An experiment file, an override or a combination of settings is wrong."""


class PeersMissing(ExperimentError):  # noqa: N818  says what they are
    """The processes of a run did not come together."""

    is_final = False


class EndedElsewhere(CamoxError):  # noqa: N818  says what has happened
    """The run has ended for good on another machine, with `code`, and this one waited for it."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.exit_code = code


class DataError(CamoxError):
    """A dataset, an image or a mask is missing, unreadable or not what its place says."""

    met_alone = True


class CheckpointError(CamoxError):
    """A checkpoint is missing, damaged, not finite, or does not fit the model."""


class NotFinite(CheckpointError):  # noqa: N818  says what the checkpoint is
    """A checkpoint holds NaN or Inf; `names` says where, as `file/tensor` or `state.json: key`, where that is known."""

    def __init__(self, message: str, names: Sequence[str] = ()):
        super().__init__(message)
        self.names = list(names)


class TrainingStopped(CamoxError):  # noqa: N818  an outcome, not always a failure
    """A guard ended training before its last epoch; the last clean checkpoint is safe."""

    exit_code = 3


class OutOfMemory(TrainingStopped):
    """The device's memory is full."""

    met_alone = True


class DataLost(TrainingStopped):
    """Data that were there at the start cannot be read any more, or are bad beyond what may be."""

    met_alone = True


class TrainingPaused(CamoxError):  # noqa: N818  an outcome, not a failure
    """Training was asked to stop early and saved its state; `--resume auto` goes on."""

    exit_code = 4


class ArgumentParser(argparse.ArgumentParser):
    """Tells a mistake in a command line as any other: argparse's own prints a page of usage first."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with the message and exit code 2."""
        self.exit(CamoxError.exit_code, f"error: {message} (see {self.prog} --help)\n")
