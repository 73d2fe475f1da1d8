"""Progress for `publish` at a terminal: a line per phase, and a bar per layer on its way."""

from __future__ import annotations

from threading import Lock

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from cvmfs_publish.cli.output import Output, printable

SHOWN_DIGITS = 12  # of a layer's digest, as Docker shows them


class Bars:
    """A `Reporter` that draws; the bars are gone when it is closed, the lines stay."""

    def __init__(self, out: Output) -> None:
        console = Console(file=out.stderr, no_color=not out.has_colour, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._lock = Lock()  # guards the table; reports come from several threads
        self._layers: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def phase(self, reference: str, phase: str) -> None:
        subject = printable(reference) or "repository"
        self._progress.console.print(Text(f"{subject}: {phase}"), soft_wrap=True)

    def layer(self, reference: str, digest: str, done: int, total: int) -> None:
        key = (reference, digest)
        with self._lock:
            if key not in self._layers:
                short = digest.partition(":")[2][:SHOWN_DIGITS]
                self._layers[key] = self._progress.add_task(short, total=total)
            task = self._layers[key]
        self._progress.update(task, completed=done, visible=done < total)
