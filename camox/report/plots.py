"""Which logged numbers are drawn together, under which title, with which limits as lines."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from camox.experiment import Experiment
from camox.measures.collapse import CollapseLimits
from camox.measures.routing import DEAD_BELOW
from camox.report.routers import limits_of
from camox.report.run import Run
from camox.report.verdict import title_of

Limit = Callable[[Experiment], float]


@dataclass(frozen=True)
class Plot:
    """A plot over the steps of a run."""

    key: str
    """Its id on the page."""
    section: str
    title: str
    about: str
    """What it shows and how to read it, a sentence or two; also what a screen reader reads."""
    names: Mapping[str, str]
    """Logged name → what the legend calls it."""
    averaged: Mapping[str, str] = field(default_factory=dict)
    """Logged name → that of the same for the EMA weights."""
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """What a line across is called → where it lies."""
    is_log: bool = False
    from_zero: bool = False


def plots_of(runs: Sequence[Run]) -> list[Plot]:
    """The plots for which any of the runs has numbers."""
    logged = list(dict.fromkeys(name for run in runs for row in run.rows for name in row.values))
    monitor = runs[0].monitor
    plots = [*_validation(logged, monitor), *_losses(logged), *_optimisation(logged), *_precision(), *_routers(logged)]
    plots += _speed()
    return [plot for plot in plots if any(name in logged for name in plot.names)]


def _losses(logged: Sequence[str]) -> list[Plot]:
    terms = {name: name.removeprefix("train/loss/") for name in logged if name.startswith("train/loss/")}
    loss = {"train/loss": "training", "val/loss": "validation"}
    return [
        Plot(
            "loss", "Loss", "Loss", "The sum of all terms, as it is minimised; on held-out data after each validation.",
            loss, {"val/loss": "val_ema/loss"},
        ),
        Plot("terms", "Loss", "Terms of the loss", "Each term by itself, before its weight of [loss].", terms),
        Plot("train_iou", "Loss", "IoU of training batches", "As the batches came, augmented.", {"train/iou": "IoU"}),
    ]  # fmt: skip


def _validation(logged: Sequence[str], monitor: str) -> list[Plot]:
    names = dict.fromkeys([monitor, "iou", "s_measure", "f_weighted", "e_mean", "mae"])
    plots = [
        Plot(
            f"val_{name}", "Measures on held-out data", f"{title_of(name)} (val/{name})",
            ("Checkpoints are selected by this measure. " if name == monitor else "")
            + ("Lower is better." if name == "mae" else "Higher is better."),
            {f"val/{name}": "raw weights"}, {f"val/{name}": f"val_ema/{name}"},
        )
        for name in names
    ]  # fmt: skip
    groups = {
        name: match[1]
        for name in logged
        if (match := re.fullmatch(r"val/(.+)/iou", name)) and not match[1].startswith("router/")
    }
    about = "Mean IoU of each habitat or super-class, raw weights: which kind of image is learned, and when."
    if len(groups) > 1:  # of a single one it would be the plot of all
        plots.append(Plot("val_groups", "Measures on held-out data", "IoU by group", about, groups))
    return plots


def _optimisation(logged: Sequence[str]) -> list[Plot]:
    rates = {name: name.removeprefix("lr/") for name in logged if name.startswith("lr/")}
    norms = {f"grad_norm/{name}": name for name in ("total", "backbone", "experts", "head")}
    section = "Optimisation"
    return [
        Plot("lr", section, "Learning rates", "Of each group of parameters, after every factor.", rates),
        Plot(
            "norms", section, "Gradient norms",
            "Before clipping. The line is the limit of all but the routers together, which the total nearly is.",
            norms, limits={"optimizer.clip": lambda experiment: experiment.optimizer.clip or 0}, is_log=True,
        ),
        Plot(
            "router_norm", section, "Gradient norm of the routers", "Before clipping, by a limit of their own.",
            {"grad_norm/router": "routers"}, is_log=True,
            limits={"optimizer.router_clip": lambda experiment: experiment.optimizer.router_clip or 0},
        ),
        Plot(
            "clipped", section, "Share of steps that were clipped",
            "1 means every step: the limit, not the rate, then sets the pace.",
            {"grad_norm/clipped/rest": "all but the routers", "grad_norm/clipped/router": "routers"}, from_zero=True,
        ),
    ]  # fmt: skip


def _precision() -> list[Plot]:
    section = "Precision and skipped steps"
    return [
        Plot(
            "scale", section, "Loss scale (fp16)",
            "It grows until gradients overflow and is then halved: a sawtooth is sound, a steady fall is not.",
            {"amp/scale": "scale"}, is_log=True,
            limits={"precision.min_scale": lambda experiment: experiment.precision.min_scale},
        ),
        Plot(
            "skips", section, "Skipped steps so far", "Steps whose loss or gradient was not finite.",
            {"stability/skipped_batches": "skipped steps", "stability/rollbacks": "rollbacks"}, from_zero=True,
        ),
        Plot(
            "skip_rate", section, "Share of steps skipped", "Of the steps between two logged ones.",
            {"amp/skip_rate": "skipped"}, from_zero=True,
        ),
    ]  # fmt: skip


def _routers(logged: Sequence[str]) -> list[Plot]:
    section = "Routers"

    def of_scales(measure: str) -> dict[str, str]:
        found = {
            int(match[1]): name
            for name in logged
            if (match := re.fullmatch(rf"val/router/stride_(\d{{1,5}})/{measure}", name))
        }
        return {found[stride]: f"stride {stride}" for stride in sorted(found)}

    dead = f"{DEAD_BELOW * 100:g} %"
    texts = {
        "load_balance": (
            "Load balance", "N·Σf·P: 1 is balanced; at worst it is N/k, where k of the N experts do everything.",
        ),
        "dead": ("Dead experts", f"Experts that get less than {dead} of an equal share of the choices."),
        "entropy": ("Entropy of the experts' use", "In nat; its exponential is how many experts are in effect."),
        "pair_share": ("Share of the most frequent pair", "Above the line one pair of experts does everything."),
        "mutual_information": (
            "Information between image and expert", "In nat; below the line the router treats all images alike.",
        ),
        "kind_information": (
            "Information between group and expert",
            "In nat, beyond what chance gives: whether images of one habitat or super-class go to the same experts.",
        ),
    }  # fmt: skip
    limits: dict[str, dict[str, Limit]] = {
        "entropy": {"collapse below": _of_collapse(lambda limits: math.log(limits.effective_experts_below))},
        "pair_share": {"collapse above": _of_collapse(lambda limits: limits.pair_share_above or 0)},
        "mutual_information": {"collapse below": _of_collapse(lambda limits: limits.information_below)},
    }
    plots = [
        Plot(
            f"router_{measure}", section, title, f"{about} On held-out images, by scale.", of_scales(measure),
            limits=limits.get(measure, {}), from_zero=measure == "dead",
        )
        for measure, (title, about) in texts.items()
    ]  # fmt: skip
    control = {"router/warmup_factor": "warm-up factor"}
    about = "The share of the balance loss that is in force: it rises from 0 to 1 over balance.warmup_epochs."
    return [*plots, Plot("router_control", section, "Warm-up of the balance loss", about, control, from_zero=True)]


def _of_collapse(limit: Callable[[CollapseLimits], float]) -> Limit:
    """A limit of the run's routers; 0, which is no line, where none can collapse."""

    def of(experiment: Experiment) -> float:
        limits = limits_of(experiment)
        return limit(limits) if limits else 0

    return of


def _speed() -> list[Plot]:
    section = "Speed and memory"
    return [
        Plot(
            "images", section, "Images per second", "Of all processes together.",
            {"train/images_per_second": "images per second"}, from_zero=True,
        ),
        Plot(
            "wait", section, "Share of time spent waiting for data",
            "Near 0 the device sets the pace; far above it, more data.workers or data.cache help.",
            {"train/data_wait": "waiting"}, from_zero=True,
        ),
        Plot(
            "memory", section, "Device memory, peak", "In GiB, on the main process.",
            {"memory/peak_gib": "GiB"}, from_zero=True,
        ),
        Plot(
            "saving", section, "Saving a checkpoint", "Seconds until it was safe, and those for which training waited.",
            {"checkpoint/seconds": "until safe", "checkpoint/blocked_seconds": "training waited"}, from_zero=True,
        ),
    ]  # fmt: skip
