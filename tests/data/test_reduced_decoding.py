"""JPEGs decoded smaller than they are: never below the size that is asked for, and as good as at full size."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camox.data.decoding import read_image
from camox.data.habitats import Habitats
from camox.data.samples import read_reduced
from camox.data.sources import Subset, open_source
from camox.data.transforms import resize_image
from camox.errors import DataError


def write_pair(folder: Path, width: int, height: int, suffix: str = ".jpg", **options) -> Path:
    """A smooth photograph of that size and its mask; where the image is."""
    sample = Habitats(count=1, size=64, seed=3)[0]
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    image = folder / "images" / f"a{suffix}"
    Image.fromarray(cv2.resize(sample.image, (width, height), interpolation=cv2.INTER_CUBIC)).save(image, **options)
    mask = cv2.resize(sample.mask * 255, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    return image


@settings(max_examples=40)
@given(st.integers(8, 400), st.integers(8, 400), st.integers(8, 200))
def test_the_sides_are_halved_as_often_as_both_stay_large_enough(tmp_path_factory, width, height, at_least):
    path = write_pair(tmp_path_factory.mktemp("pair"), width, height)
    factor = max(factor for factor in (1, 2, 4, 8) if factor == 1 or min(width, height) // factor >= at_least)
    image = read_image(path, at_least=at_least)
    assert image.shape == (-(-height // factor), -(-width // factor), 3)


@pytest.mark.parametrize("factor", [2.0, 2.3, 3.0, 4.4, 9.0])
def test_resized_it_is_the_full_image_but_for_a_few_grey_levels_and_loses_no_contrast(tmp_path, factor):
    size = 64
    path = write_pair(tmp_path, round(factor * size), round(1.2 * factor * size), quality=90)
    full = resize_image(read_image(path), size).astype(float)
    reduced = resize_image(read_image(path, at_least=size), size)
    assert np.abs(reduced - full).mean() < 3
    assert reduced.std() > 0.98 * full.std()


def test_of_real_photographs_too(open_pairs):
    differences = []
    for path in sorted(open_pairs.rglob("*.jpg")):
        full = read_image(path)
        size = min(full.shape[:2]) * 2 // 5
        reduced = resize_image(read_image(path, at_least=size), size)
        plain = cv2.resize(full, (size, size), interpolation=cv2.INTER_LINEAR)
        resized = resize_image(full, size).astype(float)
        differences.append([np.abs(reduced - resized).mean(), np.abs(plain - resized).mean()])
    ours, theirs = np.mean(differences, axis=0)
    assert len(differences) > 20
    assert ours < theirs / 2
    assert ours < 1.5


def test_orientation_is_applied_to_the_reduced_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_image(write_pair(tmp_path, 160, 96, exif=exif), at_least=40)
    stored = read_image(tmp_path / "images" / "a.jpg", apply_orientation=False, at_least=40)
    assert upright.shape == (80, 48, 3)
    assert np.array_equal(upright, np.rot90(stored, -1))


def test_only_jpegs_are_reduced(tmp_path):
    assert read_image(write_pair(tmp_path, 160, 96, suffix=".png"), at_least=8).shape == (96, 160, 3)


def test_a_truncated_jpeg_is_not_decoded_at_any_scale(tmp_path):
    path = write_pair(tmp_path, 160, 96)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match="truncated"):
        read_image(path, at_least=8)


def test_sources_hand_the_wish_on_and_keep_the_mask_as_it_is(tmp_path):
    write_pair(tmp_path, 161, 97)
    source = open_source({"layout": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")})
    for samples in (source, Subset(source, [0])):
        sample = read_reduced(samples, 0, at_least=40)
        assert sample.image.shape == (49, 81, 3)
        assert np.array_equal(sample.mask, source[0].mask)
        assert sample.mask.shape == (97, 161)
        assert samples[0].image.shape == (97, 161, 3)


def test_a_mask_of_another_shape_is_told_whatever_was_reduced(tmp_path):
    write_pair(tmp_path, 160, 96)
    source = open_source({"layout": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")})
    Image.fromarray(np.zeros((96, 150), np.uint8)).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match="changed since they were checked"):
        read_reduced(source, 0, at_least=40)


def test_a_source_that_cannot_reduce_gives_the_sample_as_it_is():
    habitats = Habitats(count=2, size=64, seed=0)
    assert np.array_equal(read_reduced(habitats, 1, at_least=8).image, habitats[1].image)
