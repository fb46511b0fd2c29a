"""events.jsonl: what guards and recovery saw and did, one object per event."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from camox.tracking.jsonl import JsonLines, plain, spell_non_finite, stays

Severity = Literal["info", "warning", "error"]


class EventLog:
    """Appends events to a file; a resumed run keeps the events of the runs before it.

    Unlike metrics, events are never cut back on resume: a recovery that led to the resume must stay readable.

    Args:
        path: The file.
        resume_step: The step a run goes on from: events of later steps, which it takes anew, are not counted among
            `troubles`. None counts all.
    """

    def __init__(self, path: str | Path, resume_step: int | None = None):
        self._lines = JsonLines(path)
        lines = self._lines.path.read_bytes().splitlines(keepends=True)
        self.troubles = sum(_is_trouble(json.loads(line)) for line in lines if stays(line, resume_step))
        """Warnings and errors so far, of the run itself: what a tracker says of its own is none."""

    def append(
        self,
        kind: str,
        message: str,
        *,
        step: int,
        epoch: int,
        severity: Severity = "info",
        rank: int = 0,
        details: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write one event and return it as written.

        Args:
            kind: Short machine-readable name, such as "skipped_step".
            message: One sentence for people.
            step: Optimizer step, counted from 0 over the whole run.
            epoch: Epoch, counted from 0 over the whole run.
            severity: "info", "warning" or "error".
            rank: The process that saw it.
            details: Anything JSON can hold; NaN and Inf become the strings "nan", "inf" and "-inf".
        """
        event = {
            "time": round(time.time(), 3),
            "step": step,
            "epoch": epoch,
            "rank": rank,
            "kind": kind,
            "severity": severity,
            "message": message,
            "details": spell_non_finite(plain(details or {})),
        }
        self._lines.append(event)
        self.troubles += _is_trouble(event)
        return event

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._lines.close()


def _is_trouble(event: Mapping[str, Any]) -> bool:
    # How a run ended is no finding; and a process that is left by another may have come to say it, or not.
    return event.get("severity") != "info" and event.get("kind") not in ("tracking", "end")
