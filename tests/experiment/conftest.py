from collections.abc import Callable
from pathlib import Path

import pytest

MINIMAL = """\
[experiment]
name = "minimal"
[data]
train = [{ synthetic = "habitats", count = 100 }]
[[phases]]
name = "full"
epochs = 2
[schedule]
warmup_epochs = 1
"""


@pytest.fixture(scope="session")
def minimal() -> str:
    """The shortest experiment without remarks."""
    return MINIMAL


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a file into an empty working folder, so that messages show short paths."""
    monkeypatch.chdir(tmp_path)

    def write_file(text: str, name: str = "x.toml") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
