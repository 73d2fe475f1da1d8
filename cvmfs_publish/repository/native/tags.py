"""Name revisions of a repository, and forget such names.

Source: facts/cvmfs-format.md sections 5.1 and 8.1.  A client can mount a tag
(`CVMFS_REPOSITORY_TAG`), and what a tag names is never collected.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from cvmfs_publish.content.hashes import DIGEST_BYTES, ContentHash, Suffix
from cvmfs_publish.content.objects import decompress
from cvmfs_publish.content.store import ContentStore, MissingError
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.repository.native.catalog import Catalog
from cvmfs_publish.repository.native.commit import MAX_DATABASE_BYTES, open_history
from cvmfs_publish.repository.native.history import History, Tag, check_tag_name
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.reflog import Reflog, RefType
from cvmfs_publish.repository.native.repository import NativeRepository, damage
from cvmfs_publish.settings import nearest

_NO_HASH = bytes(DIGEST_BYTES)


class Target(NamedTuple):
    """Which revision a tag shall name; the published one if nothing is given."""

    revision: int | None = None
    root_hash: ContentHash | None = None
    tag: str = ""  # that names it already


class Root(NamedTuple):
    """A root catalog as it says itself."""

    hash: ContentHash
    revision: int
    last_modified: int  # Unix seconds
    size: int  # bytes, uncompressed
    previous: ContentHash | None


def list_tags(repository: NativeRepository) -> list[Tag]:
    """Return all tags, oldest revision first; raise `RepositoryError` if they cannot be read."""
    manifest = repository.manifest()
    with damage(repository.location), open_history(repository.store, manifest) as history:
        return history.tags()


def set_tag(
    repository: NativeRepository,
    name: str,
    now: int,
    *,
    target: Target | None = None,
    description: str | None = None,
    force: bool = False,
) -> tuple[Tag, bool]:
    """Name a revision.

    Args:
        repository: must exist.
        name: of letters, digits and `_ . / : -`.
        now: Unix seconds.
        target: which revision; None: the published one.
        description: for people; None: none, or that of the same tag.
        force: a tag of this name that names another revision, or says something else, is moved.

    Returns:
        The tag, and whether anything changed.

    Raises:
        InputError: the name is not possible or taken, or there is no such revision.
        RepositoryError: as of `NativeRepository.transaction`.
    """
    check_tag_name(name)
    with repository.maintenance(now) as work:
        history = work.history
        existing = history.tag(name)
        root = _find(work.store, work.manifest, history, work.reflog, target or Target())
        text = description
        if text is None:
            text = existing.description if existing is not None else ""
        tag = Tag(name, root.hash, root.revision, root.last_modified, root.size, text)
        if existing is not None:
            if existing._replace(branch="") == tag:
                return existing, False
            if force:
                history.move_tag(tag)
                return tag, True
        history.add_tag(name, root.hash, root.revision, root.last_modified, root.size, text)
        return tag, True


def remove_tags(repository: NativeRepository, names: Iterable[str], now: int) -> list[Tag]:
    """Forget names, all or none; what only they kept may be collected.

    Raises:
        InputError: one of the names is none, or reserved.
        RepositoryError: as of `NativeRepository.transaction`.
    """
    with repository.maintenance(now) as work:
        return [work.history.remove_tag(name) for name in dict.fromkeys(names)]


def _find(
    store: ContentStore, manifest: Manifest, history: History, reflog: Reflog, target: Target
) -> Root:
    if target.tag:
        tags = {tag.name: tag for tag in history.tags()}
        if target.tag not in tags:
            meant = nearest(target.tag, tags)
            raise InputError(
                f"there is no tag {target.tag!r}",
                hint=f"did you mean {meant!r}?" if meant else "`tag` lists them",
            )
        return _read_root(store, tags[target.tag].hash, f"of tag {target.tag!r}")
    if target.root_hash is not None:
        return _find_hash(store, manifest, history, reflog, target.root_hash)
    if target.revision is None or target.revision == manifest.revision:
        return _read_root(store, manifest.root_hash, "which is published")
    for tag in history.tags():
        if tag.revision == target.revision:
            return _read_root(store, tag.hash, f"of tag {tag.name!r}")
    return _find_revision(store, manifest, target.revision)


def _find_hash(
    store: ContentStore,
    manifest: Manifest,
    history: History,
    reflog: Reflog,
    wanted: ContentHash,
) -> Root:
    known = {manifest.root_hash, *(tag.hash for tag in history.tags())}
    known |= {entry.hash for entry in reflog.entries() if entry.type is RefType.CATALOG}
    if wanted not in known:
        raise InputError(
            f"{wanted} is the root catalog of no revision of {manifest.name}",
            hint="`tag` lists the root hashes of tags; collected revisions cannot be named",
        )
    return _read_root(store, wanted, "which was asked for")


def _find_revision(store: ContentStore, manifest: Manifest, wanted: int) -> Root:
    oldest = manifest.revision
    if wanted < oldest:
        for root in _iter_chain(store, manifest.root_hash):
            if root.revision == wanted:
                return root
            oldest = root.revision
            if oldest < wanted:
                break
    raise InputError(
        f"{manifest.name} has no revision {wanted}: the published one is {manifest.revision}, "
        f"those before it can be followed to {oldest}",
        hint="collected revisions are gone; `tag` lists those that have a name",
    )


def _iter_chain(store: ContentStore, newest: ContentHash) -> Iterator[Root]:
    """Yield the published root and those before it, as far as they are kept."""
    following: ContentHash | None = newest
    with suppress(MissingError):  # collected
        while following is not None:
            root = _load_root(store, following)
            yield root
            following = root.previous


def _read_root(store: ContentStore, value: ContentHash, what: str) -> Root:
    try:
        return _load_root(store, value)
    except MissingError:
        raise InputError(
            f"root catalog {value}, {what}, does not exist any more",
            hint="it was collected: name another revision",
        ) from None


def _load_root(store: ContentStore, value: ContentHash) -> Root:
    data = decompress(store.read(value, Suffix.CATALOG), MAX_DATABASE_BYTES)
    with Catalog.open(data) as catalog:
        previous = catalog.get_property("previous_revision")
        parsed = ContentHash.parse(previous) if previous else None
        if parsed is not None and parsed.digest == _NO_HASH:
            parsed = None
        numbers = []
        for key in ("revision", "last_modified"):
            text = catalog.get_property(key) or "0"
            if not text.isdecimal():
                raise IntegrityError(f"catalog {value}: property {key} is {text!r}")
            numbers.append(int(text))
    return Root(value, numbers[0], numbers[1], len(data), parsed)
