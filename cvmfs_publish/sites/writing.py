"""Put a rendered set of files on disk so that nobody ever finds half of it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import MANIFEST


def write_site(files: Mapping[str, RenderedFile], out: Path) -> None:
    """Write `files` as the folder `out`, replacing an earlier rendering whole.

    Everything is written beside `out` and renamed into place.  Raises `InputError` when `out` is a
    folder that holds something else than an earlier rendering, which is never deleted.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100  # resolve() would follow a link at `out`
    _check_replaceable(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{out.name}.new.", dir=out.parent))
    except OSError as exc:
        raise InputError(f"{out.parent}: {exc.strerror or exc}") from exc
    try:
        _fill(new, files)
        _swap(new, out)
    except OSError as exc:
        raise InputError(f"{out}: cannot be written: {exc.strerror or exc}") from exc
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _check_replaceable(out: Path) -> None:
    """An earlier rendering is replaced, an empty folder filled; nothing else is touched."""
    if not os.path.lexists(out):
        return
    if out.is_symlink() or not out.is_dir():
        raise InputError(f"{out}: exists and is not a folder", hint="choose another --out")
    if any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise InputError(
            f"{out}: is not empty and no earlier rendering: it has no {MANIFEST}",
            hint="choose a folder of its own, as --out ./site",
        )
    known = _manifest_paths(out / MANIFEST) | {MANIFEST}
    for path in out.rglob("*"):
        if not path.is_dir() and path.relative_to(out).as_posix() not in known:
            raise InputError(
                f"{path}: was not rendered; replacing {out} would delete it",
                hint="move it elsewhere, or choose another --out",
            )


def _manifest_paths(manifest: Path) -> set[str]:
    if not manifest.exists():
        return set()
    try:
        document = json.loads(manifest.read_bytes())
        return set(document["files"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"{manifest}: cannot be understood", hint="remove the folder") from exc


def _fill(folder: Path, files: Mapping[str, RenderedFile]) -> None:
    folder.chmod(0o755)
    for name, file in files.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents[:-1]):
            (folder / parent).mkdir(exist_ok=True)
            (folder / parent).chmod(0o755)  # whatever the umask: nodes read them as users
        path.write_bytes(file.content)
        path.chmod(file.mode)


def _swap(new: Path, out: Path) -> None:
    """Put `new` in the place of `out`; between two renames there may be no folder, never a mix."""
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
    out.rename(old)  # onto an empty folder: allowed by rename(2)
    try:
        new.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old)
