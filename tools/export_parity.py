"""Measure how far a run's exports are from its PyTorch model, and their time on a CPU, and write it into a JSON file.

python tools/export_parity.py runs/quickstart --images 50 --json benchmarks/results/export.json

Every image has a size of its own; half are synthetic habitats, half noise. Takes a few minutes.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camox.errors import ArgumentParser, CamoxError
from camox.inference.exporting.export import facts_of, open_onnx, open_program, trace, write_onnx, write_program
from camox.inference.exporting.parity import LIMIT, TIE, Maps, measure_parity, parity_batches
from camox.inference.loading.loaded_model import LoadedModel, load_model
from machine import machine, versions

_SMALLEST = 33


def main() -> int:
    """Parses the command line, measures, writes."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the sizes and of the noise")
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    options = parser.parse_args()
    try:
        measured = measure(load_model(options.run, device="cpu"), options.images, options.seed)
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    results = {
        "command": f"python tools/export_parity.py {options.run} --images {options.images} --json {options.json}",
        "machine": machine() | {"threads": torch.get_num_threads()},
        "versions": versions(("torch", "timm", "onnx", "onnxruntime", "onnxscript", "camox")),
        **measured,
    }
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def markdown_table(results: Mapping[str, Any]) -> str:
    """The results as a page shows them."""
    machine, found, near = results["machine"], results["versions"], results["near_tie_below"]
    lines = [
        f"{results['images']} images, each by itself, {results['sizes']}; {machine['processor']}, {machine['threads']} "
        f"threads, torch {found['torch']}, onnxruntime {found['onnxruntime']}. Made by `{results['command']}`.",
        "",
        f"| format | largest difference | images with a near-tie (below {near:g}) | time / the model's |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {name} | {of['largest_difference']:.1e} | {of['near_ties']} | {of['time_ratio']:.2f} |"
        for name, of in results["formats"].items()
    ]
    return "\n".join(lines)


def measure(loaded: LoadedModel, images: int, seed: int) -> dict[str, Any]:
    """Both formats against the model, on the same images."""
    model, facts = loaded.model, facts_of(loaded)
    sizes = np.random.default_rng(seed).integers(_SMALLEST, 2 * loaded.image_size, (images, 2)).tolist()
    batches = list(parity_batches([(1, height, width) for height, width in sizes], seed))

    def run_model(batch: Tensor) -> Maps:
        output = model(batch)
        return output.logits, output.uncertainty

    with TemporaryDirectory() as folder:
        started = time.perf_counter()
        program = trace(model)
        write_program(program, Path(folder) / "model.pt2", facts)
        write_onnx(program, Path(folder) / "model.onnx", facts)
        seconds = time.perf_counter() - started
        formats = {
            "onnx": open_onnx(Path(folder) / "model.onnx"),
            "torch": open_program(Path(folder) / "model.pt2"),
        }
        return {
            "images": images,
            "sizes": f"{_SMALLEST} to {2 * loaded.image_size - 1} pixels, drawn for each side",
            "batch": 1,
            "allowed": LIMIT,
            "near_tie_below": TIE,
            "export_seconds": round(seconds, 1),
            "formats": {
                name: _compared(loaded, exported, batches) | {"time_ratio": _time_ratio(run_model, exported, batches)}
                for name, exported in formats.items()
            },
        }


def _compared(loaded: LoadedModel, exported: Callable[[Tensor], Maps], batches: Sequence[Tensor]) -> dict[str, Any]:
    parity = measure_parity(loaded.model, exported, batches)
    return {
        "largest_difference": parity.largest,
        "near_ties": parity.near_ties,
        "largest_difference_of_near_ties": parity.largest_of_near_ties,
    }


@torch.no_grad()
def _time_ratio(
    model: Callable[[Tensor], Maps], exported: Callable[[Tensor], Maps], batches: Sequence[Tensor]
) -> float:
    """Median over images of the export's time in units of the model's, the two in turns."""
    ratios = []
    for batch in batches:
        ours, theirs = [], []
        for _ in range(3):
            ours.append(_seconds(model, batch))
            theirs.append(_seconds(exported, batch))
        ratios.append(min(theirs) / min(ours))
    return round(statistics.median(ratios), 3)


def _seconds(run: Callable[[Tensor], Maps], batch: Tensor) -> float:
    started = time.perf_counter()
    run(batch)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
