"""Tell a person at a terminal how far a long job is; nobody else."""

from __future__ import annotations

import shutil
import time

from cvmfs_publish.cli.output import Output, printable

REDRAW_SECONDS = 0.1  # fast enough to look alive, slow enough to cost nothing
_CLEAR = "\r\x1b[K"  # to the line's start, erase to its end


class StatusLine:
    """One line on stderr that is overwritten in place and gone at the end."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._drawn_at = float("-inf")
        self._visible = False

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *error: object) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Replace the line; dropped if it was replaced a moment ago."""
        now = time.monotonic()
        if not self._out.shows_progress or now - self._drawn_at < REDRAW_SECONDS:
            return
        self._drawn_at = now
        self._visible = True
        width = shutil.get_terminal_size().columns - 1
        line = printable(text).replace("\n", " ")[:width]
        print(_CLEAR + line, end="", flush=True, file=self._out.stderr)

    def clear(self) -> None:
        if self._visible:
            print(_CLEAR, end="", flush=True, file=self._out.stderr)
            self._visible = False
