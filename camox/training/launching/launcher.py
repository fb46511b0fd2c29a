"""Starts `accelerate launch camox/train.py …` as a child, hands signals on to it, and gives its real exit code."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import psutil

from camox.errors import ExperimentError

TRAIN_SCRIPT = Path(__file__).resolve().parents[2] / "train.py"
_LAUNCH_SCRIPT = Path(__file__).resolve().parent / "accelerate_launch.py"
EXIT_CODE_FILE = "CAMOX_EXIT_CODE_FILE"
STARTED_BY = "CAMOX_STARTED_BY"
"""Number of the process that waits for the run's end: one that was killed hands no signals on any more."""
_FORWARDED = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


def launch(arguments: Sequence[str], launcher_options: Sequence[str]) -> int:
    """Train in processes of their own and wait for their end.

    Args:
        arguments: those of `camox/train.py`.
        launcher_options: those of `accelerate launch`.

    Returns:
        The code that `camox/train.py` ended with, else the launcher's (128 + n if signal n ended it). The launcher
        itself turns every failure into 1.
    """
    with tempfile.TemporaryDirectory(prefix="camox-") as folder:
        file = Path(folder) / "exit_code"
        child = subprocess.Popen(
            command(arguments, launcher_options),
            env={**os.environ, EXIT_CODE_FILE: str(file), STARTED_BY: str(os.getpid())},
            # A Ctrl-C on the terminal would reach the launcher too, which then leaves without its processes.
            start_new_session=True,
        )
        with _forwarding(child):
            code = child.wait()
        return exit_code(file, code)


def refuse_together(profile: bool, check: bool, resume: bool) -> None:
    """Raises ExperimentError where a profile is asked for and something that goes before training, or on with it."""
    if profile and (check or resume):
        others = " and ".join(name for name, given in (("--check", check), ("--resume", resume)) if given)
        raise ExperimentError(f"--profile trains nothing and begins anew: leave out {others}, or --profile")


def command(arguments: Sequence[str], launcher_options: Sequence[str]) -> list[str]:
    """The command line of the launcher; --quiet keeps it from adding a traceback of its own to every failure."""
    return [sys.executable, str(_LAUNCH_SCRIPT), "--quiet", *launcher_options, str(TRAIN_SCRIPT), *arguments]


def exit_code(file: Path, launcher_code: int) -> int:
    """The code that the run wrote into `file`, else the launcher's.

    A process that tells 0 speaks for itself: process 0 may still score the test data then, and be killed for it.
    """
    told = _told(file)
    if told is not None and (told.code != 0 or launcher_code == 0):
        return told.code
    return 128 - launcher_code if launcher_code < 0 else launcher_code


class Told(NamedTuple):
    """What a process of the run has told `camox train`: the launcher between them turns every failure into 1."""

    code: int
    attempt: int = 0
    """How often an elastic launcher had started the processes anew."""


def tell_exit_code(code: int) -> None:
    """Tells whoever waits for this run, if anybody does, the code that this process ends with."""
    if file := os.environ.get(EXIT_CODE_FILE):
        Path(file).write_text(f"{code} {_attempt()}")


def forget_earlier_attempts() -> None:
    """Takes back what processes before a restart have told: they ended, but the run did not."""
    if file := os.environ.get(EXIT_CODE_FILE):
        told = _told(Path(file))
        if told is not None and told.attempt < _attempt():
            Path(file).unlink(missing_ok=True)


def has_told_failure() -> bool:
    """Whether a process of the run has ended with a message of its own."""
    file = os.environ.get(EXIT_CODE_FILE)
    told = None if file is None else _told(Path(file))
    return told is not None and told.code != 0


def _told(file: Path) -> Told | None:
    try:
        return Told(*map(int, file.read_text().split()))
    except (OSError, ValueError, TypeError):
        return None


def _attempt() -> int:
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """While the block runs, signals go to the training processes; this one ends when they have."""

    def forward(number: int, frame: FrameType | None) -> None:
        # A closed terminal is a request to stop, like any other; the processes have no terminal of their own.
        _send(child, signal.SIGTERM if number == signal.SIGHUP else number)

    numbers = [getattr(signal, name) for name in _FORWARDED if hasattr(signal, name)]
    # What was ignored stays so: nohup ignores SIGHUP for a reason.
    taken = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _send(child: subprocess.Popen[bytes], number: int) -> None:
    """Signal the processes that train: not the launcher, which would leave them, nor their loading workers."""
    try:
        ranks = [process for process in psutil.Process(child.pid).children() if _trains(process)]
        if not ranks and number != signal.SIGUSR1:
            child.terminate()  # still starting: no process of ours to ask
        for process in ranks:
            process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # ended by itself meanwhile


def _trains(process: psutil.Process) -> bool:
    try:
        return str(TRAIN_SCRIPT) in process.cmdline()
    except psutil.Error:
        return False
