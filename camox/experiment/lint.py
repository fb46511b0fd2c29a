"""Combinations of settings that cannot work, and those that work but hardly as meant.

Every rule reads tables that are valid by themselves. A rule about several tables is left out while one of
them is not valid, and so is a finding about a key that is itself wrong.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from camox.experiment.effects import keys_without_effect
from camox.experiment.lines import KeyPath
from camox.experiment.problems import Problem, listed, quoted
from camox.experiment.sources import HabitatsSource, HubSource, batch_sizes

if TYPE_CHECKING:
    from camox.experiment.experiment import Experiment
    from camox.experiment.network import Model
    from camox.experiment.schema import (
        Checkpoints,
        Ema,
        Loss,
        Optimizer,
        Phase,
        Precision,
        Schedule,
        Validation,
    )
    from camox.experiment.sources import Data

Problems = Iterator[Problem]
FINAL_TERMS = ("structure", "structure_legacy", "bce", "iou", "dice", "tversky", "focal", "frequency")
"""Terms of the loss that compare the prediction itself with the mask."""


def combinations(tables: Mapping[str, Any], wrong: Sequence[KeyPath] = ()) -> list[Problem]:
    """Return what is impossible about valid tables, given by name; `wrong` are keys known to be wrong."""
    rules: tuple[tuple[tuple[str, ...], Callable[..., Problems]], ...] = (
        (("data",), _validation_data),
        (("data",), _habitats),
        (("data",), _streams),
        (("model",), _experts),
        (("model",), _load_band),
        (("model",), _router_without_gradient),
        (("model", "data", "phases"), _regions_of_padding),
        (("model", "loss"), _untrained_parts),
        (("phases",), _phase_names),
        (("phases",), _frozen_parts),
        (("phases",), _progressive_but_frozen),
        (("optimizer", "schedule", "phases"), _lowest_rate),
        (("schedule",), _milestones),
        (("schedule",), _cycle_without_rise),
        (("precision",), _loss_scale),
        (("checkpoints", "validation"), _monitor),
        (("validation",), _measures),
    )
    found = [
        problem
        for names, rule in rules
        if all(name in tables for name in names)
        for problem in rule(*(tables[name] for name in names))
    ]
    return [problem for problem in found if not _depends_on(problem, wrong)]


def _depends_on(problem: Problem, wrong: Sequence[KeyPath]) -> bool:
    reads = (problem.path, *problem.reads)
    return any(read[: len(path)] == path[: len(read)] for read in reads for path in wrong if path)


def warnings(experiment: "Experiment") -> tuple[str, ...]:
    """Return remarks on a valid experiment, as far as its file alone can tell. Nothing here depends on the
    devices."""
    return (
        *_warm_up_too_long(experiment.schedule, experiment.phases),
        *keys_without_effect(experiment),
        *_information_of_one_image(experiment),
        *_balance_never_warm(experiment),
        *_rate_never_lowered(experiment.schedule, experiment.validation, experiment.epochs),
        *_random_backbone_never_trained(experiment.model, experiment.phases),
        *_average_too_slow(experiment),
        *_too_few_images(experiment),
    )


def _validation_data(data: "Data") -> Problems:
    reads = (("data", "val"),)
    if data.val and data.val_fraction > 0:
        message = "val_fraction and val exclude each other: remove val_fraction, or set it to 0"
        yield Problem(("data", "val_fraction"), message, reads=reads)
    if not data.val and data.val_fraction == 0:
        message = "val_fraction = 0 leaves nothing to validate on: give val, or a fraction such as 0.1"
        yield Problem(("data", "val_fraction"), message, reads=reads)


def _habitats(data: "Data") -> Problems:
    for name in ("train", "val", "test"):
        for index, source in enumerate(getattr(data, name)):
            path = ("data", name, index)
            kinds = getattr(source, "kinds", ())
            yield from _duplicates((*path, "kinds"), kinds)
            if kinds and source.empty + source.tiny > 1:
                shares = f"empty = {source.empty} and tiny = {source.tiny}"
                message = f"{shares} are shares of the same images: together at most 1"
                yield Problem((*path, "tiny"), message, reads=((*path, "empty"),))


def _streams(data: "Data") -> Problems:
    """What is read as it comes cannot be looked at beforehand, nor gone back to by its number."""
    for name in ("train", "val", "test"):
        sources = getattr(data, name)
        for index, source in enumerate(sources):
            if isinstance(source, HubSource):
                yield from _stream(data, name, index, source, alone=len(sources) == 1)


def _stream(data: "Data", name: str, index: int, source: HubSource, alone: bool) -> Problems:
    path, streaming = ("data", name, index), ("data", name, index, "streaming")
    if not source.streaming:
        for key in ("count", "shuffle_buffer"):
            if getattr(source, key) is not None:
                message = f"{key} is for streamed sets: set streaming = true or remove it"
                yield Problem((*path, key), message, reads=(streaming,))
        return
    if name != "train":
        yield Problem(streaming, "only training data are streamed, because all of these are scored: remove streaming")
        return
    if not alone:
        message = "a streamed set is the only source of train: remove the others, or streaming"
        yield Problem(streaming, message, reads=(("data", "train"),))
    if source.weight != 1:
        message = f"weight = {source.weight} has no meaning for a streamed set: set count to what an epoch should have"
        yield Problem((*path, "weight"), message, reads=(streaming,))
    if source.super_class not in (None, "names"):
        message = "super_class has no meaning for a streamed set, of which nothing is held out: remove it"
        yield Problem((*path, "super_class"), message, reads=(streaming,))
    if data.cache:
        message = "a streamed set is not cached: remove cache, or streaming, which downloads the set once"
        yield Problem(("data", "cache"), message, reads=(streaming,))
    if not data.val:
        message = "nothing can be held out of a streamed set: give val, sources that are not streamed"
        yield Problem(streaming, message, reads=(("data", "val"), ("data", "val_fraction")))


def _experts(model: "Model") -> Problems:
    moe = model.moe
    yield from _duplicates(("model", "moe", "experts"), moe.experts)
    yield from _duplicates(("model", "moe", "scales"), moe.scales)
    if moe.top_k > len(moe.experts):
        message = f"top_k = {moe.top_k} exceeds the number of experts, {len(moe.experts)}: lower top_k or add experts"
        yield Problem(("model", "moe", "top_k"), message, reads=(("model", "moe", "experts"),))


def _router_without_gradient(model: "Model") -> Problems:
    moe = model.moe
    if moe.mode == "sparse" and moe.top_k == 1 and len(moe.experts) > 1:
        # The softmax over one chosen expert is the constant 1.
        message = "top_k = 1 gives the router no gradient from the task: use 2 or more"
        yield Problem(("model", "moe", "top_k"), message, reads=(("model", "moe", "mode"), ("model", "moe", "experts")))


def _load_band(model: "Model") -> Problems:
    low, high = model.moe.balance.band
    if not (0 <= low <= 1 <= high and low < high):
        wanted = "a lowest and a highest load around the equal share 1, such as [0.5, 2.0]"
        message = f"band = [{low}, {high}] must be {wanted}"
        yield Problem(("model", "moe", "balance", "band"), message)


def _regions_of_padding(model: "Model", data: "Data", phases: Sequence["Phase"]) -> Problems:
    """A grid that is too fine for a map: where it does not divide the map, whole regions lie beyond its border."""
    grid = model.moe.granularity
    if grid == "image":
        return
    own: dict[int, KeyPath] = {data.image_size: ("data", "image_size")}
    own |= {phase.image_size: ("phases", i, "image_size") for i, phase in enumerate(phases) if phase.image_size}
    read = own | {s: path for size, path in own.items() for s in batch_sizes(size, data.multi_scale)}
    maps = {(size, stride): -(-size // 32) * 32 // stride for size in read for stride in model.moe.scales}
    unfit = [at for at, side in maps.items() if not _fits(grid, side)]
    if not unfit:
        return
    size, stride = min(unfit, key=lambda at: maps[at])
    side = maps[size, stride]
    coarser = [number for number in range(2, grid) if all(_fits(number, side) for side in maps.values())]
    remedy = f"take {coarser[-1]}, the largest below it that fits all maps" if coarser else 'take "image"'
    message = (
        f"granularity = {grid} leaves regions of a {grid}×{grid} grid empty where an image of {size}² pixels has only "
        f"{side}×{side} cells, at stride {stride}: {remedy}, or larger images, or leave that stride out of scales"
    )
    reads = (("model", "moe", "scales"), *read.values())
    yield Problem(("model", "moe", "granularity"), message, reads=reads)


def _fits(grid: int, side: int) -> bool:
    """Whether each row of a grid has at least one of `side` cells, when all rows have equally many but for the last."""
    return -(-side // grid) * (grid - 1) < side


def _untrained_parts(model: "Model", loss: "Loss") -> Problems:
    """Parts of the network that no term of the loss would reach; several processes could not even start."""
    if not any(getattr(loss, term) for term in FINAL_TERMS):
        others = ", ".join(FINAL_TERMS[1:])
        message = f"structure = 0 leaves the prediction itself untrained: give it a weight, or one of {others}"
        yield Problem(("loss", "structure"), message, reads=tuple(("loss", term) for term in FINAL_TERMS[1:]))
    if model.deep_supervision and loss.deep == 0:
        message = "deep = 0 leaves the heads of deep supervision untrained: give it a weight, or set "
        message += "model.deep_supervision = false"
        yield Problem(("loss", "deep"), message, reads=(("model", "deep_supervision"),))
    if model.refinement_steps == 0 and loss.boundary == loss.uncertainty == 0:
        message = "boundary = uncertainty = 0 without refinement steps leaves the boundary head untrained: "
        reads = (("loss", "uncertainty"), ("model", "refinement_steps"))
        yield Problem(("loss", "boundary"), message + "give one of them a weight", reads=reads)


def _phase_names(phases: Sequence["Phase"]) -> Problems:
    first: dict[str, int] = {}
    for index, phase in enumerate(phases):
        earlier = first.setdefault(phase.name, index)
        if earlier != index:
            message = "another phase has this name already: rename one of them"
            yield Problem(("phases", index, "name"), message, reads=(("phases", earlier, "name"),))


def _frozen_parts(phases: Sequence["Phase"]) -> Problems:
    for index, phase in enumerate(phases):
        yield from _duplicates(("phases", index, "freeze"), phase.freeze)


def _progressive_but_frozen(phases: Sequence["Phase"]) -> Problems:
    for index, phase in enumerate(phases):
        if phase.unfreeze == "progressive" and "backbone" in phase.freeze:
            message = (
                'unfreeze = "progressive" and freeze = ["backbone"] exclude each other: remove one, or make two phases'
            )
            yield Problem(("phases", index, "unfreeze"), message, reads=(("phases", index, "freeze"),))


def _milestones(schedule: "Schedule") -> Problems:
    milestones = schedule.milestones
    if schedule.name == "multistep" and not milestones:
        message = 'name = "multistep" has no milestones: give the epochs after which the rate falls, such as [60, 90]'
        yield Problem(("schedule", "name"), message, reads=(("schedule", "milestones"),))
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        listing = ", ".join(f"{milestone:g}" for milestone in milestones)
        yield Problem(
            ("schedule", "milestones"), f"milestones = [{listing}] must increase: put them in order, each once"
        )


def _cycle_without_rise(schedule: "Schedule") -> Problems:
    if schedule.name == "one_cycle" and schedule.warmup_epochs == 0:
        message = (
            'warmup_epochs = 0 leaves "one_cycle" nothing to rise in: give it about 30 % of the run, or take "cosine"'
        )
        yield Problem(("schedule", "warmup_epochs"), message, reads=(("schedule", "name"),))


def _lowest_rate(optimizer: "Optimizer", schedule: "Schedule", phases: Sequence["Phase"]) -> Problems:
    if schedule.name == "constant":
        return
    reads: tuple[KeyPath, ...] = (("schedule", "name"), ("schedule", "min_lr"))
    remedy = f"is below schedule.min_lr = {schedule.min_lr}, the lowest rate of the schedule: lower min_lr or raise lr"
    uses_default = any(phase.lr is None for phase in phases)
    if uses_default and schedule.min_lr > optimizer.lr:
        yield Problem(("optimizer", "lr"), f"lr = {optimizer.lr} {remedy}", reads=reads)
    for index, phase in enumerate(phases):
        if phase.lr is not None and schedule.min_lr > phase.lr:
            yield Problem(("phases", index, "lr"), f"lr = {phase.lr} {remedy}", reads=reads)


def _loss_scale(precision: "Precision") -> Problems:
    if precision.min_scale > precision.init_scale:
        scales = f"init_scale = {precision.init_scale} is below min_scale = {precision.min_scale}"
        message = f"{scales}, so the run would stop at once: raise init_scale"
        yield Problem(("precision", "init_scale"), message, reads=(("precision", "min_scale"),))


def _monitor(checkpoints: "Checkpoints", validation: "Validation") -> Problems:
    if checkpoints.monitor not in validation.measures:
        message = (
            f'monitor = "{checkpoints.monitor}" is not measured: add it to validation.measures, '
            f"or monitor one of {listed(dict.fromkeys(validation.measures))}"
        )
        yield Problem(("checkpoints", "monitor"), message, reads=(("validation", "measures"),))


def _measures(validation: "Validation") -> Problems:
    yield from _duplicates(("validation", "measures"), validation.measures)


def _duplicates(path: KeyPath, values: Sequence[Any]) -> Problems:
    repeated = dict.fromkeys(value for value in values if values.count(value) > 1)
    for value in repeated:
        yield Problem(path, f"{path[-1]} names {quoted(value)} more than once: name it once")


def _warm_up_too_long(schedule: "Schedule", phases: Sequence["Phase"]) -> Iterator[str]:
    epochs = sum(phase.epochs for phase in phases)
    if schedule.warmup_epochs >= epochs:
        yield (
            f"schedule.warmup_epochs = {schedule.warmup_epochs} is no less than the run's {epochs} epochs: "
            "the learning rate never leaves its warm-up; shorten it"
        )


def _balance_never_warm(experiment: "Experiment") -> Iterator[str]:
    moe, epochs = experiment.model.moe, experiment.epochs
    balance = moe.balance
    if not moe.scales or moe.mode not in ("sparse", "dense") or balance.kind == "none" or balance.coefficient == 0:
        return
    if balance.warmup_epochs >= epochs and "warmup_epochs" in balance.model_fields_set:
        yield (
            f"model.moe.balance.warmup_epochs = {balance.warmup_epochs} is no less than the run's {epochs} epochs: the "
            "load-balance loss never reaches its weight; shorten it"
        )


def _rate_never_lowered(schedule: "Schedule", validation: "Validation", epochs: int) -> Iterator[str]:
    late = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if schedule.name == "multistep" and late:
        yield (
            f"schedule.milestones has {', '.join(f'{milestone:g}' for milestone in late)}, but the run ends after "
            f"{epochs} epochs: these are never passed; lower or remove them"
        )
    validations = math.ceil(epochs / validation.every_epochs)
    # The first validation is the best so far, and after the last one nothing is trained.
    if schedule.name == "plateau" and schedule.patience + 1 >= validations:
        yield (
            f"schedule.patience = {schedule.patience} is too long for the run's {validations} validations: "
            "the learning rate is never lowered; shorten it or validate more often"
        )


def _random_backbone_never_trained(model: "Model", phases: Sequence["Phase"]) -> Iterator[str]:
    is_random = not model.pretrained and model.weights is None
    if is_random and all("backbone" in phase.freeze for phase in phases):
        yield (
            "the backbone starts from random weights and is frozen in every phase: "
            "set model.pretrained or model.weights, or do not freeze it"
        )


def _information_of_one_image(experiment: "Experiment") -> Iterator[str]:
    """Both terms compare images with their batch-mates: a micro-batch of one image has none."""
    moe, balance = experiment.model.moe, experiment.model.moe.balance
    alone = [phase.name for phase in experiment.phases_resolved() if phase.batch_size == 1]
    if not alone or moe.granularity != "image" or not moe.scales or moe.mode not in ("sparse", "dense"):
        return
    effects = {
        "entropy": (balance.entropy, "asks for indecision in each image"),
        "mutual_information": (balance.mutual_information, "is always 0"),
    }
    for key, (weight, effect) in effects.items():
        if weight > 0:
            yield (
                f"model.moe.balance.{key} {effect} with batch_size = 1, in phase {alone[0]}: "
                "use a larger batch_size in place of optimizer.accumulate, or set it to 0"
            )


def _average_too_slow(experiment: "Experiment") -> Iterator[str]:
    """The average of an unfinished half-life is mostly the untrained weights; with warm-up it is not."""
    ema: Ema = experiment.ema
    steps = steps_on_one_device(experiment)
    if not ema.enabled or ema.warmup or ema.decay == 0 or steps is None:
        return
    half_life = math.log(0.5) / math.log(ema.decay)
    if half_life > steps:
        yield (
            f"ema.decay = {ema.decay} has a half-life of {half_life:.0f} steps, but the run at most {steps}: "
            "the average would be mostly untrained weights; lower ema.decay or set ema.warmup = true"
        )


def _too_few_images(experiment: "Experiment") -> Iterator[str]:
    images = training_images(experiment)
    if images is None:
        return
    for phase in experiment.phases_resolved():
        effective = phase.batch_size * phase.accumulate
        if effective > images:
            yield (
                f"phase {phase.name}: a step takes batch_size {phase.batch_size} × accumulate "
                f"{phase.accumulate} = {effective} images, but there are only {images}; lower one of them"
            )


def training_images(experiment: "Experiment") -> int | None:
    """Return the number of training images in an epoch, or None where only the disk can tell."""
    sources = experiment.data.train
    counts = [source.count if isinstance(source, HabitatsSource | HubSource) else None for source in sources]
    known = [count * source.weight for source, count in zip(sources, counts, strict=True) if count is not None]
    if len(known) < len(sources):
        return None
    return round(sum(known) * (1 - experiment.data.val_fraction))


def steps_on_one_device(experiment: "Experiment") -> int | None:
    """Return the number of optimizer steps of the run on one device, or None where only the disk can tell."""
    images = training_images(experiment)
    if images is None:
        return None
    return sum(
        phase.epochs * math.ceil(images / (phase.batch_size * phase.accumulate))
        for phase in experiment.phases_resolved()
    )
