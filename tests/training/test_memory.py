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


def look(experiment: Any, is_new: bool = True) -> TrainingStep:
    accelerator = Accelerator(cpu=True)
    network = build_network(experiment, accelerator.device).train()
    step = build_training_step(experiment, accelerator, network)
    try_largest_phases(experiment, accelerator, step, is_new)
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


def test_a_run_that_is_resumed_is_not_told_to_take_another_batch(tiny_experiment, memory_for):
    """A resume refuses one."""
    memory_for(5 * 32**2)
    with pytest.raises(ExperimentError, match=r"the run that is resumed takes none of it: .* a new run \(.*init_from"):
        look(tiny_experiment("data.batch_size=7"), is_new=False)


def fill_the_memory_in_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    call, count = TrainingStep.__call__, [0]

    def fail(step: TrainingStep, *arguments: Any) -> None:
        count[0] += 1
        if count[0] == number:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        call(step, *arguments)

    monkeypatch.setattr(TrainingStep, "__call__", fail)


def test_what_is_advised_when_the_memory_fills_in_mid_run_can_be_done(tiny_experiment, monkeypatch):
    fill_the_memory_in_step(3, monkeypatch)
    experiment = tiny_experiment()
    with pytest.raises(TrainingStopped, match=r"memory is full: .*epoch_0001") as caught:
        train(experiment)
    assert json.loads((experiment.run_folder / "exit.json").read_text())["code"] == 3
    smaller = ["phases.full.batch_size=2", "phases.full.accumulate=2"]
    for override in ("model.gradient_checkpointing=true", *smaller):
        assert override in str(caught.value)
        with pytest.raises(ExperimentError, match="was started with other settings"):
            train(tiny_experiment(override), resume="auto")
    clean = str(caught.value).split("the last clean checkpoint is ")[1]
    anew = [f'experiment.init_from="{clean}"', 'experiment.name="smaller"', *smaller]
    assert (train(tiny_experiment(*anew)) / "checkpoints" / "epoch_0002").is_dir()
    train(experiment, resume="auto")
    assert (experiment.run_folder / "checkpoints" / "epoch_0002").is_dir()


def test_one_image_that_fills_the_memory_cannot_be_halved(tiny_experiment, monkeypatch):
    fill_the_memory_in_step(1, monkeypatch)
    with pytest.raises(TrainingStopped) as caught:
        train(tiny_experiment("phases.frozen.batch_size=1", "model.width=16", "model.gradient_checkpointing=true"))
    assert "start a new run" in str(caught.value)
    assert "with a phases.frozen.image_size below 32; there is no checkpoint yet" in str(caught.value)


def test_memory_that_is_full_before_anything_could_be_saved_is_told_too(tiny_experiment, monkeypatch):
    from camox.training import trainer as trainer_module

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(trainer_module, "build_network", fail)
    with pytest.raises(TrainingStopped, match="stopped at step 0: the device's memory is full"):
        train(tiny_experiment())
