"""Write results to stdout and everything else to stderr, for people or as one JSON document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from cvmfs_publish.errors import PublishError

# what commands say is put together with these, from here
from cvmfs_publish.words import format_bytes as format_bytes
from cvmfs_publish.words import format_minute as format_minute
from cvmfs_publish.words import format_time as format_time
from cvmfs_publish.words import plural as plural

PROGRAM = "cvmfs-publish"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and line feed
LONG_LIST = 100  # elements


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
