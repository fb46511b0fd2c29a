import warnings
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camox.data.transforms import augment, augmentation_seed, build_augmentation, resize_image, resize_mask
from camox.errors import DataError

SIZE = 48


def pair(size=SIZE):
    image = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : size // 2, size // 3 : size // 2] = 1
    return image, mask


def augmented(chain, seed):
    image, mask = pair()
    return augment(chain, image, mask, seed)


TRANSFORMS: list[dict[str, Any]] = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Rotate", "limit": 45, "mask_interpolation": cv2.INTER_CUBIC, "p": 1.0},
    {"name": "Rotate", "fill_mask": 255, "p": 1.0},
    {"name": "ElasticTransform", "alpha": 30, "mask_interpolation": cv2.INTER_LINEAR, "p": 1.0},
    {"name": "GridDistortion", "p": 1.0},
    {"name": "Perspective", "p": 1.0},
    {"name": "Affine", "scale": [0.7, 1.3], "p": 1.0},
    {"name": "RandomResizedCrop", "size": [32, 32], "p": 1.0},
    {"name": "RandomRotate90"},
    {"name": "CoarseDropout", "p": 1.0},
    {"name": "ColorJitter", "p": 1.0},
    {"name": "GaussNoise", "p": 1.0},
    {"name": "ToGray", "p": 1.0},
]
NAMES = [f"{i}-{transform['name']}" for i, transform in enumerate(TRANSFORMS)]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)
def test_images_stay_uint8_rgb_and_masks_binary(transform):
    chain = build_augmentation([transform], SIZE)
    for seed in range(5):
        image, mask = augmented(chain, seed)
        assert image.dtype == mask.dtype == np.uint8
        assert image.shape == (*mask.shape, 3)
        assert set(np.unique(mask)) <= {0, 1}


INTERPOLATIONS = [cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4]
WARPING: dict[str, dict[str, Any]] = {
    "Rotate": {"limit": 90},
    "Affine": {"scale": [0.5, 1.5], "rotate": [-45, 45], "shear": [-20, 20]},
    "Perspective": {"scale": [0.05, 0.2]},
    "ElasticTransform": {"alpha": 40},
    "GridDistortion": {"distort_limit": 0.5},
    "OpticalDistortion": {"distort_limit": 0.5},
    "ThinPlateSpline": {},
    "RandomResizedCrop": {"size": [32, 40]},
    "SafeRotate": {"limit": 45},
    "RandomScale": {"scale_limit": 0.5},
}


@settings(max_examples=60)
@given(
    name=st.sampled_from(sorted(WARPING)),
    interpolation=st.sampled_from(INTERPOLATIONS),
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(40, 80),
)
def test_masks_stay_binary_under_all_that_interpolates_and_the_seed_decides(name, interpolation, seed, size):
    transform = {"name": name, "mask_interpolation": interpolation, "p": 1.0, **WARPING[name]}
    chain = build_augmentation([transform, {"name": "HorizontalFlip", "p": 0.5}], size)
    image, mask = pair(size)
    found, again = augment(chain, image, mask, seed), augment(chain, image, mask, seed)
    assert found[1].dtype == np.uint8
    assert set(np.unique(found[1])) <= {0, 1}
    assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=NAMES)
def test_the_seed_decides_whatever_came_before(transform):
    chain = build_augmentation([transform], SIZE)
    first = augmented(chain, 7)
    augmented(chain, 8)
    again = augmented(build_augmentation([transform], SIZE), 7)
    for one in (augmented(chain, 7), again):
        assert np.array_equal(first[0], one[0])
        assert np.array_equal(first[1], one[1])


def test_transforms_of_one_chain_are_drawn_independently():
    chain = build_augmentation([{"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5}], SIZE)
    image, mask = pair()
    turned = {"none": image, "horizontal": image[:, ::-1], "vertical": image[::-1], "both": image[::-1, ::-1]}
    found = [augment(chain, image, mask, augmentation_seed(0, 0, i))[0] for i in range(200)]
    counts = {name: sum(np.array_equal(one, expected) for one in found) for name, expected in turned.items()}
    assert sum(counts.values()) == 200
    assert min(counts.values()) > 30, counts


def test_mask_moves_with_its_image():
    chain = build_augmentation([{"name": "D4", "p": 1.0}], SIZE)
    _, mask = pair()
    image = np.repeat(mask[..., None] * 255, 3, axis=2)
    for seed in range(8):
        turned, turned_mask = augment(chain, image, mask, seed)
        assert np.array_equal(turned[..., 0], turned_mask * 255)


def test_seeds_differ_between_epochs_and_samples():
    seeds = {augmentation_seed(s, e, i) for s in range(3) for e in range(10) for i in range(100)}
    assert len(seeds) == 3000


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"name": "HorizontalFlp"}, 'did you mean "HorizontalFlip"'),
        ({"name": "Rotate", "limt": 10}, 'no argument "limt": did you mean "limit"'),
        ({"name": "Rotate", "limit": "much"}, "Rotate does not accept .*limit"),
        ({"name": "RandomRotate90", "p": 2}, "p is 2"),
        ({"name": "HorizontalFlip", "strict": True}, 'no argument "strict"'),
        ({"name": "Normalize"}, "stay uint8"),
        ({"name": "FDA"}, "fda_metadata"),
        ({"name": "RandomCrop", "height": 99, "width": 99}, "RandomCrop failed on a trial image of 48x48"),
        ({"name": "CoarseDropout3D"}, "unknown augmentation"),
        ({"name": "OneOf"}, "unknown augmentation"),
        ({"p": 0.5}, "augmentation 1 has no name"),
    ],
)
def test_wrong_transforms_are_refused_with_a_remedy(transform, message):
    with pytest.raises(DataError, match=message):
        build_augmentation([transform], SIZE)


def test_the_trial_follows_the_sizes_through_the_chain():
    crop = {"name": "RandomCrop", "height": 32, "width": 32}
    with pytest.raises(DataError, match="trial image of 32x32"):
        build_augmentation([crop, {"name": "RandomCrop", "height": 40, "width": 40}], SIZE)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70))
def test_resizing_keeps_form_and_labels(height, width, size):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = random.integers(0, 2, (height, width), dtype=np.uint8)
    assert resize_image(image, size).shape == (size, size, 3)
    assert resize_mask(mask, size).shape == (size, size)
    assert set(np.unique(resize_mask(mask, size))) <= set(np.unique(mask))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 70))
def test_images_are_resized_as_pillow_does(height, width, size):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    # Pillow rounds after each of its two passes: of noise that may be two levels.
    difference = np.abs(resize_image(image, size).astype(int) - expected)
    assert difference.max() <= 2
    assert difference.mean() <= 0.5


def test_images_that_may_not_be_written_to_can_be_resized():
    image, _ = pair()
    expected = resize_image(image.copy(), 20)
    image.flags.writeable = False
    with warnings.catch_warnings(action="error"):
        assert np.array_equal(resize_image(image, 20), expected)
        assert np.array_equal(resize_image(image[:, ::-1][:, ::-1], 20), expected)


def test_resized_mask_lies_where_the_resized_image_does():
    mask = np.zeros((90, 90), np.uint8)
    mask[30:60, 30:60] = 1
    image = np.repeat(mask[..., None] * 255, 3, axis=2)
    shrunk = resize_mask(mask, 31).astype(bool)
    rows, columns = np.nonzero(shrunk)
    assert (rows.mean(), columns.mean()) == (15, 15)
    assert np.array_equal(shrunk[15], resize_image(image, 31)[15, :, 0] > 127)
