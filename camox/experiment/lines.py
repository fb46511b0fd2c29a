"""On which line of a TOML document each key stands, which tomli does not tell.

The scanner runs over documents that tomli has already accepted, so it only finds its way and validates
nothing.
"""

import re
from bisect import bisect_right

import tomli

KeyPath = tuple[str | int, ...]
"""Keys of tables and indices of arrays from the root down: `("phases", 1, "lr")`."""

_BLANK = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    # Multi-line forms first: up to two quotes right before the closing three belong to the string.
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_ATOM = re.compile(r"[^,\]}#\n]*")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map every table, key and array element of a valid TOML document to its line, counted from 1.

    A table opened by several headers or dotted keys has the line of its own header if it has one, else that
    of its first mention.
    """
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str):
        self.text = text.replace("\r\n", "\n")
        self.position = 0
        self.line_ends = [match.start() for match in re.finditer("\n", self.text)]
        self.lines: dict[KeyPath, int] = {}
        self.last_index: dict[KeyPath, int] = {}  # arrays of tables: the element that headers now speak of

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        while self._skip(_BLANK) < len(self.text):
            if self._at("["):
                table = self._header()
            else:
                self._key_value(table)
        return self.lines

    def _header(self) -> KeyPath:
        line = self._line()
        is_array = self._at("[[")
        self.position += 2 if is_array else 1
        *parents, last = self._key()
        self.position += 2 if is_array else 1

        path: KeyPath = ()
        for part in parents:
            path = self._current((*path, part), line)
        path = (*path, last)
        if is_array:
            self.lines.setdefault(path, line)
            self.last_index[path] = self.last_index.get(path, -1) + 1
            path = (*path, self.last_index[path])
        self.lines[path] = line
        return path

    def _current(self, path: KeyPath, line: int) -> KeyPath:
        self.lines.setdefault(path, line)
        return (*path, self.last_index[path]) if path in self.last_index else path

    def _key_value(self, table: KeyPath) -> None:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.position += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)

    def _key(self) -> list[str]:
        """Read a dotted key and the blanks around it."""
        parts = []
        while True:
            self._skip(_SPACE)
            quoted = self._at('"') or self._at("'")
            text = self._take(_STRING if quoted else _BARE_KEY)
            parts.append(tomli.loads(f"key = {text}")["key"] if quoted else text)
            self._skip(_SPACE)
            if not self._at("."):
                return parts
            self.position += 1

    def _value(self, path: KeyPath) -> None:
        if self._at("["):
            self._array(path)
        elif self._at("{"):
            self._inline_table(path)
        elif self._at('"') or self._at("'"):
            self._take(_STRING)
        else:
            self._take(_ATOM)

    def _array(self, path: KeyPath) -> None:
        self.position += 1
        index = 0
        while self._skip(_BLANK) < len(self.text) and not self._at("]"):
            self.lines[(*path, index)] = self._line()
            self._value((*path, index))
            index += 1
            self._skip(_BLANK)
            self.position += self._at(",")
        self.position += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.position += 1
        while self._skip(_BLANK) < len(self.text) and not self._at("}"):
            self._key_value(path)
            self._skip(_BLANK)
            self.position += self._at(",")
        self.position += 1

    def _at(self, token: str) -> bool:
        return self.text.startswith(token, self.position)

    def _line(self) -> int:
        return bisect_right(self.line_ends, self.position - 1) + 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        self._take(pattern)
        return self.position

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        assert match is not None, f"not TOML at offset {self.position}"
        self.position = match.end()
        return match.group()
