"""The file that a measurement becomes, and which suite a file is of."""

import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarking import cuda
from benchmarking.report import Report
from benchmarking.settings import Settings
from camox.errors import DataError
from camox.training.environment import git_commit
from machine import machine, versions
from pages import read_results

SCRIPT = "tools/benchmark.py"


def origin(settings: Settings, used: Collection[str], arguments: Sequence[str] | None) -> dict[str, Any]:
    """What figures depend on: command, commit, machine, versions, and the settings that are `used`."""
    of_machine = machine() | {"threads": torch.get_num_threads()}
    of_versions = versions()
    if settings.on_gpu:
        of_machine |= cuda.card(settings.torch_device)
        of_versions |= cuda.versions()
    return {
        "command": " ".join(["python", SCRIPT, *(sys.argv[1:] if arguments is None else arguments)]),
        "git_commit": git_commit(),
        "machine": of_machine,
        "versions": of_versions,
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name in used},
    }


def write_document(path: Path, of: Mapping[str, Any], report: Report) -> None:
    """Writes figures with their `origin`, whole or not at all: a suite that is killed leaves what it wrote before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps({**of, **report.plain()}, indent=2) + "\n")
    partial.replace(path)


def read_document(path: Path, suites: Collection[str]) -> tuple[str, dict[str, Any]]:
    """A file that was written with --json, and the suite it is of, by the command that made it.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    document = read_results(path)
    words = str(document.get("command")).split()
    suite = next((word for word in words if word in suites), None)
    if SCRIPT not in words or suite is None:
        raise DataError(f"{path}: holds no results of {SCRIPT}; give a file that it wrote with --json")
    return suite, document
