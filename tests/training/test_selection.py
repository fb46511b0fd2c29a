"""A run that selects on test images: refused unless it says so, and then every output says it."""

import json

import pytest

from camox.errors import ExperimentError
from camox.training.check import check
from camox.training.trainer import Trainer

SAME = '[{synthetic="habitats",count=4,size=32,seed=9,empty=0.0}]'
ON_TEST = (f"data.val={SAME}", f"data.test={SAME}", "data.val_fraction=0.0")


def test_it_is_refused_before_anything_is_trained(tiny_experiment):
    experiment = tiny_experiment(*ON_TEST)
    for start in (lambda: check(experiment), lambda: Trainer(experiment).run()):
        with pytest.raises(ExperimentError, match=r"data\.test names too.*select_on_test = true"):
            start()
    assert not list(experiment.run_folder.glob("checkpoints/*"))


def test_declared_it_labels_console_metrics_checkpoints_and_scores(tiny_experiment, capfd):
    experiment = tiny_experiment(*ON_TEST, "validation.select_on_test=true")
    Trainer(experiment).run()
    run, printed = experiment.run_folder, capfd.readouterr()
    assert "data.val names images that data.test names too" in printed.err
    assert printed.out.count("selected on ") >= 2
    assert "validation on test images: epoch 1" in printed.out
    assert "iou in validation on test images" in printed.out
    assert "held out" not in printed.out.replace("-", " ")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validated = [row for row in rows if "val/iou" in row]
    assert validated
    assert all(row["val/selected_on_test"] == 1 for row in validated)
    manifest = json.loads((run / "checkpoints" / "epoch_0002" / "manifest.json").read_text())
    assert manifest["measures"]["val/selected_on_test"] == 1
    scores = json.loads((run / "evaluation" / "measures.json").read_text())
    assert list(scores["datasets"]) == ["habitats (test images, selected on)"]


def test_held_out_images_without_an_object_are_said_to_select_nothing(tiny_experiment, capfd):
    empty = '[{synthetic="habitats",count=4,size=32,seed=9,empty=1.0,tiny=0.0}]'
    experiment = tiny_experiment(f"data.val={empty}", "data.val_fraction=0.0")
    Trainer(experiment).run()
    events = [json.loads(line) for line in (experiment.run_folder / "events.jsonl").read_text().splitlines()]
    assert [event["severity"] for event in events if event["kind"] == "unscored"] == ["warning"]
    assert "no held-out image has an object" in capfd.readouterr().err


def test_held_out_selection_has_no_such_label(tiny_experiment, capfd):
    experiment = tiny_experiment()
    Trainer(experiment).run()
    printed, rows = capfd.readouterr(), (experiment.run_folder / "metrics.jsonl").read_text()
    assert "selected_on_test" not in rows
    assert "on test images" not in printed.out
    assert "held-out" in printed.out
    assert "4 held out" in printed.out
