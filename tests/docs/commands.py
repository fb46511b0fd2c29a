"""The commands that README and docs tell to type."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

_PROGRAMS = "camox|python|accelerate|make|pip|git|source|wandb|tensorboard|torchrun|pgrep"
_COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ +)*(?:\S*/bin/)?(?:{_PROGRAMS}) \S.*")
_OTHER_LANGUAGE = re.compile(r"^```(?!bash$|sh$|shell$|console$)\w+$.*?^```$", re.MULTILINE | re.DOTALL)
_PLACEHOLDER = re.compile(
    r"…|\[|\b(?:RUN|CHECKPOINT|EXPERIMENT|FOLDER|IMAGES|DIR|SUITE|OLD|NEW|NODE0|TARGET|FILE)\b|\bA\b"
)


class Command(NamedTuple):
    """A command of a page, without the remark behind it."""

    page: str
    text: str

    @property
    def is_a_pattern(self) -> bool:
        """Whether it has a place for a name, such as RUN, or leaves something out: nobody can type it as it is."""
        return _PLACEHOLDER.search(self.text) is not None


def commands_of(page: Path) -> list[Command]:
    """Those of blocks of code, and those within sentences that have arguments; what a backslash continues is joined."""
    text = _OTHER_LANGUAGE.sub("", page.read_text(encoding="utf-8")).replace("\\\n", " ")
    blocks = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    fenced = [
        line.strip()
        for block in re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]
    spans = [span.replace("\n", " ") for span in re.findall(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)", text)]
    lines = [re.split(r"\s+#\s", line)[0].strip() for line in (*blocks, *fenced, *spans)]
    found = [re.sub(r"\s+", " ", line) for line in lines if _COMMAND.fullmatch(line)]
    return [Command(page.name, line) for line in dict.fromkeys(found)]


COMMANDS = [command for page in PAGES for command in commands_of(page)]
