"""Figures as plotly.js takes them: plain dictionaries. Colours are names such as "@0" that the page looks up in its
light or dark theme, so that plotly itself need not be imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from camox.report.events import title_of_event
from camox.report.phases import Span, moment, spans_of
from camox.report.plots import Plot, plots_of
from camox.report.routers import judge_routers
from camox.report.run import Run
from camox.report.series import rounded, thinned

COLOURS = 8
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = {"info": "circle", "warning": "triangle-up", "error": "x"}
_SCALE = ((0, "@soft"), (1, "@0"))
_TOWERING = 30
_MOST_BINS = 200
_MOST_MARKS = 3000
_SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Figure:
    """A figure of the page. `data` and `layout` are plotly's."""

    key: str
    section: str
    title: str
    about: str
    data: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    is_wide: bool = False


def curves(runs: Sequence[Run], labels: Sequence[str]) -> list[Figure]:
    """Every plot for which a run has numbers; of several runs each plot has few names, and a colour for each run."""
    spans = [spans_of(run) for run in runs]
    shapes, last = _boundaries(spans), max(run.last_step for run in runs)
    figures = []
    for plot in plots_of(runs):
        for part in [plot] if len(runs) == 1 else _split(plot):
            data = _lines(part, runs, labels) + _limits(part, runs, labels)
            is_log = part.is_log or _has_towering_peaks(data)
            about = part.about + (" Logarithmic, for its peaks." if is_log and not part.is_log else "")
            layout = _layout(part, shapes, last, is_log)
            figures.append(Figure(part.key, part.section, part.title, about, data, layout))
    return figures


def timeline(run: Run, key: str) -> Figure:
    """Phases as bands, events as marks: a row for each kind, a mark for each severity."""
    spans = spans_of(run)
    events = [event for event in run.events if event.kind][-_MOST_MARKS:]
    kinds = list(dict.fromkeys(_escaped(title_of_event(event.kind)) for event in events))
    data = []
    for number, severity in enumerate(_SEVERITIES):
        those = [event for event in events if (event.severity if event.severity in _SEVERITIES else "info") == severity]
        if those:
            texts = [f"step {event.step} · {moment(event.time)}<br>{_folded(event.message)}" for event in those]
            mark = {"symbol": _SYMBOLS[severity], "size": 11, "color": f"@{('2', '4', '1')[number]}"}
            data.append(
                {
                    "type": "scatter", "mode": "markers", "name": severity, "x": [event.step for event in those],
                    "y": [_escaped(title_of_event(event.kind)) for event in those], "text": texts,
                    "hovertemplate": "%{y}<br>%{text}<extra></extra>",
                    "marker": mark,
                }
            )  # fmt: skip
    bands = [
        {
            "type": "rect", "xref": "x", "yref": "paper", "x0": span.after, "x1": span.until, "y0": 0, "y1": 1,
            "fillcolor": f"@{(0, 4, 3)[number % 3]}", "opacity": 0.18, "line": {"width": 0}, "layer": "below",
        }
        for number, span in enumerate(spans)
    ]  # fmt: skip
    layout = {
        "shapes": bands + _boundaries([spans]),
        "annotations": [_phase_label(span, run.last_step) for span in spans],
        "xaxis": {"title": {"text": "step"}, "range": [-0.02 * run.last_step - 0.5, 1.02 * run.last_step + 0.5]},
        "yaxis": {"type": "category", "categoryarray": kinds[::-1], "automargin": True},
        "height": 150 + 26 * max(2, len(kinds)),
        "hovermode": "closest",
        "margin": {"t": 34},
    }
    about = f"Bands are phases: {', '.join(span.name for span in spans) or 'none yet'}. Every mark is an event."
    return Figure(key, "Timeline", "Phases and events", about, data, layout, is_wide=True)


def usage(runs: Sequence[Run], labels: Sequence[str]) -> list[Figure]:
    """How much each expert is used: of one run over its steps, of several at the end, by scale."""
    strides = sorted({scale.stride for run in runs for scale in judge_routers(run).scales} | _trained_strides(runs))
    if len(runs) == 1:
        return [figure for stride in strides if (figure := _usage_over_time(runs[0], stride)) is not None]
    return [_usage_at_end(runs, labels, stride) for stride in strides]


