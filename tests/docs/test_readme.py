"""What the README and the docs say exists, exists; the numbers in them are those of the committed results."""

import json
import re

import pytest
import tomli

from camox.experiment import Experiment, json_schema
from tests.docs.commands import PAGES, ROOT

README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, _, place in re.findall(r"\]\(([^)#]*)(#([^)]+))?\)", page.read_text()):
        if "://" not in target:
            linked = page.parent / target if target else page
            assert linked.exists(), target
            assert not place or place in _anchors(linked), f"{target}#{place}"


def _anchors(page):
    """What headings can be linked by: in small letters, hyphens for spaces, without other signs."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_toml_is_known(page, monkeypatch):
    """Whole experiments load; of parts of one every key exists."""
    monkeypatch.chdir(ROOT)
    properties = json_schema()
    for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for table, keys in tomli.loads(block).items():
            if table in ("extends", "phases"):
                continue
            known = properties["$defs"][properties["properties"][table]["$ref"].rpartition("/")[2]]["properties"]
            assert keys.keys() <= known.keys(), block


def test_the_experiment_in_the_readme_loads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "mine.toml").write_text(block)
    experiment = Experiment.load(tmp_path / "mine.toml", ["optimizer.lr=4e-4"])
    assert experiment.experiment.name == "mine"


def test_the_table_of_scores_is_that_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text())
    rows = []
    for run in results["runs"]:
        test = run["test"]["habitats"]
        groups = [test["groups"][group]["iou"] for group in ("forest", "desert", "underwater", "rock", "mixture")]
        numbers = [f"{value:.3f}" for value in (test["iou"], *groups)]
        ema = run["held_out_iou_at_the_end"]
        minutes = run["seconds_from_launch_to_end"] / 60
        area = test["empty"]["false_positive_area"]
        cells = [str(run["seed"]), *numbers, f"{area:.1%}".replace("%", " %")]
        rows.append(f"| {' | '.join(cells)} | {ema['raw']:.3f} / {ema['ema']:.3f} | {minutes:.1f} |")
    (table,) = re.findall(r"^\| seed \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", README, re.MULTILINE)
    assert table.splitlines() == rows
