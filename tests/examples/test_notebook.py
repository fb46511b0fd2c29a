"""The notebook for two T4s: its cells are run as a notebook would, on a small experiment and in two processes."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import numpy as np
import pytest
from PIL import Image

from camox.data.habitats import Habitats
from tests.conftest import TINY_EXPERIMENT

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "two_t4.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
COMMANDS = {
    "camox": 'exec {python} -m camox "$@"',
    # The notebook's one installation, of a folder that can be installed; this environment has it already.
    "pip": '[ "$*" = "install -q ./camox-source" ] && [ -f camox-source/pyproject.toml ]',
}


class Notebook:
    """Runs cells: Python in one namespace, `!` by a shell with `{name}` filled in, `%cd` in this process."""

    def __init__(self):
        self.names = {"_notebook": self}
        self.codes = []
        self.output = ""

    def run(self, cell):
        exec(re.sub(r"^([!%])(.*)$", self._as_call, cell, flags=re.MULTILINE), self.names)

    def _as_call(self, match):
        return f"_notebook.{'shell' if match[1] == '!' else 'magic'}({match[2]!r})"

    def shell(self, line):
        done = subprocess.run(
            ["sh", "-c", line.format(**self.names)], stdout=PIPE, stderr=STDOUT, text=True, check=False
        )
        self.codes.append(done.returncode)
        self.output = done.stdout

    def magic(self, line):
        name, folder = line.format(**self.names).split()
        assert name == "cd"
        os.chdir(folder)


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    commands, source, data = tmp_path / "bin", tmp_path / "source", tmp_path / "data"
    for folder in (commands, source / "experiments", data / "images", data / "masks", tmp_path / "work"):
        folder.mkdir(parents=True)
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text.format(python=sys.executable)}\n")
        (commands / name).chmod(0o755)
    (source / "pyproject.toml").touch()
    (source / "experiments" / "tiny.toml").write_text(TINY_EXPERIMENT.replace("image_size = 32", "image_size = 64"))
    for number, sample in enumerate(map(Habitats(12, size=64, tiny=0.0).__getitem__, range(12))):
        Image.fromarray(sample.image).save(data / "images" / f"{number}.png")
        Image.fromarray(sample.mask * np.uint8(255)).save(data / "masks" / f"{number}.png")
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    book = Notebook()
    book.names |= {
        "SOURCE": str(source),
        "DATA": str(data),
        "WORK": str(tmp_path / "work"),
        "EARLIER": "",
        "RECIPE": "camox-source/experiments/tiny.toml",
        "IMAGES": str(data / "images"),
        "HOURS": 1e-6,
        "OPTIONS": "--cpu --num_processes 2",
    }
    return book


def test_it_is_a_notebook_without_outputs():
    for cell in CELLS:
        assert cell["id"]
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_settings_are_those_that_the_other_cells_need(notebook):
    names = [node.targets[0].id for node in ast.parse(CODE[0]).body if isinstance(node, ast.Assign)]
    assert {*names, "_notebook"} == set(notebook.names)
    exec(CODE[0], settings := {})
    # The recipe is one of the repository's, at the place to which the next cell copies it.
    assert (ROOT / settings["RECIPE"].removeprefix("camox-source/")).is_file()


@pytest.mark.slow
@pytest.mark.distributed
def test_its_cells_train_over_two_sessions_and_predict(notebook):
    _, install, experiment, check, train, use, show = CODE
    for cell in (install, experiment, check, train):
        notebook.run(cell)
    assert notebook.output.endswith("ended with code 4\n"), notebook.output
    assert "2 × cpu" in notebook.output

    notebook.names |= {"HOURS": 1, "EARLIER": str(Path("runs").rename("earlier").resolve())}
    notebook.run(experiment)
    notebook.run(train)
    assert notebook.output.endswith("ended with code 0\n"), notebook.output
    assert "resumed" in notebook.output
    notebook.run(use)
    assert set(notebook.codes) == {0}, notebook.output
    assert len(list(Path("masks/overlays").glob("*.png"))) == 12, notebook.output
    notebook.run(show)
