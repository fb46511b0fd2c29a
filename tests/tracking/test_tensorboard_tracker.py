import io
import json
import math
import sys

import numpy as np
import pytest
from PIL import Image

from camox.errors import ExperimentError
from camox.tracking.tensorboard_tracker import TensorBoardTracker
from camox.tracking.trackers import JsonlTracker, Picture, Trackers

accumulator = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_accumulator")


def written(folder):
    """Everything that TensorBoard would show."""
    shown = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"tensors": 0})
    shown.Reload()
    return shown


def scalars(folder):
    """Name → [(step, value)], in double precision."""
    from tensorboard.util.tensor_util import make_ndarray

    shown = written(folder)
    return {
        name: [(event.step, make_ndarray(event.tensor_proto).item()) for event in shown.Tensors(name)]
        for name in shown.Tags()["tensors"]
        if shown.SummaryMetadata(name).plugin_data.plugin_name == "scalars"
    }


def test_it_holds_what_metrics_jsonl_holds(tmp_path):
    both = Trackers([JsonlTracker(tmp_path / "metrics.jsonl"), TensorBoardTracker(tmp_path, {})])
    for step in range(0, 100, 20):
        both.log({"train/loss": 1 / (step + 3), "lr/head": 8e-4}, step=step, epoch=step // 50, phase="full")
    both.log({"val/iou": 0.123456789012345}, step=80, epoch=1, phase="full")
    both.finish()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = {
        name: [(row["step"], row[name]) for row in lines if name in row]
        for name in ("epoch", "train/loss", "lr/head", "val/iou")
    }
    assert scalars(tmp_path) == expected


def test_a_value_that_is_not_finite_is_shown_as_such(tmp_path):
    tracker = TensorBoardTracker(tmp_path, {})
    tracker.log({"grad_norm/total": math.nan}, step=1, epoch=0, phase="full")
    tracker.finish()
    ((step, value),) = scalars(tmp_path)["grad_norm/total"]
    assert step == 1
    assert math.isnan(value)


def test_a_mean_over_no_image_is_left_out(tmp_path):
    tracker = TensorBoardTracker(tmp_path, {})
    tracker.log({"val/iou": None, "val/loss": 0.5}, step=1, epoch=0, phase="full")
    tracker.finish()
    assert scalars(tmp_path) == {"epoch": [(1, 0)], "val/loss": [(1, 0.5)]}


def test_after_a_resume_no_step_is_shown_twice(tmp_path):
    for resume_step, steps, value in ((None, (20, 40, 41, 60), 1.0), (40, (41, 60, 80), 2.0)):
        tracker = TensorBoardTracker(tmp_path, {}, resume_step)
        for step in steps:
            tracker.log({"x": value}, step=step, epoch=0, phase="full")
        tracker.finish()
    assert scalars(tmp_path)["x"] == [(20, 1.0), (40, 1.0), (41, 2.0), (60, 2.0), (80, 2.0)]


def test_pictures_alerts_and_texts_are_shown(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    tracker = TensorBoardTracker(tmp_path, {"experiment": "    seed = 42"})
    assert tracker.takes_pictures
    tracker.show({"panels/bark": Picture(pixels, "bark: IoU 0.41")}, step=40, epoch=2, phase="full")
    tracker.alert("nonfinite", "step 3 skipped", "warning", step=3)
    tracker.finish()
    shown = written(tmp_path)
    (image,) = shown.Tensors("panels/bark")
    width, height, encoded = image.tensor_proto.string_val
    assert (image.step, width, height) == (40, b"40", b"24")
    with Image.open(io.BytesIO(encoded)) as picture:
        assert np.array_equal(np.asarray(picture.convert("RGB")), pixels)
    texts = {
        name: shown.Tensors(f"{name}/text_summary")[0] for name in ("experiment", "panels/bark", "events/nonfinite")
    }
    assert texts["events/nonfinite"].step == 3
    said = {name: text.tensor_proto.string_val[0].decode() for name, text in texts.items()}
    assert said == {
        "experiment": "    seed = 42",
        "panels/bark": "bark: IoU 0.41",
        "events/nonfinite": "warning: step 3 skipped",
    }


def test_asked_for_and_missing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExperimentError, match=r"pip install 'camox\[tensorboard\]'"):
        TensorBoardTracker(tmp_path, {})


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(ExperimentError, match="another --output"):
        TensorBoardTracker(tmp_path, {})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of the thread that writes
def test_a_disk_that_fails_is_said_once_and_stops_nothing(tmp_path, monkeypatch):
    said: list[str] = []
    tracker = TensorBoardTracker(tmp_path, {}, warn=said.append)

    def fail(*arguments, **keywords):
        raise OSError("no space left on device")

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", fail)
    for step in range(50):
        tracker.log({"x": 1.0}, step=step, epoch=0, phase="full")
    tracker.finish()
    assert len(said) == 1
    assert not tracker.takes_pictures
