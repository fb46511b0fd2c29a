"""A network that cannot be trained on the batches of a phase is refused before anything runs."""

import pytest
import torch

from camox.cli import main
from camox.errors import ExperimentError
from camox.training.building import build_network
from tests.training.test_trainer import train

ONE = "phases.full.batch_size=1"


def test_one_value_per_channel_is_no_statistic(tiny_experiment):
    with pytest.raises(ExperimentError) as caught:
        train(tiny_experiment(ONE))
    message = str(caught.value)
    assert 'phase "full": a batch of one image of 32² pixels has one value per channel at stride 32' in message
    assert "phases.full.batch_size to 2 or more, or phases.full.image_size to 64" in message


@pytest.mark.parametrize(
    "overrides",
    [
        ("phases.full.batch_size=2",),
        (ONE, "phases.full.image_size=64"),
        (ONE, 'model.backbone="edgenext_xx_small"', "model.width=16"),  # no BatchNorm
    ],
)
def test_what_can_be_trained_is_not_refused(tiny_experiment, overrides):
    assert train(tiny_experiment(*overrides)).is_dir()


def test_the_norms_of_a_frozen_backbone_count_nothing(tiny_experiment):
    assert train(tiny_experiment("phases.frozen.batch_size=1", "model.width=16")).is_dir()


def test_the_check_says_so_too(tiny_experiment, tmp_path, capfd):
    tiny_experiment()
    assert main(["train", str(tmp_path / "tiny.toml"), ONE, "--check"]) == 2
    assert "has one value per channel" in capfd.readouterr().err


def test_to_look_draws_no_number(tiny_experiment):
    experiment = tiny_experiment("phases.frozen.batch_size=1", "model.width=16")
    torch.manual_seed(1)
    build_network(experiment, torch.device("cpu"))
    ours = torch.rand(1)
    torch.manual_seed(1)
    build_network(tiny_experiment("model.width=16"), torch.device("cpu"))
    assert torch.equal(ours, torch.rand(1))
