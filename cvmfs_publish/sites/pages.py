"""Templates and the files made of them; the one door to Jinja.

A template says at its top, in a Jinja comment, which variables it gets and what each means; a
test compares that list with what the template uses.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import jinja2

from cvmfs_publish.errors import InputError

PROGRAM = 0o755
TEXT = 0o644


@dataclass(frozen=True, slots=True)
class RenderedFile:
    """One file for worker nodes."""

    content: bytes
    mode: int = TEXT


Files: TypeAlias = Mapping[str, RenderedFile]  # by path below the rendered folder


def quote_sh(value: object) -> str:
    """Quote a value for a POSIX shell; the filter `sh` of templates."""
    return shlex.quote(str(value))


def quote_json(value: object) -> str:
    """Quote a value as JSON text, which YAML, Python and Lua read as well; the filter `quoted`.

    Lua and Python read `\\u` escapes differently, so text that is not ASCII stays as it is.
    """
    return json.dumps(str(value), ensure_ascii=False)


def quote_tcl(value: object) -> str:
    """Quote a value as one word of Tcl; the filter `tcl` of templates.

    Braces are escaped too: they need not match, and the word may lie inside a procedure's body.
    """
    return '"' + re.sub(r'[\\\\"$\[\]{}]', r"\\\g<0>", str(value)) + '"'


class Pages:
    """The templates of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            undefined=jinja2.StrictUndefined,
            autoescape=False,  # noqa: S701  # shell and configuration text, not HTML
            keep_trailing_newline=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.environment.filters["sh"] = quote_sh
        self.environment.filters["quoted"] = quote_json
        self.environment.filters["tcl"] = quote_tcl

    def read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as exc:
            raise InputError(f"{self.folder / name}: {exc.strerror or exc}") from exc

    def render(self, name: str, mode: int = TEXT, /, **values: object) -> RenderedFile:
        try:
            text = self.environment.get_template(name).render(values)
        except jinja2.TemplateError as exc:
            raise InputError(
                f"{self.folder / name}: {type(exc).__name__}: {exc}",
                hint="a template uses a value that is not given to it, or is not there",
            ) from exc
        return RenderedFile(text.encode("utf-8"), mode)
