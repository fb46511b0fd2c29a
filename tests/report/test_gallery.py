"""What the page says of images: which experts each group of them uses, and whose picture is whose."""

import itertools

import numpy as np
import pytest

from camox.report.examination import MOST_SECONDS, examine
from camox.report.gallery import Examined, Key, Seen, shares_by_group
from camox.report.run import read_run

EXPERTS = ("a", "b", "c")


def seen(name, group, share):
    shares = {4: np.array(share, float)}
    return Seen(Key("set", name), group, {"iou": 0.5}, {}, shares, {4: np.full(3, 1 / 3)})


def test_a_column_is_the_mean_of_its_own_group():
    images = [seen("1", "rock", [1, 0, 0]), seen("2", "forest", [0, 0.5, 0.5]), seen("3", "rock", [0.5, 0.5, 0])]
    (of,) = shares_by_group(Examined(images, experts=EXPERTS, is_choice=True))
    assert (of.stride, of.groups) == (4, ["forest", "rock"])
    np.testing.assert_allclose(of.shares, [[0, 0.75], [0.5, 0.25], [0.5, 0]])


def test_shares_are_of_what_routers_chose_and_not_of_weights(run_folder):
    examined = examine(read_run(run_folder))
    top_k = read_run(run_folder).experiment.model.moe.top_k
    for one in examined.images:
        for shares in one.shares.values():
            assert set(np.round(shares * top_k, 6)) == {0.0, 1.0}
            assert shares.sum() == pytest.approx(1)


def test_every_image_has_its_own_uncertainty(run_folder, monkeypatch):
    together = {one.key: one.pictures for one in examine(read_run(run_folder)).images}
    monkeypatch.setattr("camox.report.examination._PIXELS_AT_ONCE", 2 * 32**2)  # two at a time
    for one in examine(read_run(run_folder)).images:
        for what, picture in one.pictures.items():
            assert np.abs(picture.astype(int) - together[one.key][what]).max() <= 2, what


def test_all_images_together_have_a_minute(run_folder, monkeypatch):
    """However many datasets there are: the clock goes on by half of it with each look."""
    monkeypatch.setattr("camox.report.examination._PIXELS_AT_ONCE", 2 * 32**2)  # two at a time
    everything = examine(read_run(run_folder))
    assert len(everything.images) > 4
    looks = itertools.count(0, MOST_SECONDS / 2 + 1)
    monkeypatch.setattr("camox.report.examination.time.monotonic", lambda: next(looks))
    assert len(examine(read_run(run_folder)).images) == 4
