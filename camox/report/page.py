"""The report's page: everything in one HTML file that asks nothing of the network."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2

from camox.errors import ExperimentError
from camox.report import gallery
from camox.report.comparison import labels_of, outcome_table, settings_table
from camox.report.events import event_rows
from camox.report.facts import facts_of, mood_of, state_in_words
from camox.report.figures import Figure, curves, heat_map, timeline, usage
from camox.report.gallery import Examined, Key
from camox.report.phases import moment
from camox.report.routers import RouterVerdict, limits_in_words
from camox.report.run import Run
from camox.report.scores import published_tables, score_tables
from camox.report.verdict import Verdict, judge, number, title_of

_ROUTER_HEADER = (
    "stride", "state", "experts in effect", "least used, of an equal share", "most frequent pair", "load balance",
    "information, nat", "signs in the last validation",
)  # fmt: skip
_GROUPS_ABOUT = (
    "Each column: how one group's images are spread over the experts. The group tells {:.3f} nat, {:.3f} by chance."
)
_SCALE_STATES = {"one sign": "not collapsed, a sign of it"}
_MOST_GROUPS = 24
_SHORT = {
    "Measures on held-out data": "Measures", "Precision and skipped steps": "Precision", "Speed and memory": "Speed",
    "Routers by group": "Groups",
}  # fmt: skip

_OPEN = ("Measures on held-out data", "Loss")
"""Sections that are not folded where several runs make the page long."""


def render(runs: Sequence[Run], examined: Sequence[Examined]) -> str:
    """The page's text. `examined` has one entry for each run; those of runs without pictures say why in `trouble`."""
    labels = labels_of(runs)
    verdicts = [judge(run) for run in runs]
    figures = _figures(runs, labels, examined)
    return _template().render(
        title=labels[0] if len(runs) == 1 else " · ".join(labels),
        version=version("camox"),
        plotly=_plotly(),
        figures_json=_in_script({figure.key: {"data": figure.data, "layout": figure.layout} for figure in figures}),
        sections=(sections := _sections(figures)),
        contents=_contents(sections, is_one=len(runs) == 1),
        runs=[
            _described(number, *parts)
            for number, parts in enumerate(zip(runs, labels, verdicts, examined, figures, strict=False))
        ],
        side_by_side=[outcome_table(runs, verdicts, examined, labels), settings_table(runs, labels)]
        if len(runs) > 1
        else [],
        scores=score_tables(runs, labels),
        published=published_tables(runs, labels),
        galleries=_galleries(labels, examined),
    )


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("camox.report", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html")


def _figures(runs: Sequence[Run], labels: Sequence[str], examined: Sequence[Examined]) -> list[Figure]:
    """The timeline of each run first, in their order."""
    figures = [timeline(run, f"timeline_{position}") for position, run in enumerate(runs)]
    figures += curves(runs, labels) + usage(runs, labels)
    for position, (label, one) in enumerate(zip(labels, examined, strict=True)):
        if not one.is_choice:
            continue
        for of in gallery.shares_by_group(one):
            shown = [group or "(no group)" for group in of.groups[:_MOST_GROUPS]]
            title = f"Stride {of.stride}" if len(runs) == 1 else f"{label}, stride {of.stride}"
            about = _GROUPS_ABOUT.format(of.information, of.by_chance)
            shares = of.shares[:, :_MOST_GROUPS]
            figures.append(heat_map(f"groups_{position}_{of.stride}", title, about, one.experts, shown, shares))
    return figures


def _sections(figures: Sequence[Figure]) -> list[dict[str, Any]]:
    """Figures under the headings of their sections; timelines stand by their runs."""
    shown = [figure for figure in figures if figure.section != "Timeline"]
    order = list(dict.fromkeys(figure.section for figure in shown))
    return [
        {
            "title": section,
            "short": _SHORT.get(section, section),
            "key": gallery.slug(section),
            "is_open": section in _OPEN,
            "figures": [figure for figure in shown if figure.section == section],
        }
        for section in order
    ]


def _contents(sections: Sequence[Mapping[str, Any]], is_one: bool) -> list[tuple[str, str]]:
    """Ids and names of what the page has, in its order."""
    first = [("verdict", "Verdict"), ("timeline", "Timeline") if is_one else ("runs", "Run by run")]
    last = [("scores", "Test scores"), ("gallery", "Predictions")]
    if is_one:
        last += [("environment", "Environment"), ("experiment", "Experiment"), ("files", "Files")]
    return [*first, *((section["key"], section["short"]) for section in sections), *last]


def _described(
    position: int, run: Run, label: str, verdict: Verdict, examined: Examined, figure: Figure
) -> dict[str, Any]:
    return {
        "number": position,
        "label": label,
        "path": str(run.path),
        "state": state_in_words(verdict),
        "mood": mood_of(verdict),
        "missing": verdict.missing,
        "facts": facts_of(run, verdict, examined),
        "routers": verdict.routers,
        "router_rows": _router_rows(verdict.routers),
        "router_header": _ROUTER_HEADER,
        "router_limits": limits_in_words(run),
        "timeline": figure,
        "events": event_rows(run.events),
        "environment": _environment_rows(run.environment),
        "experiment": run.experiment_text,
        "files": [(name, _bytes(size)) for name, size in run.files],
        "checkpoints": [_checkpoint_row(path.name, manifest, run) for path, manifest in run.checkpoints.items()],
        "monitor": title_of(run.monitor),
        "written": moment(run.last_written),
    }


def _router_rows(routers: RouterVerdict) -> list[list[str]]:
    digits = {"effective_experts": 2, "least_share": 2, "pair_share": 2, "load_balance": 2, "mutual_information": 4}
    rows = []
    for scale in routers.scales:
        numbers = [number(scale.numbers[name], digits[name]) for name in digits]
        told = [f"told of at step {', '.join(map(str, scale.told_at))}"] if scale.told_at else []
        rows.append(
            [
                str(scale.stride),
                _SCALE_STATES.get(scale.state, scale.state),
                *numbers,
                "; ".join([*scale.signs, *told]) or "none",
            ]
        )
    return rows


def _galleries(labels: Sequence[str], examined: Sequence[Examined]) -> list[dict[str, Any]]:
    """One for all runs where they have images in common, else one for each."""
    seen_by_all = set.intersection(*({seen.key for seen in one.images} for one in examined))
    together = len(examined) == 1 or bool(seen_by_all)
    parts = [(labels, examined)] if together else [([of], [one]) for of, one in zip(labels, examined, strict=True)]
    return [_gallery(number, *part, is_only=together) for number, part in enumerate(parts)]


def _gallery(number: int, labels: Sequence[str], examined: Sequence[Examined], is_only: bool) -> dict[str, Any]:
    of_runs = [{seen.key: seen for seen in one.images} for one in examined]
    groups = gallery.chosen(examined) if any(of_runs) else {}
    seen, total = len(of_runs[0]), examined[0].total
    about = [
        f"{label}: {one.trouble}" if one.trouble else f"{label}: {one.checkpoint}, {one.weights}."
        for label, one in zip(labels, examined, strict=True)
    ]
    if seen:
        which = f"all {seen} images" if seen >= total else f"{seen} of {total} images, spread evenly over them"
        about.append(
            f"The model was run on {which}. Sorted by IoU{', the mean of the runs' if len(labels) > 1 else ''}."
        )
    return {
        "number": number,
        "title": "Predictions" if is_only else f"Predictions of {labels[0]}",
        "about": about,
        "groups": [
            {"heading": heading, "cards": [_card(key, labels, examined, of_runs) for key in keys]}
            for heading, keys in groups.items()
        ],
    }


def _card(
    key: Key, labels: Sequence[str], examined: Sequence[Examined], of_runs: Sequence[Mapping[Key, gallery.Seen]]
) -> dict[str, Any]:
    first = of_runs[0][key]
    shared = ("image", "truth")
    views = []
    for label, one, of_run in zip(labels, examined, of_runs, strict=True):
        seen = of_run[key]
        views.append(
            {
                "label": label if len(labels) > 1 else "",
                "tiles": _tiles(
                    [(what, picture) for what, picture in seen.pictures.items() if what not in shared], key
                ),
                "scores": _score_texts(seen),
                "experts": gallery.experts_of(seen, one.experts) if one.is_choice else [],
            }
        )
    return {
        "id": gallery.card_id(key),
        "name": key.name,
        "dataset": key.dataset,
        "group": first.group,
        "tiles": _tiles([(what, first.pictures[what]) for what in shared], key),
        "views": views,
    }


def _tiles(pictures: Sequence[tuple[str, Any]], key: Key) -> list[dict[str, str]]:
    return [
        {"what": what, "source": gallery.embedded(picture), "alt": f"{what} of {key.name}"}
        for what, picture in pictures
    ]


def _score_texts(seen: gallery.Seen) -> list[tuple[str, str]]:
    if "iou" not in seen.scores:
        area = seen.scores.get("false_positive_area")
        return [("called object, though there is none", "–" if area is None else f"{area:.1%} of the image")]
    return [(title_of(name), number(seen.scores.get(name))) for name in gallery.SCORES]


def _environment_rows(environment: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in environment.items():
        if isinstance(value, dict):
            rows += _environment_rows(value, f"{name}: ")
        elif isinstance(value, list):
            rows.append((f"{prefix}{name}", _counted_list(value)))
        else:
            rows.append((f"{prefix}{name}", str(value)))
    return rows


def _counted_list(values: Sequence[Any]) -> str:
    """Neighbours that are alike are counted: eight GPUs are one entry."""
    parts = [(value, len(list(same))) for value, same in groupby(map(str, values))]
    return " ".join(f"{count} × {value}" if count > 1 else value for value, count in parts)


def _checkpoint_row(name: str, manifest: Any, run: Run) -> list[str]:
    marks = " (best)" if run.best is not None and run.best.name == name else ""
    raw, ema = (number(manifest.measures.get(f"{kind}/{run.monitor}"), 4) for kind in ("val", "val_ema"))
    size = sum(file.size for file in manifest.files.values())
    return [name + marks, str(manifest.epoch), str(manifest.step), raw, ema, _bytes(size)]


def _bytes(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def _in_script(value: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _plotly() -> str:
    """The script that draws the figures, from plotly's package, which is not imported: that takes its time."""
    found = find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise ExperimentError("the report's plots need plotly: install it with pip install plotly")
    script = Path(found.submodule_search_locations[0]) / "package_data" / "plotly.min.js"
    try:
        return script.read_text(encoding="utf-8")
    except OSError as error:
        raise ExperimentError(
            f"{script}: plotly's script cannot be read ({error.strerror}): install plotly anew"
        ) from error
