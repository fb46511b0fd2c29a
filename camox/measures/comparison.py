"""Several models on the same images: their scores side by side, and differences with paired intervals."""

from collections.abc import Mapping
from typing import Any

from camox.measures.bootstrap import Difference, paired_differences
from camox.measures.breakdown import DatasetScores
from camox.measures.rendering import MEASURES, TextTable
from camox.measures.tables import cell, empty_table, published_table

Compared = Mapping[str, Mapping[str, DatasetScores]]
"""Dataset → model → its scores; models of a dataset in the order given, the first one is what others differ from."""


def compare(compared: Compared) -> dict[str, Any]:
    """What comparison.json holds of each dataset: `"scores"`, {model: summary}, and `"differences"`,
    {model: {measure: {"value", "interval"}}} of each model after the first, minus the first, on the same images.

    Raises ValueError where models of a dataset were scored on other images.
    """
    return {dataset: _compared(dataset, of_models) for dataset, of_models in compared.items()}


def comparison_tables(document: Mapping[str, Any]) -> list[TextTable]:
    """Of what `compare` gave: scores of every model on every dataset, the differences, and what is published."""
    header = ["dataset", "model", "images", *MEASURES]
    scores = [
        [dataset, model, str(one["count"]), *(cell(one.get(name)) for name in MEASURES)]
        for dataset, of in document.items()
        for model, one in of["scores"].items()
    ]
    tables = [TextTable("Comparison", header, scores, numbers_from=2)]
    for dataset, of in document.items():
        if of["differences"]:
            tables.append(_difference_table(dataset, of))
    tables += empty_table(
        {f"{dataset}, {model}": one for dataset, of in document.items() for model, one in of["scores"].items()}
    )
    return [*tables, *(table for dataset, of in document.items() for table in published_table(dataset, of["scores"]))]


def difference_cell(difference: Mapping[str, Any]) -> str:
    """+0.0123 [+0.0041, +0.0205], with an asterisk where the interval leaves out 0."""
    if difference["value"] is None:
        return "–"
    if difference["interval"] is None:
        return f"{difference['value']:+.4f}"
    low, high = difference["interval"]
    return f"{difference['value']:+.4f} [{low:+.4f}, {high:+.4f}]" + ("*" if low > 0 or high < 0 else "")


DIFFERENCE_NOTE = (
    "95 % intervals of a paired bootstrap over the same images; * where 0 is outside. One in twenty does so by chance, "
    "and what another training of either model would give is not in them."
)


def _compared(dataset: str, of_models: Mapping[str, DatasetScores]) -> dict[str, Any]:
    first, *others = of_models
    reference = of_models[first]
    names = _counted_names(reference)
    for other in others:
        if _counted_names(of_models[other]) != names:
            raise ValueError(f"{dataset}: {first} and {other} were scored on different images")
    return {
        "scores": {model: scores.summary for model, scores in of_models.items()},
        "differences": {
            other: {
                name: _as_dict(difference)
                for name, difference in paired_differences(
                    _counted(reference), _counted(of_models[other]), reference.measures
                ).items()
            }
            for other in others
        },
    }


def _as_dict(difference: Difference) -> dict[str, Any]:
    interval = difference.interval
    return {"value": difference.value, "interval": None if interval is None else list(interval)}


def _counted(scores: DatasetScores) -> list[Any]:
    return [record.result for record in scores.records if record.result.counts]


def _counted_names(scores: DatasetScores) -> list[str]:
    return [record.name for record in scores.records if record.result.counts]


def _difference_table(dataset: str, of: Mapping[str, Any]) -> TextTable:
    first = next(iter(of["scores"]))
    differences: Mapping[str, Mapping[str, Any]] = of["differences"]
    rows = [
        [name, *(difference_cell(one[name]) for one in differences.values())]
        for name in MEASURES
        if all(name in one for one in differences.values())
    ]
    return TextTable(f"{dataset}: difference from {first}", ["measure", *differences], rows)
