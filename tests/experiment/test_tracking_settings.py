"""Keys of [tracking] that another key leaves without effect are told."""

import pytest

from camox.experiment import Experiment

OFF = 'tracking.wandb="disabled"'


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["tracking.images=3"], None),
        ([OFF, "tracking.images=3"], "tracking.images has no effect with tracking.wandb"),
        ([OFF, "tracking.images_every_epochs=2"], "tracking.images_every_epochs has no effect with tracking.wandb"),
        ([OFF, "tracking.images=3", "tracking.tensorboard=true"], None),
        ([OFF, "tracking.images=0"], None),
        (["tracking.images=0", "tracking.images_every_epochs=2"], "no effect with tracking.images = 0"),
        ([OFF, 'tracking.artifacts="best"'], "tracking.artifacts has no effect"),
        (['tracking.artifacts="best"'], None),
    ],
)
def test_keys_without_effect_are_told(write, minimal, overrides, expected):
    told = [text for text in Experiment.load(write(minimal), overrides).warnings if "tracking." in text]
    assert [expected in text for text in told] == ([] if expected is None else [True])
