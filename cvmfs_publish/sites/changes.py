"""What rendering into a folder would change."""

from __future__ import annotations

import difflib
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import MANIFEST
from cvmfs_publish.sites.writing import absolute, rendered_files


@dataclass(frozen=True, slots=True)
class Changes:
    """The difference between a folder and what would be written, paths in order.

    `MANIFEST.json` is among them only if nothing else is: it changes with every other file.
    """

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    text: str  # a unified diff, which `patch -p1` takes

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


def compare_site(files: Mapping[str, RenderedFile], out: Path) -> Changes:
    """Compare the rendering in `out` with `files`; a folder that is missing has no files.

    Raises `InputError` as `write_site` does when `out` is not for us to replace.
    """
    out = absolute(out)
    present = {path: _read(out / path) for path in rendered_files(out)}
    differing = {p for p in present.keys() | files if present.get(p) != files.get(p)}
    if differing != {MANIFEST}:
        differing.discard(MANIFEST)
    lines = (
        line
        for path in sorted(differing)
        for line in _diff(path, present.get(path), files.get(path))
    )
    return Changes(
        added=tuple(sorted(differing - present.keys())),
        changed=tuple(sorted(differing & present.keys() & files.keys())),
        removed=tuple(sorted(differing - files.keys())),
        text="".join(lines),
    )


def _read(path: Path) -> RenderedFile:
    try:
        return RenderedFile(path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror or exc}") from exc


def _diff(path: str, old: RenderedFile | None, new: RenderedFile | None) -> Iterator[str]:
    if old and new and old.mode != new.mode:
        yield f"mode {old.mode:o} -> {new.mode:o} {path}\n"
    diff = difflib.unified_diff(
        _lines(old),
        _lines(new),
        f"a/{path}" if old else "/dev/null",
        f"b/{path}" if new else "/dev/null",
    )
    for line in diff:
        yield line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _lines(file: RenderedFile | None) -> list[str]:
    # Not splitlines(): it takes characters inside values for ends of lines.
    text = file.content.decode("utf-8", "replace") if file else ""
    return [line + "\n" for line in text.split("\n")[:-1]] + [text.rpartition("\n")[2]] * (
        not text.endswith("\n") and bool(text)
    )
