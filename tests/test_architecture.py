"""Rules about the repository as a whole that no linter checks."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "camox").rglob("*.py"))
TEXT_SUFFIXES = {".py", ".toml", ".md", ".txt", ".yaml", ".yml", ".json", ".cfg", ".in", ""}
LONGEST_FILE = 500


def test_top_level_modules_shadow_nothing():
    # Run as a script, camox/ could come first on sys.path; there `import inspect` must still be Python's.
    taken = set(sys.stdlib_module_names) | set(importlib.metadata.packages_distributions())
    names = {path.stem for path in (ROOT / "camox").iterdir() if path.suffix == ".py" or path.is_dir()}
    names -= {"__init__", "__main__", "__pycache__"}
    assert not names & taken


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("module", ["camox", "camox.errors", "camox.tracking.console", "camox.checkpoints.scan"])
def test_imports_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_the_console_prints():
    printing = re.compile(r"^\s*print\(", re.MULTILINE)
    printers = [path.relative_to(ROOT) for path in MODULES if printing.search(path.read_text(encoding="utf-8"))]
    assert not printers


def test_every_parser_tells_mistakes_alike():
    paths = [*MODULES, *(ROOT / "tools").rglob("*.py")]
    others = [
        path.relative_to(ROOT) for path in paths if "argparse.ArgumentParser(" in path.read_text(encoding="utf-8")
    ]
    assert not others


def test_repository_names_no_machine():
    # A path or a package index of one machine breaks the repository on every other.
    forbidden = re.compile("|".join(["/" + "work" + r"\b", "find" + "-links", "index" + "-url", "/opt" + "/"]))
    offenders = [
        path.relative_to(ROOT).as_posix()
        for path in _repository_texts()
        if forbidden.search(path.read_text(encoding="utf-8"))
    ]
    assert not offenders


def _repository_texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files"],  # what is committed, not a user's own files beside it
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    # Unpacked from an archive there is no git; then everything but hidden folders is looked at.
    paths = [ROOT / line for line in listed.stdout.splitlines()] or [
        path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]
    return [path for path in paths if path.is_file() and path.suffix in TEXT_SUFFIXES]
