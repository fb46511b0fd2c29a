"""Tables made from results, put into a page of the documentation and read from it."""

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
