"""The numbers on the page of the model are those of committed results."""

import json
import re
from pathlib import Path

import pytest

from ablation_tables import markdown_tables
from pages import read_block

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "model.md"
ABLATION = ROOT / "benchmarks" / "results" / "ablation.json"
NAMED = sorted(set(re.findall(r"benchmarks/results/[\w.-]*\w", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("name", NAMED)
def test_results_that_the_page_names_are_there(name):
    block = Path(name).stem
    if f"<!-- {block} -->" in PAGE.read_text(encoding="utf-8") and not read_block(PAGE, block):
        pytest.skip(f"the block {block} of {PAGE.name} is empty: nothing was measured yet")
    assert (ROOT / name).is_file()


def test_the_tables_of_the_ablation_are_those_of_its_results():
    if not ABLATION.exists():
        pytest.skip(f"{ABLATION.name} is not committed yet")
    assert read_block(PAGE, "ablation") == markdown_tables(json.loads(ABLATION.read_text(encoding="utf-8")))
