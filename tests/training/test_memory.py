"""Too large a batch is found before training, with one that fits; nothing of the run is touched by looking."""

import json
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from camox.errors import ExperimentError, TrainingStopped
from camox.models.camoxpert import CamoXpert
from camox.training.building import build_network, build_training_step
from camox.training.memory import try_largest_phases
from camox.training.step import TrainingStep
from tests.training.test_trainer import bits, train


@pytest.fixture
def memory_for(monkeypatch):
    """Lets training passes of more than so many pixels in all run out of memory; lists the batches that were tried."""

    def limit(pixels: int) -> list[tuple[int, int, int]]:
        forward, tried = CamoXpert.forward, []

        def bounded(network: CamoXpert, images: torch.Tensor, *rest: Any) -> Any:
            if network.training:
                tried.append((len(images), images.shape[-1], network.backbone.frozen_stages))
                if images[:, 0].numel() > pixels:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(network, images, *rest)

        monkeypatch.setattr(CamoXpert, "forward", bounded)
        return tried

    return limit


def look(experiment: Any) -> TrainingStep:
    accelerator = Accelerator(cpu=True)
    network = build_network(experiment, accelerator.device).train()
    step = build_training_step(experiment, accelerator, network)
    try_largest_phases(experiment, accelerator, step)
    return step


def test_only_phases_that_no_other_exceeds_are_tried(tiny_experiment, memory_for):
    tried = memory_for(10**9)
    look(tiny_experiment())
    assert tried == [(4, 32, 0)]
    tried.clear()
    look(tiny_experiment("phases.frozen.batch_size=8", "phases.full.image_size=40"))
    assert tried == [(8, 32, 4), (4, 40, 0)]
    tried.clear()
    look(tiny_experiment("data.multi_scale=[1.0, 3.0]"))
    assert tried == [(4, 96, 0)]


def test_the_message_has_the_largest_batch_that_fits(tiny_experiment, memory_for):
    memory_for(5 * 32**2)
    with pytest.raises(ExperimentError) as caught:
        look(tiny_experiment("data.batch_size=7"))
    message = str(caught.value)
    assert 'phase "full": a batch of 7 images of 32² pixels does not fit' in message
    assert "5 do: phases.full.batch_size=5 with phases.full.accumulate=2" in message
    assert "gradient_checkpointing=true" in message


def test_where_not_one_image_fits_the_size_is_named(tiny_experiment, memory_for):
    memory_for(32**2 - 1)
    with pytest.raises(ExperimentError, match="not even one does: lower the image_size of 32"):
        look(tiny_experiment("model.gradient_checkpointing=true"))


def test_looking_leaves_nothing_behind(tiny_experiment):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    experiment = tiny_experiment()
    step = look(experiment)
    again = build_network(experiment, torch.device("cpu"))
    torch.set_rng_state(before)
    assert step.network.backbone.frozen_stages == 0
    assert all(parameter.grad is None for parameter in step.network.parameters())
    statistics = {name: value for name, value in again.named_buffers() if "running" in name}
    assert statistics
    for name, value in step.network.named_buffers():
        if name in statistics:
            assert torch.equal(value, statistics[name]), name


def test_a_run_on_a_gpu_looks_before_its_first_step(tiny_experiment, monkeypatch):
    from camox.training import trainer as trainer_module

    class OnGpu:
        """The accelerator, but for the name of its device before training."""

        type = "cuda"

    looked: list[int] = []
    monkeypatch.setattr(trainer_module, "try_largest_phases", lambda *_: looked.append(1))
    introduce = trainer_module.Trainer._introduce

    def introduce_on_gpu(trainer: Any) -> None:
        introduce(trainer)
        patch.setattr(type(trainer.accelerator), "device", OnGpu())

    def train_on_cpu(trainer: Any) -> None:
        patch.undo()

    with pytest.MonkeyPatch.context() as patch:
        monkeypatch.setattr(trainer_module.Trainer, "_introduce", introduce_on_gpu)
        monkeypatch.setattr(trainer_module.Trainer, "_train", train_on_cpu)
        monkeypatch.setattr(trainer_module.Trainer, "_finish", lambda trainer: None)
        trainer_module.Trainer(tiny_experiment(), None, Accelerator(cpu=True)).run()
    assert looked == [1]


def test_a_run_is_the_same_after_looking(tiny_experiment, tmp_path, monkeypatch):
    from camox.checkpoints.store import list_checkpoints
    from camox.training.trainer import Trainer

    plain = train(tiny_experiment("model.moe.router.noise=1", output=tmp_path / "plain"))
    introduce = Trainer._introduce

    def introduce_and_look(trainer: Trainer) -> None:
        introduce(trainer)
        try_largest_phases(trainer.experiment, trainer.accelerator, trainer.training_step)

    monkeypatch.setattr(Trainer, "_introduce", introduce_and_look)
    looked = train(tiny_experiment("model.moe.router.noise=1", output=tmp_path / "looked"))
    assert [bits(path) for path in list_checkpoints(looked)] == [bits(path) for path in list_checkpoints(plain)]


def test_running_out_of_memory_in_mid_run_says_what_to_lower_and_where_to_go_on(tiny_experiment, monkeypatch):
    call, count = TrainingStep.__call__, [0]

    def fail(step: TrainingStep, *arguments: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        call(step, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", fail)
    experiment = tiny_experiment()
    with pytest.raises(TrainingStopped, match=r"memory is full: lower data\.batch_size .*epoch_0001"):
        train(experiment)
    end = json.loads((experiment.run_folder / "exit.json").read_text())
    assert end["code"] == 3
