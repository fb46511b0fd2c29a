"""The wheel that is built of this tree, installed where nothing of the tree can be seen."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import camox

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = """
[experiment]
name = "small"

[data]
train = [{ synthetic = "habitats", count = 24, size = 64 }]
test = [{ synthetic = "habitats", count = 6, size = 64, seed = 1, empty = 0.0 }]
image_size = 64
batch_size = 4
workers = 0

[model]
backbone = "resnet10t"
pretrained = false
width = 8

[[phases]]
name = "full"
epochs = 1

[tracking]
wandb = "disabled"
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in _tracked("."):  # setuptools leaves folders where it builds, and packs what it finds there
        copy = folder / "tree" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        folder / "tree",
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr  # pip fetches setuptools for it
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A new environment with the wheel alone, and the dependencies of this one; an empty folder to work in."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    purelib = Path(_run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    # Only the path: the .pth files in there, such as that of an editable install, are not followed.
    (purelib / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    _run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], folder)
    work = folder / "work"
    work.mkdir()
    (work / "small.toml").write_text(EXPERIMENT)
    return folder / "venv" / "bin", work


def _tracked(folder):
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def _run(command, folder, code=0):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_everything_that_belongs_to_the_package_is_in_it(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("camox/")}
    assert packed == set(_tracked("camox"))
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_it_runs_where_there_is_nothing_else(installed):
    binaries, work = installed
    camox_command = binaries / "camox"
    place = _run([binaries / "python", "-c", "import camox; print(camox.__file__)"], work)
    assert Path(place.strip()).is_relative_to(binaries.parent)
    assert _run([camox_command, "--version"], work).strip() == f"camox {camox.__version__}"
    assert json.loads(_run([camox_command, "schema"], work))["properties"]["experiment"]
    _run([camox_command, "train", "small.toml"], work)
    run = work / "runs" / "small"
    assert json.loads((run / "exit.json").read_text())["code"] == 0
    assert json.loads((run / "evaluation" / "measures.json").read_text())["datasets"]
    _run([camox_command, "inspect", "runs/small"], work)
    _run([camox_command, "data", "preview", "small.toml", "--out", "photo.png"], work)
    _run([camox_command, "predict", "runs/small", "photo.png", "--out", "masks"], work)
    assert (work / "masks" / "photo.png").is_file()


def test_it_asks_for_what_it_imports(wheel):
    metadata = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".dist-info/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert f"Version: {version('camox')}" in text
    assert "Requires-Dist: torchvision" in text  # timm imports it; torch alone would leave an environment that fails
