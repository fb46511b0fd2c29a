"""CITATION.cff and CHANGELOG.md, as others' programs and readers take them."""

import re
from pathlib import Path

import tomli
import yaml

import camox

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_is_of_this_version_and_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == camox.__version__
    assert citation["license"] == re.search(r'license = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_an_index_can_say_for_whom_it_is_and_on_what_it_runs():
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    kinds = [classifier.partition(" :: ")[0] for classifier in project["classifiers"]]
    needed = {"Development Status", "Intended Audience", "Operating System", "Programming Language", "Topic"}
    assert needed <= set(kinds)
    lowest = project["requires-python"].removeprefix(">=")
    versions = [one for one in project["classifiers"] if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", one)]
    assert versions[0].endswith(lowest)


def test_the_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(
        rf"^## \[?{re.escape(camox.__version__)}\b|^What will be {re.escape(camox.__version__)}\b", text, re.MULTILINE
    )
