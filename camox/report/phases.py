"""Which phase of a run began when: by its logged steps, and by the clock of its events."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from camox.report.run import Run


@dataclass(frozen=True)
class Span:
    """Steps of one phase in a row; a rollback may lead into an earlier phase, which then has two spans."""

    name: str
    after: int
    """The last step before it."""
    until: int
    """Its last step so far."""
    epoch: int
    """Its first epoch, counted from 1."""
    began: str
    """Time of day at which it began, "about …" where that lies between two events."""


def spans_of(run: Run) -> list[Span]:
    """The phases in the order in which they were trained."""
    spans: list[Span] = []
    for row in run.rows:
        if not spans or (spans[-1].name != row.phase and row.step > spans[-1].until):
            after = spans[-1].until if spans else 0
            spans.append(Span(row.phase, after, row.step, row.epoch + 1, _clock(run, after)))
        elif spans[-1].name == row.phase:
            last = spans[-1]
            spans[-1] = Span(last.name, last.after, max(last.until, row.step), last.epoch, last.began)
    return spans


def moment(time: float | None) -> str:
    """A time in seconds since 1970 for people, in UTC."""
    if time is None or not 0 < time < 1e11:
        return "unknown"
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def duration(seconds: float) -> str:
    """Such as "6 min 33 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _clock(run: Run, step: int) -> str:
    timed = [(event.step, event.time) for event in run.events if event.time is not None]
    if not timed:
        return ""
    at_step = [time for known, time in timed if known == step]
    if at_step:
        # What was said last at a step before more were taken: setting up a phase comes after the validation.
        return moment(at_step[-1] if step else at_step[0])
    steps, times = _rising(timed)
    if not steps[0] < step < steps[-1]:
        return ""
    return f"about {moment(float(np.interp(step, steps, times)))}"


def _rising(timed: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    ordered = sorted(timed)
    return [step for step, _ in ordered], [time for _, time in ordered]
