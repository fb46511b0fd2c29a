"""What a run says at its end."""

import json
from pathlib import Path

import pytest

from camox.errors import ExperimentError, TrainingPaused
from camox.tracking.console import Console
from camox.training.run_state import Position
from camox.training.summary import summarise
from camox.training.trainer import Trainer


@pytest.fixture
def in_its_folder(tmp_path, monkeypatch):
    """A person starts runs where they work: paths are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def said(capsys, title):
    """The lines from the summary's title on."""
    lines = capsys.readouterr().out.splitlines()
    assert title in lines, lines
    return lines[lines.index(title) :]


def value(lines, name):
    (found,) = {line[len(name) + 2 :].strip() for line in lines if line.startswith(f"  {name} ")}
    return found


def test_a_run_that_is_done_tells_how_it_went_where_everything_is_and_what_next(tiny_experiment, in_its_folder, capsys):
    test_set = 'data.test=[{synthetic="habitats",count=4,size=32,seed=9,empty=0.0}]'
    experiment = tiny_experiment(test_set, "checkpoints.keep_last=1", output=Path("runs"))
    Trainer(experiment).run()
    lines = said(capsys, "done: tiny")
    run = Path("runs/tiny")
    manifests = {path.parent.name: json.loads(path.read_text()) for path in run.glob("checkpoints/*/manifest.json")}
    best = (run / "checkpoints" / "best").read_text().strip()
    measures = manifests[best]["measures"]
    assert value(lines, "trained") == "2 of 2 epochs, 4 steps"
    epoch = int(best.removeprefix("epoch_"))
    weights = "raw" if measures["val/iou"] >= measures["val_ema/iou"] else "ema"
    scores = f"raw {measures['val/iou']:.4f}, EMA {measures['val_ema/iou']:.4f}"
    assert value(lines, "best iou") == f"{scores} at epoch {epoch}: {weights} weights"
    tested = json.loads((run / "evaluation" / "measures.json").read_text())["datasets"]["habitats"]
    assert f"S {tested['s_measure']:.3f}" in value(lines, "tested")
    assert value(lines, "lost") == "0 steps skipped, 0 rollbacks"
    for name in ("run folder", "best checkpoint", "numbers", "test scores"):
        assert Path(value(lines, name)).exists()
    assert value(lines, "predict with it") == "camox predict runs/tiny IMAGES --out DIR"
    assert max(map(len, lines)) <= 80


def test_a_paused_run_tells_how_to_go_on(tiny_experiment, in_its_folder, capsys):
    experiment = tiny_experiment("experiment.max_hours=1e-9", output=Path("runs"))
    with pytest.raises(TrainingPaused):
        Trainer(experiment).run()
    lines = said(capsys, "paused: tiny")
    assert value(lines, "go on") == "camox train runs/tiny/experiment.toml --resume auto"
    assert not any("camox predict" in line for line in lines)


def test_a_start_that_is_refused_has_nothing_to_sum_up(tiny_experiment, in_its_folder, capsys):
    with pytest.raises(ExperimentError):
        Trainer(tiny_experiment(output=Path("runs")), resume="latest").run()
    assert "tiny" not in capsys.readouterr().out


def test_a_run_stopped_by_a_guard_counts_its_events_and_names_what_looks_into_them(
    tiny_experiment, in_its_folder, capsys
):
    experiment = tiny_experiment(output=Path("runs"))
    run = Path("runs/tiny")
    (run / "replays").mkdir(parents=True)
    events = [("start", "info"), ("spike", "warning"), ("rollback", "warning"), ("spike", "warning"), ("end", "error")]
    written = [json.dumps({"kind": kind, "severity": severity, "time": 0.0}) for kind, severity in events]
    (run / "events.jsonl").write_text("\n".join([*written, '{"kind": torn']))
    rows = [
        {"step": 1, "epoch": 0, "phase": "full", "train/images_per_second": 10.0, "memory/peak_gib": 3.5},
        {"step": 2, "epoch": 0, "phase": "full", "train/images_per_second": None, "memory/peak_gib": 3.25},
        {"step": 3, "epoch": 0, "phase": "full", "stability/skipped_batches": 7, "stability/rollbacks": 1},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summarise(Console(), experiment, Position(step=3, epoch=0, batch=3), {}, code=3)
    lines = said(capsys, "stopped by a guard: tiny")
    assert value(lines, "lost") == "7 steps skipped, 1 rollback"
    assert value(lines, "guards") == "spike 2, rollback 1"
    assert value(lines, "peak memory") == "3.50 GiB of the GPU"
    assert value(lines, "find the cause") == "camox diagnose --replay runs/tiny"
    assert value(lines, "look at it") == "camox inspect runs/tiny --last-clean"


def test_of_several_starts_the_time_since_the_last_is_told(tiny_experiment, in_its_folder, capsys, monkeypatch):
    experiment = tiny_experiment(output=Path("runs"))
    Path("runs/tiny").mkdir(parents=True)
    events = [{"kind": kind, "severity": "info", "time": at} for kind, at in (("start", 100.0), ("resume", 5000.0))]
    Path("runs/tiny/events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    monkeypatch.setattr("camox.training.summary.time.time", lambda: 5090.0)
    summarise(Console(), experiment, Position(step=3, epoch=0, batch=3), {}, code=4)
    assert value(said(capsys, "paused: tiny"), "took") == "1:30 since the last of 2 starts"


@pytest.mark.parametrize(
    ("kept", "shown"), [({"id": "x", "url": "https://wandb.ai/a/b"}, "https://wandb.ai/a/b"), ({"id": "x"}, None)]
)
def test_weights_and_biases_is_told_by_address_or_by_what_sends_it_there(
    kept, shown, tiny_experiment, in_its_folder, capsys
):
    experiment = tiny_experiment(output=Path("my runs"))
    part = Path("my runs/tiny/wandb/offline-run-1")
    part.mkdir(parents=True)
    Path("my runs/tiny/wandb_run.json").write_text(json.dumps(kept))
    summarise(Console(), experiment, Position(step=4, epoch=2), {}, code=0)
    assert (shown or "wandb sync 'my runs/tiny/wandb/offline-run-1'") in "\n".join(said(capsys, "done: tiny"))


def test_other_processes_say_nothing(tiny_experiment, in_its_folder, capsys):
    summarise(Console(active=False), tiny_experiment(output=Path("runs")), Position(), {}, code=0)
    assert capsys.readouterr().out == ""
