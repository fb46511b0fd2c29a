"""A server has no display, and a notebook names a way to draw that is not there: pictures come all the same."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DRAWING = """
import sys
from pathlib import Path

from camox.inference.scoring.score_plots import draw_robustness

draw_robustness("NC4K", {"S": {"blur": [0.8, 0.7]}}, {"S": 0.9}, Path(sys.argv[1]))
"""
NOTEBOOK = "module://matplotlib_inline.backend_inline"


def run(*arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, *map(str, arguments)]
    ended = subprocess.run(command, env=environment | variables, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("display", [{}, {"DISPLAY": "nowhere:0"}], ids=str)
def test_pictures_are_drawn_without_a_display(display, tmp_path):
    picture = tmp_path / "robustness.png"
    run("-c", DRAWING, picture, MPLBACKEND="TkAgg", **display)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_command_started_from_a_notebook_draws(tiny_experiment, tmp_path):
    tiny_experiment()
    picture = tmp_path / "preview.png"
    run("-m", "camox", "data", "preview", tmp_path / "tiny.toml", "--count", 1, "--out", picture, MPLBACKEND=NOTEBOOK)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_training_started_from_a_notebook_can_draw_its_test_curves():
    run("-c", "import camox.train, matplotlib.figure", MPLBACKEND=NOTEBOOK)


@pytest.mark.parametrize("module", ["ablation_figures", "incident_plots"])
def test_tools_started_from_a_notebook_can_draw(module):
    run("-c", f"import {module}", MPLBACKEND=NOTEBOOK, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tools")]))


def test_nothing_asks_for_a_window():
    """pyplot takes the environment's backend, and OpenCV's windows a display."""
    for path in (ROOT / "camox").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
                assert "pyplot" not in " ".join(names), path
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cv2":
                assert node.attr not in ("imshow", "namedWindow", "waitKey"), path
