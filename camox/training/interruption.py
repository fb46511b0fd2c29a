"""Requests from outside (signals, a time limit), and how processes agree on them between two steps."""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from types import FrameType
from typing import Any

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator

from camox.training.launching.rendezvous import be_patient, connecting, join_seconds
from camox.training.launching.restarts import seconds_since_begun

SAVE, STOP, TROUBLE = 0, 1, 2
"""What a process may ask all for: a checkpoint; a checkpoint and the end; to come together, as it has met an error."""


class Signals:
    """While its block runs, SIGTERM and SIGINT ask for a stop and SIGUSR1 for a checkpoint; nothing else happens.

    A second SIGINT is not patient: it raises KeyboardInterrupt, as it does outside the block.
    """

    def __init__(self) -> None:
        self.stop: str | None = None
        """Name of the signal that asked for a stop."""
        self.save = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        handlers: dict[str, Callable[[int, FrameType | None], None]] = {
            "SIGTERM": self._on_stop,
            "SIGINT": self._on_stop,
            "SIGUSR1": self._on_save,
        }
        for name, handler in handlers.items():
            number = getattr(signal, name, None)  # not every system has SIGUSR1
            # What was ignored stays so. Handlers belong to the main thread: in another one the run does without.
            if number is None or signal.getsignal(number) is signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, handler)
            except ValueError:
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stop is not None:
            raise KeyboardInterrupt
        self.stop = signal.Signals(number).name

    def _on_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True


class TimeLimit:
    """Says when a run must stop to end within `hours`, which count from its start, `spent` seconds ago.

    It stops early by the longest time that passed between two looks at it, which takes in validation and saving.
    """

    def __init__(self, hours: float | None, clock: Callable[[], float] = time.monotonic, spent: float = 0.0):
        self._clock = clock
        self._seconds = None if hours is None else hours * 3600
        self._last = clock()
        self._start = self._last - spent
        self._longest = 0.0

    def is_near(self) -> bool:
        """Whether the time left may not be enough until the next look and for the checkpoint after it."""
        now = self._clock()
        self._longest, self._last = max(self._longest, now - self._last), now
        return self._seconds is not None and now - self._start + 2 * self._longest >= self._seconds


class Agreement:
    """Tells all processes, once between two steps, what any of them asked for, without making them wait.

    The answer to what is asked at one boundary comes at the next, the same on all processes: waited for is only an
    exchange that had a whole step's time. It travels beside the gradients, between hosts, and so never waits for a
    device. A process alone gets its answer at once.

    Args:
        patience: how long a process waits for the others before it fails.
    """

    def __init__(self, accelerator: Accelerator, patience: timedelta):
        self._group: Any = None
        if accelerator.num_processes > 1:
            with connecting():
                self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=join_seconds()))
            be_patient(patience, self._group)
        self._asked: tuple[torch.Tensor, Any] | None = None

    def exchange(self, *requests: int) -> set[int]:
        """What any process asked for at the last boundary, as `SAVE`, `STOP` and `TROUBLE`. Collective."""
        if self._group is None:
            return set(requests)
        answer = self.last_answer()
        flags = torch.zeros(3, dtype=torch.int32)
        flags[list(requests)] = 1
        self._asked = (flags, dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group, async_op=True))
        return answer

    def last_answer(self) -> set[int]:
        """The answer to the last exchange, asking for nothing new. Collective; without one, nothing was asked for."""
        if self._asked is None:
            return set()
        flags, work = self._asked
        work.wait()
        self._asked = None
        return {number for number, flag in enumerate(flags.tolist()) if flag}


class Requests:
    """What is asked of a run from outside, on any of its processes. Signals are heard while its block runs.

    Args:
        hours: how long the run may take, None without a limit.
        patience: how long a process waits for the others before it fails.
    """

    def __init__(self, accelerator: Accelerator, hours: float | None, patience: timedelta):
        self._signals = Signals()
        self._time_limit = TimeLimit(hours, spent=seconds_since_begun() or 0.0)
        self._agreement = Agreement(accelerator, patience)
        self._started_by = int(os.environ.get("CAMOX_STARTED_BY", os.getpid()))

    def __enter__(self) -> "Requests":
        self._signals.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._signals.__exit__()

    @property
    def reason(self) -> str:
        """What asks for the stop, for people."""
        return self._signals.stop or ("the end of camox train" if self._is_left_alone() else "its time limit")

    def ask(self, trouble: bool = False) -> set[int]:
        """What any process was asked for at the last boundary: `SAVE`, `STOP`, and `TROUBLE` where one has it.
        Collective."""
        mine = [TROUBLE] if trouble else []
        if self._signals.stop or self._time_limit.is_near() or self._is_left_alone():
            mine.append(STOP)
        if self._signals.save:
            mine.append(SAVE)
            self._signals.save = False
        return self._agreement.exchange(*mine)

    def interrupt(self) -> None:
        """Between two batches of a validation: ends it where the run is to stop. Collective.

        Raises:
            Interrupted: it is, on all processes.
        """
        asked = self.ask()
        if SAVE in asked:
            self._signals.save = True  # once more, where it can be done
        if STOP in asked:
            raise Interrupted

    def _is_left_alone(self) -> bool:
        """Whether `camox train` was killed: it waits for the run's end otherwise, and hands signals on to it."""
        return not psutil.pid_exists(self._started_by)


class Interrupted(Exception):  # noqa: N818  a request, not an error
    """A validation is to end early: the run stops, and does it anew when it goes on."""
