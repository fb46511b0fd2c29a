"""What every thread of this process, and of the workers that load its data, is doing right now."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from types import FrameType
from typing import IO

_PATIENCE = 5.0
"""Seconds in which all workers have to answer."""


def thread_stacks() -> str:
    """A paragraph for each thread: its name, then `file:line function`, the most recent call last.

    Reads no source files: a disk that does not answer may be why someone asks.
    """
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sys._current_frames()
    # The main thread first: it is the one that trains.
    order = sorted(frames, key=lambda ident: ident != threading.main_thread().ident)
    return "\n".join("\n".join([f"thread {names.get(ident, ident)}", *_calls(frames[ident])]) for ident in order)


def _calls(frame: FrameType | None) -> list[str]:
    calls = []
    while frame is not None:
        calls.append(f"    {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}")
        frame = frame.f_back
    return calls[::-1]


class WorkerStacks:
    """Asks the processes that load data for their stacks.

    Those that are forked between `open` and `close` inherit a handler of SIGUSR2 that needs no Python to run, so
    that one that hangs in C answers too. Where workers are not forked, or SIGUSR2 has another use, nobody is asked.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None

    def open(self) -> None:
        if multiprocessing.get_start_method() != "fork" or signal.getsignal(signal.SIGUSR2) is not signal.SIG_DFL:
            return
        # Without a name: it is gone with the last process that has it open.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  open for as long as workers may be asked
        faulthandler.register(signal.SIGUSR2, self._file, all_threads=True)

    def close(self) -> None:
        if self._file is not None:
            faulthandler.unregister(signal.SIGUSR2)
            self._file.close()
            self._file = None

    def ask(self) -> str:
        """A paragraph for each worker, the most recent call first; empty where there are none."""
        if self._file is None:
            return ""
        until = time.monotonic() + _PATIENCE
        paragraphs = []
        # One after another: they share the file.
        for worker in multiprocessing.active_children():
            if worker.pid is None:
                continue
            before = self._size()
            os.kill(worker.pid, signal.SIGUSR2)
            self._settle(before, until)
            told = os.pread(self._file.fileno(), self._size() - before, before).decode(errors="replace").strip()
            paragraphs.append(f"worker {worker.name}, pid {worker.pid}\n{told or '    does not answer'}")
        return "\n".join(paragraphs)

    def _settle(self, before: int, until: float) -> None:
        """Waits until something new is in the file and no more comes."""
        size = before
        while time.monotonic() < until:
            time.sleep(0.05)
            now = self._size()
            if now == size > before:
                return
            size = now

    def _size(self) -> int:
        assert self._file is not None
        return os.fstat(self._file.fileno()).st_size
