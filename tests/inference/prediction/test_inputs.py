import io
import os
from pathlib import Path

import numpy as np
import pytest

from camox.errors import DataError
from camox.inference.prediction.inputs import find_images
from camox.tracking.console import Console

PIXEL = np.zeros((1, 1, 3), np.uint8)


@pytest.fixture
def tree(tmp_path, save):
    """a.jpg, and below it sub/a.jpg and sub/deep/b.png, with a text and a hidden file."""
    for name in ("a.jpg", "sub/a.jpg", "sub/deep/b.png", ".hidden.jpg"):
        save(tmp_path / "photos" / name, PIXEL)
    (tmp_path / "photos" / "sub" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


@pytest.fixture
def find(tmp_path):
    said = io.StringIO()

    def find(*images, out="out"):
        found = find_images(list(images), tmp_path / out, Console(stream=said))
        return [image.name.as_posix() for image in found]

    find.said = said
    return find


def test_a_pattern_names_results_by_their_place_below_it(tree, find):
    assert find(str(tree / "**" / "*")) == ["a", "sub/a", "sub/deep/b"]
    assert find(str(tree / "**" / "*.png")) == ["sub/deep/b"]
    assert find(str(tree / "s*" / "?.jpg")) == ["sub/a"]
    assert "notes.txt" in find.said.getvalue()


def test_a_relative_pattern_is_one_too(tree, find, monkeypatch):
    monkeypatch.chdir(tree)
    assert find("**/*.jpg") == ["a", "sub/a"]


def test_an_image_that_is_given_twice_is_taken_once(tree, find):
    assert find(tree, tree / "a.jpg", str(tree / "*.jpg")) == ["a"]


def test_results_of_an_earlier_run_are_no_images(tree, find, save):
    save(tree / "masks" / "a.png", PIXEL)
    assert find(str(tree / "**" / "*.png"), out="photos/masks") == ["sub/deep/b"]
    assert "where results go" in find.said.getvalue()


def test_a_name_with_brackets_is_a_name_where_it_exists(tree, find, save):
    path = save(tree / "b[1].png", PIXEL)
    assert find(path) == ["b[1]"]


@pytest.mark.parametrize("pattern", ["**/*.webp", "*.txt", "nowhere/*", "sub/*.txt"])
def test_a_pattern_without_an_image_is_an_error(tree, find, pattern):
    with pytest.raises(DataError, match="matches no image files"):
        find(str(tree / pattern))


def test_a_link_is_an_image_of_its_own(tmp_path, find):
    """Its name is what somebody waits for; the same name twice is one."""
    (tmp_path / "frog.jpg").write_bytes(b"")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "frog.jpg")
    assert find(tmp_path, tmp_path / "frog.jpg") == ["frog", "linked"]


def test_what_is_not_there_is_an_error(tree, find):
    with pytest.raises(DataError, match="no such file or folder"):
        find(tree, Path("nowhere.jpg"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_may_not_be_read_is_an_error(tree, find):
    tree.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        find(tree)
