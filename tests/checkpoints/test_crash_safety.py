"""A process that saves, points, replaces and thins out is killed at every step; what it leaves is checked."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from camox.checkpoints.folders import clean_leftovers, list_checkpoints, resolve
from camox.checkpoints.store import read_checkpoint

# Importing torch takes seconds, so one process imports it and forks a child per step. The child dies, unable
# to clean up, right before the n-th file operation under the run's folder (seen through an audit hook).
# Flushing to the disk is left out: it guards against a loss of power, which is not tested, and takes long.
PROGRAM = """
import os, signal, sys
import torch
from camox.checkpoints.store import retain, set_pointer, write_checkpoint

torch.set_num_threads(1)
os.fsync = lambda descriptor: None
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"}

def save(run, epoch, value):
    tensors = {"model": {"weight": torch.full((50,), value)}}
    write_checkpoint(run, f"epoch_{epoch}", tensors, state={}, config={}, measures={"iou": epoch / 10},
                     experiment_fingerprint="", step=epoch, epoch=epoch)
    set_pointer(run, "latest", f"epoch_{epoch}")

def work(run):
    save(run, 2, 2.0)
    save(run, 3, 3.0)
    save(run, 3, 33.0)
    retain(run, keep_last=1, keep_best=1, monitor="iou")

def die_before(step):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in WATCHED and "run_" in str(arguments[0]):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

for step in range(1, 500):
    run = os.path.join(sys.argv[1], f"run_{step:03}")
    save(run, 1, 1.0)
    child = os.fork()
    if child == 0:
        die_before(step)
        work(run)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", PROGRAM, str(folder)], check=True)
    runs = sorted(folder.iterdir())
    assert len(runs) > 60  # the last one was not killed
    return runs[:-1]


def contents(run: Path) -> dict[str, float]:
    """Value of the weights of every checkpoint that counts, each verified."""
    return {
        path.name.removeprefix(".replaced-"): read_checkpoint(path).tensors("model")["weight"][0].item()
        for path in list_checkpoints(run)
    }


def test_whatever_is_listed_is_whole_and_none_is_lost(killed_runs):
    allowed = {"epoch_1": {1.0}, "epoch_2": {2.0}, "epoch_3": {3.0, 33.0}}
    reached = set()
    for run in killed_runs:
        found = contents(run)
        assert all(value in allowed[name] for name, value in found.items()), run
        # Nothing that was once there goes, until the end thins it out: then epoch_3 stands for all.
        assert "epoch_3" in found or set(found) in ({"epoch_1"}, {"epoch_1", "epoch_2"}), run
        reached.add(tuple(sorted(found.items())))
    assert len(reached) >= 5  # the kills fell before, between and after the saves


def test_latest_is_found_and_whole(killed_runs):
    for run in killed_runs:
        assert read_checkpoint(resolve(run)).manifest.epoch in (1, 2, 3), run


def test_tidying_loses_nothing_and_leaves_nothing_hidden(killed_runs):
    for run in killed_runs:
        before = contents(run)
        clean_leftovers(run)
        assert contents(run) == before, run
        assert not [child for child in (run / "checkpoints").iterdir() if child.name.startswith(".")], run


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path):
    """The same with a clock instead of steps, which also falls inside a write."""
    endless = PROGRAM.replace("range(1, 500)", "[0]").replace("        work(run)\n", "        while True: work(run)\n")
    for attempt in range(50):
        folder = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", endless, str(folder)], start_new_session=True)
        while not (folder / "run_000/checkpoints/epoch_3").exists():
            assert process.poll() is None
        try:
            process.wait(0.013 * (attempt % 17))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert "epoch_3" in contents(folder / "run_000")
