"""`tools/inspect_checkpoint.py` and `camox inspect`: can this checkpoint be trusted? Starts without torch."""

import argparse
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from camox.checkpoints.scan import Report, SubjectReport, TensorReport, last_clean, scan
from camox.errors import CheckpointError

_EXAMPLES = """\
examples:
  inspect_checkpoint.py runs/sparse_moe_416                 every checkpoint of a run
  inspect_checkpoint.py runs/sparse_moe_416 --last-clean    the newest one that is safe to go on from
  inspect_checkpoint.py model.safetensors --all             every tensor with its largest magnitude

exit codes:
  0  every tensor is finite, and files match their manifest where there is one
  1  NaN or Inf found
  2  nothing readable as a checkpoint, or no NaN and no Inf found but something is damaged
"""


def main(arguments: Sequence[str] | None = None, program: str = "inspect_checkpoint.py") -> int:
    """Run the command with `arguments` (default: those of the process) and give its exit code."""
    options = _parser(program).parse_args(arguments)
    try:
        if options.last_clean:
            return _answer_last_clean(options.path, as_json=options.json)
        report = scan(options.path)
    except CheckpointError as error:
        if os.environ.get("CAMOX_DEBUG") == "1":
            traceback.print_exc()
        sys.stderr.write(f"{_printable(str(error))}\n")
        return error.exit_code
    text = _as_json(report, options.all) if options.json else "\n".join(map(_printable, _as_lines(report, options.all)))
    sys.stdout.write(text + "\n")
    return report.exit_code


def _printable(line: str) -> str:
    """A line in which what no terminal should be sent, or can show, is written out: names come from the files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Look for NaN, Inf and damage in weights without loading them.",
        epilog=_EXAMPLES.replace("inspect_checkpoint.py", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a run (every checkpoint is scanned), a checkpoint, a .safetensors file, an index of shards, "
        "a .pth/.pt/.bin file, or a folder of such files",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--last-clean",
        action="store_true",
        help="print only the path of the newest undamaged, finite checkpoint (exit 1 if there is none)",
    )
    parser.add_argument("--all", action="store_true", help="list every tensor, not only those with NaN or Inf")
    return parser


def _answer_last_clean(path: str, as_json: bool) -> int:
    found = last_clean(path)
    if as_json:
        sys.stdout.write(json.dumps({"path": path, "last_clean": str(found) if found else None}) + "\n")
    elif found:
        sys.stdout.write(f"{found}\n".encode("utf-8", "backslashreplace").decode())
    if found is None:
        sys.stderr.write(f"{path}: none of its checkpoints is undamaged and finite\n")
    return 0 if found else 1


def _as_json(report: Report, every_tensor: bool) -> str:
    table = {
        "path": str(report.path),
        "exit_code": report.exit_code,
        "checkpoints": [_subject_table(subject, every_tensor) for subject in report.subjects],
        "notes": list(report.notes),
    }
    return json.dumps(table, indent=2, allow_nan=False)


def _subject_table(subject: SubjectReport, every_tensor: bool) -> dict[str, Any]:
    manifest = subject.manifest
    return {
        "path": str(subject.path),
        "epoch": manifest.epoch if manifest else None,
        "step": manifest.step if manifest else None,
        "finite": subject.is_finite,
        "defects": list(subject.defects),
        "files": [
            {
                "name": file.path.name,
                "size": file.size,
                "tensor_count": len(file.tensors),
                "nan": sum(tensor.nan for tensor in file.tensors),
                "inf": sum(tensor.inf for tensor in file.tensors),
                "tensors": [_tensor_table(tensor) for tensor in (file.tensors if every_tensor else file.bad)],
            }
            for file in subject.files
        ],
    }


def _tensor_table(tensor: TensorReport) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "nan": tensor.nan,
        "inf": tensor.inf,
        "absmax": tensor.absmax,
    }


def _as_lines(report: Report, every_tensor: bool) -> Iterator[str]:
    for subject in report.subjects:
        yield from _subject_lines(subject, every_tensor)
    for note in report.notes:
        yield f"note: {note}"
    bad = [subject for subject in report.subjects if not subject.is_clean]
    count = len(report.subjects)
    if bad:
        yield f"{len(bad)} of {count} not clean: {', '.join(subject.path.name for subject in bad)}"
    else:
        yield "clean: every tensor is finite" if count == 1 else f"all {count} clean: every tensor is finite"


def _subject_lines(subject: SubjectReport, every_tensor: bool) -> Iterator[str]:
    position = f"  epoch {subject.manifest.epoch}, step {subject.manifest.step}" if subject.manifest else ""
    yield f"{subject.path}{position}"
    for file in subject.files:
        nan, inf = sum(tensor.nan for tensor in file.tensors), sum(tensor.inf for tensor in file.tensors)
        verdict = "finite" if not file.bad else f"{nan} NaN, {inf} Inf in {len(file.bad)} tensors"
        yield f"  {file.path.name:<28} {file.size / 1e6:>9.1f} MB {len(file.tensors):>6} tensors  {verdict}"
        yield from _tensor_lines(file.tensors if every_tensor else file.bad)
    for defect in subject.defects:
        yield f"  damaged: {defect}"


def _tensor_lines(tensors: Sequence[TensorReport]) -> Iterator[str]:
    if not tensors:
        return
    rows = [("tensor", "dtype", "shape", "numbers", "NaN", "Inf", "largest")]
    rows += [
        (
            tensor.name,
            tensor.dtype,
            "×".join(map(str, tensor.shape)) or "scalar",
            str(math.prod(tensor.shape)),
            str(tensor.nan),
            str(tensor.inf),
            "-" if tensor.absmax is None else f"{tensor.absmax:.4g}",
        )
        for tensor in tensors
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        texts = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
        yield "    " + "  ".join(texts + numbers)
