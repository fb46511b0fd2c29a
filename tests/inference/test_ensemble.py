"""Several models and several views of an image."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from camox.data.loading import EvalSet
from camox.data.sources import open_source
from camox.errors import ExperimentError
from camox.inference.augmentation import check_augmentations, views
from camox.inference.ensemble import Ensemble
from camox.inference.loading.loaded_model import UNKNOWN_THRESHOLD, load_model
from camox.inference.prediction.pipeline import probability_map
from camox.inference.scoring.evaluation import Scoring
from camox.measures.evaluator import Evaluator
from camox.measures.protocol import get_protocol
from camox.tracking.console import Console


@pytest.fixture(scope="module")
def loaded(template_run):
    return load_model(template_run)


@pytest.fixture(scope="module")
def other(template_run):
    return load_model(template_run / "checkpoints" / "epoch_0002", "raw", image_size=96)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8)


@pytest.mark.parametrize(
    ("names", "count", "sizes"),
    [
        ((), 1, {96}),
        (("hflip",), 2, {96}),
        (("hflip", "vflip"), 4, {96}),
        (("scales",), 3, {96, 64, 128}),
        (("hflip", "vflip", "scales"), 12, {96, 64, 128}),
    ],
)
def test_views_are_all_combinations_and_the_plain_one_is_first(names, count, sizes):
    found = views(96, names)
    assert len(set(found)) == len(found) == count
    assert {view.size for view in found} == sizes
    assert (found[0].size, found[0].axes) == (96, ())


def test_a_size_that_has_no_smaller_one_is_seen_once():
    assert [view.size for view in views(64, ("scales",))] == [64, 96]


def test_turning_a_view_back_gives_what_it_was():
    maps = torch.rand(2, 5, 7)
    for view in views(64, ("hflip", "vflip")):
        assert torch.equal(view.mirrored(view.mirrored(maps)), maps)


def test_an_augmentation_that_there_is_not_is_an_error():
    assert check_augmentations(["scales", "hflip", "scales"]) == ("hflip", "scales")
    with pytest.raises(ExperimentError, match="no test-time augmentation rotate"):
        check_augmentations(["hflip", "rotate"])


@pytest.mark.parametrize(("names", "axis"), [(("hflip",), 1), (("vflip",), 0)])
def test_with_a_flip_the_map_of_a_mirrored_image_is_the_mirrored_map(loaded, names, axis):
    square = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    network = Ensemble((loaded,), names)
    map_, mirrored = probability_map(network, square), probability_map(network, np.flip(square, axis).copy())
    np.testing.assert_array_equal(np.flip(mirrored, axis), map_)
    plain = Ensemble((loaded,))
    assert not np.array_equal(np.flip(probability_map(plain, np.flip(square, axis).copy()), axis), map_)


def test_an_ensemble_is_the_mean_of_its_models_at_their_own_sizes(loaded, other):
    """At the size of the larger one, so that its map is not touched by resizing."""
    image = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    small, large = (probability_map(Ensemble((one,)), image) for one in (loaded, other))
    together = probability_map(Ensemble((loaded, other), average="probability"), image)
    np.testing.assert_allclose(together, (small + large) / 2, atol=1e-6)


def test_one_model_twice_is_that_model(loaded, image):
    once, twice = (probability_map(Ensemble((loaded,) * times), image) for times in (1, 2))
    np.testing.assert_array_equal(once, twice)


def test_logits_are_averaged_before_they_become_probabilities(loaded, image):
    square = np.ascontiguousarray(image[:64, :64])
    flipped = probability_map(Ensemble((loaded,)), np.flip(square, 1).copy())[:, ::-1]
    plain = probability_map(Ensemble((loaded,)), square)
    logits = (np.log(plain / (1 - plain)) + np.log(flipped / (1 - flipped))) / 2
    of_logits = probability_map(Ensemble((loaded,), ("hflip",)), square)
    np.testing.assert_allclose(of_logits, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_the_threshold_of_an_ensemble_is_the_mean_of_its_models(template_run):
    raw = load_model(template_run / "checkpoints" / "epoch_0002", "raw")
    ema = load_model(template_run / "checkpoints" / "epoch_0002", "ema")
    assert Ensemble((raw,)).threshold == (raw.threshold, raw.threshold_reason)
    threshold, reason = Ensemble((raw, ema)).threshold
    assert threshold == pytest.approx((0.3 + 0.6) / 2)
    assert "mean of the models' own, 0.3000, 0.6000" in reason


def test_where_no_images_chose_a_threshold_it_is_said(loaded, other):
    unknown = [replace(one, threshold=0.5, threshold_reason=UNKNOWN_THRESHOLD) for one in (loaded, other)]
    threshold, reason = Ensemble(tuple(unknown)).threshold
    assert threshold == 0.5
    assert "for 2 of 2 no held-out images chose one" in reason


def test_evaluation_sees_the_maps_that_prediction_writes(loaded, other):
    """Each model and each scale is shown the image resized from its own pixels, not from another size."""
    source = open_source({"synthetic": "habitats", "count": 3, "size": 80, "seed": 3, "empty": 0.0})
    network = Ensemble((loaded, other), ("hflip", "scales"))
    scoring = Scoring(get_protocol("camox"), batch_size=1, workers=0, console=Console(active=False))
    scored = scoring.score(network, EvalSet(source, 64), "habitats")
    expected = Evaluator("camox")
    for index in range(len(source)):
        sample = source[index]
        expected.add(index, sample.name, sample.group, probability_map(network, sample.image), sample.mask)
    for one, two in zip(scored.results, expected.results, strict=True):
        assert one.result.scalars == pytest.approx(two.result.scalars, abs=1e-6)
