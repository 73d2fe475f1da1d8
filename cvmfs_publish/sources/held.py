"""Files that hold one image each: what all places have in common where such files can be.

A file in a place is held before its image is read: its digest is known then, and it can be opened
as often as needed.  What is not on this machine is fetched for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.origin import Origin
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.files import digest_of, open_file, state_of


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file at hand; its bytes had this digest when it was looked at."""

    digest: Digest
    size: int  # bytes
    reader: Callable[[], BinaryIO]  # opens it anew
    top: Digest  # of what its name stands for: of the file, or of a manifest that names it
    manifest: bytes = b""  # byte for byte, where there is one


class FileHolder(Protocol):
    """A place that has files.  Any number of threads may call any method at once."""

    def name(self, origin: Origin) -> str:
        """As `PlacedSource.name`."""

    def state(self, origin: Origin, platform: Platform) -> str:
        """As `PlacedSource.state`."""

    def head(self, origin: Origin) -> Digest:
        """Return `HeldFile.top` of the file, for the default platform where there are several.

        Raises like `ImageSource.head`.
        """

    def hold(self, origin: Origin, platform: Platform, top: Digest | None) -> HeldFile:
        """Return the file; `top` asks for that of which it was the digest, if that can be said.

        Raises like `ImageSource.resolve`.
        """


def check_size(size: int, most: int, subject: str) -> None:
    """Raise `IntegrityError` if a file is larger than any may be."""
    if size > most:
        raise IntegrityError(
            f"{subject} has more than {most} bytes",
            hint="raise `limits.layer_bytes` if this image is trusted to be that large",
        )


class LocalFiles:
    """Files of this machine."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes` of one file: holes make a file of any size, and hashing it takes for ever."""
        self._max_bytes = max_bytes

    def name(self, origin: Origin) -> str:
        """A file may be called anything."""
        return ""

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`."""
        with open_file(Path(origin.place), str(origin)) as file:
            return state_of(file)

    def head(self, origin: Origin) -> Digest:
        """As promised by `FileHolder.head`; reads the whole file."""
        return self.hold(origin, Platform.default(), None).top

    def hold(self, origin: Origin, platform: Platform, top: Digest | None) -> HeldFile:
        """As promised by `FileHolder.hold`."""
        path, subject = Path(origin.place), str(origin)
        with open_file(path, subject) as file:
            check_size(os.fstat(file.fileno()).st_size, self._max_bytes, subject)
            digest = digest_of(file, subject, origin.digest)
            size = file.tell()
        return HeldFile(digest, size, lambda: open_file(path, subject), digest)
