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
    """A guard ended training before its last epoch; the last clean checkpoint is safe."""

    exit_code = 3


class TrainingPaused(CamoxError):  # noqa: N818  an outcome, not a failure
    """Training was asked to stop early and saved its state; `--resume auto` goes on."""

    exit_code = 4
