import sys

import numpy as np
import pytest

from camox.errors import DataError
from camox.inference.prediction.mask_refinement import refine, require_refinement

pytest.importorskip("kornia")


def stairs(size=512, step=8):
    """A photograph of a bright half, its diagonal edge, and the map of a network that sees it in coarse steps."""
    rows, columns = np.mgrid[:size, :size]
    truth = columns > rows
    image = np.where(truth, 200, 60).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    coarse = (columns // step * step > rows // step * step).astype(np.float32)
    return image, truth, coarse


def test_a_coarse_map_follows_the_edge_of_its_image():
    image, truth, coarse = stairs()
    before = ((coarse >= 0.5) != truth).mean()
    after = ((refine(coarse, image) >= 0.5) != truth).mean()
    assert after < 0.1 * before


def test_on_a_plain_image_a_constant_map_stays():
    plain = np.full((40, 50, 3), 90, np.uint8)
    np.testing.assert_allclose(refine(np.full((40, 50), 0.3, np.float32), plain), 0.3, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 2), (3, 3), (3, 700), (1200, 1100)])
def test_every_shape_keeps_its_size_and_range(shape):
    rng = np.random.default_rng(0)
    refined = refine(rng.random(shape, np.float32), rng.integers(0, 256, (*shape, 3), np.uint8))
    assert refined.shape == shape
    assert refined.dtype == np.float32
    assert 0 <= refined.min() <= refined.max() <= 1


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(DataError, match=r"pip install 'camox\[refine\]'"):
        require_refinement()
