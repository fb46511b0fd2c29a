"""Incident 9: an expert that gets no image on one of two processes, before and after the backbone is unfrozen."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_two_ranks import ROOT, launch
from tests.incidents.conftest import EXPERIMENT, train
from tests.incidents.records import Outcome, outcome_of
from tests.incidents.test_incidents import lost, survived

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STAGES = '[[phases]]\nname = "frozen"\nepochs = 1\nfreeze = ["backbone"]\n\n[[phases]]\nname = "full"\nepochs = 8\n'
TWO_STAGES = EXPERIMENT.replace('[[phases]]\nname = "full"\nepochs = 8\n', STAGES)


def run_on_two(folder: Path, how: str) -> tuple[Outcome, list[list[dict[str, Any]]]]:
    """How the run ends, and the report of each process."""
    folder.mkdir()
    file = folder / "incident.toml"
    # Two processes with half a batch each: the steps of the clean run.
    file.write_text(TWO_STAGES.replace("batch_size = 8", "batch_size = 4"))
    script = str(ROOT / "tests/incidents/idle_ranks.py")
    done = launch(script, how, str(folder), str(file), "--output", str(folder))
    errors = [line for line in done.stderr.splitlines() if "RuntimeError" in line]
    error = (
        "" if done.returncode == 0 else (errors or [done.stderr[-500:]])[0].split("RuntimeError: ")[-1].split(".")[0]
    )
    files = [folder / f"rank_{rank}.jsonl" for rank in (0, 1)]
    reports = [[json.loads(line) for line in path.read_text().splitlines()] for path in files if path.exists()]
    return outcome_of(folder / "incident", error), reports


def test_an_expert_that_is_idle_on_one_process(tmp_path, record):
    clean = train(tmp_path, experiment=TWO_STAGES)
    assert clean.iou >= 0.5

    without, _ = run_on_two(tmp_path / "untouched", "untouched")
    lost(without, clean)
    assert "finished reduction" in without.error

    outcome, (ours, theirs) = run_on_two(tmp_path / "touched", "touched")
    survived(outcome, clean)
    assert [step["weights"] for step in ours] == [step["weights"] for step in theirs]
    for frozen in (4, 0):
        idle = [(us["idle"], them["idle"]) for us, them in zip(ours, theirs, strict=True) if us["frozen"] == frozen]
        assert any(max(pair) > 0 for pair in idle)
    record(9, "An expert without an image on one of two processes", without=without, with_guards=outcome, clean=clean)
