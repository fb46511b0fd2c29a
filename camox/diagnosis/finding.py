"""What a check has found."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong ("fail") or looks wrong ("warn"), and what to do about it."""

    status: Literal["warn", "fail"]
    message: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    """Name of the check, one or two words."""

    summary: str
    """What was measured, in one line."""

    problems: tuple[Problem, ...] = ()

    notes: tuple[str, ...] = ()
    """Worth knowing, neither good nor bad."""

    values: Mapping[str, Any] = field(default_factory=dict)
    """The numbers, for machines."""

    @property
    def status(self) -> Status:
        """The worst of the problems'."""
        statuses = {problem.status for problem in self.problems}
        return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"

    def plain(self) -> dict[str, Any]:
        """The finding as JSON holds it, numbers that are not finite aside."""
        return {
            "check": self.check,
            "status": self.status,
            "summary": self.summary,
            "problems": [vars(problem) for problem in self.problems],
            "notes": list(self.notes),
            "values": dict(self.values),
        }
