"""Look at a plain tree: what its file system can do, and whether its lock works."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cvmfs_publish.doctor.host import check_below, check_folder, check_published
from cvmfs_publish.doctor.model import Finding, good, is_fit, missing, unused, warn
from cvmfs_publish.repository.directory import Abilities, DirectoryRepository
from cvmfs_publish.repository.folder import WORK
from cvmfs_publish.repository.folder_write import Share
from cvmfs_publish.repository.layouts import FLAT, METADATA

SKEW = 5.0  # seconds between the clocks of a file server and of this host


def check_tree(
    repository: DirectoryRepository, share: Share | None, now: datetime
) -> Iterator[Finding]:
    """Read the revision, take the lock, and try everything that publishing uses.

    `share`: how equal files are to be one.
    """
    published = repository.revision()
    yield good("repository", f"{repository.name}, revision {published.number}")
    yield from check_published(published.timestamp, now)
    found = list(check_folder("storage", repository.root))
    yield from found
    if not is_fit(found):
        return
    for name in (WORK, FLAT, METADATA):
        if (repository.root / name).is_dir():
            yield from check_below("storage", repository.root / name)
    yield from tell_abilities(repository.abilities(), share, now)


def tell_abilities(found: Abilities, share: Share | None, now: datetime) -> Iterator[Finding]:
    """Say what a file system can do, and what becomes of images where it cannot."""
    yield good("lock", "appears by link(2), and is ours when it should be")
    if share is None:
        yield unused("sharing", "`repository.directory.share` is false: equal files are not one")
    elif share == "reflink" and not found.reflinks:
        yield missing(
            "sharing",
            "`repository.directory.share` is reflink, and the file system has no reflinks",
            "write `share: auto`, which takes hard links there",
        )
    elif found.reflinks and share != "hardlink":
        yield good("sharing", "by reflinks: equal contents are stored once, whatever their owners")
    elif found.hard_links:
        yield good("sharing", "by hard links: files that are equal in everything are stored once")
    kept = (
        (found.traits.owners, "owners of files", "they are the publisher's; as root they are kept"),
        (found.traits.nanoseconds, "parts of a second", "times are whole seconds"),
        (found.traits.xattrs, "extended attributes", "they are left out"),
    )
    for is_kept, what, instead in kept:
        if is_kept:
            yield good("files", f"{what} are kept")
        else:
            yield unused("files", f"{what} are not kept here: {instead}")
    skew = found.clock - now.timestamp()
    if abs(skew) > SKEW:
        yield warn(
            "clock",
            f"the clock of the file system differs by {abs(skew):.0f} seconds from this host's",
            "let both follow the same time servers (NTP)",
        )
