"""CITATION.cff and CHANGELOG.md, as others' programs and readers take them."""

import re
from pathlib import Path

import yaml

import camox

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_is_of_this_version_and_has_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == camox.__version__
    assert citation["license"] == re.search(r'license = "(.+)"', (ROOT / "pyproject.toml").read_text())[1]
    assert all("name" in author or "family-names" in author for author in citation["authors"])


def test_the_changelog_tells_of_this_version():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(
        rf"^## \[?{re.escape(camox.__version__)}\b|^What will be {re.escape(camox.__version__)}\b", text, re.MULTILINE
    )
