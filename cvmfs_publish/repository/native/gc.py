"""Remove what no revision that anybody may still use consists of.

Source: facts/cvmfs-format.md section 8.1 (garbage_collector_impl.h, swissknife_gc.cc).  Unlike the
stock collector, which walks the revisions it drops, this one lists what is stored: so it also finds
what aborted publishes have left behind, and goes on where an interrupted one stopped.

The order that makes it safe to be killed anywhere: all that is kept is read first, and any doubt
ends the run; then a manifest is published with a reflog that no longer lists what goes; then
objects are removed.  A plan and its execution are in one hold of the repository's lock.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cvmfs_publish.content.artefacts import ArtefactStore
from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.content.store import SHARDS, ContentStore, ObjectId, StoredObject
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.layers.tree import RepoPath
from cvmfs_publish.repository.fallback import iter_artefacts, read_lines
from cvmfs_publish.repository.native.catalog import CatalogRef
from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.history import Tag
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.reachability import (
    Marks,
    Walk,
    kind_of,
    object_key,
    root_facts,
)
from cvmfs_publish.repository.native.reader import Snapshot
from cvmfs_publish.repository.native.reflog import Ref, RefType
from cvmfs_publish.repository.native.repository import Maintenance, NativeRepository, SnapshotView
from cvmfs_publish.repository.removal import Removal, apply_removals, plan_removals

DEFAULT_GRACE = timedelta(days=30)
DEFAULT_REVISIONS = 1  # what `trunk-previous` names anyway: one can always go back by one
MAX_STRAYS = 1000  # listed; all are counted

_DAMAGE_HINT = (
    "`cvmfs-publish check` finds all that is wrong; restore files from a backup or a replica, or "
    "remove the tag of a revision that is lost"
)
_ENABLE_HINT = (
    "replicas must know that old revisions may be missing: set CVMFS_GARBAGE_COLLECTION=true in "
    "its server.conf, then publish once with cvmfs_server"
)

Progress = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept although the published revision does not need it."""

    grace: timedelta = DEFAULT_GRACE  # since it was replaced, or stored if nothing names it
    revisions: int = DEFAULT_REVISIONS  # so many predecessors, however old
    # of what some public names led to, where it is another one than `grace`
    graces: Mapping[RepoPath, timedelta] = field(default_factory=dict)

    def protects(self, left: int, now: int) -> bool:
        """Whether what was left at a time (Unix seconds) is to be kept; a future time is now."""
        return max(0, now - left) < self.grace.total_seconds()


@dataclass(frozen=True, slots=True)
class Kept:
    """A revision that stays readable."""

    root_hash: ContentHash
    why: str
    is_whole: bool  # False: the reflog does not list it, so some of it may have been collected


class Dropped(NamedTuple):
    """A revision that the reflog listed and that nobody can read any more."""

    root_hash: ContentHash
    number: int | None  # None: its root catalog cannot be read
    listed: int  # Unix seconds of the last time a manifest named it


@dataclass(slots=True)
class Total:
    """So many objects with so many bytes."""

    objects: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.objects += 1
        self.bytes += size


