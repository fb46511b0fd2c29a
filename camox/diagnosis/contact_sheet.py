"""Many small pictures with captions on one sheet."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SIDE = 216
_GAP = 14
_LINE = 15
_CAPTION = 2 * _LINE + 6
_MARGIN = 20
_TITLE = 54
_INK, _QUIET, _RED = (30, 30, 30), (110, 110, 110), (190, 30, 30)


def draw_sheet(
    tiles: Sequence[tuple[np.ndarray, str, str, bool]], title: str, subtitle: str, columns: int = 0
) -> Image.Image:
    """Put pictures into rows.

    Args:
        tiles: for each a picture uint8 [h, w, 3] RGB, two lines of caption, and whether the second is a warning.
        columns: of tiles in a row; 0 takes what makes the sheet a little wider than high.
    """
    columns = columns or _columns(len(tiles))
    rows = -(-len(tiles) // columns)
    width = max(2 * _MARGIN + columns * (_SIDE + _GAP) - _GAP, 640)
    sheet = Image.new("RGB", (width, _MARGIN + _TITLE + rows * (_SIDE + _CAPTION + _GAP) + _MARGIN - _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN - 6), _fitted(title, _font(19), width - 2 * _MARGIN), _INK, _font(19))
    pen.text((_MARGIN, _MARGIN + 20), _fitted(subtitle, _font(13), width - 2 * _MARGIN), _QUIET, _font(13))
    for position, (picture, name, about, is_warning) in enumerate(tiles):
        row, column = divmod(position, columns)
        left = _MARGIN + column * (_SIDE + _GAP)
        top = _MARGIN + _TITLE + row * (_SIDE + _CAPTION + _GAP)
        small = Image.fromarray(picture)
        small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        pen.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), fill=(244, 244, 244))
        sheet.paste(small, (left + (_SIDE - small.width) // 2, top + (_SIDE - small.height) // 2))
        if is_warning:
            pen.rectangle((left - 2, top - 2, left + _SIDE + 1, top + _SIDE + 1), outline=_RED, width=2)
        pen.text((left, top + _SIDE + 4), _fitted(name, _font(12), _SIDE), _INK, _font(12))
        colour = _RED if is_warning else _QUIET
        pen.text((left, top + _SIDE + 4 + _LINE), _fitted(about, _font(12), _SIDE), colour, _font(12))
    return sheet


def _columns(tiles: int) -> int:
    """How many tiles a row has: about as many as make a page of it, so that the last row is as full as possible."""
    ideal = max(1, round((tiles * 1.5) ** 0.5))
    return min(range(max(1, ideal - 1), ideal + 2), key=lambda columns: (-tiles % columns, abs(columns - ideal)))


_FONTS: dict[int, ImageFont.FreeTypeFont] = {}


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib carries a typeface with most alphabets; Pillow's own has Latin letters only.
    if size not in _FONTS:
        _FONTS[size] = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    return _FONTS[size]


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, shortened in the middle until it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    keep = len(text) - 1
    while keep > 2 and font.getlength(_cut(text, keep)) > width:
        keep -= 1
    return _cut(text, keep)


def _cut(text: str, keep: int) -> str:
    head = -(-keep // 2)
    return f"{text[:head]}…{text[len(text) - (keep - head) :]}"
