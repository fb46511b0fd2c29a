"""Part of suite `options`: choices that concern one part of a step, or the start of an epoch."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarking.networks import build_network
from benchmarking.settings import Settings
from benchmarking.timing import Sample, Work, interleaved
from camox.data.habitats import Habitats
from camox.data.loading import TrainKey, TrainSet, collate_train, train_loader
from camox.models.camoxpert import CamoXpert
from camox.training.ema import Pairs, average_in_lists, average_one_by_one
from camox.training.meters import Meters
from camox.training.optimization import build_optimizer

Pair = tuple[list[Sample], list[Sample]]
"""What was measured with a choice, and without it."""
WORKERS = 2
EPOCH = 16
"""Batches of an epoch in which workers start anew: the first of these are what is waited for."""
VALUES = 60
"""About as many names are metered in a step; a quarter of them, of the routers, are vectors."""


def prepare_parts(settings: Settings) -> dict[str, tuple[Work, Work]]:
    """Choice → that part of a step with it and without."""
    network = build_network("sparse", settings)
    generator = torch.Generator(settings.device).manual_seed(0)
    for parameter in network.parameters():
        parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator, device=settings.device)
    return {
        "fused AdamW": (_optimizer(network, fused=True), _optimizer(network, fused=False)),
        "average by lists of tensors": _averages(network, settings),
        "packed meters": _meters(settings),
        "bytes until on the device": _batches(settings),
    }


def _optimizer(network: CamoXpert, fused: bool) -> Work:
    # At rate 0, so that both step the same weights again and again; each has moments of its own.
    return build_optimizer(network, {}, weight_decay=1e-4, betas=(0.9, 0.999), fused=fused).step


def _averages(network: CamoXpert, settings: Settings) -> tuple[Work, Work]:
    averaged = copy.deepcopy(network)
    pairs = list(zip(network.parameters(), averaged.parameters(), strict=True))
    share = torch.full((), 1e-3, device=settings.torch_device)

    def work(average: Callable[[Pairs, Tensor], None]) -> Work:
        def averages() -> None:
            with torch.no_grad():
                average(pairs, share)

        return averages

    return work(average_in_lists), work(average_one_by_one)


def _meters(settings: Settings) -> tuple[Work, Work]:
    values = {
        f"value/{number}": torch.ones(6 if number % 4 == 0 else (), device=settings.torch_device)
        for number in range(VALUES)
    }
    meters, sums = Meters(), dict.fromkeys(values, 0.0)

    def read_each() -> None:
        for name, value in values.items():
            sums[name] += sum(number.item() for number in value.flatten())

    return lambda: meters.add(values), read_each


def _batches(settings: Settings) -> tuple[Work, Work]:
    """Collate, copy, and make floats of a batch: last or first."""
    size = settings.image_size
    loaded = TrainSet(Habitats(settings.batch, seed=0, size=size), size)
    items = [loaded[0, number] for number in range(settings.batch)]
    device, pin = settings.torch_device, settings.on_gpu

    def late() -> Tensor:
        collated = collate_train(items)
        collated = collated.pin_memory() if pin else collated
        return collated.to(device, non_blocking=True).images.float() / 255

    def early() -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(
            np.stack([item.image.transpose(2, 0, 1).astype(np.float32) / np.float32(255) for item in items])
        )
        masks = torch.from_numpy(np.stack([item.mask for item in items])[:, None].astype(np.float32))
        if pin:
            images, masks = images.pin_memory(), masks.pin_memory()
        return images.to(device, non_blocking=True), masks.to(device, non_blocking=True)

    return late, early


def restarted_workers(settings: Settings) -> dict[str, Pair]:
    """A short epoch of small images by workers that live on, and by ones that are started for it; wall time."""
    size = 64
    source = Habitats(EPOCH, seed=0, size=size)

    def loader(persistent: bool) -> DataLoader[object]:
        keys: list[list[TrainKey]] = [[(0, index)] for index in range(len(source))]
        made: DataLoader[object] = train_loader(TrainSet(source, size), keys, WORKERS, pin_memory=False)
        if persistent:
            return made
        return DataLoader(
            made.dataset,
            batch_sampler=keys,
            num_workers=WORKERS,
            collate_fn=made.collate_fn,
            worker_init_fn=made.worker_init_fn,
        )

    on, anew = loader(True), loader(False)
    works: dict[str, Work] = {"on": lambda: list(on), "anew": lambda: list(anew)}
    samples = interleaved(works, settings.rounds, torch.device("cpu"))
    return {"workers that live on": (samples["on"], samples["anew"])}
