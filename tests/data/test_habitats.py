"""Synthetic habitats: reproducible, balanced, told apart by one cue only and by no trivial rule."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from camox.data.habitats import KINDS, Habitats
from camox.errors import DataError

PURE_KINDS = ("forest", "desert", "underwater", "rock")


def digest(sample) -> str:
    return hashlib.sha256(sample.image.tobytes() + sample.mask.tobytes()).hexdigest()


def grey(sample) -> np.ndarray:
    return cv2.cvtColor(sample.image, cv2.COLOR_RGB2GRAY).astype(np.float32)


def local_deviation(image: np.ndarray, window: int) -> np.ndarray:
    mean = cv2.blur(image, (window, window))
    return np.sqrt(np.maximum(cv2.blur(image * image, (window, window)) - mean * mean, 0))


@pytest.fixture(scope="module")
def samples() -> dict[str, list]:
    """40 samples with ordinary objects of each habitat."""
    return {
        kind: list(map(Habitats(40, seed=5, kinds=(kind,), empty=0, tiny=0).__getitem__, range(40))) for kind in KINDS
    }


# ------------------------------------------------------------ reproducibility


def test_a_second_process_draws_the_same_bits():
    code = (
        "import hashlib; from camox.data.habitats import Habitats; s = Habitats(9, seed=3)[7]; "
        "print(hashlib.sha256(s.image.tobytes() + s.mask.tobytes()).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(Habitats(9, seed=3)[7])


def test_a_sample_depends_neither_on_count_nor_on_what_was_asked_for_before():
    few, many = Habitats(8), Habitats(100)
    for index in (7, 0, 3):
        many[50 + index]
        assert digest(few[index]) == digest(many[index])
    assert few.names == many.names[:8]
    assert few.groups == many.groups[:8]


def test_a_sample_does_not_depend_on_the_number_of_threads():
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        single = [digest(Habitats(5, size=256)[i]) for i in range(5)]
        cv2.setNumThreads(4)
        assert [digest(Habitats(5, size=256)[i]) for i in range(5)] == single
    finally:
        cv2.setNumThreads(before)


def test_seeds_and_indices_draw_different_scenes():
    drawn = [digest(Habitats(10, seed=seed)[i]) for seed in (0, 1) for i in range(10)]
    assert len(set(drawn)) == 20


# ------------------------------------------------------------ what a sample is


def test_groups_are_balanced_within_every_round():
    groups = Habitats(103, seed=2).groups
    assert len(groups) == 103
    for start in range(0, 100, 5):
        assert set(groups[start : start + 5]) == set(KINDS)


def test_names_are_unique_across_seeds():
    names = Habitats(20, seed=0).names + Habitats(20, seed=1).names
    assert len(set(names)) == 40


def test_a_sample_carries_its_own_name_and_habitat():
    habitats = Habitats(10)
    assert [(habitats[i].name, habitats[i].group) for i in range(10)] == list(
        zip(habitats.names, habitats.groups, strict=True)
    )


@pytest.mark.parametrize("index", [3, -1])
def test_an_index_outside_the_source_is_an_index_error(index):
    with pytest.raises(IndexError):
        Habitats(3)[index]


@pytest.mark.parametrize("size", [32, 45, 128, 352])
@pytest.mark.parametrize("kind", KINDS)
def test_any_size_gives_an_rgb_image_and_a_binary_mask(kind, size):
    sample = Habitats(1, size=size, kinds=(kind,), empty=0)[0]
    assert (sample.image.shape, sample.image.dtype) == ((size, size, 3), np.uint8)
    assert (sample.mask.shape, sample.mask.dtype) == ((size, size), np.uint8)
    assert set(np.unique(sample.mask)) == {0, 1}


def test_shares_of_empty_and_tiny_samples_are_the_ones_asked_for():
    habitats = Habitats(600, size=64, empty=0.2, tiny=0.3)
    areas = np.array([habitats[i].mask.mean() for i in range(600)])
    # Four standard deviations of a binomial share of 600.
    assert np.mean(areas == 0) == pytest.approx(0.2, abs=0.07)
    assert np.mean((areas > 0) & (areas < 0.03)) == pytest.approx(0.3, abs=0.075)


def test_tiny_objects_are_present_and_below_two_percent():
    habitats = Habitats(60, empty=0, tiny=1)
    areas = [habitats[i].mask.mean() for i in range(60)]
    assert min(areas) > 0
    assert max(areas) < 0.02


def test_ordinary_objects_cover_a_twentieth_to_a_third_of_the_image(samples):
    areas = np.array([sample.mask.mean() for kind in KINDS for sample in samples[kind]])
    assert areas.min() > 0.03
    assert areas.max() < 0.33
    assert 0.1 < areas.mean() < 0.2


def test_there_are_one_to_three_objects(samples):
    counts = [cv2.connectedComponents(sample.mask)[0] - 1 for sample in samples["forest"]]
    assert set(counts) == {1, 2, 3}


# ------------------------------------------------------------ one cue and no other


def inside_outside_ratio(samples: list, statistic) -> float:
    """Geometric mean over samples of a local statistic's mean inside the object over the one outside.

    Three pixels either side of the contour belong to neither.
    """
    margin = np.ones((7, 7), np.uint8)
    logs = []
    for sample in samples:
        inner, outer = cv2.erode(sample.mask, margin) > 0, cv2.dilate(sample.mask, margin) == 0
        if inner.sum() < 50:
            continue
        values = statistic(grey(sample))
        logs.append(np.log(values[inner].mean() / values[outer].mean()))
    return float(np.exp(np.mean(logs)))


@pytest.mark.parametrize("kind", KINDS)
def test_mean_grey_is_the_same_inside_and_outside(samples, kind):
    assert inside_outside_ratio(samples[kind], lambda image: image) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("kind", ["forest", "underwater", "rock"])
def test_only_desert_changes_the_deviation(samples, kind):
    assert inside_outside_ratio(samples[kind], lambda image: local_deviation(image, 9)) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("kind", ["forest", "rock"])
def test_forest_and_rock_have_the_same_fine_detail_inside_and_outside(samples, kind):
    ratio = inside_outside_ratio(samples[kind], lambda image: np.abs(cv2.Laplacian(image, cv2.CV_32F)))
    assert ratio == pytest.approx(1, abs=0.15)


def test_desert_objects_change_the_contrast_and_mostly_lower_it(samples):
    ratios = np.array(
        [inside_outside_ratio([sample], lambda image: local_deviation(image, 7)) for sample in samples["desert"]]
    )
    assert np.mean(np.abs(np.log(ratios)) > np.log(1.3)) > 0.8
    assert 0.6 < np.mean(ratios < 1) < 0.95


def structure_tensor_angle(sample, region: np.ndarray) -> float:
    """Direction of the strongest gradient in `region`, in radians from 0 to pi."""
    image = grey(sample)
    dx, dy = cv2.Sobel(image, cv2.CV_32F, 1, 0), cv2.Sobel(image, cv2.CV_32F, 0, 1)
    xx, yy, xy = ((a * b)[region].mean() for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    return 0.5 * np.arctan2(2 * xy, xx - yy) % np.pi


def test_forest_objects_turn_the_texture(samples):
    turns = []
    for sample in samples["forest"]:
        apart = structure_tensor_angle(sample, sample.mask == 1) - structure_tensor_angle(sample, sample.mask == 0)
        turns.append(np.degrees(np.abs((apart + np.pi / 2) % np.pi - np.pi / 2)))
    assert np.median(turns) > 60


def test_underwater_objects_change_the_frequency_either_way(samples):
    finer = [
        inside_outside_ratio([sample], lambda image: np.abs(cv2.Laplacian(image, cv2.CV_32F)))
        for sample in samples["underwater"]
    ]
    changed = np.abs(np.log(finer)) > np.log(1.3)
    assert changed.mean() > 0.75
    assert 0.2 < np.mean(np.array(finer) > 1) < 0.8


def test_rock_contours_are_darker_than_their_neighbourhood(samples):
    darker = []
    for sample in samples["rock"]:
        image, kernel = grey(sample), np.ones((3, 3), np.uint8)
        line = cv2.morphologyEx(sample.mask, cv2.MORPH_GRADIENT, kernel) > 0
        near = cv2.dilate(line.astype(np.uint8), np.ones((11, 11), np.uint8)) > 0
        darker.append(image[line].mean() < image[near & ~line].mean() - 10)
    assert np.mean(darker) > 0.95


# ------------------------------------------------------------ colour does not tell the habitat


def test_every_habitat_has_the_same_histogram_of_colours(samples):
    means = {kind: np.array([sample.image.reshape(-1, 3).mean(axis=0) for sample in samples[kind]]) for kind in KINDS}
    spread = np.concatenate(list(means.values())).std(axis=0)
    centre = np.concatenate(list(means.values())).mean(axis=0)
    for kind in KINDS:
        # Four standard errors of a mean of 40.
        assert np.all(np.abs(means[kind].mean(axis=0) - centre) < 4 * spread / np.sqrt(40)), kind


def test_nearest_mean_colour_tells_habitats_hardly_better_than_chance():
    habitats = Habitats(300, seed=8, size=64)
    drawn = [habitats[i] for i in range(300)]
    statistics = np.array(
        [
            np.concatenate((pixels.mean(axis=0), pixels.std(axis=0), *np.percentile(pixels, (5, 25, 75, 95), axis=0)))
            for pixels in (sample.image.reshape(-1, 3).astype(np.float64) for sample in drawn)
        ]
    )
    statistics = (statistics - statistics.mean(axis=0)) / statistics.std(axis=0)
    groups = np.array(habitats.groups)
    known, asked = slice(0, 200), slice(200, 300)
    distance = ((statistics[asked, None] - statistics[None, known]) ** 2).sum(axis=2)
    nearest = groups[known][np.argsort(distance, axis=1)[:, :5]]
    guesses = [max(KINDS, key=list(row).count) for row in nearest]
    # Chance is 0.2; four standard deviations of 100 guesses are 0.16.
    assert np.mean(np.array(guesses) == groups[asked]) < 0.36


# ------------------------------------------------------------ no trivial rule


def trivial_features(image: np.ndarray) -> dict[str, np.ndarray]:
    features = {"grey": image}
    energy = cv2.Laplacian(image, cv2.CV_32F) ** 2
    for window in (5, 7, 9, 11, 15):
        features[f"mean {window}"] = cv2.blur(image, (window, window))
        features[f"deviation {window}"] = local_deviation(image, window)
        features[f"laplacian {window}"] = cv2.blur(energy, (window, window))
    return features


def best_threshold_iou(values: np.ndarray, masks: np.ndarray) -> float:
    """Mean IoU of the best of 49 thresholds, either polarity, chosen with the masks [N, H, W] in sight."""
    best = 0.0
    for threshold in np.quantile(values, np.linspace(0.02, 0.98, 49)):
        above = values > threshold
        for predicted in (above, ~above):
            overlap = (predicted & masks).sum(axis=(1, 2))
            union = (predicted | masks).sum(axis=(1, 2))
            best = max(best, float(np.mean(overlap / union)))
    return best


@pytest.mark.parametrize("kind", KINDS)
def test_no_single_threshold_solves_a_habitat(samples, kind):
    chosen = samples[kind][:24]
    masks = np.stack([sample.mask for sample in chosen]) > 0
    features = [trivial_features(grey(sample)) for sample in chosen]
    ceilings = {name: best_threshold_iou(np.stack([maps[name] for maps in features]), masks) for name in features[0]}
    assert max(ceilings.values()) <= 0.45, ceilings


# ------------------------------------------------------------ bad arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ("forrest",)}, "did you mean 'forest'"),
        ({"kinds": ("xyz",)}, "choose from forest"),
        ({"kinds": ()}, "at least one habitat"),
        ({"kinds": ("rock", "rock")}, "each once"),
        ({"count": 0}, "count must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"size": 31}, "at least 32 pixels"),
        ({"empty": -0.1}, "empty is a share"),
        ({"tiny": 1.5}, "tiny is a share"),
        ({"empty": 0.6, "tiny": 0.5}, "must not exceed 1"),
    ],
)
def test_bad_arguments_say_what_is_wrong(arguments, message):
    with pytest.raises(DataError, match=message):
        Habitats(**{"count": 10, **arguments})
