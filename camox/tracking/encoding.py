"""Text for streams whose encoding lacks some of its characters."""

import codecs
from typing import Any

# What messages are written with beyond ASCII.
_SPELLED = {
    "…": "...", "→": "->", "≥": ">=", "≤": "<=", "±": "+-", "×": "x", "²": "^2", "–": "-", "—": "-", "−": "-",
    "“": '"', "”": '"', "’": "'", "·": ".",
}  # fmt: skip
_SPELL = "camox.spell"


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    spelled = (_SPELLED.get(one) or one.encode("ascii", "backslashreplace").decode() for one in lacking)
    return "".join(spelled), error.end


codecs.register_error(_SPELL, _spell)


def spell_out(stream: Any) -> None:
    """Let a stream write what its encoding lacks in other characters, where it would end the process over it.

    A "≥" in ASCII becomes ">=", a name that is no text, or in another script, is escaped. Streams without an encoding,
    or with an answer of their own, stay as they are; not so standard error, whose "\\u2265" tells a person little.
    """
    if getattr(stream, "errors", None) in ("strict", "surrogateescape", "backslashreplace"):
        stream.reconfigure(errors=_SPELL)
