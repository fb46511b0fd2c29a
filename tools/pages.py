"""Files of results read, tables made from them put into a page of the documentation and read from it."""

import json
from pathlib import Path
from typing import Any

from camox.errors import DataError

# What reading a document of another shape than expected raises.
SHAPE_ERRORS = (LookupError, TypeError, AttributeError, ValueError)


def read_results(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as results: {error}; give a file written with --json") from error
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds no results; give a file written with --json")
    return document


def fill_block(page: Path, block: str, text: str) -> None:
    """Puts `text` between the page's lines `<!-- block -->` and `<!-- /block -->`, in place of what is there.

    Raises:
        DataError: the page has not each of the two lines once and in this order, or cannot be read or written.
    """
    try:
        page.write_text(replace_block(page.read_text(encoding="utf-8"), block, text, str(page)), encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{page}: the tables cannot be put into it: {error}; give a page that is there") from error


def replace_block(content: str, block: str, text: str, name: str) -> str:
    """The content of the page called `name` with `text` in its block."""
    before, _, after = _around(content, block, name)
    return f"{before}\n{text}\n{after}"


def read_block(page: Path, block: str) -> str:
    """What `fill_block` put there, "" where nothing is.

    Raises:
        DataError: as `fill_block`.
    """
    return _around(page.read_text(encoding="utf-8"), block, str(page))[1].strip("\n")


def _around(content: str, block: str, name: str) -> tuple[str, str, str]:
    """The content up to the block, in it, and from its end on; the two lines belong to the outer parts."""
    begin, end = f"<!-- {block} -->", f"<!-- /{block} -->"
    before, found_begin, rest = content.partition(begin)
    inside, found_end, after = rest.partition(end)
    if not found_begin or not found_end or content.count(begin) != 1 or content.count(end) != 1:
        raise DataError(f"{name}: has no place for the tables: put the lines {begin} and {end} where they shall go")
    return before + begin, inside, end + after
