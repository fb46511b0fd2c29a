"""Which runs a study may use again or go on with: those of the same code and the same experiment."""

import hashlib
import json
from pathlib import Path
from typing import Any

import camox
from camox.checkpoints.folders import list_checkpoints
from camox.errors import ExperimentError
from camox.experiment import Experiment
from camox.training.run_folder import RunFolder

PACKAGE = Path(camox.__file__).resolve().parent
RESOURCES_FILE = "resources.json"
"""In a run's folder: which code made it, and what it took."""

CODE_DIGEST = "code_digest"


def code_digest() -> str:
    """SHA-256 in hex of the paths and bytes of all Python files of the `camox` that is imported here."""
    digest = hashlib.sha256()
    for name in sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")):
        content = (PACKAGE / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def require_same_code(folder: Path, digest: str) -> None:
    """Lets a run that would be used again, or go on from its last checkpoint, be of the code of this digest only.

    Raises:
        ExperimentError: it is of other code, or does not say of which.
    """
    if not ended_well(folder) and not list_checkpoints(folder):
        return
    made_by = noted(folder).get(CODE_DIGEST)
    if made_by != digest:
        raise ExperimentError(
            f"{folder}: this run was made by other code than that of {PACKAGE} now ({CODE_DIGEST} in {RESOURCES_FILE}: "
            f"{made_by or 'none'}; now: {digest}), and runs of different code must not be compared: remove the folder "
            "to train it again, or give another --output"
        )


def require_same_experiment(experiment: Experiment) -> None:
    """Lets a run be used again, or go on, only as what it was started as.

    Raises:
        ExperimentError: its folder holds another one, or one that is finished but without the weights to measure.
    """
    folder = experiment.run_folder
    if not ended_well(folder) and not RunFolder(folder).holds_run():
        return
    before, remedy = folder / "experiment.toml", "remove the folder to train it again, or give another --output"
    if not before.is_file():
        raise ExperimentError(f"{folder}: holds a run without {before.name}, which may be of other settings: {remedy}")
    if _what_was_run(Experiment.load(before)) != _what_was_run(experiment):
        raise ExperimentError(f"{folder}: holds a run of other settings ({before.name}): {remedy}")
    if not list_checkpoints(folder) and ended_well(folder):
        raise ExperimentError(f"{folder}: holds a finished run without a checkpoint, nothing to measure: {remedy}")


def require_unchanged_code(digest: str) -> None:
    """Raises ExperimentError where the code is no longer that of this digest."""
    if code_digest() != digest:
        raise ExperimentError(
            f"{PACKAGE}: the code was changed while the study ran, and its runs must all be of the same: take the "
            "change back and give the same command again, or begin anew with another --output"
        )


def ended_well(folder: Path) -> bool:
    """Whether the run was trained to its end."""
    try:
        return json.loads((folder / "exit.json").read_text())["code"] == 0
    except (OSError, ValueError, LookupError, TypeError):
        return False


def noted(folder: Path) -> dict[str, Any]:
    """What was noted in the run's folder when it was trained."""
    try:
        return json.loads((folder / RESOURCES_FILE).read_text())
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _what_was_run(experiment: Experiment) -> dict[str, Any]:
    plain = experiment.plain()
    identity = {key: value for key, value in plain["experiment"].items() if key != "output"}
    return {**plain, "experiment": identity, "tracking": None}
