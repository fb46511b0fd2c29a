"""Write the weights of a checkpoint as those of its twin (sparse as dense and back, or with fewer experts), or those
of another program's .pth, .pt, .bin or .ckpt file as safetensors, without running what the pickle carries.

python tools/convert_checkpoint.py runs/dense_416 --mode sparse --top-k 2 --out dense_416_as_sparse
python tools/convert_checkpoint.py runs/sparse_moe_416 --mode static --experts edge texture --out edge_texture
python tools/convert_checkpoint.py edgenext_base.pth --out edgenext_base.safetensors

Of a checkpoint weights alone are written: `camox evaluate`, `predict` and `inspect` take them, no training goes on from
them. Of another program's file the weights of a backbone can be given as `model.weights`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from camox.checkpoints.folders import CHECKPOINTS
from camox.checkpoints.legacy import read_legacy, weights_of
from camox.checkpoints.store import read_checkpoint, resolve, write_folder
from camox.errors import ArgumentParser, CamoxError, CheckpointError
from camox.models.camoxpert import CamoXpert
from camox.tracking.console import Console

NAMES = {"model": "raw", "ema": "EMA"}
LEGACY = (".pth", ".pt", ".bin", ".ckpt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line, converts, says what was written."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = "of a run its best, else its latest; or another program's file"
    parser.add_argument("source", metavar="CHECKPOINT_OR_RUN_OR_FILE", type=Path, help=source)
    parser.add_argument("--mode", choices=("sparse", "dense", "static", "random"), help="by default as it is")
    parser.add_argument("--experts", nargs="+", metavar="NAME", help="those to keep, in this order; by default all")
    parser.add_argument("--top-k", type=int, metavar="K", help="by default as it is; of static, all of --experts")
    table = "of another program's file: where in it the weights are, such as model_state_dict; by default looked for"
    parser.add_argument("--table", metavar="NAME", help=table)
    out = "folder for the checkpoint, or .safetensors file for another program's weights; a new one"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR|FILE", help=out)
    options = parser.parse_args(arguments)
    legacy = options.source.suffix in LEGACY and not options.source.is_dir()
    for name, value in {"mode": options.mode, "experts": options.experts, "top-k": options.top_k}.items():
        if legacy and value is not None:
            parser.error(f"--{name} is for a checkpoint of camox; {options.source} is another program's file")
    if options.table is not None and not legacy:
        parser.error("--table is for another program's file")
    try:
        if legacy:
            convert_legacy(options.source, options.out, options.table)
            return 0
        convert(options.source, options.out, mode=options.mode, experts=options.experts, top_k=options.top_k)
    except CamoxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def convert_legacy(source: Path, out: Path, table: str | None) -> None:
    """Writes the weights in another program's file as the new safetensors file `out`."""
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: give a file that ends in .safetensors as --out")
    if out.exists():
        raise CheckpointError(f"{out}: exists already and is not overwritten: give another --out")
    weights = weights_of(read_legacy(source), table, source)
    partial = out.with_name(f".{out.name}.partial")
    try:
        save_file({name: tensor.clone().contiguous() for name, tensor in weights.items()}, partial)
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise CheckpointError(f"{out}: cannot be written: {error}") from error
    numbers = sum(tensor.numel() for tensor in weights.values())
    rows: list[tuple[str, object]] = [
        ("from", source),
        ("tensors", len(weights)),
        ("numbers", f"{numbers / 1e6:.1f} M"),
    ]
    Console().summary(f"{out}: {next(iter(weights))}, …", rows)


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
