"""Measure camox against its twins and rivals in one run, as ratios, and say which of the asked figures are met.

python tools/benchmark.py step --json benchmarks/results/step.json
python tools/benchmark.py moe --rounds 3
python tools/benchmark.py step --from benchmarks/results/step.json --markdown docs/model.md
python tools/benchmark.py gpu --device cuda --json gpu.json
python tools/benchmark.py compare OLD.json NEW.json

Suites: `step`, a whole training step, and the trainer's loop; `moe`, the mixtures of experts alone; `loader`, files and
the cache of resized images against a plain pipeline; `checkpoint`, how long saving keeps training waiting; `inspect`,
the command that looks for NaN in a checkpoint (on Linux); `measures`, how far our measures are from pysodmetrics, and
how long both take; `infer`, masks from images on one core, in units of a matrix product; `predict`, `camox predict` of
a folder against the bare network; `options`, what each choice made for speed gives; `memory`, what steps of the recipes
take on a GPU, counted; `startup`, from a command to the first step; `scaling`, two processes against one; `gpu`, all
that matters on one GPU, in eight minutes. docs/benchmarks.md
says which question each answers, and how to read it.

What is compared is timed in interleaved rounds, and judged by process time (on a GPU by its own clock), so that neither
a slow minute nor a neighbour on the machine favours one of them; what somebody or something waits for by wall time:
suites `checkpoint`, `inspect`, `scaling`, `startup`, and what has workers or a neighbour of its own. The asked figures
are stated for the default settings: with others they are not judged. With `--from` nothing is measured: the tables of a
results file are shown, or written into a page. `compare` holds two files of one suite against each other: 0 where
nothing became worse, 1 where something did, 2 where they do not compare.
"""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Read when torch is imported, and set for training too. Threads that spin while they wait would count as process time;
# kernels for the sub-batches of a dozen networks would push each other out of a cache of 1024.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")

import torch
from rich.console import Console

from benchmarking.checkpoint import measure_checkpoints
from benchmarking.comparison import compare, show_comparison
from benchmarking.document import origin, read_document, write_document
from benchmarking.gpu import measure_gpu
from benchmarking.inference import measure_inference
from benchmarking.inspection import measure_inspection
from benchmarking.loader import measure_loader
from benchmarking.measures import measure_measures
from benchmarking.memory import measure_memory
from benchmarking.moe import measure_mixtures
from benchmarking.options import measure_options
from benchmarking.prediction import measure_prediction
from benchmarking.report import Report, markdown_tables, show
from benchmarking.scaling import measure_scaling
from benchmarking.settings import PRECISIONS, Settings
from benchmarking.startup import measure_startup
from benchmarking.step import measure_steps
from camox.errors import ArgumentParser, CamoxError, DataError
from pages import SHAPE_ERRORS, fill_block

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
    "infer": measure_inference,
    "predict": measure_prediction,
    "gpu": measure_gpu,
}
ONE_THREAD = ("infer",)
"""Suites that are measured with one thread of torch unless others are asked for."""
USED = {
    "gpu": ("device", "backbone", "width", "rounds"),
    "checkpoint": ("device", "backbone", "width", "rounds"),
    "inspect": ("megabytes", "rounds"),
    "loader": ("image_size", "batch", "rounds"),
    "measures": ("device", "rounds"),
    "memory": ("device",),
    "predict": ("device", "rounds"),
    "startup": ("rounds",),
}
"""The settings that these suites have; the others have all but `megabytes`."""


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line, measures, shows and writes."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return _compare(given[1:]) if given[:1] == ["compare"] else _measure(given)
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _measure(arguments: list[str]) -> int:
    options = _parse(arguments)
    if options.results is not None:
        _show(options.suite, options.results, options.markdown)
        return 0
    threads = options.threads or (1 if options.suite in ONE_THREAD else None)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    used = USED.get(options.suite, [field.name for field in dataclasses.fields(Settings) if field.name != "megabytes"])
    of = origin(settings, used, arguments)

    def keep(report: Report) -> None:
        if options.json is not None:
            write_document(options.json, of, report)

    suite = partial(measure_gpu, keep=keep) if options.suite == "gpu" else SUITES[options.suite]
    report = suite(settings)
    keep(report)
    show(report.plain(), Console())
    return 0


def _compare(arguments: list[str]) -> int:
    """Whether anything became worse from the first file to the second."""
    parser = ArgumentParser(
        prog="benchmark.py compare",
        description="Hold two files of results of one suite against each other, ratio by ratio.",
        epilog="Ends with 0 where nothing became worse beyond the noise, 1 where something did, 2 where they do not "
        "compare: another suite, other settings. Example: python tools/benchmark.py compare "
        "benchmarks/results/infer.json new.json",
    )
    for name in ("old", "new"):
        parser.add_argument(name, type=Path, metavar=f"{name.upper()}.json", help="a file written with --json")
    parser.add_argument("--all", action="store_true", help="show also what did not change, and seconds")
    options = parser.parse_args(arguments)
    (suite, old), (other, new) = (read_document(path, SUITES) for path in (options.old, options.new))
    if suite != other:
        raise DataError(f"{options.old} holds results of {suite}, {options.new} of {other}: give two of one suite")
    found = compare(old, new, (str(options.old), str(options.new)))
    show_comparison(found, (old, new), Console(), options.all)
    return 1 if found.worse else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    default = Settings()
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES, help="what to measure; or compare OLD.json NEW.json")
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
        help=f"number format of forward passes (default: {default.precision}), fp16 for `options` on a GPU",
    )
    parser.add_argument(
        "--threads", type=_count, help=f"of torch (default: as many as torch takes, 1 for {', '.join(ONE_THREAD)})"
    )
    options = parser.parse_args(arguments)
    if options.precision is None:
        # What choices give on a GPU was predicted for the recipes' precision.
        of_recipes = options.suite == "options" and options.device == "cuda"
        options.precision = "fp16" if of_recipes else default.precision
    if options.markdown is not None and options.results is None:
        parser.error("--markdown needs --from FILE: measure with --json FILE first")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; leave the option out to measure on the CPU")
    if options.device == "cuda" and options.suite in ("inspect", "loader", "scaling", "startup"):
        parser.error(
            f"--device cuda: suite {options.suite} reads files and computes nothing on a GPU; leave the option out"
        )
    if options.suite == "gpu" and options.device == "cpu" and options.results is None:
        parser.error("suite gpu needs --device cuda: on a CPU the other suites measure the same")
    if options.device == "cpu" and options.precision == "fp16":
        parser.error("--precision fp16 needs --device cuda: on a CPU use fp32 or bf16")
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _show(suite: str, results: Path, page: Path | None) -> None:
    """The tables of a results file, on the screen or in a page."""
    found, document = read_document(results, SUITES)
    if found != suite:
        raise DataError(f"{results}: holds results of {found}, not of {suite}: name that suite")
    try:
        tables = markdown_tables(document)
    except SHAPE_ERRORS as error:
        raise DataError(f"{results}: cannot be read as results of {suite}: {error!r}") from error
    if page is None:
        show(document, Console())
    else:
        fill_block(page, suite, tables)


if __name__ == "__main__":
    sys.exit(main())
