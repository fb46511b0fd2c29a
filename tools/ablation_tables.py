"""The tables of an ablation as Markdown, for a page or the screen."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ablation_summary import Run, mean_usage, spread

_MISSING = "–"
_PREFERRED = 2
# Which pair of experts the work before camox expected a habitat to use.
_EXPECTED = {"forest": ("edge", "texture"), "desert": ("texture", "contrast"), "underwater": ("frequency", "edge")}


def markdown_tables(study: dict[str, Any]) -> str:
    """Every table of a study that its runs have numbers for, with a sentence above each."""
    runs = study["runs"]
    tables = [_setting(study), _measures(study), _by_kind(runs)]
    routed = [run for run in runs if run["routing"]]
    if questioned := [run for run in runs if run["counterfactual"]]:
        tables.append(_counterfactuals(questioned))
    if routed:
        tables += [_information(routed), _preferences(routed), *_expectations(routed)]
    return "\n\n".join(tables)


def _setting(study: dict[str, Any]) -> str:
    settings, machine, versions = study["settings"], study["machine"], study["versions"]
    seeds = dict.fromkeys(run["seed"] for run in study["runs"])
    return (
        f"`{_placeless(settings['experiment'])}` at {settings['image_size']}², {settings['steps']} steps, "
        f"{settings['images']} training images, seeds {', '.join(map(str, seeds))}; {machine['processor']}, "
        f"{machine['cores']} cores, torch {versions['torch']}. Mean ± sample standard deviation over seeds. Made by "
        f"`{_placeless(study['command'])}`."
    )


def _placeless(text: str) -> str:
    """The text with the last name alone of each absolute path, which says nothing on another machine."""
    return re.sub(r"(?<![\w./:~-])/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", text)


def _measures(study: dict[str, Any]) -> str:
    summary = study["summary"]
    reference, differences = summary["reference"], summary["differences"]
    lines = []
    for name, row in summary["rows"].items():
        difference = differences.get(name, {}).get("iou")
        lines.append(
            [
                name,
                _spread(row.get("iou"), _score),
                _spread(row.get("s_measure"), _score),
                _spread(row.get("mae"), _score),
                _spread(difference, _signed),
                ", ".join(_signed(value) for value in difference["by_seed"].values()) if difference else _MISSING,
                _spread(row.get("cpu_seconds"), "{:.0f}".format),
                _spread(row.get("peak_memory_bytes"), lambda value: f"{value / 2**30:.2f}"),
                _spread(row.get("parameters"), lambda value: f"{value / 1e6:.2f}"),
                f"{row['dead']['maximum']:.0f}" if "dead" in row else _MISSING,
            ]
        )
    heading = [
        "", "IoU", "S-measure", "MAE", f"IoU, {reference} − this", "by seed", "CPU seconds of a run",
        "peak memory, GiB", "parameters, M", "dead experts, all scales, worst seed",
    ]  # fmt: skip
    return "On the test images:\n\n" + _table(heading, lines)


def _by_kind(runs: Sequence[Run]) -> str:
    kinds = sorted(runs[0]["test"]["groups"])
    lines = [
        [name, *(_spread(spread(run["test"]["groups"][kind]["iou"] for run in of_row), _score) for kind in kinds)]
        for name, of_row in _rows(runs)
    ]
    return "IoU by habitat:\n\n" + _table(["", *kinds], lines)


def _counterfactuals(runs: Sequence[Run]) -> str:
    names = ("other_kind", "same_kind", "random")
    lines = []
    for name, of_row in _rows(runs):
        cells = []
        for counterfactual in names:
            results = [run["counterfactual"][counterfactual] for run in of_row]
            error = max(result["standard_error"] for result in results)
            cells.append(f"{_spread(spread(result['cost'] for result in results), _signed)} ({error:.4f})")
        lines.append([name, *cells])
    heading = ["", "an image of another habitat", "another image of its habitat", "random experts, own weights"]
    return (
        "What it costs in IoU to route each image, at all scales, by the choices made for (in brackets the largest "
        "standard error over images of any seed):\n\n" + _table(heading, lines)
    )


def _information(runs: Sequence[Run]) -> str:
    lines = []
    for name, of_row in _rows(runs):
        for stride in of_row[0]["routing"]["scales"]:
            scales = [run["routing"]["scales"][stride] for run in of_row]
            pairs = [scale["pair_share"] for scale in scales if scale["pair_share"] is not None]
            lines.append(
                [
                    name,
                    stride,
                    _spread(spread(scale["information"] - scale["chance"] for scale in scales), _score),
                    _spread(
                        spread(scale["untrained"]["information"] - scale["untrained"]["chance"] for scale in scales),
                        _score,
                    ),
                    _spread(spread(scale["information_gained"] for scale in scales), _signed),
                    f"{max(scale['dead'] for scale in scales)}",
                    _spread(spread(scale["effective_experts"] for scale in scales), "{:.2f}".format),
                    _spread(spread(pairs), _percent) if pairs else _MISSING,
                ]
            )
    heading = [
        "", "stride", "I(habitat; expert), nat, above chance", "untrained", "gained", "dead experts, worst seed",
        "experts in effect", "most frequent pair",
    ]  # fmt: skip
    return "What the choices tell of the habitat:\n\n" + _table(heading, lines)


def _preferences(runs: Sequence[Run]) -> str:
    name, of_row = next(iter(_rows(runs)))
    routing = of_row[0]["routing"]
    lines = []
    for kind in next(iter(routing["scales"].values()))["usage_by_kind"]:
        cells = []
        for stride in routing["scales"]:
            usage = mean_usage(of_row, stride, kind)
            best = sorted(zip(usage, routing["experts"], strict=True), reverse=True)[:_PREFERRED]
            cells.append(", ".join(f"{expert} {_percent(share)}" for share, expert in best))
        lines.append([kind, *cells])
    heading = ["", *(f"stride {stride}" for stride in routing["scales"])]
    return f"The two experts that each habitat uses most, in {name} (mean over seeds):\n\n" + _table(heading, lines)


def _expectations(runs: Sequence[Run]) -> list[str]:
    """One table, or none where no row has such a habitat and such experts."""
    strides = sorted({stride for run in runs for stride in run["routing"]["scales"]}, key=int)
    lines = []
    for name, of_row in _rows(runs):
        for kind, pair in _EXPECTED.items():
            favours = [_favour(of_row, stride, kind, pair) for stride in strides]
            if any(favours):
                lines.append([name, kind, " + ".join(pair), *(_spread(favour, _signed) for favour in favours)])
    if not lines:
        return []
    heading = ["", "habitat", "expected experts", *(f"stride {stride}" for stride in strides)]
    return [
        "Whether a habitat favours the two experts that the work before camox expected it to: the share of its choices "
        "that they get together, minus their share of the choices of all habitats (positive = favoured):\n\n"
        + _table(heading, lines)
    ]


def _favour(runs: Sequence[Run], stride: str, kind: str, pair: Sequence[str]) -> dict[str, Any] | None:
    """The experts' share of this kind's choices minus that of all choices; None where no run has all of these."""
    favours = []
    for run in runs:
        experts, scale = run["routing"]["experts"], run["routing"]["scales"].get(stride)
        if scale is None or kind not in scale["usage_by_kind"] or not set(pair) <= set(experts):
            continue
        of_kind, of_all = scale["usage_by_kind"][kind], scale["usage"]
        favours.append(sum(of_kind[expert] - of_all[expert] for expert in map(experts.index, pair)))
    return spread(favours) if favours else None


def _rows(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """Runs by row, rows in the order in which they first appear."""
    names = dict.fromkeys(run["name"] for run in runs)
    return [(name, [run for run in runs if run["name"] == name]) for name in names]


def _table(heading: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in heading[1:])]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heading, rule, *lines))


def _spread(values: dict[str, Any] | None, form: Callable[[float], str]) -> str:
    """Mean and standard deviation, the latter where there are two values that differ."""
    if values is None:
        return _MISSING
    deviation = values["deviation"]
    return form(values["mean"]) + (f" ± {form(deviation).removeprefix('+')}" if deviation else "")


def _score(value: float) -> str:
    return f"{value:.4f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{value:.0%}"
