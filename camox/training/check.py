"""Builds everything an experiment needs and trains nothing: what is wrong is found before a GPU is waited for."""

import torch

from camox.data.cache import GIB, require_within
from camox.data.loading import TrainSet
from camox.data.samples import Source
from camox.data.sources import Subset, open_sources
from camox.data.streams import Reading
from camox.experiment import Experiment
from camox.inference.loading.selection import selection_warnings, what_held_out
from camox.models.backbone import pretrained_source
from camox.models.camoxpert import CamoXpert
from camox.tracking.console import Console, counted
from camox.training.announcement import describe_experts
from camox.training.building import build_network, open_data, refuse_single_values
from camox.training.phases import batches_of
from camox.training.run_folder import RunFolder


def check(experiment: Experiment) -> None:
    """Builds the network, opens the data, and says what would be trained.

    Weights from the hub are not fetched for this; a local `model.weights` file is loaded.

    Raises:
        CamoxError: the first thing that would keep the run from starting.
    """
    console = Console()
    for warning in experiment.warnings:
        console.warning(warning)
    model, start = experiment.model, experiment.experiment.init_from
    if start is not None:
        network = build_network(experiment, torch.device("cpu"))
        console.notice(f"training starts from the weights of {start}")
    elif model.pretrained and model.weights is None:
        without = model.model_copy(update={"pretrained": False})
        network = CamoXpert.from_experiment(experiment.model_copy(update={"model": without}))
        source = pretrained_source(model.backbone)
        weights = f"the pretrained weights of {model.backbone}"
        if source.is_cached:
            console.notice(f"{weights} are on this machine")
        else:
            console.notice(f"{weights} are fetched when training starts; without a network, {source.remedy}")
    else:
        network = CamoXpert.from_experiment(experiment)
    refuse_single_values(experiment, network)
    parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    console.notice(f"the model builds: {model.backbone}, {parameters:.1f} M parameters")
    console.notice(f"experts: {describe_experts(model.moe)}")

    data, settings = experiment.data, experiment.experiment
    train, held_out = open_data(experiment)
    for warning in selection_warnings(experiment):
        console.warning(warning)
    opened: list[Source | Subset | Reading] = [train, held_out]
    if data.test:
        opened.append(open_sources([source.plain() for source in data.test], split="test"))
    for notice in dict.fromkeys(notice for source in opened for notice in source.notices):
        console.warning(notice)
    for remark in dict.fromkeys(remark for source in opened for remark in source.remarks):
        console.notice(remark)
    rows: list[tuple[str, object]] = [(what_held_out(experiment), counted(len(held_out), "sample"))]
    for phase in experiment.phases_resolved():
        transforms = [transform.specification() for transform in data.augment]
        TrainSet(train, phase.image_size, transforms, sizes=phase.image_sizes)
        batches = len(batches_of(train, phase.batch_size, settings.seed))
        steps = -(-batches // phase.accumulate)
        rows.append(
            (
                phase.name,
                f"{counted(phase.epochs, 'epoch')} of {counted(steps, 'step')} on one process, "
                f"{', '.join(f'{size}²' for size in phase.image_sizes)}, lr {phase.lr:g}",
            )
        )
    if data.cache:
        rows.append(("cache", f"{_cache_gib(experiment, train):.2f} GiB in {data.cache}"))
    rows.append(("run folder", experiment.run_folder))
    if RunFolder(experiment.run_folder).holds_run():
        console.warning(f"{experiment.run_folder} already holds a run: only --resume goes on with it")
    console.header(f"{settings.name}: ready to train on {counted(len(train), 'sample')}", rows)


def _cache_gib(experiment: Experiment, train: Source | Subset | Reading) -> float:
    """What the cache of the training samples will take. Raises `DataError` where that is more than the limit."""
    whole = train.source if isinstance(train, Subset) else train
    sizes = [size for phase in experiment.phases_resolved() for size in phase.image_sizes]
    return require_within(len(whole), sizes, experiment.data.cache_gib) / GIB
