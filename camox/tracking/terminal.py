"""Where text goes: a terminal, a log or a pipe, whose encoding may lack characters and whose reader may leave."""

import errno
import os
from typing import IO, Any

from rich.console import Console as RichConsole

from camox.tracking.encoding import spell_out


def is_live(out: RichConsole, forced: bool) -> bool:
    """Whether lines can be drawn anew where `out` writes: a terminal that can move its cursor, with a person before it.

    Colour can be had without: FORCE_COLOR paints a log, where a moving line would be a thousand.

    Args:
        forced: whoever made `out` said that it is a terminal.
    """
    if not out.is_interactive:  # no terminal, or TERM=dumb
        return False
    return forced or (out.file.isatty() and os.environ.get("CI", "").lower() in ("", "0", "false"))


class Steadfast(RichConsole):
    """Goes on in silence where nobody reads any more, as after `| head` or in a closed terminal: a run must not end for
    that."""

    def __init__(self, file: IO[str] | None = None, stderr: bool = False, **settings: Any):
        super().__init__(file=file, stderr=stderr, markup=False, emoji=False, highlight=False, **settings)
        spell_out(self.file)

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            if error.errno != errno.EIO:  # what a terminal that was closed answers; pipes come by themselves
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Be quiet from now on."""
        self.quiet = True
        # Or the interpreter fails at its end, when it writes out what is left; and so does whoever writes to the other
        # of the two streams, where both go to the same place.
        gone = self.file.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in {gone, *(number for number in (1, 2) if os.path.sameopenfile(number, gone))}:
            os.dup2(nowhere, stream)
        os.close(nowhere)
