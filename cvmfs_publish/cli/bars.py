"""Progress of `publish` at a terminal: a line per image at work, and a bar per layer on its way."""

from __future__ import annotations

from threading import Lock

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from cvmfs_publish.cli.output import Output, printable

SHOWN_DIGITS = 12  # of a layer's digest, as Docker shows them
_DESCRIPTION = "{task.description}"


class Bars:
    """A `Reporter` that draws; nothing of it is left on the screen when it is closed."""

    def __init__(self, out: Output) -> None:
        console = Console(file=out.stderr, no_color=not out.has_colour, highlight=False)
        self._phases = Progress(
            SpinnerColumn(), TextColumn(_DESCRIPTION, markup=False), console=console
        )
        self._layers = Progress(
            TextColumn("  " + _DESCRIPTION, markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._live = Live(Group(self._phases, self._layers), console=console, transient=True)
        self._lock = Lock()  # guards the table; reports come from several threads
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._subject: TaskID | None = None

    def __enter__(self) -> Bars:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def phase(self, reference: str, phase: str) -> None:
        """Images are worked on one after the other, so one line shows the current one."""
        text = f"{printable(reference) or 'repository'}: {phase}"
        with self._lock:
            if self._subject is None:
                self._subject = self._phases.add_task(text, total=None)
        self._phases.update(self._subject, description=text)

    def layer(self, reference: str, digest: str, done: int, total: int) -> None:
        key = (reference, digest)
        with self._lock:
            if key not in self._tasks:
                short = digest.partition(":")[2][:SHOWN_DIGITS]
                self._tasks[key] = self._layers.add_task(short, total=total)
            task = self._tasks[key]
        self._layers.update(task, completed=done, visible=done < total)
