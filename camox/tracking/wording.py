"""Durations, rates, numbers and long lists as people write them."""

from collections.abc import Sequence

_SHOWN = 10


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 step", "0 steps", "2 processes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"


def rate(per_second: float, unit: str) -> str:
    """So many per second: "1234 img/s", "8.4 img/s"."""
    return f"{per_second:.0f} {unit}/s" if per_second >= 100 else f"{per_second:.1f} {unit}/s"


def short(value: object) -> str:
    """A value in few characters: a float with four digits, all else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
