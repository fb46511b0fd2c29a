import io
import os
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from camox.data.transforms import resize_image
from camox.errors import CheckpointError, DataError
from camox.inference.ensemble import Ensemble
from camox.inference.forward import require_finite
from camox.inference.loading.loaded_model import load_model
from camox.inference.prediction.inputs import find_images
from camox.inference.prediction.outputs import make_folders, plan
from camox.inference.prediction.pipeline import Settings, _in_batches, probability_map
from camox.inference.prediction.predictor import predict
from camox.measures.evaluator import resize_probability
from camox.tracking.console import Console

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def loaded(template_run):
    return load_model(template_run)


@pytest.fixture
def output():
    return io.StringIO()


@pytest.fixture
def run_predict(loaded, tmp_path, output):
    """Predicts into tmp_path / "out" with the loaded model; notices go to `output`."""

    def run(images, **arguments):
        return predict(loaded, images, tmp_path / "out", console=Console(stream=output), **arguments)

    return run


def noise(*shape, top=256, dtype=np.uint8):
    return RNG.integers(0, top, shape).astype(dtype)


def read(path):
    with Image.open(path) as image:
        return image.mode, np.asarray(image)


@pytest.fixture
def threads():
    """Sets torch's number of threads for a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [8, 16])
def test_neither_batch_nor_threads_nor_other_files_change_a_byte(loaded, photographs, tmp_path, threads, bits):
    options = {"bits": bits, "overlay": True, "binary": True, "tta": ["hflip"]}
    folders = []
    for batch_size, number in ((1, 1), (8, 1), (8, 3), (None, 2)):
        threads(number)
        folders.append(tmp_path / f"{batch_size} {number}")
        predict(loaded, photographs, folders[-1], batch_size=batch_size, **options)
        assert torch.get_num_threads() == number
    folders.append(tmp_path / "alone")
    for path in photographs.iterdir():
        predict(loaded, path, folders[-1], **options)
    contents = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")} for folder in folders]
    assert len(contents[0]) == 24
    assert all(one == contents[0] for one in contents[1:])


def test_batches_as_a_gpu_takes_them_give_the_same_masks(loaded, photographs, tmp_path):
    """Sums of another batch may be rounded otherwise, which can tip a value over to the next grey level."""
    (photographs / "3.png").write_bytes(b"no image")
    predicted = tmp_path / "predicted"
    with pytest.raises(DataError, match="1 of 8"):
        predict(loaded, photographs, predicted)
    out = tmp_path / "batches"
    jobs = plan(find_images(photographs, out, Console(active=False)), out, False, False, False, False)
    make_folders(jobs, out)
    done = list(_in_batches(Ensemble((loaded,)), jobs, Settings(0.5, 8, None, objects=True), 3))
    assert [one.job for one in done] == jobs
    assert [bool(one.problem) for one in done] == [number == 3 for number in range(8)]
    for path in predicted.iterdir():
        alone, together = (read(folder / path.name)[1].astype(int) for folder in (predicted, out))
        assert np.abs(alone - together).max() <= 1
        assert (alone == together).mean() > 0.999


def test_every_mask_is_a_grey_png_of_its_images_size(run_predict, photographs):
    for path in run_predict(photographs):
        mode, mask = read(path)
        assert mode == "L"
        assert mask.shape == read(photographs / path.name)[1].shape[:2]


@pytest.mark.parametrize(
    ("pixels", "name"),
    [
        (noise(40, 90, 3), "wide.jpg"),
        (noise(1, 77, 3), "flat.png"),
        (noise(77, 1, 3), "thin.png"),
        (noise(1, 1, 3), "dot.png"),
        (noise(30, 40), "grey.png"),
        (noise(30, 40, 4), "alpha.png"),
        (noise(30, 40, top=65536, dtype=np.uint16), "deep.png"),
        (noise(30, 40, 3), "größe mit raum.bmp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_of_every_kind(run_predict, save, tmp_path, pixels, name):
    (path,) = run_predict(save(tmp_path / "in" / name, pixels))
    assert path.name == name.rsplit(".", 1)[0] + ".png"
    assert read(path)[1].shape == pixels.shape[:2]


def test_the_mask_of_a_turned_photograph_is_upright(run_predict, save, tmp_path):
    upright = noise(30, 50, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90° to the left
    save(tmp_path / "in" / "upright.png", upright)
    save(tmp_path / "in" / "turned.png", np.rot90(upright).copy(), exif=exif)
    run_predict(tmp_path / "in")
    turned, expected = (read(tmp_path / "out" / f"{name}.png")[1] for name in ("turned", "upright"))
    np.testing.assert_array_equal(turned, expected)


def test_the_mask_is_the_models_probability(run_predict, loaded, save, tmp_path):
    import torch

    pixels = noise(loaded.image_size, loaded.image_size, 3)
    (path,) = run_predict(save(tmp_path / "in" / "a.png", pixels))
    with torch.no_grad():
        logits = loaded.model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).logits
    np.testing.assert_allclose(read(path)[1], logits[0, 0].sigmoid().numpy() * 255, atol=0.51)


def test_maps_are_resized_as_measures_resize_them(run_predict, loaded, save, tmp_path):
    import torch

    large = noise(2 * loaded.image_size, 3 * loaded.image_size, 3)
    pixels = resize_image(large, loaded.image_size)
    (path,) = run_predict(save(tmp_path / "in" / "a.png", large))
    with torch.no_grad():
        logits = loaded.model(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).logits
    expected = resize_probability(logits[0, 0].sigmoid().numpy(), large.shape[:2])
    np.testing.assert_allclose(read(path)[1], expected * 255, atol=0.51)


def test_overlays_have_the_images_size(run_predict, photographs, tmp_path):
    written = run_predict(photographs, overlay=True)
    assert len(written) == 16
    for path in photographs.iterdir():
        mode, picture = read(tmp_path / "out" / "overlays" / path.name)
        assert mode == "RGB"
        assert picture.shape == read(path)[1].shape


def test_files_and_folders_may_be_mixed(run_predict, photographs, save, tmp_path):
    extra = save(tmp_path / "extra.png", noise(20, 20, 3))
    assert len(run_predict([extra, photographs])) == 9


def test_subfolders_are_left_alone(run_predict, photographs, save):
    save(photographs / "inside" / "x.png", noise(20, 20, 3))
    assert len(run_predict(photographs)) == 8


def test_what_is_no_image_is_skipped_and_said(run_predict, photographs, output):
    (photographs / "notes.txt").write_text("no image")
    (photographs / ".DS_Store").write_text("no image")
    assert len(run_predict(photographs)) == 8
    assert "notes.txt" in output.getvalue()


def test_the_weights_are_said(run_predict, photographs, loaded, output):
    run_predict(photographs / "0.png")
    assert loaded.reason in output.getvalue()


def test_unreadable_images_are_named_after_the_others_are_done(run_predict, photographs, tmp_path):
    (photographs / "0.png").write_bytes((photographs / "0.png").read_bytes()[:60])
    (photographs / "5.png").write_bytes(b"")
    with pytest.raises(DataError) as error:
        run_predict(photographs, batch_size=4)
    assert "2 of 8" in str(error.value)
    assert "0.png" in str(error.value)
    assert "5.png" in str(error.value)
    assert sorted(os.listdir(tmp_path / "out")) == [f"{i}.png" for i in (1, 2, 3, 4, 6, 7)]


def test_two_images_of_one_stem_are_refused(run_predict, photographs, save, tmp_path):
    save(photographs / "0.jpg", noise(20, 20, 3))
    with pytest.raises(DataError, match=r"0\.jpg.*0\.png"):
        run_predict(photographs)
    assert not (tmp_path / "out").exists()


def test_only_maps_lie_in_the_folder_itself_so_that_it_can_be_scored(run_predict, photographs, tmp_path):
    run_predict(photographs, overlay=True, binary=True)
    files = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_file())
    assert files == sorted(os.listdir(photographs))


@pytest.mark.parametrize("threshold", ["auto", 0.45])
def test_a_binary_mask_is_the_map_from_the_threshold_on(run_predict, photographs, tmp_path, loaded, threshold):
    run_predict(photographs, binary=True, bits=16, threshold=threshold)
    value = loaded.threshold if threshold == "auto" else threshold
    for path in photographs.iterdir():
        probability = read(tmp_path / "out" / path.name)[1] / 65535
        mode, mask = read(tmp_path / "out" / "binary" / path.name)
        assert mode == "L"
        sure = np.abs(probability - value) > 1 / 65535  # nearer ones may have been rounded across it
        np.testing.assert_array_equal(mask[sure], np.where(probability >= value, 255, 0)[sure])


def test_sixteen_bits_are_finer_levels_of_the_same_map(run_predict, photographs, tmp_path):
    run_predict(photographs)
    coarse = {path.name: read(tmp_path / "out" / path.name)[1] for path in photographs.iterdir()}
    run_predict(photographs, bits=16, overwrite=True)
    for name, levels in coarse.items():
        mode, fine = read(tmp_path / "out" / name)
        assert mode.startswith("I")
        assert np.abs(fine / 257 - levels).max() <= 0.51
        assert len(np.unique(fine)) > len(np.unique(levels))


def test_results_are_not_overwritten_unless_asked(run_predict, photographs, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "3.png").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"3\.png.*--overwrite"):
        run_predict(photographs)
    assert os.listdir(tmp_path / "out") == ["3.png"]
    assert (tmp_path / "out" / "3.png").read_bytes() == b"precious"
    assert len(run_predict(photographs, overwrite=True)) == 8


def test_the_images_themselves_are_never_replaced(loaded, photographs):
    before = (photographs / "0.png").read_bytes()
    with pytest.raises(DataError, match="replace the images"):
        predict(loaded, photographs, photographs, overwrite=True)
    assert (photographs / "0.png").read_bytes() == before


def test_without_a_threshold_the_models_own_is_taken(loaded, photographs, tmp_path):
    image = cv2.cvtColor(cv2.imread(str(photographs / "0.png")), cv2.COLOR_BGR2RGB)
    own = float(np.median(probability_map(Ensemble((loaded,)), image)))  # an untrained model's maps are all of one grey
    model, chosen = replace(loaded, threshold=own), []
    for out, threshold in (("own", "auto"), ("asked", own), ("all", 0.0)):
        predict(model, photographs, tmp_path / out, binary=True, threshold=threshold, console=Console(active=False))
        chosen.append([path.read_bytes() for path in sorted((tmp_path / out / "binary").iterdir())])
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


def test_maps_are_not_written_among_the_images(loaded, save, tmp_path):
    save(tmp_path / "photos" / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="holds the images themselves"):
        predict(loaded, tmp_path / "photos", tmp_path / "photos", console=Console(active=False))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_no_temporary_file_is_left(run_predict, photographs, tmp_path):
    run_predict(photographs, overlay=True)
    assert not [name for name in os.listdir(tmp_path / "out") if name.startswith(".")]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "no image files"),
        (lambda path: None, "no such file"),
        (lambda path: (path.mkdir(), (path / "a.txt").write_text("")), "no image files"),
    ],
    ids=["empty folder", "missing", "no image"],
)
def test_nothing_to_predict_is_an_error(run_predict, tmp_path, make, message):
    make(tmp_path / "in")
    with pytest.raises(DataError, match=message):
        run_predict(tmp_path / "in")


def test_a_file_in_place_of_the_folder_for_results_is_an_error(run_predict, photographs, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(DataError, match="is a file"):
        run_predict(photographs)


def test_nan_from_the_model_names_the_image():
    maps = np.zeros((2, 4, 4), np.float32)
    maps[1, 2, 2] = np.nan
    with pytest.raises(CheckpointError, match=r"NaN for b\.png"):
        require_finite(maps, ["a.png", "b.png"])
