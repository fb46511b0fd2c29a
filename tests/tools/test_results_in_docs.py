"""The numbers on the pages are those of committed results."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import ablation_tables
import export_parity
import inference_options
import stability_page
from benchmarking import report
from pages import read_block

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "step": ("model.md", report.markdown_tables),
    "moe": ("model.md", report.markdown_tables),
    "ablation": ("model.md", ablation_tables.markdown_tables),
    "infer": ("benchmarks.md", report.markdown_tables),
    "export": ("export.md", export_parity.markdown_table),
    "predict": ("inference.md", report.markdown_tables),
    "inference_options": ("inference.md", inference_options.markdown_tables),
    "measures": ("measures.md", report.markdown_tables),
    "memory": ("memory.md", report.markdown_tables),
    "options": ("performance.md", report.markdown_tables),
    "startup": ("performance.md", report.markdown_tables),
    "scaling": ("performance.md", report.markdown_tables),
}
"""Block, which is the name of its results too → its page, and what makes its tables."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_results_and_pictures_that_a_page_names_are_there(page):
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"benchmarks/results/[\w.-]*\w", text))
    pictures = {str((page.parent / link).relative_to(ROOT)) for link in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)}
    missing = [name for name in sorted(named | pictures) if not (ROOT / name).is_file()]
    assert not missing


@pytest.mark.parametrize("block", TABLES)
def test_tables_on_the_page_are_those_of_the_results(block):
    results = json.loads((RESULTS / f"{block}.json").read_text(encoding="utf-8"))
    page, tables = TABLES[block]
    assert read_block(DOCS / page, block) == tables(results)


def test_the_table_of_loading_is_that_of_the_results():
    results = json.loads((RESULTS / "loader.json").read_text(encoding="utf-8"))
    assert read_block(ROOT / "docs" / "data.md", "loader") == report.markdown_tables(results)


def test_the_table_of_incidents_is_that_of_the_results():
    results = json.loads((RESULTS / "incidents.json").read_text(encoding="utf-8"))
    assert read_block(stability_page.PAGE, "incidents") == stability_page.markdown_table(results)
    assert {record["number"] for record in results["incidents"]} == set(range(1, 15))
