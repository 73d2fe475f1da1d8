"""Write results to stdout and everything else to stderr, for people or as one JSON document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from cvmfs_publish.errors import PublishError

PROGRAM = "cvmfs-publish"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
LONG_LIST = 100  # elements
_UNITS = ("kB", "MB", "GB", "TB", "PB")


@dataclass
class Output:
    """Where a command's words go.  A result is printed once; in JSON mode nothing else is."""

    stdout: TextIO
    stderr: TextIO
    environ: Mapping[str, str] = field(default_factory=dict)
    as_json: bool = False
    quiet: bool = False
    verbosity: int = 0
    failed_with: str = ""  # the kind of the last error that was told
    _answered: bool = False

    def result(self, document: Mapping[str, Any], text: str) -> None:
        """Print the result of the command: `document` as JSON, or `text` for people.

        Raises `PublishError` if it cannot be written, `BrokenPipeError` if nobody reads it.
        """
        self._answered = True
        # ASCII only: any name inside an image survives every terminal, locale and parser
        shown = format_json(document) if self.as_json else printable(text)
        try:
            if shown:
                print(shown, file=self.stdout)
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise PublishError(f"the result cannot be written: {exc.strerror or exc}") from exc

    def note(self, text: str) -> None:
        """Tell a person what happens; silent with --quiet and --json."""
        if not self.quiet and not self.as_json:
            print(printable(text), file=self.stderr)

    def warn(self, message: str, hint: str = "") -> None:
        """Tell what needs attention, on stderr also with --json; silent with --quiet."""
        if self.quiet:
            return
        print(printable(f"{PROGRAM}: warning: {message}"), file=self.stderr)
        if hint:
            print(printable(f"hint: {hint}"), file=self.stderr)

    def error(self, kind: str, message: str, hint: str = "") -> None:
        """Say why the command failed; as JSON only if no result has been printed yet."""
        self.failed_with = kind
        if self.as_json and not self._answered:
            self._answered = True
            document = {"error": {"kind": kind, "message": message, "hint": hint}}
            print(json.dumps(document, indent=2), file=self.stdout)
            return
        print(printable(f"{PROGRAM}: error: {message}"), file=self.stderr)
        if hint:
            print(printable(f"hint: {hint}"), file=self.stderr)

    @property
    def shows_progress(self) -> bool:
        """Progress is drawn only where somebody watches it and the terminal can redraw."""
        watched = self.stderr.isatty() and self.environ.get("TERM") != "dumb"
        return watched and not self.quiet and not self.as_json

    @property
    def has_colour(self) -> bool:
        """Colour only on terminals, and not where NO_COLOR is set (no-color.org)."""
        return self.stderr.isatty() and not self.environ.get("NO_COLOR")


def error_document(error: PublishError) -> dict[str, str]:
    """Return what JSON results say about a failure."""
    return {"kind": error.kind, "message": str(error), "hint": error.hint}


def printable(text: str) -> str:
    """Show control characters instead of obeying them: names in images are anybody's choice."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def format_json(document: Mapping[str, Any]) -> str:
    """Return a document as people read it, long lists with one element on a line.

    Those are for programs, and indenting ten thousand elements would take a second.
    """
    parts = []
    for key, value in document.items():
        if isinstance(value, list) and len(value) > LONG_LIST:
            elements = ",\n".join(["    " + json.dumps(element) for element in value])
            text = f"[\n{elements}\n  ]"
        else:
            text = json.dumps(value, indent=2).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}" if parts else "{}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns as wide as their widest cell; numbers are expected right-aligned by callers.

    Line breaks in a cell are shown, not obeyed, so that one row stays one line for `grep`.
    """
    cells = [[cell.replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [list(header), *cells]
    ]
    return "\n".join(lines)


def format_fields(fields: Sequence[tuple[str, str]]) -> str:
    """Return `name  value` lines with the values below each other."""
    width = max((len(name) for name, _ in fields), default=0)
    return "\n".join(f"{name.ljust(width)}  {value}".rstrip() for name, value in fields)


def format_bytes(size: int) -> str:
    """Return a size with three digits, in powers of 1000 as disks and networks are sold."""
    if size < 1000:
        return f"{size} B"
    value = float(size)
    for unit in _UNITS:
        value /= 1000
        if value < 999.5 or unit == _UNITS[-1]:
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def plural(count: int, noun: str, several: str = "") -> str:
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"


def format_time(at: datetime) -> str:
    """Return a time for programs: RFC 3339, UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_minute(at: datetime) -> str:
    """Return a time for people, who compare it with logs: UTC, to the minute."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
