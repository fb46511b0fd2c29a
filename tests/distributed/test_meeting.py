"""Processes that cannot train together do not start: one clear message, and no waiting past the limit."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TINY_EXPERIMENT
from tests.distributed.test_two_ranks import ROOT, launch

pytestmark = pytest.mark.distributed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY_EXPERIMENT)
    return path


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error")]


@pytest.mark.slow
def test_processes_with_other_settings_are_told_which(file):
    script = str(ROOT / "tests/distributed/different_ranks.py")
    done = launch(script, "optimizer.lr=0.5", str(file), "--output", str(file.parent), timeout=200)
    assert done.returncode != 0
    (message,) = errors(done.stderr)
    assert f"process 1 on {socket.gethostname()} differs from process 0 on" in message
    assert " in optimizer.lr: " in message
    assert not (file.parent / "tiny").exists()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_alone_of_two_ends_when_its_time_is_over(file, rank):
    """Started by no launcher, as SLURM's srun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    place |= {"MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true", "CAMOX_JOIN_SECONDS": "2"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "camox/train.py"), str(file), "--output", str(file.parent)],
        env={**os.environ, **place},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (message,) = errors(done.stderr)
    assert (
        f"process {rank} on {socket.gethostname()} could not meet the others at 127.0.0.1:{port} within 2 s" in message
    )
    assert not (file.parent / "tiny").exists()
