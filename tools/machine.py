"""What measured numbers depend on besides the code: the machine and the versions of what runs on it."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """What times depend on."""
    return {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()}


def versions(packages: Iterable[str] = ("torch", "timm", "camox")) -> dict[str, str]:
    """The versions of Python and of installed packages."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
