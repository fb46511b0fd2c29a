"""Messages that the troubleshooting page quotes are messages of the code."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^> `(.+)`$", PAGE, re.MULTILINE)
VALUE = "\0"


def texts():
    """Every text in the code, with a mark for each value that is put into it."""
    found = set()
    for path in (ROOT / "camox").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.add("".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


@pytest.fixture(scope="module")
def said():
    return texts()


def test_it_quotes_messages():
    assert len(QUOTED) > 12


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_of_the_code(message, said):
    pieces = [piece for piece in message.split("…") if len(piece.strip()) > 3]
    assert any(_in_order(pieces, text) for text in said), message


def _in_order(pieces, text):
    at = 0
    for piece in pieces:
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True
