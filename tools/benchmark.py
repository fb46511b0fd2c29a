"""Measure camox against its twins and rivals in one run, as ratios, and say which of the asked figures are met.

python tools/benchmark.py step --json benchmarks/results/step.json
python tools/benchmark.py moe --rounds 3
python tools/benchmark.py step --from benchmarks/results/step.json --markdown docs/model.md

Suites: `step`, a whole training step, and the trainer's loop; `moe`, the mixtures of experts alone; `loader`, files and
the cache of resized images against a plain pipeline; `checkpoint`, how long saving keeps training waiting; `inspect`,
the command that looks for NaN in a checkpoint (on Linux); `measures`, how far our measures are from pysodmetrics, and
how long both take; `startup`, from a command to the first step; `scaling`, two processes against one. What is compared
is timed in interleaved rounds. Steps, mixtures, loading and measures are timed by process time (on a GPU by its own
clock), so that neither a slow minute nor a neighbour on the machine favours one of them; the others by wall time. The
asked figures are stated for the default settings: with others they are not judged.
With `--from` nothing is measured: the tables of a results file are shown, or written into a page.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when torch is imported, and set for training too. Threads that spin while they wait would count as process time;
# kernels for the sub-batches of a dozen networks would push each other out of a cache of 1024.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from rich.console import Console

from benchmarking.checkpoint import measure_checkpoints
from benchmarking.inspection import measure_inspection
from benchmarking.loader import measure_loader
from benchmarking.measures import measure_measures
from benchmarking.memory import measure_memory
from benchmarking.moe import measure_mixtures
from benchmarking.options import measure_options
from benchmarking.report import Report, markdown_tables, show
from benchmarking.scaling import measure_scaling
from benchmarking.settings import PRECISIONS, Settings
from benchmarking.startup import measure_startup
from benchmarking.step import measure_steps
from camox.errors import CamoxError, DataError
from camox.training.environment import git_commit
from machine import machine, versions
from pages import SHAPE_ERRORS, fill_block, read_results

SCRIPT = "tools/benchmark.py"
SUITES: dict[str, Callable[[Settings], Report]] = {
    "step": measure_steps,
    "moe": measure_mixtures,
    "loader": measure_loader,
    "checkpoint": measure_checkpoints,
    "inspect": measure_inspection,
    "measures": measure_measures,
    "options": measure_options,
    "memory": measure_memory,
    "startup": measure_startup,
    "scaling": measure_scaling,
}
USED = {
    "checkpoint": ("device", "backbone", "width", "rounds"),
    "inspect": ("megabytes", "rounds"),
    "loader": ("image_size", "batch", "rounds"),
    "measures": ("device", "rounds"),
    "memory": ("device",),
    "startup": ("rounds",),
}
"""The settings that these suites have; the others have all but `megabytes`."""


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, measures, shows and writes."""
    options = _parse(arguments)
    if options.results is not None:
        return _show(options.suite, options.results, options.markdown)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    try:
        report = SUITES[options.suite](settings)
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    show(report.plain(), Console())
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(_document(options.suite, settings, report, arguments), indent=2) + "\n")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    default = Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default=default.device, help="where to measure (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--from", dest="results", type=Path, metavar="FILE", help="show these results, measure nothing")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="with --from: the page whose tables to replace")
    parser.add_argument("--backbone", default=default.backbone, help="name of a timm model (default: %(default)s)")
    sizes = {
        "image-size": "side of the square images in pixels",
        "batch": "images in a step",
        "width": "channels behind the backbone",
        "megabytes": "of weights that suite `inspect` looks at, and twice as many",
        "rounds": "times that each work is timed",
    }
    for name, text in sizes.items():
        standard = getattr(default, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=_count, default=standard, help=f"{text} (default: {standard})")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=default.precision,
        help="number format of forward passes (default: %(default)s)",
    )
    parser.add_argument("--threads", type=_count, help="of torch (default: as many as torch takes)")
    options = parser.parse_args(arguments)
    if options.markdown is not None and options.results is None:
        parser.error("--markdown needs --from FILE: measure with --json FILE first")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; leave the option out to measure on the CPU")
    if options.device == "cuda" and options.suite in ("inspect", "loader", "scaling", "startup"):
        parser.error(
            f"--device cuda: suite {options.suite} reads files and computes nothing on a GPU; leave the option out"
        )
    if options.device == "cpu" and options.precision == "fp16":
        parser.error("--precision fp16 needs --device cuda: on a CPU use fp32 or bf16")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _show(suite: str, results: Path, page: Path | None) -> int:
    """The tables of a results file, on the screen or in a page."""
    try:
        document = read_results(results)
        _require_suite(document, suite, results)
        try:
            tables = markdown_tables(document)
        except SHAPE_ERRORS as error:
            raise DataError(f"{results}: cannot be read as results of {suite}: {error!r}") from error
        if page is None:
            show(document, Console())
        else:
            fill_block(page, suite, tables)
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _require_suite(document: dict[str, Any], suite: str, results: Path) -> None:
    """Raises DataError unless these are results of that suite, by the command that made them."""
    words = str(document.get("command")).split()
    measured = next((word for word in words if word in SUITES), None)
    if SCRIPT not in words or measured is None:
        raise DataError(f"{results}: holds no results of {SCRIPT}; give a file that it wrote with --json")
    if measured != suite:
        raise DataError(f"{results}: holds results of {measured}, not of {suite}: name that suite")


def _document(suite: str, settings: Settings, report: Report, arguments: list[str] | None) -> dict[str, Any]:
    of_machine = machine() | {"threads": torch.get_num_threads()}
    if settings.on_gpu:
        of_machine["gpu"] = torch.cuda.get_device_name(settings.torch_device)
    return {
        "command": " ".join(["python", SCRIPT, *(sys.argv[1:] if arguments is None else arguments)]),
        "git_commit": git_commit(),
        "machine": of_machine,
        "versions": versions(),
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if _is_used(name, suite)},
        **report.plain(),
    }


def _is_used(setting: str, suite: str) -> bool:
    return setting in USED[suite] if suite in USED else setting != "megabytes"


if __name__ == "__main__":
    sys.exit(main())
