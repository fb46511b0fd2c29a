"""`tools/inspect_checkpoint.py` and `camox inspect`: can this checkpoint be trusted? Starts without torch."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence

from camox.checkpoints.difference import compare
from camox.checkpoints.inspection_json import difference_as_json, report_as_json
from camox.checkpoints.inspection_text import difference_lines, report_lines
from camox.checkpoints.progress import ProgressBar
from camox.checkpoints.scan import last_clean, scan
from camox.errors import ArgumentParser, CheckpointError

_EXAMPLES = """\
examples:
  inspect_checkpoint.py runs/sparse_moe_416                 every checkpoint of a run
  inspect_checkpoint.py runs/sparse_moe_416 --last-clean    the newest one that is safe to go on from
  inspect_checkpoint.py model.safetensors --all             every tensor with its zeros and largest magnitude
  inspect_checkpoint.py runs/a --compare runs/b             what differs in the best checkpoints of two runs

exit codes:
  0  every tensor is finite, and files match their manifest where there is one
  1  NaN or Inf found
  2  nothing readable as a checkpoint, or no NaN and no Inf found but something is damaged
With --compare the same: 0 whether or not they differ, 1 NaN or Inf in either, 2 either is not readable.
"""


def main(arguments: Sequence[str] | None = None, program: str = "inspect_checkpoint.py") -> int:
    """Run the command with `arguments` (default: those of the process) and give its exit code."""
    parser = _parser(program)
    options = parser.parse_args(arguments)
    if options.compare and options.last_clean:
        parser.error("--compare and --last-clean exclude each other: ask for one of them")
    try:
        if options.last_clean:
            return _answer_last_clean(options.path, as_json=options.json)
        text, code = _difference(options) if options.compare else _scan(options)
    except CheckpointError as error:
        if os.environ.get("CAMOX_DEBUG") == "1":
            traceback.print_exc()
        sys.stderr.write(f"error: {_printable(str(error))}\n")
        return error.exit_code
    sys.stdout.write(text + "\n")
    return code


def _scan(options: argparse.Namespace) -> tuple[str, int]:
    with ProgressBar() as progress:
        report = scan(options.path, progress)
    lines = report_lines(report, options.all)
    return report_as_json(report, options.all) if options.json else _joined(lines), report.exit_code


def _difference(options: argparse.Namespace) -> tuple[str, int]:
    with ProgressBar() as progress:
        difference = compare(options.path, options.compare, progress)
    lines = difference_lines(difference, options.all)
    return difference_as_json(difference) if options.json else _joined(lines), difference.exit_code


def _joined(texts: Iterator[str]) -> str:
    return "\n".join(_printable(line) for line in texts)


def _printable(line: str) -> str:
    """A line in which what no terminal should be sent, or can show, is written out: names come from the files."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)


def _parser(program: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=program,
        description="Look for NaN, Inf and damage in weights, and for differences, without loading them.",
        epilog=_EXAMPLES.replace("inspect_checkpoint.py", program),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path",
        metavar="PATH",
        help="a run (every checkpoint is scanned), a checkpoint, a .safetensors file, an index of shards, "
        "a .pth/.pt/.bin file, or a folder of such files",
    )
    parser.add_argument(
        "--compare",
        metavar="B",
        help="say what differs from PATH to B, each a file, a checkpoint, or a run, of which the best checkpoint is "
        "taken, else the latest; hashes are not checked",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--last-clean",
        action="store_true",
        help="print only the path of the newest undamaged, finite checkpoint (exit 1 if there is none)",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="list every tensor, not only those with NaN or Inf; with --compare, all that differ",
    )
    return parser


def _answer_last_clean(path: str, as_json: bool) -> int:
    with ProgressBar() as progress:
        found = last_clean(path, progress)
    if as_json:
        sys.stdout.write(json.dumps({"path": path, "last_clean": str(found) if found else None}) + "\n")
    elif found:
        sys.stdout.write(f"{found}\n".encode("utf-8", "backslashreplace").decode())
    if found is None:
        sys.stderr.write(f"{path}: none of its checkpoints is undamaged and finite\n")
    return 0 if found else 1
