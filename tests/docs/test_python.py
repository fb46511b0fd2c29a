"""Python on the pages runs; what only another test can run is named, and imports nothing that is not there."""

import ast
import re
from importlib import import_module

import numpy as np
import pytest

from tests.docs.commands import PAGES

ELSEWHERE = {"export.md": "it needs an export, a photograph and the hub: tests/inference/exporting/test_export.py"}
PRESUMED = {"measures.md": {"prediction": np.full((8, 8), 255, np.uint8), "truth": np.full((8, 8), 255, np.uint8)}}
BLOCKS = [
    pytest.param(page.name, block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
]
IMPORTS = sorted({line for page in PAGES for line in re.findall(r"from camox[\w.]* import [\w, ]+", page.read_text())})


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_it_runs(page, block):
    code = compile(block, page, "exec")
    if page not in ELSEWHERE:
        exec(code, dict(PRESUMED.get(page, {})))


@pytest.mark.parametrize("line", IMPORTS)
def test_what_it_imports_is_there(line):
    (statement,) = ast.parse(line).body
    assert isinstance(statement, ast.ImportFrom)
    module = import_module(statement.module)
    assert all(hasattr(module, alias.name) for alias in statement.names)
