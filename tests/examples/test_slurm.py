"""The script for SLURM, run on this machine: `srun` and `scontrol` are stand-ins that do what SLURM's do to tasks."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sbatch"
# Starts the command once per node, hands SIGTERM to what it started and to nothing below, ends with the highest code.
SRUN = """#!{python}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
nodes = range(int(os.environ["SLURM_JOB_NUM_NODES"]))
tasks = [subprocess.Popen(words, env={{**os.environ, "SLURM_NODEID": str(node)}}) for node in nodes]
signal.signal(signal.SIGTERM, lambda *_: [task.send_signal(signal.SIGTERM) for task in tasks])
open(os.environ["SRUN_PID"], "w").write(str(os.getpid()))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then printf 'localhost\\n127.0.0.2\\n'; else echo "$@" >> "$REQUEUED"; fi
"""
CAMOX = """#!/bin/bash
exec {python} -m camox "$@"
"""


def directives() -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", SCRIPT.read_text(), re.MULTILINE))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Commands on the path, and what SLURM sets for a job of two nodes with one device each."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "camox": CAMOX}.items():
        (commands / name).write_text(text.format(python=sys.executable) if name != "scontrol" else text)
        (commands / name).chmod(0o755)
    variables = {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "SLURM_JOB_ID": str(10000 * 7 + os.getpid() % 10000),
        "SLURM_JOB_NODELIST": "node[0-1]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "LAUNCHER_OPTIONS": "--cpu",
        "REQUEUED": str(tmp_path / "requeued"),
        "SRUN_PID": str(tmp_path / "srun"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_it_is_bash():
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_what_it_asks_slurm_for():
    asked = directives()
    # One launcher on each node, told to stop in time. Without "B:" the signal goes to the steps, not to this shell.
    assert asked["ntasks-per-node"] == "1"
    assert re.fullmatch(r"TERM@\d+", asked["signal"])
    assert "requeue" in asked


@pytest.mark.parametrize(("arguments", "missing"), [([], None), (["x.toml"], "SLURM_GPUS_ON_NODE")])
def test_what_is_missing_is_said(cluster, monkeypatch, arguments, missing):
    if missing:
        monkeypatch.delenv(missing)
    done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert (missing or "name an experiment") in done.stderr


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_out_of_time_is_requeued_and_goes_on(cluster, tiny_experiment):
    longer = ["phases.full.epochs=19", "validation.every_epochs=10"]
    experiment = tiny_experiment(*longer)
    command = ["bash", str(SCRIPT), str(cluster / "tiny.toml"), *longer, "--output", str(cluster / "runs")]
    metrics = experiment.run_folder / "metrics.jsonl"

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as job:
        until = time.monotonic() + 300
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.1)
        os.kill(int((cluster / "srun").read_text()), signal.SIGTERM)
        output, _ = job.communicate(timeout=300)
    assert job.returncode == 4, output
    assert (cluster / "requeued").read_text() == f"requeue {os.environ['SLURM_JOB_ID']}\n"
    paused = steps(metrics)[-1]
    assert 1 <= paused < 20

    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "2 × cpu" in again.stdout
    assert (cluster / "requeued").read_text().count("requeue") == 1
    assert steps(metrics) == list(range(1, 21))


def steps(metrics: Path) -> list[int]:
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    return [row["step"] for row in rows if "train/loss" in row]
