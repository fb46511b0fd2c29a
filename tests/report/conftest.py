"""Folders of runs: one that was really trained, and ones that are written line by line."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from camox.experiment import Experiment
from tests.conftest import TINY_EXPERIMENT, forget_accelerate_state

TEST_IMAGES = 14
SETTINGS = (
    "tracking.report=true",
    f'data.test=[{{ synthetic = "habitats", count = {TEST_IMAGES}, seed = 1, size = 32, tiny = 0.0, empty = 0.2 }}]',
    'validation.measures=["iou", "mae", "s_measure"]',
)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two phases with a test evaluation and its report; not to be changed."""
    from camox.training.trainer import Trainer

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.toml").write_text(TINY_EXPERIMENT)
    experiment = Experiment.load(folder / "tiny.toml", SETTINGS, folder / "runs")
    forget_accelerate_state()
    Trainer(experiment).run()
    return experiment.run_folder


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change, without the report."""
    copy = shutil.copytree(trained, tmp_path / "runs" / "tiny")
    (copy / "report.html").unlink()
    return copy


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a run's folder from rows and events, with the tiny experiment and overrides of it."""

    def write(
        *overrides: str,
        rows: list[Mapping[str, Any]] | None = None,
        events: list[Mapping[str, Any]] | None = None,
        name: str = "written",
        exit_code: int | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (tmp_path / "source.toml").write_text(TINY_EXPERIMENT)
        experiment = Experiment.load(tmp_path / "source.toml", overrides)
        (folder / "experiment.toml").write_text(experiment.to_toml())
        (folder / "environment.json").write_text(json.dumps({"python": "3.11", "devices": ["cpu", "cpu"]}))
        for file, lines in (("metrics.jsonl", rows or []), ("events.jsonl", events or [])):
            (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
        if exit_code is not None:
            (folder / "exit.json").write_text(json.dumps({"code": exit_code, "reason": "as it was"}))
        return folder

    return write


def event(kind: str, step: int = 0, **fields: Any) -> dict[str, Any]:
    """An event as events.jsonl has it."""
    plain = {"time": 1e9 + step, "epoch": 0, "rank": 0, "severity": "info", "message": kind, "details": {}}
    return plain | {"kind": kind, "step": step} | fields


def figures_of(page: str) -> dict[str, Any]:
    """The figures that a page holds, by their keys."""
    text = page.partition('<script type="application/json" id="figures">')[2].partition("</script>")[0]
    return dict(json.loads(text))
