"""What can go wrong because of something outside the code, and the exit code each ends with.

Messages say what is wrong, where, and what to do. Everything else that fails is a bug and keeps its traceback.
"""


class CamoxError(Exception):
    """Base of every error a user can cause or cure; commands print its message without a traceback."""

    exit_code = 2


class ExperimentError(CamoxError):
    """An experiment file, an override or a combination of settings is wrong."""


class DataError(CamoxError):
    """A dataset, an image or a mask is missing, unreadable or not what its place says."""


class CheckpointError(CamoxError):
    """A checkpoint is missing, damaged, not finite, or does not fit the model."""


class TrainingStopped(CamoxError):  # noqa: N818  an outcome, not always a failure
    """Training ended before its last epoch, on purpose and with its state safe.

    `exit_code` is 3 when a guard stopped it and 4 when it was asked to stop (signal, time budget).
    """

    def __init__(self, message: str, exit_code: int = 3):
        assert exit_code in (3, 4)
        super().__init__(message)
        self.exit_code = exit_code
