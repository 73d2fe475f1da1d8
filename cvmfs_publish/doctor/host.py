"""Find out what this host has: libraries, programs, a clock that is right, room in folders."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from itertools import chain
from pathlib import Path

from cvmfs_publish import __version__
from cvmfs_publish.doctor.model import Finding, good, missing, unused, warn
from cvmfs_publish.words import format_bytes, plural

DISTRIBUTION = "cvmfs-publish"
LEAST_BYTES = 5 * 1000**3  # an image may have several GB, and layers are read several at a time
LEAST_WRITTEN = 4096  # bytes that a folder is to take now
LEAST_INODES = 200_000  # the largest image seen in the field has 226,831 entries
CLOCK_TOLERANCE = 60  # seconds a published time may lie ahead of this host's clock
# Several hosts see these; locks of one host mean nothing to another, or are not kept at all.
REMOTE = frozenset(
    ("9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4",
     "ocfs2", "panfs", "smb3", "smbfs", "virtiofs", "wekafs")
)  # fmt: skip
_TIMEX_BYTES = 512  # struct timex has 208; zeros: only look
_TIME_ERROR = 5  # adjtimex(2): the clock is not synchronised
# requirement ::= NAME [">=" VERSION] [";" MARKER], as our own pyproject.toml writes them
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:>=([0-9.]+))?$")


def check_software() -> Iterator[Finding]:
    """Look at the interpreter and the libraries that this program is installed with."""
    yield good("python", f"Python {platform.python_version()}, cvmfs-publish {__version__}")
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield unused("libraries", "the program runs from a checkout, whose libraries are its own")
        return
    yield from check_libraries(requirements)


def check_libraries(requirements: Sequence[str]) -> Iterator[Finding]:
    """Compare what is installed with what is required, extras left out."""
    found = 0
    for text in requirements:
        match = _REQUIREMENT.match(text.replace(" ", "")) if ";" not in text else None
        if match is None:
            continue
        name, least = match[1], match[2] or "0"
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield missing("libraries", f"{name} is not installed", f"pip install '{text}'")
            continue
        if _numbers(version) < _numbers(least):
            yield missing(
                "libraries",
                f"{name} is {version}, {least} or newer is needed",
                f"pip install --upgrade '{text}'",
            )
            continue
        found += 1
    yield good("libraries", f"{plural(found, 'library', 'libraries')} of the versions needed")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0]))


# the clock


def check_clock(now: datetime, synchronised: bool | None) -> Iterator[Finding]:
    """Tell whether somebody keeps the clock right; None: it cannot be known here."""
    shown = now.strftime("%Y-%m-%d %H:%M:%S UTC")
    if synchronised is None:
        yield unused("clock", f"{shown}; whether it is synchronised is not to be seen from here")
    elif synchronised:
        yield good("clock", f"{shown}, synchronised")
    else:
        yield warn(
            "clock",
            f"{shown}, and nothing synchronises it: what a wrong clock signs, clients refuse",
            "run chronyd or systemd-timesyncd",
        )


def is_synchronised() -> bool | None:
    """Ask the kernel whether its clock is synchronised; None if it does not say."""
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    return None if state < 0 else state != _TIME_ERROR


def check_published(published: int, now: datetime) -> Iterator[Finding]:
    """Compare the time of what is published with the clock: clients never go back in time."""
    ahead = published - now.timestamp()
    if ahead > CLOCK_TOLERANCE:
        yield missing(
            "clock",
            f"what is published was published {ahead:.0f} seconds after what the clock says",
            "set the clock (NTP); if it is right, the one that published was ahead: wait",
        )


# folders


def check_state(folder: Path) -> Iterator[Finding]:
    """Look at the state directory: to be written, with room, on a disk of this host."""
    present = folder
    while not present.exists() and present != present.parent:
        present = present.parent
    yield from check_folder("state", present, as_found=folder)
    if present == folder:
        yield from check_below("state", folder, depth=2, files="*.sqlite")
    kind = file_system_of(present)
    if kind in REMOTE or kind.startswith("fuse."):
        yield warn(
            "state",
            f"{folder} is on {kind}, which several hosts may see: databases and locks there are"
            " not safe",
            "let `state` be on a local disk",
        )


def check_folder(subject: str, folder: Path, *, as_found: Path | None = None) -> Iterator[Finding]:
    """Write into a folder that exists, and look how much room is left.

    `as_found`: the folder that is meant, where only one above it exists.
    """
    shown = as_found or folder
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(LEAST_WRITTEN))  # a full disk still makes files
    except OSError as error:
        yield missing(
            subject, f"{shown} cannot be written: {error.strerror}", _remedy_of(error, folder)
        )
        return
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if free < LEAST_BYTES:
        yield warn(
            subject, f"{shown}: {format_bytes(free)} are free", "free space, or use another disk"
        )
    if room.f_files and room.f_favail < LEAST_INODES:
        yield warn(
            subject,
            f"{shown}: {room.f_favail:,} more files can be made, a large image has more",
            "remove files, or use a file system with more inodes",
        )
    made = "" if folder == shown else ", and is made when it is needed"
    yield good(subject, f"{shown} can be written, {format_bytes(free)} are free{made}")


def check_below(
    subject: str, folder: Path, *, depth: int = 1, files: str = ""
) -> Iterator[Finding]:
    """Look whether what is in a folder can be written, too: another account may have made it.

    `files`: a pattern of those directly in it that are changed in their place.
    """
    paths = (path for path in (folder.glob(files) if files else ()) if not os.access(path, os.W_OK))
    closed = next(chain(_find_closed(folder, depth), paths), None)
    if closed is not None:
        yield missing(
            subject,
            f"{closed} cannot be written by this account",
            f"give it back: `chown -R` for all of {folder}; and publish as one account only",
        )


def _find_closed(folder: Path, depth: int) -> Iterator[Path]:
    if not os.access(folder, os.W_OK | os.X_OK):
        yield folder
    elif depth:
        with os.scandir(folder) as entries:
            found = sorted(Path(each) for each in entries if each.is_dir(follow_symlinks=False))
        for path in found:
            yield from _find_closed(path, depth - 1)


def _remedy_of(error: OSError, folder: Path) -> str:
    if error.errno in (28, 122):  # ENOSPC, EDQUOT
        return "free space, or raise the quota"
    if error.errno == 30:  # EROFS
        return "mount the file system writable"
    return f"make {folder} writable for this account, or run as its owner"


def file_system_of(path: Path) -> str:
    """Return the type of the file system at a path, "" if that is not to be seen."""
    found: tuple[int, str] = (-1, "")
    real = os.path.realpath(path)
    with suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
            before, _, after = line.partition(" - ")
            place = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), before.split()[4])
            if real == place or real.startswith(place.rstrip("/") + "/"):
                found = max(found, (len(place), after.split()[0]), key=lambda each: each[0])
    return found[1]


# programs


def find_program(name: str, path: str | None) -> Path | None:
    """Return where a program is, looked for as a shell does."""
    found = shutil.which(name, path=path or os.defpath)
    return Path(found) if found is not None else None


def check_program(
    name: str, what: str, path: str | None, *, needed: bool, package: str
) -> Iterator[Finding]:
    """Look for a program that some runs start.

    Args:
        name: of the program.
        what: needs it.
        path: where to look, as $PATH.
        needed: by this configuration, always.
        package: of Debian, which has it.
    """
    found = find_program(name, path)
    if found is not None:
        yield good(name, f"{found}, for {what}")
    elif needed:
        yield missing(name, f"is not installed; needed for {what}", f"install {package}")
    else:
        yield unused(name, f"is not installed; only {what} would need it (package {package})")
