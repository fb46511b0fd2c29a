"""The cache and sizes of batches in an experiment's file."""

import pytest

from camox.errors import ExperimentError
from camox.experiment import Experiment


def test_sizes_are_the_nearest_multiples_of_32_for_each_phase(write, minimal):
    overrides = ["data.multi_scale=[0.75, 1.0, 1.25]", "data.image_size=352", "phases.full.image_size=100"]
    experiment = Experiment.load(write(minimal), overrides)
    (full,) = experiment.phases_resolved()
    assert full.image_sizes == (64, 96, 128)
    assert full.largest_size == 128
    (full,) = Experiment.load(write(minimal), overrides[:2]).phases_resolved()
    assert full.image_sizes == (256, 352, 448)
    (full,) = Experiment.load(write(minimal), ["data.image_size=100", "data.multi_scale=[0.1]"]).phases_resolved()
    assert full.image_sizes == (32,)


def test_without_factors_the_size_is_as_given(write, minimal):
    (full,) = Experiment.load(write(minimal), ["data.image_size=100"]).phases_resolved()
    assert full.image_sizes == (100,)
    assert full.largest_size == 100


@pytest.mark.parametrize("value", ["[0.0]", "[-1.0]", "[5.0]", "1.25"])
def test_factors_that_cannot_be_are_refused(write, minimal, value):
    with pytest.raises(ExperimentError, match="multi_scale"):
        Experiment.load(write(minimal), [f"data.multi_scale={value}"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data.cache_gib=5"], "data.cache_gib has no effect without data.cache"),
        (["data.cache_gib=5", "data.cache=somewhere"], None),
        (["data.multi_scale=[0.99, 1.0]", "data.image_size=64"], "gives every batch of phase full the size 64²"),
        (["data.multi_scale=[0.5, 1.0]", "data.image_size=64"], None),
    ],
)
def test_keys_without_effect_are_told(write, minimal, overrides, expected):
    warnings = Experiment.load(write(minimal), overrides).warnings
    told = [text for text in warnings if "cache_gib" in text or "multi_scale" in text]
    assert [expected in text for text in told] == ([] if expected is None else [True])


def test_a_grid_has_to_fit_the_smallest_size_of_batches(write, minimal):
    grid = ["data.image_size=128", "model.moe.granularity=4"]
    Experiment.load(write(minimal), [*grid, "data.multi_scale=[1.0, 2.0]"])
    with pytest.raises(ExperimentError, match=r"96² pixels has only 3×3 cells"):
        Experiment.load(write(minimal), [*grid, "data.multi_scale=[0.75, 1.0]"])
