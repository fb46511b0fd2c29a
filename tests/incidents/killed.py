"""Runs in processes that start at once: what they import is imported once, in the process they fork from."""

import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["camox.training.trainer", "tests.incidents.killed"])


def start(arguments: Sequence[str], log: Path) -> BaseProcess:
    """Starts `camox/train.py` with these arguments; what it prints is added to `log`."""
    process = _FORKS.Process(target=_train, args=(list(arguments), log))
    process.start()
    return process


def _train(arguments: list[str], log: Path) -> None:
    from camox.train import main

    multiprocessing.set_start_method(None, force=True)  # data workers start as they do in any run
    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8")
    sys.exit(main(arguments))
