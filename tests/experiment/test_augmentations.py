"""The names of transforms that editors offer."""

import numpy as np
import pytest

from camox.data.transforms import augment, build_augmentation
from camox.experiment.augmentations import SUGGESTED


def test_each_is_there_once():
    assert len(set(SUGGESTED)) == len(SUGGESTED)


@pytest.mark.parametrize("name", SUGGESTED)
def test_each_works_without_arguments_and_keeps_the_size(name):
    random = np.random.default_rng(0)
    image, mask = random.integers(0, 256, (48, 48, 3), dtype=np.uint8), np.zeros((48, 48), np.uint8)
    mask[16:32, 16:32] = 1
    image, mask = augment(build_augmentation([{"name": name, "p": 1.0}], 48), image, mask, seed=3)
    assert (image.shape, image.dtype, mask.shape) == ((48, 48, 3), np.uint8, (48, 48))
