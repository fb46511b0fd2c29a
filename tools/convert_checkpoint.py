"""Write the weights of a checkpoint as those of its twin: sparse as dense and back, or with fewer experts.

python tools/convert_checkpoint.py runs/dense_416 --mode sparse --top-k 2 --out dense_416_as_sparse
python tools/convert_checkpoint.py runs/sparse_moe_416 --mode static --experts edge texture --out edge_texture

What is written holds weights alone: `camox evaluate`, `predict` and `inspect` take it, no training goes on from it.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from camox.checkpoints.folders import CHECKPOINTS
from camox.checkpoints.store import read_checkpoint, resolve, write_folder
from camox.errors import CamoxError, CheckpointError
from camox.models.camoxpert import CamoXpert
from camox.tracking.console import Console

NAMES = {"model": "raw", "ema": "EMA"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, converts, says what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CHECKPOINT_OR_RUN", type=Path, help="of a run its best, else its latest")
    parser.add_argument("--mode", choices=("sparse", "dense", "static", "random"), help="by default as it is")
    parser.add_argument("--experts", nargs="+", metavar="NAME", help="those to keep, in this order; by default all")
    parser.add_argument("--top-k", type=int, metavar="K", help="by default as it is; of static, all of --experts")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the checkpoint, a new one")
    options = parser.parse_args(arguments)
    try:
        convert(options.source, options.out, mode=options.mode, experts=options.experts, top_k=options.top_k)
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def convert(source: Path, out: Path, **changes: Any) -> None:
    """Writes raw and averaged weights of the checkpoint that `source` means, converted, to the new folder `out`."""
    if out.exists():
        raise CheckpointError(f"{out}: exists already and is not overwritten: give another --out")
    if out.absolute().parent.name == CHECKPOINTS:
        raise CheckpointError(f"{out}: a run would take it for a checkpoint of its own: give a place outside of runs")
    checkpoint = read_checkpoint(resolve(source))
    networks = {
        stem: CamoXpert.from_pretrained(checkpoint.path, stem, **changes) for stem in NAMES if stem in checkpoint.stems
    }
    config = networks["model"].config
    if all(config[key] == checkpoint.config[key] for key in changes):
        raise CheckpointError(f"{checkpoint.path}: is like that already: give another --mode, --experts or --top-k")
    tensors = {stem: network.state_dict() for stem, network in networks.items()}
    rows: list[tuple[str, object]] = [
        ("from", checkpoint.path),
        ("mode", f"{checkpoint.config['mode']} → {config['mode']}"),
        ("experts", ", ".join(config["experts"])),
        ("top_k", config["top_k"]),
        ("weights", ", ".join(NAMES[stem] for stem in tensors)),
    ]
    manifest = checkpoint.manifest
    state = {"step": manifest.step, "epoch": manifest.epoch, "converted_from": str(checkpoint.path)}
    if "image_size" in checkpoint.state:
        state["image_size"] = checkpoint.state["image_size"]
    # Without the scores: they are those of another network.
    write_folder(out, tensors, state, config, replace(manifest, measures={}))
    Console().summary(f"{out}: weights alone, not scored yet; no training goes on from them", rows)


if __name__ == "__main__":
    sys.exit(main())
