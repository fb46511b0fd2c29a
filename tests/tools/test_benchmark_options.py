"""Choices made for speed: with and without do the same work, and each is told beside what was predicted of it."""

import pytest
import torch

from benchmarking import options
from benchmarking.option_parts import prepare_parts, restarted_workers
from benchmarking.options import CPU, GPU, PREDICTIONS, STEPS, Prediction, measure_options
from benchmarking.settings import Settings
from benchmarking.step_process import NEIGHBOUR, measure_processes
from benchmarking.timing import Sample

TOY = Settings(backbone="resnet10t", image_size=64, batch=2, width=8, rounds=1)


def samples(cost: float) -> list[Sample]:
    return [Sample(cost, cost, None)]


@pytest.fixture(scope="module")
def report():
    """The suite at toy size, its slowest parts told and not measured."""
    with pytest.MonkeyPatch.context() as patched:
        yield measured_with(patched)


def measured_with(monkeypatch):
    steps = {"sparse": 1.0, "channels_last": 0.9, "checkpointed": 1.3, "masked": 3.0}
    monkeypatch.setattr(
        options, "_measure_steps", lambda *_: ({}, {name: samples(cost) for name, cost in steps.items()})
    )
    of_processes = {
        "16384 primitives kept": (samples(1.0), samples(2.0)),
        "threads that sleep": (samples(0.9), samples(1.0)),
        f"threads that sleep, {NEIGHBOUR}": ([Sample(9.0, 1.0, None)], [Sample(1.0, 2.0, None)]),
    }
    monkeypatch.setattr(options, "measure_processes", lambda *_: of_processes)
    return measure_options(TOY)


def test_every_choice_has_its_row_measured_or_not(report):
    rows = report.results["choice"]
    assert list(rows) == list(PREDICTIONS)
    unmeasured = {choice for choice, row in rows.items() if row["with / without"] == "not measured here"}
    assert unmeasured == {"compiled", "a step with packed meters"}
    assert set(report.ratios["with / without"]) == set(PREDICTIONS) - unmeasured


def test_a_choice_is_told_beside_its_prediction(report):
    rows = report.results["choice"]
    assert rows["channels_last"]["with / without"]["median"] == 0.9
    assert rows["channels_last"]["as predicted"] == "yes"
    assert rows["16384 primitives kept"]["as predicted"] == "no: better"
    assert rows["sorted dispatch"]["with / without"]["median"] == pytest.approx(1 / 3, rel=1e-4)
    assert rows["sorted dispatch"]["predicted, cuda"] == "0.5 to 0.85"


def test_beside_a_busy_process_wall_time_counts(report):
    assert report.ratios["with / without"][f"threads that sleep, {NEIGHBOUR}"]["median"] == 0.5


def test_a_part_is_told_as_a_share_of_a_step_too(report):
    row = report.results["choice"]["fused AdamW"]
    part, without = (
        report.results["part"][f"fused AdamW{end}"]["process_seconds"]["median"] for end in ("", ", without")
    )
    assert float(row["of a step"].rstrip("%")) / 100 == pytest.approx(part - without, abs=6e-5)
    assert report.results["choice"]["channels_last"]["of a step"] == ""


@pytest.mark.parametrize(("measured", "told"), [(0.19, "no: better"), (0.2, "yes"), (0.5, "yes"), (0.51, "no: worse")])
def test_a_prediction_holds_within_its_range(measured, told):
    assert options._held(Prediction(0.2, 0.5, ""), measured) == told


def test_predictions_are_ranges_with_a_reason_for_what_is_measured_there():
    for choice, devices in PREDICTIONS.items():
        assert devices.keys() <= {CPU, GPU}
        assert all(0 < told.least < told.most and told.why for told in devices.values()), choice
    assert set(STEPS) <= set(PREDICTIONS)


def test_both_ways_to_make_a_batch_give_the_same_floats():
    late, early = prepare_parts(TOY)["bytes until on the device"]
    images, masks = early()
    assert torch.equal(late(), images)
    assert images.shape == (2, 3, 64, 64)
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_workers_are_measured_with_and_without_their_start():
    with_them, without = restarted_workers(TOY)["workers that live on"]
    assert len(with_them) == len(without) == TOY.rounds
    # Not a matter of timing: processes are started.
    assert min(sample.wall for sample in without) > 0


@pytest.mark.slow
def test_processes_take_turns_each_with_its_own_settings():
    found = measure_processes(TOY, rounds=1)
    assert set(found) == {"16384 primitives kept", "threads that sleep", f"threads that sleep, {NEIGHBOUR}"}
    assert all(sample.process > 0 for pair in found.values() for of_one in pair for sample in of_one)
