"""Tables of text as Markdown and as LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MEASURES = {
    "s_measure": ("S", "$S_\\alpha$"),
    "f_weighted": ("wF", "$F_\\beta^w$"),
    "f_max": ("F max", "$F_\\beta^{\\max}$"),
    "f_mean": ("F mean", "$F_\\beta^{\\mathrm{mean}}$"),
    "f_adaptive": ("F adp", "$F_\\beta^{\\mathrm{adp}}$"),
    "e_max": ("E max", "$E_\\phi^{\\max}$"),
    "e_mean": ("E mean", "$E_\\phi^{\\mathrm{mean}}$"),
    "e_adaptive": ("E adp", "$E_\\phi^{\\mathrm{adp}}$"),
    "mae": ("MAE", "$M$"),
    "iou": ("IoU", "IoU"),
    "dice": ("Dice", "Dice"),
}
"""Measures of the tables for people, with their titles in Markdown and LaTeX; the others are in measures.json."""

NAMES = {
    "s_measure": "S",
    "f_weighted": "weighted F",
    "f_max": "F max",
    "f_mean": "F mean",
    "f_adaptive": "F adaptive",
    "e_max": "E max",
    "e_mean": "E mean",
    "e_adaptive": "E adaptive",
    "mae": "MAE",
    "iou": "IoU",
    "dice": "Dice",
}
"""The same where there is room for a word."""


@dataclass(frozen=True)
class TextTable:
    """A table to print. Cells of `header` and of the first column may be names of measures, which get their titles;
    columns before `numbers_from` are aligned left, the others right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    numbers_from: int = 1


def markdown(tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """The tables one after the other, each under its title, and the notes below them."""
    blocks = []
    for table in tables:
        header = [_title(cell) for cell in table.header]
        rule = ["---"] * table.numbers_from + ["---:"] * (len(header) - table.numbers_from)
        rows = [[_title(row[0]), *row[1:]] for row in table.rows]
        lines = [header, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
        blocks += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines), *table.notes]
    return "\n\n".join([*blocks, *notes]) + "\n"


def latex(tables: Sequence[TextTable], notes: Sequence[str]) -> str:
    """A tabular for each table; titles and notes are comments."""
    lines = ["% needs the package booktabs", *(f"% {note}" for note in notes)]
    for table in tables:
        right = len(table.header) - table.numbers_from
        lines += [
            "",
            f"% {table.title}",
            *(f"% {note}" for note in table.notes),
            f"\\begin{{tabular}}{{{'l' * table.numbers_from}{'r' * right}}}",
            "\\toprule",
            " & ".join(_latex_title(cell) for cell in table.header) + " \\\\",
            "\\midrule",
            *(" & ".join([_latex_title(row[0]), *map(_latex_text, row[1:])]) + " \\\\" for row in table.rows),
            "\\bottomrule",
            "\\end{tabular}",
        ]
    return "\n".join(lines) + "\n"


def _title(cell: str) -> str:
    return MEASURES[cell][0] if cell in MEASURES else cell


def _latex_title(cell: str) -> str:
    return MEASURES[cell][1] if cell in MEASURES else _latex_text(cell)


def _latex_text(text: str) -> str:
    escapes = {character: f"\\{character}" for character in "&%$#_{}"}
    escapes |= {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "–": "--"}
    escapes |= {"<": "$<$", "≥": "$\\ge$", "−": "$-$", "±": "$\\pm$", "→": "$\\to$", "²": "\\textsuperscript{2}"}
    escaped = "".join(escapes.get(character, character) for character in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)  # a number's sign, not a hyphen
