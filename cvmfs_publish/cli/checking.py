"""Tell how far a check is: a bar at a terminal, else a line now and then for who asks with -v."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from cvmfs_publish.cli.output import Output, format_bytes
from cvmfs_publish.repository.native.check import Advance

LINE_SECONDS = 30.0  # between lines where there is no terminal
# Bytes that could be read in the time it takes to open an object: makes the estimate of the
# remaining time fit small objects and large ones.
_OBJECT_COST = 16 * 1024


class CheckProgress:
    """Shows what `check_repository` tells; nothing of a bar is left on the screen at the end."""

    def __init__(self, out: Output, *, line_seconds: float = LINE_SECONDS) -> None:
        self._out = out
        self._line_seconds = line_seconds
        self._told_at = time.monotonic()
        console = Console(file=out.stderr, no_color=not out.has_colour, highlight=False)
        self._bars = Progress(
            SpinnerColumn(),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not out.shows_progress,
        )
        self._task = self._bars.add_task("checking", total=None)
        self._entries = 0

    def __enter__(self) -> CheckProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def __call__(self, advance: Advance) -> None:
        """See `check.Progress`."""
        if advance.what == "entries":
            self._entries = advance.done
        if self._out.shows_progress:
            self._draw(advance)
        elif self._out.verbosity and time.monotonic() - self._told_at >= self._line_seconds:
            self._told_at = time.monotonic()
            self._out.note(self._describe(advance))

    def _draw(self, advance: Advance) -> None:
        if advance.what == "entries":
            # Objects have the bar; entries are counted until there are any.
            if self._bars.tasks[0].total is None:
                self._bars.update(self._task, description=self._describe(advance))
            return
        self._bars.update(
            self._task,
            description=self._describe(advance),
            completed=advance.done_bytes + advance.done * _OBJECT_COST,
            total=(advance.total_bytes + advance.total * _OBJECT_COST) or None,
        )

    def _describe(self, advance: Advance) -> str:
        if advance.what == "entries" or not advance.done:
            return f"checked {self._entries:,} entries"
        if not advance.total:
            return f"checked {self._entries:,} entries, {advance.done:,} objects"
        return (
            f"checked {advance.done:,} of {advance.total:,} objects, "
            f"{format_bytes(advance.done_bytes)} of {format_bytes(advance.total_bytes)}"
        )
