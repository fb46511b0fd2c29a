"""What the README and the docs say exists, exists; the numbers in them are those of the committed results."""

import json
import re
import shlex
from pathlib import Path

import pytest

from camox.cli import main
from camox.experiment import Experiment

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_experiment_in_the_readme_loads(monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    file = ROOT / "readme_example.toml"
    try:
        file.write_text(block)
        experiment = Experiment.load(file, ["optimizer.lr=4e-4"])
    finally:
        file.unlink()
    assert experiment.experiment.name == "mine"


COMMANDS = re.findall(r"^    (camox [^#\n]+)", README, re.MULTILINE)


@pytest.mark.parametrize("command", sorted({shlex.split(command)[1] for command in COMMANDS}))
def test_its_verbs_exist(command, capsys):
    assert main([command, "--help"]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_its_options_exist(command, capsys):
    verb, *rest = shlex.split(command)[1:]
    verbs = [verb, rest.pop(0)] if verb == "data" else [verb]
    options = [word for word in rest[: rest.index("--")] if word.startswith("--")] if "--" in rest else rest
    main([*verbs, "--help"])
    text = capsys.readouterr().out
    for option in (word for word in options if word.startswith("--")):
        assert option in text, option


def test_the_table_of_scores_is_that_of_the_results():
    results = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text())
    for run in results["runs"]:
        test = run["test"]["habitats"]
        groups = [test["groups"][group]["iou"] for group in ("forest", "desert", "underwater", "rock", "mixture")]
        numbers = [f"{value:.3f}" for value in (test["iou"], *groups)]
        ema = run["held_out_iou_at_the_end"]
        minutes = run["seconds_from_launch_to_end"] / 60
        area = test["empty"]["false_positive_area"]
        cells = [str(run["seed"]), *numbers, f"{area:.1%}".replace("%", " %")]
        row = f"| {' | '.join(cells)} | {ema['raw']:.3f} / {ema['ema']:.3f} | {minutes:.1f} |"
        assert row in README, row
