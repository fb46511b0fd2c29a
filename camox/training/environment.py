"""What a run or a measurement depends on besides its settings: versions, commit, command, devices."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def describe_environment(seed: int) -> dict[str, Any]:
    """What someone else would need to repeat a run: versions, commit, command, devices, seed."""
    packages = [
        "camox",
        "torch",
        "torchvision",
        "accelerate",
        "timm",
        "safetensors",
        "albumentations",
        "numpy",
    ]
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "git_commit": git_commit(),
        "cpu_threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "seed": seed,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """Hash of the commit that this code was checked out from, None where it is not in a repository."""
    source = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(source), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
