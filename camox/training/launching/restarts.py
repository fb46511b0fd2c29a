"""What processes that an elastic launcher has started again must know of those before them.

Its folder for their error files is kept over all restarts, and is no other launch's; each machine has its own. The
number of the restart would not do: a launcher that joins the restart of another machine does not count it.
"""

import os
import time
from pathlib import Path

_BEGUN, _ENDED = "camox_begun", "camox_ended"


def note_begun() -> None:
    """Notes that this launch has begun to train: what is in the run's folder is its own from now on."""
    if seconds_since_begun() is None:
        _note(_BEGUN)


def seconds_since_begun() -> float | None:
    """How long ago this launch began to train, restarts included; None if it has not."""
    folder = _launch_folder()
    if folder is None or not (folder / _BEGUN).exists():
        return None
    return max(0.0, time.time() - (folder / _BEGUN).stat().st_mtime)


def resume_from(asked: str | None, run: Path) -> str | None:
    """What to resume from, where `asked` is what --resume says.

    Where earlier processes of this launch have begun to train the run goes on, though nobody asked for that, and from
    their newest checkpoint, not again from where they began.
    """
    from camox.checkpoints.store import list_checkpoints  # brings torch along, which a mistake need not wait for

    has_begun = seconds_since_begun() is not None
    return "auto" if has_begun and (asked is None or list_checkpoints(run)) else asked


def note_end(code: int) -> None:
    """Notes that the run has ended by itself, with an exit code that another start would not change."""
    _note(_ENDED, str(code))


def ended_before() -> int | None:
    """The exit code that earlier processes of this launch have ended with by themselves, None if they did not.

    A launcher starts anew whatever does not end with 0: a run that was asked to stop and has saved would go on, and a
    mistake in an experiment would be told once for each restart.
    """
    folder = _launch_folder()
    if folder is None or not (folder / _ENDED).exists():
        return None
    return int((folder / _ENDED).read_text())


def _note(name: str, text: str = "") -> None:
    if (folder := _launch_folder()) is not None:
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(folder / name)


def _launch_folder() -> Path | None:
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    # …/attempt_<restart>/<local rank>/error.json
    return None if file is None else Path(file).parents[2]
