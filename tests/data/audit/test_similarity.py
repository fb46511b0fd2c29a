"""Copies of photographs are found in spite of what happens to files on their way; other photographs are not."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camox.data.audit.similarity import near_duplicates, perceptual_hash, small_grey
from camox.data.decoding import read_image
from tests.data.audit.traps import photograph


def saved_again(image, quality):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))


def cropped(image, share):
    height, width = image.shape[:2]
    rows, columns = int(share * height / 2), int(share * width / 2)
    return image[rows : height - rows, columns : width - columns]


def resized(image, factor):
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


COPIES = {
    "saved again": lambda image: saved_again(image, 30),
    "half as large": lambda image: resized(image, 0.5),
    "cropped": lambda image: cropped(image, 0.05),
    "brighter": lambda image: np.clip(image * 1.2 + 8, 0, 255).astype(np.uint8),
    "mirrored": lambda image: saved_again(np.ascontiguousarray(image[:, ::-1]), 60),
}


@pytest.fixture(scope="module")
def photographs(open_pairs):
    files = sorted(open_pairs.glob("*_open/images/*"))
    assert len(files) > 40
    images = [read_image(path) for path in files]
    return [resized(image, min(1.0, 640 / max(image.shape))) for image in images]  # or the test takes 20 s


@pytest.mark.parametrize("change", COPIES)
def test_copies_of_photographs_are_found_and_nothing_else(photographs, change):
    # Among them are forty leaves on the same background, each of which lies alike.
    originals = [small_grey(image) for image in photographs]
    copies = [small_grey(COPIES[change](image)) for image in photographs]
    found = {(pair.first, pair.second) for pair in near_duplicates([*originals, *copies])}
    assert found == {(i, len(originals) + i) for i in range(len(originals))}


@pytest.mark.parametrize("change", COPIES)
def test_copies_are_found_and_nothing_else(change):
    images = [photograph(seed) for seed in range(12)]
    greys = [small_grey(image) for image in [*images, COPIES[change](images[3])]]
    (pair,) = near_duplicates(greys)
    assert (pair.first, pair.second, pair.mirrored) == (3, 12, change == "mirrored")
    assert pair.distance <= 16
    assert 0.88 <= pair.correlation <= 1 + 1e-6


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_a_mirrored_picture_has_the_bits_of_odd_columns_inverted(seed):
    grey = small_grey(photograph(seed))
    odd_columns = int("01010101" * 8, 2)
    differing = perceptual_hash(grey) ^ perceptual_hash(np.ascontiguousarray(grey[:, ::-1])) ^ odd_columns
    # The constant has no bit, and coefficients near 0 may round to either side.
    assert differing.bit_count() <= 2
    assert perceptual_hash(grey) < 2**63


@settings(max_examples=25)
@given(
    count=st.integers(0, 40),
    copies=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=4),
    chunk=st.sampled_from([1, 3, 256]),
)
def test_every_pair_is_compared_whatever_the_chunks(count, copies, chunk):
    greys = [small_grey(photograph(seed, 60, 80)) for seed in range(count)]
    for first, second in copies:
        if max(first, second) < count:
            greys[second] = greys[first]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("camox.data.audit.similarity._CHUNK", chunk)
        found = {(pair.first, pair.second) for pair in near_duplicates(greys)}
    same = {(i, j) for j in range(count) for i in range(j) if np.array_equal(greys[i], greys[j])}
    assert found == same


@pytest.mark.parametrize("level", [0, 127, 255])
def test_images_of_one_colour_are_no_duplicates(level):
    assert near_duplicates([np.full((64, 64), level, np.uint8)] * 3) == []
