"""Starts `accelerate launch camox/train.py …` as a child, hands signals on to it, and gives its real exit code."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import psutil

from camox.errors import ExperimentError

TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "train.py"
EXIT_CODE_FILE = "CAMOX_EXIT_CODE_FILE"
EXPECTED_PROCESSES = "CAMOX_EXPECTED_PROCESSES"
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
            env=environment(launcher_options)
            | {
                EXIT_CODE_FILE: str(file),
                EXPECTED_PROCESSES: str(processes(launcher_options)),
                STARTED_BY: str(os.getpid()),
            },
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
    """The launcher's command line; --quiet keeps it from adding a traceback of its own to every failure."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    if _configuration(launcher_options) is None:
        # Said outright, or the launcher begins each run with six lines on its defaults.
        defaults = {"num_processes": str(processes(launcher_options)), "num_machines": "1"}
        defaults |= {"mixed_precision": "no", "dynamo_backend": "no"}
        for name, value in defaults.items():
            if _option(launcher_options, name) is None:
                launcher += [f"--{name}", value]
    return [*launcher, *launcher_options, str(TRAIN_SCRIPT), *arguments]


def environment(launcher_options: Sequence[str]) -> dict[str, str]:
    """This process's environment with threads set, where the user has not: the launcher would allow one each.

    Waiting threads sleep: while they spin, a neighbour that needs the core slows every step down.
    """
    threads = max(1, _cores() // processes(launcher_options))
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", **os.environ}


def processes(launcher_options: Sequence[str]) -> int:
    """How many processes the launcher will start: what its options say, else its file, else one per GPU."""
    given = _option(launcher_options, "num_processes")
    if given is None and (file := _configuration(launcher_options)) is not None:
        match = re.search(r"^num_processes:\s*(\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        given = match[1] if match else None
    if given is None:
        return 1 if "--cpu" in launcher_options else max(1, _gpus())
    # Not a number: the launcher says so itself.
    return max(1, int(given)) if given.isdigit() else 1


def exit_code(file: Path, launcher_code: int) -> int:
    """The code that the run wrote into `file`, else the launcher's."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 128 - launcher_code if launcher_code < 0 else launcher_code


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


def _option(options: Sequence[str], name: str) -> str | None:
    """The value of an option, written `--name value` or `--name=value`, with `_` or `-`; the last one counts."""
    value = None
    for position, option in enumerate(options):
        key, has_value, inline = option.partition("=")
        if key.startswith("--") and key[2:].replace("-", "_") == name:
            value = inline if has_value else next(iter(options[position + 1 :]), None)
    return value


def _configuration(options: Sequence[str]) -> Path | None:
    """The file of `--config_file`, else the one that `accelerate config` wrote."""
    given = _option(options, "config_file")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    path = Path(given) if given else home / "accelerate" / "default_config.yaml"
    return path if path.is_file() and not (given is None and "--cpu" in options) else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> int:
    """GPUs this process may use, without the 2 s of asking torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
