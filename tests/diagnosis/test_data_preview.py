"""The preview shows what the training loop will load."""

import numpy as np
import pytest
from PIL import Image

from camox.cli import main
from camox.data.loading import TrainSet
from camox.data.sources import open_training_sources
from camox.diagnosis import data_preview
from camox.errors import ExperimentError
from camox.inference.pictures import outlined

AFFINE = 'data.augment=[{ name = "HorizontalFlip", p = 0.5 }, { name = "RandomBrightnessContrast", p = 1.0 }]'


@pytest.fixture
def drawn(monkeypatch):
    """What would be drawn, beside drawing it."""
    seen = []
    draw = data_preview.draw_sheet

    def keep(tiles, title, subtitle, columns):
        seen.append((list(tiles), columns, subtitle))
        return draw(tiles, title, subtitle, columns)

    monkeypatch.setattr(data_preview, "draw_sheet", keep)
    return seen


def test_tiles_are_the_samples_of_the_run(tiny_experiment, drawn, tmp_path):
    experiment = tiny_experiment(AFFINE, "phases.full.epochs=9", "phases.full.image_size=48")
    data_preview.preview(experiment, tmp_path / "sheet.png", epoch=1, count=3)
    ((tiles, columns, _),) = drawn
    assert columns == 6
    assert len(tiles) == 3 * 6
    train = [source.plain() for source in experiment.data.train]
    source, _ = open_training_sources(train, [], experiment.data.val_fraction, experiment.experiment.seed)
    augment = [transform.specification() for transform in experiment.data.augment]
    for row, index in enumerate((0, 4, 7)):
        for epoch, size in ((0, 32), (1, 48), (4, 48)):
            item = TrainSet(source, size, augment, experiment.experiment.seed)[epoch, index]
            picture, name, about, is_warning = tiles[row * 6 + 1 + epoch]
            assert np.array_equal(picture, outlined(item.image, item.mask))
            assert (name, about, is_warning) == (f"epoch {epoch + 1}", f"{size}x{size}", False)
        assert tiles[row * 6][1] == source.names[index]


def test_epochs_differ_and_the_last_are_fewer(tiny_experiment, drawn, tmp_path):
    experiment = tiny_experiment(AFFINE, "phases.full.epochs=4")
    data_preview.preview(experiment, tmp_path / "sheet.png", epoch=3, count=1)
    ((tiles, columns, _),) = drawn
    assert [tile[1] for tile in tiles[1:]] == ["epoch 3", "epoch 4", "epoch 5"]
    assert columns == 4
    assert not np.array_equal(tiles[1][0], tiles[2][0])


def test_the_command_writes_a_png(tiny_experiment, tmp_path, monkeypatch, capfd):
    tiny_experiment()
    monkeypatch.chdir(tmp_path)
    assert main(["data", "preview", str(tmp_path / "tiny.toml"), "--count", "2", "data.image_size=64"]) == 0
    assert Image.open(tmp_path / "tiny_preview.png").format == "PNG"
    assert "tiny_preview.png" in capfd.readouterr().out


def test_a_sample_that_cannot_be_read_is_shown_with_its_message(tiny_experiment, drawn, tmp_path, monkeypatch):
    from camox.data.habitats import Habitats
    from camox.errors import DataError

    def fail(self, index):
        raise DataError("frog.jpg: the JPEG is truncated")

    monkeypatch.setattr(Habitats, "__getitem__", fail)
    data_preview.preview(tiny_experiment(), tmp_path / "sheet.png", count=1)
    assert "the JPEG is truncated" in drawn[0][0][0][2]
    assert drawn[0][0][0][3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch", "3"], "the experiment has 2 epochs"),
        (["--out", "nowhere/sheet.png"], "cannot be written"),
        (['data.train=[{ layout = "auto", path = "gone" }]'], "no folder gone"),
        (["data.image_sizes=3"], "image_sizes"),
    ],
)
def test_what_cannot_be_shown_is_one_message(tiny_experiment, tmp_path, monkeypatch, capfd, arguments, message):
    tiny_experiment()
    monkeypatch.chdir(tmp_path)
    assert main(["data", "preview", str(tmp_path / "tiny.toml"), *arguments]) == 2
    err = capfd.readouterr().err
    assert err.count("error: ") == 1
    assert message in err
    assert "Traceback" not in err


def test_a_streamed_set_is_told_how_to_be_previewed(tiny_experiment, tmp_path):
    streamed = 'data.train=[{ hub = "a/b", streaming = true }]'
    val = 'data.val=[{ synthetic = "habitats", count = 2 }]'
    with pytest.raises(ExperimentError, match="preview it with streaming = false"):
        data_preview.preview(tiny_experiment(streamed, val, "data.val_fraction=0.0"), tmp_path / "sheet.png")
