"""Incident 6: an average with a long memory over a short run scores like a model that has collapsed."""

import pytest

from camox.checkpoints.folders import resolve
from camox.checkpoints.store import read_checkpoint
from tests.incidents.records import Outcome

LONG = ("ema.decay=0.9999", "ema.warmup=false")


@pytest.mark.slow
def test_an_average_that_remembers_the_random_start(run_tiny, clean_run, record, tmp_path, capfd):
    outcome = run_tiny(*LONG)
    run = tmp_path / "with" / "incident"
    # What a person sees who trusts the average, as one does: nothing learned. The weights themselves are sound.
    average = [validation["iou_ema"] for validation in outcome.validations]
    assert max(average[1:]) < clean_run.iou / 2
    assert outcome.validations[-1]["iou"] >= clean_run.iou - 0.05

    told = " ".join(capfd.readouterr().err.split())
    assert "ema.decay = 0.9999 has a half-life of 6931 steps, but the run at most 64" in told
    best = read_checkpoint(resolve(run, ("best",))).state["best"]
    assert best["weights"] == "raw"
    assert best["score"] >= clean_run.iou - 0.05
    # With the warm-up, which is the default, the average is no worse than the weights.
    assert all(validation["iou_ema"] >= clean_run.iou - 0.05 for validation in clean_run.validations[-2:])

    seen = [{"step": v["step"], "iou": v["iou_ema"]} for v in outcome.validations]
    without = Outcome(average[-1], "", [], seen, measured="of the average")
    outcome = outcome._replace(measured="of the better of weights and average, which `best` holds")
    record(6, "An average with decay 0.9999 over 56 steps", without=without, with_guards=outcome, clean=clean_run)
