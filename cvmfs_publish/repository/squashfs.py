"""Let `sqfstar` (squashfs-tools 4.5 or later) make a squashfs of a tar stream.

Where there is a program of that name, `mksquashfs` can read a tar; both are one program, which goes
by the name it is called.  gzip is the one compression that every kernel, squashfuse and old
Singularity can read.  Neither its environment nor the hour changes a byte.
"""

from __future__ import annotations

import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from cvmfs_publish.content.artefacts import ArtefactError
from cvmfs_publish.layers.tree import Node

MEMORY = "256M"  # of its caches; by default it takes a quarter of the machine
LEVEL = "4"  # of gzip: a tenth of the work of its default 9, and 3 % larger
MAX_TIME = 2**32 - 1  # seconds since 1970 that a squashfs can hold
SAID = 500  # characters of its complaints that are shown
_NAME = "mksquashfs"  # by which the same program takes a level, which it does not as sqfstar
_HARMLESS = ", ignoring"  # ends a complaint about a keyword of pax that it does not need


def write_squashfs(
    sqfstar: Path,
    tar: Iterable[bytes],
    target: Path,
    *,
    name: str,
    offset: int,
    root: Node,
    newest: int,
    check: Callable[[], None],
) -> None:
    """Write a squashfs to an existing file, from `offset` bytes on.

    Args:
        sqfstar: the program.
        tar: the stream, without an entry for the root; its times are those a squashfs can hold.
        target: the file.
        name: of the image, for messages.
        offset: where in it the squashfs begins.
        root: the root directory, whose mode and owner are those of the squashfs.
        newest: the latest of all times (Unix seconds), which the root and the squashfs get.  The
            program would take the present for the root, whatever its own option for that says.
        check: called now and then; what it raises ends the work.

    Raises:
        ArtefactError: the program failed.
    """
    command = [
        _NAME, "-", str(target), "-tar", "-noappend", "-offset", str(offset),
        "-quiet", "-no-progress", "-reproducible", "-exit-on-error", "-mem", MEMORY,
        "-comp", "gzip", "-Xcompression-level", LEVEL,
        "-root-mode", f"{stat.S_IMODE(root.mode):o}",
        "-root-uid", str(root.uid), "-root-gid", str(root.gid),
    ]  # fmt: skip
    environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin", "SOURCE_DATE_EPOCH": str(newest)}
    with tempfile.TemporaryFile() as complaints:
        with subprocess.Popen(  # noqa: S603 - a program that the caller found
            command,
            executable=sqfstar,
            stdin=subprocess.PIPE,
            stdout=complaints,
            stderr=complaints,
            env=environment,
        ) as process:
            try:
                _feed(process, tar, check)
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            complaints.seek(0)
            lines = complaints.read().decode("utf-8", "replace").splitlines()
            said = " ".join(line.strip() for line in lines if not line.endswith(_HARMLESS))
            raise ArtefactError(
                f"{name}: {sqfstar} ended with status {process.returncode}: {said[-SAID:]}",
                hint="free some space if it says that none is left;"
                " else set `fallback.format: tar.gz`",
            )


def _feed(
    process: subprocess.Popen[bytes], tar: Iterable[bytes], check: Callable[[], None]
) -> None:
    """Write the stream to the program; if it ends early, its status says why."""
    if process.stdin is None:
        raise TypeError("the program was started without a pipe")
    try:
        for piece in tar:
            process.stdin.write(piece)
            check()
        process.stdin.close()
    except BrokenPipeError:
        process.wait()
