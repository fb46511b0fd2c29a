"""The command: its exit codes, what it prints, what it writes and what it leaves alone."""

import json

import pytest

from camox.cli import main
from camox.losses import composite

CHECKS = ["settings", "ema", "estimates", "outputs", "losses", "gradients", "overfit"]


@pytest.fixture
def diagnose(tiny_experiment, tmp_path, monkeypatch):
    tiny_experiment()
    monkeypatch.chdir(tmp_path)
    # Experts at one scale: counting memory goes by the number of operators.
    few = "model.moe.scales=[4]", "model.refinement_steps=0"
    return lambda *options: main(["diagnose", str(tmp_path / "tiny.toml"), *few, *options])


@pytest.mark.slow
def test_a_sound_experiment_passes_and_nothing_is_written(diagnose, tmp_path, capfd):
    assert diagnose() == 0
    out = capfd.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["pass"]] == CHECKS
    assert "7 checks: all pass" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.toml"]


def test_what_is_wrong_is_named_with_its_remedy_and_in_the_file(diagnose, tmp_path, capfd, monkeypatch):
    def nan_on_empty(logits, mask):
        return composite.bce_loss(logits, mask) * mask.sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3))

    monkeypatch.setitem(composite.FINAL_TERMS, "structure", nan_on_empty)
    report = tmp_path / "report.json"
    assert diagnose("ema.warmup=false", "ema.decay=0.9999", "--json", str(report)) == 1
    out = capfd.readouterr().out
    assert "loss.structure is nan for an empty mask" in out
    assert "      → set loss.structure = 0 until it is mended" in out
    assert "7 checks: look at settings, ema, losses" in out
    document = json.loads(report.read_text())
    assert document["status"] == "fail"
    status = {check["check"]: check["status"] for check in document["checks"]}
    assert list(status) == CHECKS
    assert (status["settings"], status["ema"], status["losses"], status["gradients"]) == (
        "warn",
        "fail",
        "fail",
        "pass",
    )


@pytest.mark.slow
def test_numbers_that_are_not_finite_can_be_written(diagnose, tmp_path, monkeypatch):
    monkeypatch.setitem(composite.FINAL_TERMS, "structure", lambda logits, mask: logits.mean(dim=(1, 2, 3)) / 0 * 0)
    assert diagnose("--json", "report.json") == 1
    checks = {check["check"]: check for check in json.loads((tmp_path / "report.json").read_text())["checks"]}
    assert checks["overfit"]["values"]["losses"][0] == "nan"


@pytest.mark.slow
def test_a_phase_that_cannot_take_a_step_is_found(diagnose, capfd):
    assert diagnose("phases.full.batch_size=9") == 1
    assert "lower batch_size to at most 8" in capfd.readouterr().out


@pytest.mark.slow
def test_the_range_test_draws_where_it_is_told(diagnose, tmp_path, capfd):
    assert diagnose("--lr-range") == 0
    assert (tmp_path / "tiny_lr_range.png").is_file()
    out = capfd.readouterr().out
    assert "100 steps on real batches, about" in out
    assert "drawn in tiny_lr_range.png" in out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["optimizer.lrr=1"], "lrr"),
        (["--gpu", "T5"], '"T5" is not known'),
        (["--json", "nowhere/report.json"], "cannot be written"),
        (['data.train=[{layout="folder", images="a", masks="b"}]'], "a"),
    ],
)
def test_mistakes_end_with_2_before_anything_is_measured(diagnose, capfd, options, said):
    assert diagnose(*options) == 2
    out, err = capfd.readouterr()
    assert said in err
    assert "pass" not in out