@dataclass(slots=True)
class Plan:
    """What will be removed, and what only looks as if it should be."""

    manifest: Manifest
    removals: tuple[Removal, ...]  # sandboxes, from the tree of the revision published now
    kept: tuple[Kept, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    refs: tuple[Ref, ...] = ()  # entries of the reflog, those of dropped revisions included
    objects: dict[Suffix, Total] = field(default_factory=dict)
    reachable: Total = field(default_factory=Total)
    recent: Total = field(
        default_factory=Total
    )  # what nothing names, but is younger than the grace
    strays: list[str] = field(default_factory=list)  # no names of objects; they are left alone
    stray_count: int = 0
    artefacts: tuple[StoredObject, ...] = ()  # files of images, which no kept revision names
    catalogs: int = 0  # read
    folder: Path | None = None  # names by shard; there while the plan is being told or executed

    @property
    def total(self) -> Total:
        totals = self.objects.values()
        return Total(sum(t.objects for t in totals), sum(t.bytes for t in totals))

    @property
    def is_empty(self) -> bool:
        return not (self.removals or self.refs or self.total.objects or self.artefacts)

    def names(self, shard: str) -> list[str]:
        """Return the objects to remove from `data/<shard>`, sorted."""
        path = self.folder / shard if self.folder is not None else None
        return path.read_text("ascii").split() if path is not None and path.exists() else []

    def all_names(self) -> Iterator[str]:
        """Yield all objects to remove, sorted."""
        for shard in SHARDS:
            yield from self.names(shard)


def ignore_plan(_: Plan) -> None:
    """Do nothing: for those who look at the plan afterwards."""


def ignore_progress(_: str, __: int) -> None:
    """Do nothing: for those who can wait."""


class Collector:
    """Collects garbage in one repository."""

    def __init__(
        self,
        repository: NativeRepository,
        scratch: Path,
        progress: Progress = ignore_progress,
        artefacts: ArtefactStore | None = None,
    ) -> None:
        """Keep lists of objects below `scratch`, which is made if there is none.

        With `artefacts`, where images are kept as files, those that nobody may need go as well.
        """
        self._repository = repository
        self._artefacts = artefacts
        self._scratch = scratch / f"gc-{repository.name}"
        self._progress = progress

    def plan(
        self, now: int, retention: Retention, planned: Callable[[Plan], None] = ignore_plan
    ) -> Plan:
        """Return what `collect` would do at `now` (Unix seconds), and change nothing.

        It is found by doing all of it but the removal of objects to a repository that is forgotten
        afterwards.

        Raises: as `collect`.
        """
        repository = self._repository.rehearsal()
        _check_collectable(repository.manifest())
        removals = _remove_sandboxes(repository, now, retention, ignore_step)
        with repository.maintenance(now) as work, _folder(self._scratch):
            plan = self._make_plan(work, removals, now, retention)
            planned(plan)
        return plan

    def collect(
        self,
        now: int,
        retention: Retention,
        planned: Callable[[Plan], None] = ignore_plan,
        step: Callable[[str], None] = ignore_step,
    ) -> Plan:
        """Remove what is not kept.

        Args:
            now: Unix seconds.
            retention: what is kept.
            planned: told the plan before it is executed, while its `names` can be read.
            step: told the name of every stage before it begins.

        Raises:
            LockedError: another writer is active.
            RepositoryError: the repository may not be collected, cannot be written, or something
                that is to be kept is damaged; no object was removed.  Or objects could not be
                removed: the next run goes on with them.
        """
        _check_collectable(self._repository.manifest())
        step("removals")
        removals: tuple[Removal, ...] = ()
        if self._finds_sandboxes(now, retention):
            self.plan(now, retention)  # nothing may be changed if the rest will be refused
            removals = _remove_sandboxes(self._repository, now, retention, step)
        step("plan")
        with self._repository.maintenance(now, step) as work, _folder(self._scratch):
            plan = self._make_plan(work, removals, now, retention)
            planned(plan)
            for ref in plan.refs:
                work.reflog.remove(ref.hash)
            work.publish()
            work.store.sweep()
            self._remove_objects(work, plan, step)
            if self._artefacts is not None and plan.artefacts:
                step("artefacts")
                work.writer.lock.check()
                self._artefacts.remove(artefact.name for artefact in plan.artefacts)
        return plan

    def _finds_sandboxes(self, now: int, retention: Retention) -> bool:
        with self._repository.open() as view:
            at = datetime.fromtimestamp(now, UTC)
            return bool(plan_removals(view, at, retention.grace, retention.graces))

    def _make_plan(
        self, work: Maintenance, removals: tuple[Removal, ...], now: int, retention: Retention
    ) -> Plan:
        plan = Plan(work.manifest, removals)
        with storage_errors(f"nothing was removed; listing objects below {self._scratch}"):
            marks = self._mark(plan, work, now, retention)
            plan.dropped = tuple(_describe(work.store, plan.refs))
            plan.folder = _subfolder(self._scratch, "garbage")
            for number, shard in enumerate(SHARDS):
                self._progress("of 256 folders", number)
                names = _find_garbage(plan, work.store, marks, shard, now, retention)
                if names:
                    (plan.folder / shard).write_text("\n".join(sorted(names)), "ascii")
        if self._artefacts is not None:
            plan.artefacts = _find_artefacts(plan, work.store, self._artefacts, now, retention)
        return plan

    def _mark(self, plan: Plan, work: Maintenance, now: int, retention: Retention) -> Marks:
        """Mark what is kept, and note in the plan what that is."""
        marks = Marks(_subfolder(self._scratch, "marks"))
        try:
            roots = Roots(work.store, work.manifest, work.history.tags(), work.reflog.entries())
            roots.choose(now, retention, self._progress)
            plan.kept = tuple(roots.kept.values())
            plan.catalogs = _mark(plan.kept, marks, Walk(work.store, marks, self._progress))
        except IntegrityError as error:
            raise RepositoryError(
                f"nothing was removed, because what has to be kept of {work.manifest.name} cannot "
                f"be told: {error}",
                hint=error.hint or _DAMAGE_HINT,
            ) from error
        for content_hash, kind in roots.auxiliary:
            marks.add_object(content_hash, kind)
        plan.refs = tuple(roots.dropped)
        return marks

    def _remove_objects(self, work: Maintenance, plan: Plan, step: Callable[[str], None]) -> None:
        done = 0
        for shard in SHARDS:
            names = plan.names(shard)
            if not names:
                continue
            step(f"sweep {shard}")
            work.writer.lock.check()
            work.store.remove(names)
            done += len(names)
            self._progress("objects removed", done)


def _check_collectable(manifest: Manifest) -> None:
    if not manifest.garbage_collectable:
        raise RepositoryError(
            f"{manifest.name} is not garbage-collectable: its manifest does not say `G yes`",
            hint=_ENABLE_HINT,
        )


def _remove_sandboxes(
    repository: NativeRepository, now: int, retention: Retention, step: Callable[[str], None]
) -> tuple[Removal, ...]:
    with repository.transaction(now, step) as transaction:
        at = datetime.fromtimestamp(now, UTC)
        removals = plan_removals(transaction, at, retention.grace, retention.graces)
        apply_removals(transaction, removals)
    return removals


class Roots:
    """Decides which revisions, and which objects beside them, are kept."""

    def __init__(
        self, store: ContentStore, manifest: Manifest, tags: Iterable[Tag], refs: Iterable[Ref]
    ) -> None:
        self._store = store
        self._manifest = manifest
        self._tags = list(tags)
        self._refs = list(refs)
        self._listed = {ref.hash for ref in self._refs if ref.type is RefType.CATALOG}
        # Times at which something was published: whatever was current until then was replaced.
        self._times = {ref.timestamp for ref in self._refs}
        self._times |= {tag.timestamp for tag in self._tags}
        self.kept: dict[ContentHash, Kept] = {}
        self.auxiliary: list[ObjectId] = []  # certificates, histories and metainfo
        self.dropped: list[Ref] = []

    def choose(self, now: int, retention: Retention, progress: Progress = ignore_progress) -> None:
        """Fill `kept`, `auxiliary` and `dropped`.

        Raises:
            IntegrityError: a root catalog that must be kept is missing or damaged.
        """
        self._keep(self._manifest.root_hash, "published", is_whole=True)
        for tag in self._tags:
            self._keep(tag.hash, f"tag {tag.name}", is_whole=True)
        self._follow_predecessors(now, retention, progress)
        beside = {
            Suffix.CERTIFICATE: self._manifest.certificate,
            Suffix.HISTORY: self._manifest.history,
            Suffix.METAINFO: self._manifest.metainfo,
        }
        # whether the reflog lists them or not
        self.auxiliary = [(value, kind) for kind, value in beside.items() if value is not None]
        times = sorted(self._times)
        for ref in self._refs:
            recent = retention.protects(_replaced_at(ref, times), now)
            if ref.type is RefType.CATALOG:
                if recent:
                    self._keep(ref.hash, "replaced within the grace", is_whole=True)
                if ref.hash not in self.kept:
                    self.dropped.append(ref)
            elif recent:
                self.auxiliary.append((ref.hash, ref.type.suffix))
            elif ref.hash != beside[ref.type.suffix]:
                self.dropped.append(ref)

    def _keep(self, root: ContentHash, why: str, *, is_whole: bool) -> None:
        self.kept.setdefault(root, Kept(root, why, is_whole))

    def _follow_predecessors(self, now: int, retention: Retention, progress: Progress) -> None:
        """Keep each predecessor of the published revision until one was replaced long ago."""
        current, depth, seen = self._manifest.root_hash, 0, set[ContentHash]()
        while current not in seen:
            seen.add(current)
            progress("revisions", depth)
            _, committed, previous = root_facts(self._store, current)
            self._times.add(committed)
            if previous is None or (
                depth >= retention.revisions and not retention.protects(committed, now)
            ):
                break
            is_listed = previous in self._listed
            if not is_listed and self._store.size(previous.path(Suffix.CATALOG)) is None:
                break  # collected before, when less was kept
            self._keep(previous, "predecessor", is_whole=is_listed)
            current, depth = previous, depth + 1


def _replaced_at(ref: Ref, times: list[int]) -> int:
    """Return when another manifest was published after the last one that named an object.

    The last one of all was named by a manifest that is published, or by a writer that was killed.
    """
    return next((time for time in times if time > ref.timestamp), ref.timestamp)


def _mark(kept: Iterable[Kept], marks: Marks, walk: Walk) -> int:
    """Mark what revisions consist of; return how many catalogs were read."""
    for each in kept:
        marks.add_object(each.root_hash, Suffix.CATALOG)
        if each.is_whole:
            walk.add(each.root_hash)
    partial = {each.root_hash for each in kept if not each.is_whole}
    done: set[ContentHash] = set()
    while rest := (partial | walk.bound) - done:
        for root in rest:
            walk.add_rest(root)
        done |= rest
    return walk.catalogs


def _describe(store: ContentStore, refs: Iterable[Ref]) -> Iterator[Dropped]:
    for ref in refs:
        if ref.type is RefType.CATALOG:
            try:
                number = root_facts(store, ref.hash)[0]
            except IntegrityError:  # it goes anyway
                number = None
            yield Dropped(ref.hash, number, ref.timestamp)


def _find_garbage(
    plan: Plan, store: ContentStore, marks: Marks, shard: str, now: int, retention: Retention
) -> list[str]:
    """Return the names of what can go from a shard, and count everything in it."""
    needed = marks.shard(shard)
    names = []
    for found in store.objects(shard):
        key = object_key(found.name)
        if key is None:
            plan.stray_count += 1
            if len(plan.strays) < MAX_STRAYS:
                plan.strays.append(found.name)
        elif key in needed:
            plan.reachable.add(found.size)
        elif retention.protects(found.modified, now):
            plan.recent.add(found.size)
        else:
            plan.objects.setdefault(kind_of(key), Total()).add(found.size)
            names.append(found.name)
    return names


def _find_artefacts(
    plan: Plan, store: ContentStore, artefacts: ArtefactStore, now: int, retention: Retention
) -> tuple[StoredObject, ...]:
    """Return the files of images that no kept revision lists and no sandbox is the origin of.

    Those of sandboxes without a name stay, for `rollback`; the sandboxes go after the grace.
    """
    named: set[str] = set()
    for kept in plan.kept:
        try:
            with Snapshot(store, plan.manifest, CatalogRef(kept.root_hash, 0)) as snapshot:
                view = SnapshotView(snapshot)
                named |= {line.artefact.file for line in read_lines(view).values()}
                if kept.root_hash == plan.manifest.root_hash:
                    named |= {artefact.file for artefact in iter_artefacts(view)}
        except IntegrityError as error:
            if kept.is_whole:
                raise RepositoryError(
                    f"nothing was removed, because the fallback images of {plan.manifest.name} "
                    f"cannot be told: {error}",
                    hint=error.hint or _DAMAGE_HINT,
                ) from error
    return tuple(
        sorted(
            found
            for found in artefacts.artefacts()
            if found.name not in named and not retention.protects(found.modified, now)
        )
    )


def _subfolder(folder: Path, name: str) -> Path:
    below = folder / name
    below.mkdir(parents=True)
    return below


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Remove a folder before, as a run that was killed may have left it, and after."""
    if folder.exists():
        shutil.rmtree(folder)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
