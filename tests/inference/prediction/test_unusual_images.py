"""What people have in their folders besides ordinary photographs: each gives its mask, or one clear message."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from camox.errors import DataError
from camox.inference.loading.loaded_model import load_model
from camox.inference.prediction import outputs
from camox.inference.prediction.predictor import predict
from camox.tracking.console import Console

RNG = np.random.default_rng(0)
EVERYTHING = {"overlay": True, "binary": True, "objects": True, "bits": 16, "tta": ["hflip", "scales"]}


@pytest.fixture(scope="module")
def loaded(template_run):
    return load_model(template_run)


@pytest.fixture
def run_predict(loaded, tmp_path):
    said = io.StringIO()

    def run(images, **arguments):
        written = predict(loaded, images, tmp_path / "out", console=Console(stream=said, width=200), **arguments)
        return [read(path) for path in written if path.suffix == ".png"]

    run.said = said
    return run


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def noise(*shape):
    return RNG.integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (10, 20000)], ids=str)
@pytest.mark.parametrize("refinement", [None, "guided"])
def test_small_and_narrow_images_get_all_that_others_get(run_predict, save, tmp_path, shape, refinement):
    if refinement:
        pytest.importorskip("kornia")
    path = save(tmp_path / "in" / "a.png", noise(*shape, 3))
    results = run_predict(path, refinement=refinement, **EVERYTHING)
    assert [one.shape[:2] for one in results] == [shape] * 3


@pytest.mark.slow
def test_twenty_megapixels(run_predict, save, tmp_path):
    coarse = noise(385, 520, 3).repeat(10, axis=0).repeat(10, axis=1)
    results = run_predict(save(tmp_path / "in" / "a.jpg", coarse), **EVERYTHING)
    assert [one.shape[:2] for one in results] == [(3850, 5200)] * 3


def test_too_many_pixels_for_a_photograph_are_refused(run_predict, save, tmp_path, monkeypatch):
    """Beyond twice Pillow's bound, 179 million; here the bound is lowered."""
    path = save(tmp_path / "in" / "a.png", noise(100, 100, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(DataError, match="has too many pixels to be a photograph"):
        run_predict(path)


def test_grey_alpha_and_palette_images_are_seen_as_the_colours_they_show(run_predict, save, tmp_path):
    grey = noise(40, 60)
    colour = grey[:, :, None].repeat(3, axis=2)
    images = {
        "colour.png": colour,
        "grey.png": grey,
        "alpha.png": np.dstack([colour, noise(40, 60)]),
        "deep.png": grey.astype(np.uint16) * 256,
    }
    for name, pixels in images.items():
        save(tmp_path / "in" / name, pixels)
    Image.fromarray(grey).convert("P").save(tmp_path / "in" / "palette.gif.png")
    expected, *others = run_predict([*(tmp_path / "in" / name for name in images), tmp_path / "in" / "palette.gif.png"])
    assert len(others) == 4
    for one in others:
        np.testing.assert_array_equal(one, expected)


def test_a_cmyk_jpeg_is_no_other_image_than_its_rgb(run_predict, tmp_path):
    smooth = Image.fromarray(noise(6, 8, 3)).resize((80, 60), Image.Resampling.BICUBIC)
    (tmp_path / "in").mkdir()
    smooth.save(tmp_path / "in" / "rgb.jpg", quality=100)
    smooth.convert("CMYK").save(tmp_path / "in" / "cmyk.jpg", quality=100)
    cmyk, rgb = (one.astype(int) for one in run_predict(tmp_path / "in"))
    assert np.abs(cmyk - rgb).mean() < 3


def test_among_non_images_the_image_is_found_and_the_rest_is_said(run_predict, save, tmp_path):
    save(tmp_path / "in" / "a.jpg", noise(20, 30, 3))
    (tmp_path / "in" / "movie.mp4").write_bytes(b"no image")
    (tmp_path / "in" / "disguised.jpg").write_bytes(b"no image either")
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read[^:]*:\s+\S*disguised\.jpg"):
        run_predict(tmp_path / "in", overlay=True)
    assert "movie.mp4" in run_predict.said.getvalue()
    assert sorted(path.name for path in (tmp_path / "out").rglob("*.png")) == ["a.png", "a.png"]


def test_objects_are_told_of_the_images_that_could_be_read(loaded, save, tmp_path):
    save(tmp_path / "in" / "a.jpg", noise(20, 30, 3))
    (tmp_path / "in" / "b.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        predict(loaded, tmp_path / "in", tmp_path / "out", objects=True, console=Console(active=False))
    assert '"map": "a.png"' in (tmp_path / "out" / "objects.json").read_text()


def test_a_folder_that_cannot_be_made_is_said(loaded, photographs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="results cannot be written"):
        predict(loaded, photographs, tmp_path / "file" / "out", console=Console(active=False))


def test_a_full_disk_ends_with_a_message_and_whole_files_only(loaded, photographs, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def full(path, data):
        if len(written) == 3:
            write(path, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="No space left on device"):
        predict(loaded, photographs, tmp_path / "out", console=Console(active=False))
    left = sorted((tmp_path / "out").iterdir())
    assert len(left) == 3
    assert all(read(path).ndim == 2 for path in left)


def test_an_older_objects_file_is_not_replaced_unasked(loaded, photographs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / outputs.OBJECTS).write_text("precious")
    with pytest.raises(DataError, match=r"objects\.json.*--overwrite"):
        predict(loaded, photographs, tmp_path / "out", objects=True, console=Console(active=False))
    assert (tmp_path / "out" / outputs.OBJECTS).read_text() == "precious"