def heat_map(key: str, title: str, about: str, rows: Sequence[str], columns: Sequence[str], values: Any) -> Figure:
    """Shares by expert (row) and group (column), written into the cells."""
    shares = [[rounded(float(value)) for value in row] for row in values]
    data = {
        "type": "heatmap", "x": list(map(_escaped, columns)), "y": list(map(_escaped, rows)), "z": shares, "zmin": 0,
        "colorscale": _SCALE,
        "texttemplate": "%{z:.0%}", "hovertemplate": "%{y}, %{x}: %{z:.1%}<extra></extra>",
        "colorbar": {"tickformat": ".0%", "thickness": 10}, "xgap": 1, "ygap": 1,
    }  # fmt: skip
    layout = {
        "xaxis": {"type": "category", "automargin": True},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
        "hovermode": "closest",
    }  # fmt: skip
    return Figure(key, "Routers by group", title, about, [data], layout)


def _split(plot: Plot) -> list[Plot]:
    """Several runs tell their lines apart by colour, so more than one name goes to more than one plot."""
    if len(plot.names) == 1:
        return [plot]
    return [
        Plot(
            f"{plot.key}_{position}", plot.section, f"{plot.title}: {called}", plot.about, {name: called},
            {key: value for key, value in plot.averaged.items() if key == name},
            plot.limits, plot.is_log, plot.from_zero,
        )
        for position, (name, called) in enumerate(plot.names.items())
    ]  # fmt: skip


def _lines(plot: Plot, runs: Sequence[Run], labels: Sequence[str]) -> list[dict[str, Any]]:
    lines = []
    for of_run, (run, label) in enumerate(zip(runs, labels, strict=True)):
        for of_name, (name, called) in enumerate(plot.names.items()):
            number = of_run if len(runs) > 1 else of_name
            text = label if len(runs) > 1 else called
            lines.append(_line(run, name, text, number, is_average=False))
            if name in plot.averaged:
                ema = "EMA weights" if text == "raw weights" else f"{text}, EMA"
                lines.append(_line(run, plot.averaged[name], ema, number, is_average=True))
    return [line for line in lines if line["x"]]


def _line(run: Run, name: str, text: str, number: int, is_average: bool) -> dict[str, Any]:
    steps, values = thinned(*run.series(name))
    return {
        "type": "scatter", "x": steps, "y": values, "name": _escaped(text),
        # A curve of one point would not be seen without its mark.
        "mode": "lines+markers" if is_average or len(steps) < 30 else "lines",
        "line": {
            "color": f"@{number % COLOURS}", "width": 1.3 if is_average else 2, "dash": DASHES[number % len(DASHES)],
        },
        "marker": {"size": 7 if is_average else 5, "symbol": "circle-open" if is_average else "circle"},
        "hovertemplate": "%{y:.4g}", "connectgaps": False,
    }  # fmt: skip


