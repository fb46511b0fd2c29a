"""Keys that are set, and have no effect on what is trained because of another key."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from camox.experiment.problems import listed
from camox.experiment.table import Table

if TYPE_CHECKING:
    from camox.experiment.experiment import Experiment
    from camox.experiment.network import MixtureOfExperts
    from camox.experiment.schema import Schedule
    from camox.experiment.sources import Data


def keys_without_effect(experiment: "Experiment") -> Iterator[str]:
    """Return a remark on each such key: what it is, why it has no effect, and what to do."""
    yield from _of_schedule(experiment.schedule)
    yield from _of_scored_sources(experiment.data)
    yield from _of_loading(experiment)
    tracking = experiment.tracking
    if tracking.wandb == "disabled" and tracking.artifacts != "none":
        yield 'tracking.artifacts has no effect with tracking.wandb = "disabled": remove it or choose another mode'
    moe = experiment.model.moe
    rules = [rule for rule in (*_rules_of_mode(moe), *_rules_of_balance(moe)) if rule.applies]
    for key in (*_keys_set(moe, "model.moe"), *_keys_set(experiment.optimizer, "optimizer")):
        rule = next((rule for rule in rules if key.startswith(rule.keys)), None)
        if rule is not None:
            yield f"{key} has no effect {rule.reason}: remove it or {rule.remedy}"


def _keys_set(table: Table, path: str) -> Iterator[str]:
    """Return the keys whose values are not the defaults, in inner tables too, as they are called in an override."""
    for key, field in type(table).model_fields.items():
        value = getattr(table, key)
        if isinstance(value, Table):
            yield from _keys_set(value, f"{path}.{key}")
        elif value != field.default:
            yield f"{path}.{key}"


def _of_schedule(schedule: "Schedule") -> Iterator[str]:
    readers = {
        "min_lr": ("cosine", "one_cycle", "multistep", "plateau"),
        "milestones": ("multistep",),
        "gamma": ("multistep", "plateau"),
        "patience": ("plateau",),
    }
    for key, names in readers.items():
        default = type(schedule).model_fields[key].default
        if schedule.name not in names and getattr(schedule, key) != default:
            yield (
                f'schedule.{key} has no effect with name = "{schedule.name}", only with {listed(names)}: '
                "remove it or choose another schedule"
            )


def _of_scored_sources(data: "Data") -> Iterator[str]:
    for name, sources in (("val", data.val), ("test", data.test)):
        for position, source in enumerate(sources):
            if source.weight != 1:
                yield (
                    f"data.{name}[{position}].weight has no effect: every image is scored once; remove it or move the "
                    "source to data.train"
                )


def _of_loading(experiment: "Experiment") -> Iterator[str]:
    data = experiment.data
    if not data.cache and data.cache_gib != type(data).model_fields["cache_gib"].default:
        yield "data.cache_gib has no effect without data.cache: remove it or name a folder"
    for phase in experiment.phases_resolved():
        if phase.multi_scale and len(set(phase.image_sizes)) == 1:
            yield (
                f"data.multi_scale gives every batch of phase {phase.name} the size {phase.image_sizes[0]}²: remove it "
                "or give factors that are further apart"
            )


class _Rule(NamedTuple):
    applies: bool
    keys: tuple[str, ...]
    """What the names of the keys without effect start with."""
    reason: str
    remedy: str


_ROUTER = ("model.moe.router", "optimizer.router_")
_BALANCE = "model.moe.balance"


def _rules_of_mode(moe: "MixtureOfExperts") -> Iterator[_Rule]:
    others = tuple(f"model.moe.{key}" for key in type(moe).model_fields if key != "scales")
    yield _Rule(not moe.scales, (*others, *_ROUTER), "with model.moe.scales = []", "name scales")

    readers: dict[tuple[str, ...], tuple[str, ...]] = {
        (*_ROUTER, _BALANCE): ("sparse", "dense"),
        ("model.moe.dispatch",): ("sparse", "random"),
        ("model.moe.top_k",): ("sparse", "static", "random"),
    }
    if len(moe.experts) < type(moe).model_fields["top_k"].default:
        del readers[("model.moe.top_k",)]  # it has to be set, or it exceeds the number of experts
    noise = tuple(f"model.moe.router.{key}" for key in ("noise", "noise_fraction"))
    yield _Rule(
        moe.mode != "sparse", noise, f'with model.moe.mode = "{moe.mode}", only with "sparse"', "choose that mode"
    )
    for keys, modes in readers.items():
        reason = f'with model.moe.mode = "{moe.mode}", only with {listed(modes)}'
        yield _Rule(moe.mode not in modes, keys, reason, "choose another mode")


def _rules_of_balance(moe: "MixtureOfExperts") -> Iterator[_Rule]:
    kind, is_dense = moe.balance.kind, moe.mode == "dense"
    selects = not is_dense and moe.top_k < len(moe.experts)
    without = 'model.moe.mode = "dense"' if is_dense else f"model.moe.top_k = {moe.top_k}, all experts"
    remedy = "choose another mode" if is_dense else "lower top_k"
    of_selection = ("model.moe.router.noise", f"{_BALANCE}.band", f"{_BALANCE}.bias_rate")
    yield _Rule(not selects, of_selection, f"with {without}", remedy)

    of_loss = (f"{_BALANCE}.coefficient", f"{_BALANCE}.warmup_epochs")
    reads_load = (f"{_BALANCE}.kind", *of_loss, f"{_BALANCE}.window_images")
    # With equal loads it is the sum of all probabilities, and that is 1 unless they have a floor.
    is_constant = not selects and kind in ("band", "switch") and moe.router.prob_floor == 0
    reason = f'with {without} and {_BALANCE}.kind = "{kind}", only with "importance"'
    yield _Rule(is_constant, reads_load, reason, "choose that kind")

    readers = {
        (f"{_BALANCE}.window_images", f"{_BALANCE}.band", f"{_BALANCE}.bias_rate"): ("band",),
        of_loss: ("band", "switch", "importance"),
    }
    for keys, kinds in readers.items():
        reason = f'with {_BALANCE}.kind = "{kind}", only with {listed(kinds)}'
        yield _Rule(kind not in kinds, keys, reason, "choose another kind")
