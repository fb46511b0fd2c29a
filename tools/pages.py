"""Tables made from results, put into a page of the documentation."""

from pathlib import Path

from camox.errors import DataError


def fill_block(page: Path, block: str, text: str) -> None:
    """Puts `text` between the page's lines `<!-- block -->` and `<!-- /block -->`, in place of what is there.

    Raises:
        DataError: the page has not each of the two lines once and in this order.
    """
    page.write_text(replace_block(page.read_text(encoding="utf-8"), block, text, str(page)), encoding="utf-8")


def replace_block(content: str, block: str, text: str, name: str) -> str:
    """The content of the page called `name` with `text` in its block."""
    begin, end = f"<!-- {block} -->", f"<!-- /{block} -->"
    before, found_begin, rest = content.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end or content.count(begin) != 1 or content.count(end) != 1:
        raise DataError(f"{name}: has no place for the tables: put the lines {begin} and {end} where they shall go")
    return f"{before}{begin}\n{text}\n{end}{after}"
