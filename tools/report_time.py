"""Measure what `camox report` takes for a finished run, and how large its page is, and write it into a JSON file.

python tools/report_time.py runs/quickstart --json benchmarks/results/report.json
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from camox.errors import ArgumentParser
from machine import machine, versions

_MEASURED = Path(__file__).resolve().with_name("measured_process.py")


def main() -> int:
    """Parses the command line, measures, writes."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    options = parser.parse_args()
    results = {
        "command": f"python tools/report_time.py {options.run} --json {options.json}",
        "machine": machine(),
        "versions": versions(("torch", "camox")),
        "repeats": options.repeats,
        "report": _measured(options.run, options.repeats),
        "report --no-gallery": _measured(options.run, options.repeats, "--no-gallery"),
    }
    options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _measured(run: Path, repeats: int, *options: str) -> dict[str, Any]:
    """The median of whole processes, start and imports included."""
    with TemporaryDirectory() as folder:
        page, taken = Path(folder) / "report.html", Path(folder) / "taken.json"
        command = [sys.executable, "-m", "camox", "report", str(run), "--out", str(page), *options]
        found = []
        for _ in range(repeats):
            subprocess.run([sys.executable, str(_MEASURED), str(taken), *command], check=True)
            found.append(json.loads(taken.read_text(encoding="utf-8")))
        return {
            "megabytes": round(page.stat().st_size / 1e6, 1),
            **{name: round(median(one[name] for one in found), 2) for name in ("cpu_seconds", "wall_seconds")},
        }


if __name__ == "__main__":
    sys.exit(main())
