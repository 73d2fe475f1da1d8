"""The container runtimes the launcher can start, by the name of their program."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from cvmfs_publish.errors import InputError


@dataclass(frozen=True, slots=True)
class Runtime:
    """What differs between runtimes for somebody who writes a site configuration."""

    program: str  # the file name; how the launcher recognises the kind
    creates_mount_points: bool  # else a mount needs an existing directory or file in the image
    mounts_read_only: bool
    odd_paths: bool  # colons in destinations
    gpu: bool  # brings the driver's libraries into the image
    processes: bool  # can give a job process numbers of its own


# facts: launchers.md X5, X6, X11, X13.  Singularity has `--mount` only since CE 3.9; the launcher
# uses it for odd paths alone.
RUNTIMES = {
    runtime.program: runtime
    for runtime in (
        Runtime("apptainer", True, True, True, True, True),
        Runtime("singularity", True, True, True, True, True),
        Runtime("ch-run", False, False, False, False, False),
        Runtime("podman", False, True, True, False, True),
    )
}


class RuntimeProgram(str):
    """A runtime to try: a program name, looked up in PATH, or its absolute path."""

    __slots__ = ()
    WANTED = "apptainer, singularity, ch-run, podman, or the absolute path of one of them"

    @classmethod
    def parse(cls, text: str) -> RuntimeProgram:
        """Raise `InputError` unless the file name is that of a runtime in `RUNTIMES`."""
        directory, program = posixpath.split(text)
        if program not in RUNTIMES or not text.isprintable() or (directory and text[0] != "/"):
            raise InputError(
                f"{text[:200]!r} is not a runtime", hint=f"write {cls.WANTED}, as /opt/x/ch-run"
            )
        return cls(text)

    @property
    def runtime(self) -> Runtime:
        return RUNTIMES[posixpath.basename(self)]
