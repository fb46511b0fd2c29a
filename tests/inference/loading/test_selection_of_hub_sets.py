"""Which sets of the hub count as the same images when a checkpoint is selected and scored."""

import pytest

from camox.inference.loading.selection import identity, selects_on_test


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"hub": "a/b", "split": "train"}, {"hub": "a/b", "split": "test"}, False),
        ({"hub": "a/b", "split": "train[:80%]"}, {"hub": "a/b", "split": "train[80%:]"}, False),
        ({"hub": "a/b", "split": "train[:80%]"}, {"hub": "a/b", "split": "train[79%:]"}, True),
        ({"hub": "a/b", "split": "train[-10%:]"}, {"hub": "a/b", "split": "train[:90%]"}, False),
        ({"hub": "a/b", "split": "train[-10%:]"}, {"hub": "a/b", "split": "train"}, True),
        ({"hub": "a/b", "split": "train[:100]"}, {"hub": "a/b", "split": "train[100:]"}, True),
        ({"hub": "a/b", "split": "train+test"}, {"hub": "a/b", "split": "test"}, True),
        ({"hub": "a/b", "split": "test", "mask": "gt"}, {"hub": "a/b", "split": "test", "weight": 2.0}, True),
        ({"hub": "a/b", "split": "test", "config": "x"}, {"hub": "a/b", "split": "test", "config": "y"}, False),
        ({"hub": "a/b", "split": "test"}, {"hub": "a/c", "split": "test"}, False),
    ],
)
def test_sets_share_images_by_place_and_split(one, other, same):
    assert bool(identity(one) & identity(other)) == same


def test_a_folder_is_the_same_by_every_path(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    assert identity({"hub": "set", "split": "test"}) == identity({"hub": str(tmp_path / "set"), "split": "test"})


@pytest.mark.parametrize(
    ("split", "on_test"), [("validation", False), ("test", True), ("test[:50%]", True), ("train+test", True)]
)
def test_validating_on_the_test_split_is_selecting_on_test(tiny_experiment, split, on_test):
    experiment = tiny_experiment(f'data.val=[{{hub="a/b",split="{split}"}}]', "data.val_fraction=0.0")
    assert (selects_on_test(experiment) is not None) == on_test
