"""Decide which sandboxes nobody needs any more, and remove them from the tree.

A sandbox is needed while a public name leads to it, whoever made that name, while a name waits to
lead to it, while a pin keeps it, and for a grace after the last name left it, because jobs that
began before may still run in it.  Only what this program made is ever removed: a sandbox without
its record in `.metadata/.images` is not ours.  Where the time at which a sandbox was left is
unknown, it stays.

What a removed sandbox consists of is still stored then; `gc` removes objects afterwards.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import zip_longest

from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.tree import MAX_LINKS, RepoPath
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Dated, Transaction, View
from cvmfs_publish.repository.fallback import drop_names
from cvmfs_publish.repository.layouts import (
    FLAT,
    IMAGES,
    MANIFEST_FILE,
    METADATA,
    MULTIARCH,
    PUBLICATION_FILE,
    REPLACED,
    UNPUBLISHED_FILE,
    resolve_link,
    sandbox_of,
)
from cvmfs_publish.repository.names import remove_empty
from cvmfs_publish.repository.records import (
    UNPUBLISHED,
    Event,
    Staged,
    iter_records,
    iter_staged,
    read_publication,
    read_unpublished,
)

_IMAGE_RECORD = re.compile(r"((?:[0-9a-f]{64}){1,2})\.json")
_SANDBOX = re.compile(rf"(?:.*/)?({re.escape(FLAT)}/[0-9a-f]{{2}}/[0-9a-f]+)(?:/.*)?", re.DOTALL)
_IMMUTABLE = re.compile(r"[^:@]+@sha(?:256|512):[0-9a-f]+")
_MOUNTED = re.compile(r"/cvmfs/[^/]+/")  # begins an absolute link into a repository
NO_GRACES: Mapping[RepoPath, timedelta] = {}
_NO_NAME = "no name leads to it any more"
_NEVER_NAMED = "no name ever led to it"


@dataclass(frozen=True, slots=True)
class Removal:
    """A sandbox to remove, and what is of no use without it."""

    path: RepoPath  # the sandbox
    why: str
    since: datetime  # when the last name left it
    also: tuple[RepoPath, ...]  # its record, its names by digest, records of going back to it


@dataclass(frozen=True, slots=True)
class Collection:
    """What was removed where the tree is seen as files, or would be."""

    removals: tuple[Removal, ...]
    trash: int = 0  # folders that were replaced longer ago than the grace
    files: int = 0  # that no sandbox has any more
    file_bytes: int = 0
    objects: int = 0  # of layers read longer ago than the grace, in the state directory
    object_bytes: int = 0


def plan_removals(
    view: View,
    now: datetime,
    grace: timedelta,
    graces: Mapping[RepoPath, timedelta] = NO_GRACES,
) -> tuple[Removal, ...]:
    """Return which sandboxes no name has led to for at least `grace`, ordered by path.

    What one of `graces`, by public name, has led to stays for that time instead; of several the
    longest counts.

    Nothing is written.  Raises `RepositoryError` or `IntegrityError` if a record cannot be read:
    who cannot read everything must not remove anything.
    """
    survey = _Survey(grace, graces)
    for directory, files in iter_records(view):
        survey.add_name(view, directory, files)
    for staged in iter_staged(view):
        survey.add_staged(staged)
    links = dict(_iter_links(view, survey.registries))
    leads = {link: _sandbox_behind(link, links) for link in links}
    immutable = {link for link in links if _is_immutable(link) and link not in survey.asked}
    used = survey.used | {leads[link] for link in links.keys() - immutable}
    names: dict[RepoPath | None, list[RepoPath]] = {}
    for link in immutable:
        names.setdefault(leads[link], []).append(link)
    plan = []
    for sandbox, record in _iter_sandboxes(view):
        if sandbox in used:
            continue
        since, why = survey.since(view, sandbox, record)
        if since is not None and now - since >= survey.grace_of(sandbox):
            also = sorted({record, *names.get(sandbox, ()), *survey.replaced.get(sandbox, ())})
            plan.append(Removal(sandbox, why, since, tuple(also)))
    return tuple(plan)


def apply_removals(transaction: Transaction, plan: Iterable[Removal]) -> None:
    """Remove what a plan says, and the directories that are empty then.

    The plan must be of this transaction's own base: make it from the transaction.
    """
    paths = [path for removal in plan for path in (*removal.also, removal.path)]
    for path in paths:
        transaction.remove(path)
    for directory in sorted({posixpath.dirname(path) for path in paths}):
        remove_empty(transaction, directory)
    if paths:
        drop_names(transaction, paths)


@dataclass(slots=True)
class _Survey:
    """What the records of all names say about sandboxes (paths relative to the repository)."""

    grace: timedelta
    graces: Mapping[RepoPath, timedelta]
    used: set[RepoPath | None] = field(default_factory=set)
    longest: dict[RepoPath, timedelta] = field(default_factory=dict)  # of names with their own
    left: dict[RepoPath, datetime | None] = field(default_factory=dict)  # newest; None: unknown
    replaced: dict[RepoPath, list[RepoPath]] = field(default_factory=dict)  # record directories
    registries: set[RepoPath] = field(default_factory=set)
    asked: set[RepoPath] = field(default_factory=set)  # names somebody published as such

    def add_name(self, view: View, directory: RepoPath, files: set[str]) -> None:
        name = _name_of(directory)
        if not name.startswith("."):
            self.registries.add(name.partition("/")[0])
        if files & {PUBLICATION_FILE, MANIFEST_FILE}:
            self.asked.add(name)
        events: tuple[Event, ...] = ()
        current = None
        if PUBLICATION_FILE in files:
            current = read_publication(view, f"{directory}/{PUBLICATION_FILE}")
        if current is not None:
            events = current.events
            self.used.add(current.sandbox.lstrip("/"))
            self.used.update(path.lstrip("/") for path in current.pinned)
        elif UNPUBLISHED_FILE in files:
            unpublished = read_unpublished(view, f"{directory}/{UNPUBLISHED_FILE}")
            events = unpublished.history if unpublished is not None else ()
        mentioned = self._add_events(events, is_published=current is not None)
        if REPLACED in files:
            oldest = _time(events[0].at) if events else None
            mentioned |= self._add_replaced(view, f"{directory}/{REPLACED}", mentioned, oldest)
        grace = self.graces.get(name, self.grace)
        for sandbox in mentioned:
            self.longest[sandbox] = max(grace, self.longest.get(sandbox, grace))

    def add_staged(self, staged: Staged) -> None:
        """A name is to lead there."""
        self.registries.add(Reference.parse(staged.publication.reference).registry)
        self.used.add(staged.publication.sandbox.lstrip("/"))

    def grace_of(self, sandbox: RepoPath) -> timedelta:
        return self.longest.get(sandbox, self.grace)

    def _add_events(self, events: tuple[Event, ...], *, is_published: bool) -> set[RepoPath]:
        """Note when each sandbox was left: when the next thing happened to the name."""
        mentioned = set()
        for event, following in zip_longest(events, events[1:]):
            sandbox = sandbox_of(Digest.parse(event.image_id))
            mentioned.add(sandbox)
            if event.what == UNPUBLISHED:
                self._leave(sandbox, _time(event.at))
            elif following is not None:
                self._leave(sandbox, _time(following.at))
            elif not is_published:
                self._leave(sandbox, None)
        return mentioned

    def _add_replaced(
        self, view: View, directory: RepoPath, mentioned: set[RepoPath], oldest: datetime | None
    ) -> set[RepoPath]:
        found = set()
        for manifest, _ in view.list_names(directory):
            folder = f"{directory}/{manifest}"
            record = read_publication(view, f"{folder}/{PUBLICATION_FILE}")
            if record is None:
                continue
            sandbox = record.sandbox.lstrip("/")
            found.add(sandbox)
            self.replaced.setdefault(sandbox, []).append(folder)
            if sandbox not in mentioned:  # left before what the history still tells
                self._leave(sandbox, oldest)
        return found

    def _leave(self, sandbox: RepoPath, at: datetime | None) -> None:
        known = self.left.get(sandbox, at)
        self.left[sandbox] = max(known, at) if known is not None and at is not None else None

    def since(self, view: View, sandbox: RepoPath, record: RepoPath) -> tuple[datetime | None, str]:
        """Return when a sandbox was left, None if unknown, and what to say of it."""
        if sandbox in self.left:
            return self.left[sandbox], _NO_NAME
        made = view.modified_at(record) if isinstance(view, Dated) else None
        return (datetime.fromtimestamp(made, UTC) if made is not None else None), _NEVER_NAMED


def _name_of(directory: RepoPath) -> RepoPath:
    """Return the public name to which a directory of records belongs."""
    name = directory.removeprefix(METADATA + "/")
    return name.split("/", 2)[-1] if name.startswith(MULTIARCH + "/") else name


def _time(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None


def _iter_sandboxes(view: View) -> Iterator[tuple[RepoPath, RepoPath]]:
    """Yield every sandbox of ours with the record of how it was made."""
    for shard, _ in view.list_names(IMAGES):
        for name, is_directory in view.list_names(f"{IMAGES}/{shard}"):
            match = _IMAGE_RECORD.fullmatch(name)
            if match is not None and not is_directory and match[1].startswith(shard):
                yield f"{FLAT}/{shard}/{match[1]}", f"{IMAGES}/{shard}/{name}"


def _iter_links(view: View, registries: Iterable[str]) -> Iterator[tuple[RepoPath, str]]:
    """Yield all links where names are: at the root, below registries and for platforms."""
    stack = []
    for name, is_directory in view.list_names(""):
        if not is_directory or name == MULTIARCH or name in registries:
            stack.append((name, is_directory))
    while stack:
        path, is_directory = stack.pop()
        if is_directory:
            stack.extend((f"{path}/{name}", kind) for name, kind in view.list_names(path))
            continue
        text = view.read_symlink(path)
        if text is not None:
            yield path, text


def _is_immutable(link: RepoPath) -> bool:
    return _IMMUTABLE.fullmatch(link.rpartition("/")[2]) is not None


def _sandbox_behind(link: RepoPath, links: Mapping[RepoPath, str]) -> RepoPath | None:
    """Return the sandbox in which a link ends, if need be by way of other links."""
    path = link
    for _ in range(MAX_LINKS):
        match = _SANDBOX.fullmatch(path)
        if match is not None:
            return match[1]
        ends = [place for place, letter in enumerate(path) if letter == "/"] + [len(path)]
        prefix = next((path[:end] for end in ends if path[:end] in links), None)
        if prefix is None:
            return None
        text = links[prefix] + path[len(prefix) :]
        mounted = _MOUNTED.match(text)
        path = text[mounted.end() :] if mounted is not None else resolve_link(prefix, text)
    return None
