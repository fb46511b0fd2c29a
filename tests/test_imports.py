"""What is heavy is imported where it is used: a command that answers at once must not wait for torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from camox.checkpoints.store import write_checkpoint

ROOT = Path(__file__).resolve().parents[1]
FOR_TRAINING = {"torch", "torchvision", "timm", "accelerate", "albumentations", "cv2", "scipy", "wandb"}
FOR_SOME_RUNS = {"datasets", "pyarrow", "pandas", "matplotlib", "jinja2", "plotly", "onnx", "tensorboard"}
COMMAND = "import sys; from camox.cli import main; code = main(sys.argv[1:]); assert code == 0, code; {report}"
REPORT = "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
QUICKSTART = """
import gc, runpy, sys
from camox.training.trainer import Trainer

def end(trainer):
    assert trainer.at.step == 1
    assert gc.isenabled()
    assert gc.get_freeze_count() > 100_000
    {report}
    raise SystemExit

Trainer._heed_requests = end
runpy.run_path("camox/train.py", run_name="__main__")
"""


def imported(code: str, *arguments: str) -> set[str]:
    """The packages that a fresh process has imported when it ends."""
    code = code.replace("{report}", REPORT)
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.splitlines()[-1].split())


def test_importing_camox_imports_nothing_heavy():
    found = imported("import sys, camox; {report}")
    assert "camox" in found
    assert not found & (FOR_TRAINING | FOR_SOME_RUNS)


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["schema"]], ids=" ".join)
def test_commands_that_only_tell_import_nothing_heavy(command):
    found = imported(COMMAND, *command)
    assert "typer" in found
    assert not found & (FOR_TRAINING | FOR_SOME_RUNS)


def test_inspection_imports_nothing_heavy(tmp_path):
    weights = {"model": {"weight": torch.ones(3)}}
    write_checkpoint(
        tmp_path, "epoch_0001", weights, state={}, config={}, measures={}, experiment_fingerprint="", step=1, epoch=1
    )
    found = imported(COMMAND, "inspect", str(tmp_path))
    assert "camox" in found
    assert not found & (FOR_TRAINING | FOR_SOME_RUNS)


def test_the_quickstart_takes_its_first_step_without_what_it_does_not_need(tmp_path):
    settings = ["data.batch_size=2", "data.workers=0", 'data.train=[{ synthetic = "habitats", count = 40, size = 64 }]']
    arguments = ["experiments/quickstart.toml", *settings, "data.image_size=64", "--output", str(tmp_path)]
    found = imported(QUICKSTART, *arguments)
    assert found >= {"torch", "timm", "accelerate", "albumentations"}
    assert not found & FOR_SOME_RUNS
    assert os.listdir(tmp_path) == ["quickstart"]
