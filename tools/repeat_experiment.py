"""Train an experiment with several seeds and write its scores, their spread and the time into one JSON file.

python tools/repeat_experiment.py experiments/quickstart.toml --seeds 42 1 2 --json benchmarks/results/quickstart.json

Takes `--seeds` times as long as one run; runs go to a folder of their own and are left there to be looked at.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from camox.errors import ArgumentParser
from machine import machine

TRAIN = Path(__file__).resolve().parents[1] / "camox" / "train.py"


def main() -> int:
    """Parses the command line, trains, writes."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/repeated"))
    parser.add_argument("--json", type=Path, required=True, help="file for the results")
    parser.add_argument("overrides", nargs="*", help="table.key=value")
    options = parser.parse_intermixed_args()
    runs = [one_run(options.experiment, seed, options.output, options.overrides) for seed in options.seeds]
    environment = json.loads((Path(runs[0]["run"]) / "environment.json").read_text())
    results = {
        "command": " ".join(["python", "tools/repeat_experiment.py", *sys.argv[1:]]),
        "machine": machine(),
        "environment": environment["packages"],
        "git_commit": environment["git_commit"],
        "runs": runs,
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


def one_run(experiment: Path, seed: int, output: Path, overrides: list[str]) -> dict[str, Any]:
    """Trains with one seed in a process of its own; raises where that fails."""
    name = f"{experiment.stem}_seed_{seed}"
    arguments = [f"experiment.seed={seed}", f'experiment.name="{name}"', "tracking.wandb=disabled", *overrides]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", str(TRAIN)]
    started = time.perf_counter()
    subprocess.run([*launcher, str(experiment), *arguments, "--output", str(output)], check=True)
    run = output / name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [row for row in rows if "val/iou" in row][-1]
    test = json.loads((run / "evaluation" / "measures.json").read_text())
    return {
        "seed": seed,
        "run": str(run),
        "seconds_from_launch_to_end": round(time.perf_counter() - started, 1),
        "held_out_iou_at_the_end": {"raw": validation["val/iou"], "ema": validation.get("val_ema/iou")},
        "protocol": test["protocol"],
        "test": test["datasets"],
    }


if __name__ == "__main__":
    sys.exit(main())