def _limits(plot: Plot, runs: Sequence[Run], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Lines across, one for each place: runs with the same limit share it."""
    places: dict[tuple[str, float], list[int]] = {}
    for number, run in enumerate(runs):
        for called, limit in plot.limits.items():
            if run.experiment is not None and (place := limit(run.experiment)) > 0:
                places.setdefault((called, place), []).append(number)
    last = max(run.last_step for run in runs)
    lines = []
    for (called, place), of in places.items():
        whose = "" if len(of) == len(runs) else f", {', '.join(labels[number] for number in of)}"
        line = {"color": "@ink", "width": 1.2, "dash": "dot"}
        lines.append(
            {
                "type": "scatter", "mode": "lines", "x": [0, last], "y": [place, place], "line": line,
                "name": _escaped(f"{called} {place:.4g}{whose}"), "hoverinfo": "skip",
            }
        )  # fmt: skip
    return lines


def _layout(plot: Plot, shapes: list[dict[str, Any]], last_step: int, is_log: bool) -> dict[str, Any]:
    yaxis: dict[str, Any] = {"type": "log" if is_log else "linear", "automargin": True}
    if is_log:
        yaxis |= {"exponentformat": "power", "dtick": 1}
    if plot.from_zero:
        yaxis["rangemode"] = "tozero"
    xaxis = {"title": {"text": "step"}, "range": [0, 1.01 * max(1, last_step)]}
    return {"xaxis": xaxis, "yaxis": yaxis, "shapes": shapes, "hovermode": "x unified"}


def _has_towering_peaks(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether on a linear axis only a few points could be seen, and on a logarithmic one all."""
    values = sorted(value for line in lines for value in line["y"] if value is not None)
    return bool(values) and values[0] > 0 and values[-1] > _TOWERING * values[len(values) // 2]


def _boundaries(spans: Sequence[Sequence[Span]]) -> list[dict[str, Any]]:
    """A line where a phase begins: alike for all runs where they agree, else in the colour of its run."""
    places = [[span.after for span in of_run[1:]] for of_run in spans]
    agree = all(place == places[0] for place in places)
    shapes = []
    for number, of_run in enumerate(places[:1] if agree else places):
        colour = "@quiet" if agree else f"@{number % COLOURS}"
        line = {"color": colour, "width": 1, "dash": "dash"}
        shapes += [
            {"type": "line", "xref": "x", "yref": "paper", "x0": at, "x1": at, "y0": 0, "y1": 1, "line": line}
            for at in of_run
        ]
    return shapes


def _phase_label(span: Span, last_step: int) -> dict[str, Any]:
    share = (span.until - span.after) / max(1, last_step)
    name = span.name if len(span.name) <= 80 * share + 3 else span.name[: max(1, int(80 * share) + 2)] + "…"
    return {
        "xref": "x", "yref": "paper", "x": span.after, "y": 1, "xanchor": "left", "yanchor": "bottom",
        "text": f"<b>{_escaped(name)}</b>", "showarrow": False,
    }  # fmt: skip


def _usage_over_time(run: Run, stride: int) -> Figure | None:
    prefix = f"router/stride_{stride}/usage/"
    of_training = any(name.startswith(prefix) for row in run.rows for name in row.values)
    prefix = prefix if of_training else f"val/{prefix}"
    experts = list(dict.fromkeys(name for row in run.rows for name in row.values if name.startswith(prefix)))
    rows = [row for row in run.rows if any(name in row.values for name in experts)]
    if not rows:
        return None
    stretches = [
        rows[start : start + -(-len(rows) // _MOST_BINS)] for start in range(0, len(rows), -(-len(rows) // _MOST_BINS))
    ]
    shares = [
        [rounded(sum(row.values.get(name, 0) for row in part) / len(part)) for part in stretches] for name in experts
    ]
    names = [name.removeprefix(prefix) for name in experts]
    most = 1 / (run.experiment.model.moe.top_k if run.experiment else 2)
    data = {
        "type": "heatmap", "x": [part[-1].step for part in stretches], "y": names, "z": shares, "zmin": 0, "zmax": most,
        "colorscale": _SCALE, "colorbar": {"tickformat": ".0%", "thickness": 10},
        "hovertemplate": "%{y}, step %{x}: %{z:.1%}<extra></extra>",
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "step"}}, "shapes": _boundaries([spans_of(run)]), "hovermode": "closest",
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True},
    }  # fmt: skip
    about = (
        f"Share of the choices that went to each expert, {'in training' if of_training else 'on held-out images'}. "
        f"Equal use is {1 / len(names):.0%}, and {most:.0%} is all that one can get. A row without colour is not used."
    )
    return Figure(f"usage_{stride}", "Routers", f"Use of the experts at stride {stride}", about, [data], layout)


def _usage_at_end(runs: Sequence[Run], labels: Sequence[str], stride: int) -> Figure:
    data = []
    for number, (run, label) in enumerate(zip(runs, labels, strict=True)):
        for prefix in (f"val/router/stride_{stride}/usage/", f"router/stride_{stride}/usage/"):
            rows = [row for row in run.rows if any(name.startswith(prefix) for name in row.values)]
            if rows:
                shares = {
                    name.removeprefix(prefix): rounded(share)
                    for name, share in rows[-1].values.items()
                    if name.startswith(prefix)
                }
                pattern = ("", "/", "x", ".", "\\", "+")[number % 6]
                marker = {"color": f"@{number % COLOURS}", "pattern": {"shape": pattern}}
                data.append(
                    {
                        "type": "bar", "name": _escaped(label), "x": list(shares), "y": list(shares.values()),
                        "marker": marker,
                        "hovertemplate": "%{x}: %{y:.1%}",
                    }
                )  # fmt: skip
                break
    layout = {
        "barmode": "group", "hovermode": "x unified",
        "yaxis": {"tickformat": ".0%", "rangemode": "tozero"}, "xaxis": {"type": "category"},
    }  # fmt: skip
    about = "Share of the choices that went to each expert, on held-out images at the last validation."
    return Figure(f"usage_{stride}", "Routers", f"Use of the experts at stride {stride}", about, data, layout)


def _trained_strides(runs: Sequence[Run]) -> set[int]:
    prefix = "router/stride_"
    texts = {
        name.removeprefix(prefix).partition("/")[0]
        for run in runs
        for row in run.rows
        for name in row.values
        if name.startswith(prefix) and "/usage/" in name
    }
    return {int(text) for text in texts if text.isdecimal() and len(text) < 6}


def _folded(text: str, width: int = 70, most: int = 6) -> str:
    """A text in lines for a label that cannot break them itself; plotly reads some HTML, so it is escaped."""
    lines, line = [], ""
    for word in text.split():
        word = word if len(word) <= width else word[: width - 1] + "…"
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    lines = [*lines, line]
    if len(lines) > most:
        lines = [*lines[:most], "…"]
    return "<br>".join(map(_escaped, lines))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
