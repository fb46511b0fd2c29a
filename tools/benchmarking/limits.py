"""The most time that a work may take, whatever it is at: rounds, a trainer's loop, a compiler."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 10.0
"""Seconds between two tries: what is raised while an object is being deleted is lost."""


class OutOfTime(BaseException):
    """Raised in a work whose time is over. No Exception: compilers catch those, and go on another way."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block once so many seconds are over, as soon as native code gives control back.

    On systems with alarm signals (not on Windows), in the main thread; the block's own alarms are lost.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3), AGAIN)  # zero would be no alarm
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
