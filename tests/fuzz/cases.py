"""Runs fuzz cases: each ends in success or in an error of camox's own, within its time.

The cases are the same on every run. To look further: `CAMOX_FUZZ_SEED=7 CAMOX_FUZZ_TIMES=20 pytest tests/fuzz`.
"""

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from camox.errors import CheckpointError, ExperimentError

SECONDS = 60
"""Far more than any case takes on a busy machine: what is meant is a wait without end."""


class Hang(BaseException):
    """No `Exception`, so that code which survives every error does not survive this one."""


def few_or_many(few: int, many: int) -> pytest.MarkDecorator:
    """The number of cases: `few` in every run of the tests, `many` with the slow ones."""
    return pytest.mark.parametrize("cases", [few, pytest.param(many, marks=pytest.mark.slow)])


def run_cases(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], cases: int) -> None:
    """Calls `check` for that many values, each under a time limit, and shrinks one that fails."""
    cases *= int(os.environ.get("CAMOX_FUZZ_TIMES", "1"))
    ran = 0

    @seed(int(os.environ.get("CAMOX_FUZZ_SEED", "0")))
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(strategy)
    def each(case: Any) -> None:
        nonlocal ran
        ran += 1
        with time_limit():
            check(case)

    each()
    assert ran >= cases, f"only {ran} of {cases} cases ran"


def survives(call: Callable[[], Any]) -> Any:
    """What `call` gives; None where it ends with an error that a user can cause. Every other error passes."""
    try:
        return call()
    except (ExperimentError, CheckpointError) as error:
        message = str(error)
    assert message.strip(), "an error without a message"
    return None


@contextmanager
def time_limit(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where the block takes longer. Waits inside native code that no signal ends stop the whole process."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    except Hang as hang:
        raise AssertionError(f"still running after {seconds} s") from hang
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
