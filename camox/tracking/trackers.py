"""Where logged numbers and pictures go: every tracker takes them by the same names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from camox.tracking.events import Severity
from camox.tracking.jsonl import JsonLines, is_non_finite, plain

_RESERVED = {"step", "epoch", "phase", "non_finite"}


class Picture(NamedTuple):
    """What a tracker shows: uint8 `[H, W, 3]` RGB, and a line of text below it."""

    pixels: np.ndarray
    caption: str


class Tracker:
    """Takes numbers by name, see the contract for the names; and pictures and more, where it can show them. This one
    leaves everything alone."""

    @property
    def takes_pictures(self) -> bool:
        """Whether `show` does anything: otherwise pictures need not be drawn."""
        return False

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Record values of one optimizer step."""

    def show(self, pictures: Mapping[str, Picture], *, step: int, epoch: int, phase: str) -> None:
        """Show pictures of one optimizer step by name, such as "panels/habitat_0003"."""

    def alert(self, kind: str, message: str, severity: Severity, *, step: int) -> None:
        """Tell a person who is elsewhere of an event."""

    def keep(self, checkpoint: Path, measures: Mapping[str, float], aliases: Sequence[str]) -> None:
        """Keep a finished checkpoint's folder under its name and `aliases`."""

    def finish(self) -> None:
        """Write out what is left; a second call does nothing."""


class Trackers(Tracker):
    """Hands everything to each of several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = tuple(trackers)

    @property
    def takes_pictures(self) -> bool:
        """Whether any of them shows pictures."""
        return any(tracker.takes_pictures for tracker in self._trackers)

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Record values of one optimizer step in every tracker."""
        for tracker in self._trackers:
            tracker.log(values, step=step, epoch=epoch, phase=phase)

    def show(self, pictures: Mapping[str, Picture], *, step: int, epoch: int, phase: str) -> None:
        """Show pictures in every tracker that takes them."""
        for tracker in self._trackers:
            tracker.show(pictures, step=step, epoch=epoch, phase=phase)

    def alert(self, kind: str, message: str, severity: Severity, *, step: int) -> None:
        """Tell of an event by every tracker that can."""
        for tracker in self._trackers:
            tracker.alert(kind, message, severity, step=step)

    def keep(self, checkpoint: Path, measures: Mapping[str, float], aliases: Sequence[str]) -> None:
        """Keep a checkpoint in every tracker that can."""
        for tracker in self._trackers:
            tracker.keep(checkpoint, measures, aliases)

    def finish(self) -> None:
        """Finish every tracker."""
        for tracker in self._trackers:
            tracker.finish()


class JsonlTracker(Tracker):
    """metrics.jsonl: one object per call with "step", "epoch", "phase" and the values.

    NaN and Inf are written as null and their names listed under "non_finite": every line is valid JSON.

    Args:
        path: The file.
        resume_step: The step a run goes on from; lines of later steps are removed (atomically), since the
            resumed run writes them anew. None keeps every complete line.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None):
        self._lines = JsonLines(path, last_step=resume_step)

    def log(self, values: Mapping[str, Any], *, step: int, epoch: int, phase: str) -> None:
        """Append one line and flush it."""
        values = checked(values)
        non_finite = [name for name, value in values.items() if is_non_finite(value)]
        row = {"step": step, "epoch": epoch, "phase": phase}
        row |= {name: None if name in non_finite else value for name, value in values.items()}
        if non_finite:
            row["non_finite"] = non_finite
        self._lines.append(row)

    def finish(self) -> None:
        """Close the file."""
        self._lines.close()


def checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON holds them; no name is one that every row has."""
    assert not _RESERVED & values.keys(), f"reserved names among the values: {sorted(_RESERVED & values.keys())}"
    return {name: plain(value) for name, value in values.items()}
