"""Whether a run's routers collapsed: judged from the numbers of its last validations, scale by scale."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from camox.experiment import Experiment
from camox.measures.collapse import FEWEST_IMAGES, CollapseLimits, collapse_limits, collapse_signs
from camox.report.run import Row, Run

NUMBERS = ("effective_experts", "least_share", "pair_share", "load_balance", "mutual_information")


@dataclass(frozen=True)
class ScaleVerdict:
    """How one router stood at the end."""

    stride: int
    state: str
    """"sound", "not judged" (too few images), "one sign" (of one evaluation only), "collapsed" or "recovered"."""
    signs: tuple[str, ...]
    """What the last evaluation showed, a sentence each."""
    numbers: Mapping[str, float]
    """`NUMBERS` of the last evaluation, NaN where it has none: experts in effect, exp(H); the share of an equal one
    that the least used expert has; that of the most frequent pair; N·Σf·P; the information on the image, in nat."""
    told_at: tuple[int, ...]
    """Steps at which the run's own guard told of a collapse."""


@dataclass(frozen=True)
class RouterVerdict:
    """What is to be said of all routers of a run."""

    answer: str
    """"no", "yes", "recovered", or "unknown" where it cannot be judged."""
    sentence: str
    scales: tuple[ScaleVerdict, ...] = ()


def limits_of(experiment: Experiment) -> CollapseLimits | None:
    """Where signs of collapse begin in a run; None where no router selects, so that none can collapse."""
    moe = experiment.model.moe
    return collapse_limits(len(moe.experts), moe.top_k) if moe.scales and moe.mode == "sparse" else None


def limits_in_words(run: Run) -> str:
    """When a scale of this run counts as collapsed; empty where none can."""
    limits = limits_of(run.experiment) if run.experiment else None
    if limits is None:
        return ""
    signs = [f"an expert with less than {limits.dead_below * 100:g} % of an equal share"]
    if limits.pair_share_above is not None:
        signs.append(f"one pair with more than {limits.pair_share_above * 100:g} % of the decisions")
    signs += [
        f"fewer than {limits.effective_experts_below:g} experts in effect",
        f"less than {limits.information_below:g} nat of information on the image",
        f"logits at their limit in more than {limits.saturation_above * 100:g} % of the decisions",
    ]
    text = f"{', '.join(signs[:-1])}, or {signs[-1]}"
    return f"A scale has collapsed when two validations in a row show a sign: {text}."


def judge_routers(run: Run) -> RouterVerdict:
    """The answer for the whole run, with every scale's numbers."""
    if run.experiment is not None:
        moe = run.experiment.model.moe
        if not moe.scales:
            return RouterVerdict("no", "The network has no experts, so no router that could collapse.")
        if moe.mode != "sparse":
            return RouterVerdict("no", f"Mode {moe.mode}: no router selects experts, so none can collapse.")
    told: dict[int, list[int]] = {}
    for event in run.events:
        stride = event.details.get("stride")
        if event.kind == "router_collapse" and isinstance(stride, int):
            told.setdefault(stride, []).append(event.step)
    validations = run.validations()
    strides = sorted({*_strides(validations[-1] if validations else None), *told})
    if not validations or not strides:
        return RouterVerdict("unknown", "No validation has measured the routers yet.")
    images = validations[-1].values.get("val/count", 0)
    last = [_signs(run, row) for row in validations[-2:]]
    collapsed = _collapsed(validations[-1], last, told)
    scales = tuple(_of_scale(validations[-1], stride, last[-1], collapsed, told) for stride in strides)
    return RouterVerdict(*_sentence(scales, images, len(validations), len(told)), scales)


def _sentence(scales: tuple[ScaleVerdict, ...], images: float, validations: int, told: int) -> tuple[str, str]:
    collapsed = [str(scale.stride) for scale in scales if scale.state == "collapsed"]
    if collapsed:
        return "yes", f"Collapsed at {at_strides(collapsed)}, of {len(scales)} scales, as of the last validation."
    recovered = [str(scale.stride) for scale in scales if scale.state == "recovered"]
    if recovered:
        return (
            "recovered",
            f"Collapsed at {at_strides(recovered)} on the way, and recovered: sound at the last validation.",
        )
    if images < FEWEST_IMAGES and not told:
        return "unknown", f"Cannot be judged: {images:g} held-out images with an object, fewer than {FEWEST_IMAGES}."
    once = [str(scale.stride) for scale in scales if scale.state == "one sign"]
    if once:
        why = "the guard waits for two in a row, and for routers to have learned"
        return "no", f"Not collapsed, but the last validation shows a sign of it at {at_strides(once)}; {why}."
    return "no", f"Not collapsed at any of {len(scales)} scales, in {validations} validations."


def at_strides(strides: Sequence[str]) -> str:
    """ "stride 4", "strides 4, 8"."""
    return f"stride{'s' if len(strides) > 1 else ''} {', '.join(strides)}"


def _of_scale(
    row: Row,
    stride: int,
    signs: Mapping[int, Mapping[str, str]],
    collapsed: set[int],
    told: Mapping[int, list[int]],
) -> ScaleVerdict:
    found = signs.get(stride, {})
    judged = row.values.get("val/count", 0) >= FEWEST_IMAGES
    state = "one sign" if found else "sound" if judged else "not judged"
    if stride in collapsed:
        state = "collapsed"
    elif stride in told and not found:
        state = "recovered"
    return ScaleVerdict(stride, state, tuple(found.values()), _numbers(row, stride), tuple(told.get(stride, ())))


def _collapsed(row: Row, last: Sequence[Mapping[int, Mapping[str, str]]], told: Mapping[int, list[int]]) -> set[int]:
    """The run counts its collapsed scales; which ones they are, signs in two validations in a row say."""
    count = int(row.values.get("val/router/collapsed", 0))
    if len(last) < 2:
        return set()
    showing = [stride for stride in last[0] if last[0][stride] and last[1].get(stride)]
    # A scale that has learned nothing yet shows signs too, and is not counted; those told of are.
    return set(sorted(showing, key=lambda stride: stride not in told)[:count])


def _signs(run: Run, row: Row) -> dict[int, dict[str, str]]:
    top_k = run.experiment.model.moe.top_k if run.experiment else 2
    signs = {}
    for stride in _strides(row):
        prefix = f"val/router/stride_{stride}/"
        measures = {name.removeprefix(prefix): value for name, value in row.values.items() if name.startswith(prefix)}
        experts = sum(name.startswith("usage/") for name in measures)
        signs[stride] = collapse_signs(measures, experts, top_k, int(row.values.get("val/count", 0)))
    return signs


def _strides(row: Row | None) -> list[int]:
    prefix = "val/router/stride_"
    names = {} if row is None else row.values
    found = {name.removeprefix(prefix).partition("/")[0] for name in names if name.startswith(prefix)}
    return sorted(int(text) for text in found if text.isdecimal() and len(text) < 6)


def _numbers(row: Row, stride: int) -> dict[str, float]:
    prefix = f"val/router/stride_{stride}/"
    usage = [value for name, value in row.values.items() if name.startswith(f"{prefix}usage/")]
    numbers = {name: row.values.get(prefix + name, math.nan) for name in NUMBERS}
    entropy = row.values.get(f"{prefix}entropy", math.nan)
    numbers["effective_experts"] = math.exp(entropy) if entropy < 10 else math.nan
    numbers["least_share"] = len(usage) * min(usage) if usage else math.nan
    return numbers
