"""Look at the replicas (Stratum 1) of a repository: which revision clients get there, and whether.

A replica is read as a client reads it: manifest, certificate and whitelist are verified with the
repository's own keys, in the clients' order.  What cannot be verified counts as nothing, however
new it says it is.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.repository.native.http_origin import HttpOrigin, Route
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.origin import MissingError, Origin, read
from cvmfs_publish.repository.native.reader import open_snapshot
from cvmfs_publish.repository.native.signing import (
    ForeignError,
    SignatureError,
    UnsignedError,
    WrongKeyError,
)
from cvmfs_publish.repository.native.whitelist import ExpiredError
from cvmfs_publish.words import plural

Health: TypeAlias = Literal[
    "ok",
    "behind",  # it has an earlier revision
    "stale-proxy",  # it has a later one than a cache in between gives to clients
    "unreachable",
    "expired",  # its whitelist: clients mount nothing and take no new revision
    "wrong-key",
    "bad-signature",
    "unsigned",
    "foreign",  # of another repository
    "future",  # it has a revision that was never published here
    "forked",  # it has another content under the same number
    "incomplete",  # files are missing there
    "damaged",
]
SERVING: frozenset[Health] = frozenset({"ok", "behind", "stale-proxy"})  # clients can mount these

GEO_ATTEMPTS = 3  # as many replicas are asked by clients: cvmfs/network/download.cc
GEO_BYTES = 4096  # a longer answer is none
LOOK_SECONDS = 20.0  # for all replicas together
CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
MAX_BACK = 100  # revisions; how far back a replica's content is compared with what was published
WAIT_SECONDS = 10.0  # between two looks
_ORDER = re.compile(rb"[0-9]{1,4}(?:,[0-9]{1,4})*\s*")
_SHOWN = 200  # characters of what a server made up


@dataclass(frozen=True, slots=True)
class Target:
    """A replica, and how to read what clients get there."""

    url: str
    open: Callable[[], Origin]
    open_fresh: Callable[[], Origin] | None = None  # past caches; None: not to be compared
    proxy: str | None = None  # through which clients read it


@dataclass(frozen=True, slots=True)
class Source:
    """The repository itself (Stratum 0)."""

    name: str
    read: Callable[[], Manifest]  # the published one, verified
    public_keys: tuple[Path, ...]
    # number and predecessor of the revision of a root catalog; raises what a store does
    look_back: Callable[[ContentHash], tuple[int, ContentHash | None]] | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """How one replica was found."""

    url: str
    health: Health
    revision: int | None = None  # that clients get; None: nothing that can be verified
    published_at: datetime | None = None  # as the revision says
    behind: int | None = None  # revisions
    late: timedelta | None = None  # from its revision to the repository's
    message: str = ""  # what is wrong, if anything is
    hint: str = ""

    def has(self, revision: int) -> bool:
        """Whether clients of this replica can have this revision, or a later one."""
        return self.health in SERVING and self.revision is not None and self.revision >= revision

    @property
    def text(self) -> str:
        """How it is, in a few words."""
        if self.health == "behind" and self.behind is not None:
            return f"{plural(self.behind, 'revision')} behind"
        return self.message or self.health


@dataclass(frozen=True, slots=True)
class Survey:
    """How far all of them are at one moment."""

    revision: int  # of the repository itself
    published_at: datetime | None
    looked_at: datetime
    replicas: tuple[Standing, ...]

    def having(self, revision: int) -> int:
        """Return how many replicas have this revision."""
        return sum(standing.has(revision) for standing in self.replicas)


@dataclass(frozen=True, slots=True)
class Nearness:
    """In which order clients near here use the replicas, as one of these says (Geo API)."""

    urls: tuple[str, ...] = ()  # the nearest first; empty: no replica tells
    told_by: str = ""
    problem: str = ""  # why nobody does

    def rank(self, url: str) -> int | None:
        """Return the place of a replica, from 1."""
        return self.urls.index(url) + 1 if url in self.urls else None


def ask_order(target: Target, urls: Sequence[str]) -> tuple[str, ...]:
    """Let a replica sort replicas as it does for clients: the nearest first.

    It goes by the address of the proxy, if there is one, and else of whoever asks.

    Raises:
        RemoteError: it does not answer, or has no such service.
        IntegrityError: what it answers is no order of these.
    """
    caller = urlsplit(target.proxy).hostname if target.proxy is not None else None
    hosts = ",".join(urlsplit(url).hostname or url for url in urls)
    name = f"api/v1.0/geo/{caller or 'x'}/{hosts}"
    origin = target.open()
    try:
        data = read(origin, name, GEO_BYTES)
    except MissingError as error:
        raise RemoteError(f"{target.url} does not sort replicas (Geo API)") from error
    finally:
        origin.close()
    numbers = parse_order(data, len(urls))
    if numbers is None:
        raise IntegrityError(
            f"{target.url} answers {data[:60]!r} instead of an order of {len(urls)} replicas"
        )
    return tuple(urls[number - 1] for number in numbers)


def parse_order(data: bytes, count: int) -> tuple[int, ...] | None:
    """Return the numbers of `2,1,3`, each from 1 to `count` once; None if it is anything else."""
    if not _ORDER.fullmatch(data):
        return None
    numbers = tuple(int(text) for text in data.split(b","))
    return numbers if sorted(numbers) == list(range(1, count + 1)) else None


class LaggingError(RemoteError):
    """Fewer replicas than asked for have a revision; it is published all the same."""

    kind = "lagging"


def http_target(url: str, *, proxy: str | None = None, compare: bool = False) -> Target:
    """Return a replica on a web server; nothing is read yet.

    Args:
        url: where it has the repository.
        proxy: through which clients read it.
        compare: read it past caches, too.
    """
    route = Route(proxy, connect_seconds=CONNECT_SECONDS, read_seconds=READ_SECONDS)
    fresh = replace(route, fresh=True)
    return Target(
        url,
        lambda: HttpOrigin(url, route),
        (lambda: HttpOrigin(url, fresh)) if compare else None,
        proxy,
    )


class Observer:
    """Looks at replicas, all at the same time and no longer than it may.

    A server may send a byte now and then for hours.  Such a look is left to itself, and its replica
    is not asked again before it has ended.
    """

    def __init__(
        self, source: Source, targets: Sequence[Target], *, seconds: float = LOOK_SECONDS
    ) -> None:
        """Say what is looked at; `seconds`: how long all of it may take."""
        self.source = source
        self.targets = tuple(targets)
        self._seconds = seconds
        self._busy: dict[str, threading.Thread] = {}
        self._past: dict[ContentHash, tuple[int, ContentHash | None]] = {}

    def look(self, now: datetime) -> Survey:
        """Return how far all replicas are.

        Raises:
            RepositoryError, IntegrityError: the repository itself cannot be read.
        """
        own = self.source.read()
        found = self._read_all(now)
        newest = max((m.revision for m in found.values() if isinstance(m, Manifest)), default=0)
        if newest > own.revision:  # published in the meantime, perhaps
            own = self.source.read()
        standings = (self._judge(target.url, found[target.url], own) for target in self.targets)
        return Survey(own.revision, _time(own), now, tuple(standings))

    def _judge(self, url: str, found: _Found, own: Manifest) -> Standing:
        manifest = _manifest_of(found)
        root = self._find_root(own, manifest.revision) if manifest is not None else None
        return _judge(url, found, own, root)

    def _find_root(self, own: Manifest, revision: int) -> ContentHash | None:
        """Return the root catalog that a revision has here; None if that is not known any more."""
        if own.revision - revision > MAX_BACK:
            return None
        number, root, previous = own.revision, own.root_hash, None
        while number > revision:
            try:
                _, previous = self._look_back(root)
                if previous is None:
                    return None
                number, _ = self._look_back(previous)
            except PublishError:  # collected, or damaged, which is not to be judged here
                return None
            root = previous
        return root if number == revision else None

    def _look_back(self, root: ContentHash) -> tuple[int, ContentHash | None]:
        """Look up what is known of a root catalog, once: it never changes."""
        if self.source.look_back is None:
            return 0, None
        if root not in self._past:
            if len(self._past) > 10 * MAX_BACK:
                self._past.clear()
            self._past[root] = self.source.look_back(root)
        return self._past[root]

    def sort(self, survey: Survey) -> Nearness:
        """Ask replicas in which order a client here would use them.

        Only those are asked that can be mounted, one after the other, as clients do.
        """
        usable = [
            target
            for target, standing in zip(self.targets, survey.replicas, strict=True)
            if standing.health in SERVING
        ]
        problems: list[str] = []
        found: list[Nearness] = []

        def ask() -> None:
            for target in usable[:GEO_ATTEMPTS]:
                try:
                    order = ask_order(target, [each.url for each in self.targets])
                except PublishError as error:
                    problems.append(_shorten(error))
                else:
                    found.append(Nearness(order, target.url))
                    return

        # daemon: a server may send a byte now and then for hours
        thread = threading.Thread(target=ask, name="order of replicas", daemon=True)
        thread.start()
        thread.join(self._seconds)
        if found:
            return found[0]
        if thread.is_alive():
            problems.append(f"no whole answer within {self._seconds:.0f} seconds")
        return Nearness(problem="; ".join(problems) or "no replica can be mounted")

    def _read_all(self, now: datetime) -> dict[str, _Found]:
        found: dict[str, _Found] = {}
        started: list[threading.Thread] = []
        for target in self.targets:
            busy = self._busy.get(target.url)
            if busy is not None and busy.is_alive():
                continue

            def work(target: Target = target) -> None:
                found[target.url] = self._read(target, now)

            # daemon: nobody waits for it when the program ends
            thread = threading.Thread(target=work, name=f"replica {target.url}", daemon=True)
            self._busy[target.url] = thread
            started.append(thread)
            thread.start()
        end = time.monotonic() + self._seconds
        for thread in started:
            thread.join(max(0.0, end - time.monotonic()))
        found = dict(found)  # what comes later is too late
        for target in self.targets:
            if target.url not in found:
                found[target.url] = RemoteError(
                    f"{target.url}: no whole answer within {self._seconds:.0f} seconds"
                )
        return found

    def _read(self, target: Target, now: datetime) -> _Found:
        try:
            served = self._read_verified(target.open(), now)
            if target.open_fresh is None or isinstance(served, _Expired):
                return served
            fresh = self._read_verified(target.open_fresh(), now)
            kept = fresh.manifest if isinstance(fresh, _Expired) else fresh
            return served if kept.revision <= served.revision else _Stale(served, kept.revision)
        except PublishError as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever a server sends may be a bug's cause
            return PublishError(f"{target.url}: {type(error).__name__}: {error}")

    def _read_verified(self, origin: Origin, now: datetime) -> Manifest | _Expired:
        name, keys = self.source.name, self.source.public_keys
        try:
            with open_snapshot(origin, keys, now=now, name=name) as snapshot:
                _check_root(origin, snapshot.manifest)
                return snapshot.manifest
        except ExpiredError as error:
            with open_snapshot(origin, keys, now=None, name=name) as snapshot:
                return _Expired(snapshot.manifest, error)


def _check_root(origin: Origin, manifest: Manifest) -> None:
    """A copy that was interrupted may have the manifest, but not what it names."""
    # its first piece is asked for: HEAD is refused by some servers in between
    next(origin.pieces(manifest.root_hash.path(Suffix.CATALOG)), b"")


@dataclass(frozen=True, slots=True)
class _Expired:
    manifest: Manifest
    error: ExpiredError


@dataclass(frozen=True, slots=True)
class _Stale:
    manifest: Manifest  # that the cache gives
    revision: int  # that the replica has


_Found: TypeAlias = Manifest | _Expired | _Stale | PublishError


def _manifest_of(found: _Found) -> Manifest | None:
    if isinstance(found, Manifest):
        return found
    return None if isinstance(found, PublishError) else found.manifest


def _judge(url: str, found: _Found, own: Manifest, root: ContentHash | None) -> Standing:
    """Compare what was read at a replica with what is published.

    `root`: of the revision of the replica, as it was published here.
    """
    if isinstance(found, PublishError):
        return Standing(url, _health_of(found), message=_shorten(found), hint=found.hint)
    manifest = found if isinstance(found, Manifest) else found.manifest
    revision, behind = manifest.revision, own.revision - manifest.revision
    late = timedelta(seconds=max(0, own.timestamp - manifest.timestamp))
    standing = Standing(url, "ok", revision, _time(manifest), max(0, behind), late)
    if behind < 0:
        return replace(
            standing,
            health="future",
            message=f"has revision {revision}; the newest one published here is {own.revision}",
            hint="was the repository restored from a backup, or does another host publish it?",
        )
    if root is not None and manifest.root_hash != root:
        return replace(
            standing,
            health="forked",
            message=f"revision {revision} has the root catalog {manifest.root_hash}, here it has"
            f" {root}",
            hint="was the repository restored from a backup, or does another host publish it?",
        )
    if isinstance(found, _Expired):
        return replace(
            standing,
            health="expired",
            message=_shorten(found.error),
            hint="if it is valid here, let the replica fetch it: `cvmfs_server snapshot` there;"
            " else `cvmfs-publish resign`",
        )
    if isinstance(found, _Stale):
        return replace(
            standing,
            health="stale-proxy",
            message=f"a cache gives out revision {revision}, the replica has {found.revision}",
            hint="a minute is usual; after that look how long the proxy keeps .cvmfspublished",
        )
    if behind:
        return replace(
            standing,
            health="behind",
            message=f"has revision {revision}, {plural(behind, 'revision')} behind",
            hint="`cvmfs_server snapshot` there fetches the rest",
        )
    return standing


_HEALTHS: tuple[tuple[type[PublishError], Health], ...] = (
    (ForeignError, "foreign"),
    (UnsignedError, "unsigned"),
    (ExpiredError, "expired"),
    (WrongKeyError, "wrong-key"),
    (SignatureError, "bad-signature"),
    (MissingError, "incomplete"),
    (RemoteError, "unreachable"),
    (IntegrityError, "damaged"),
)


def _health_of(error: PublishError) -> Health:
    return next((health for kind, health in _HEALTHS if isinstance(error, kind)), "unreachable")


def _shorten(error: PublishError) -> str:
    text = str(error)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _time(manifest: Manifest) -> datetime | None:
    """Return when a revision was signed; a replica may say anything before it is verified."""
    try:
        return datetime.fromtimestamp(manifest.timestamp, UTC) if manifest.timestamp else None
    except (OverflowError, ValueError, OSError):
        return None


# waiting


@dataclass(frozen=True, slots=True)
class Goal:
    """How many replicas are to have which revision, and how long that may take."""

    revision: int
    count: int
    timeout: timedelta

    def is_reached(self, survey: Survey) -> bool:
        return survey.having(self.revision) >= self.count


class Waiting:
    """Looks again and again until enough replicas have a revision."""

    def __init__(
        self,
        look: Callable[[], Survey],
        *,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing happens yet; `tell` gets a line whenever the number of replicas has changed."""
        self._look = look
        self._monotonic = monotonic
        self._sleep = sleep
        self._tell = tell

    def wait(self, goal: Goal) -> Survey:
        """Return the last look: when the goal was reached, or the time was over.

        Only what all replicas say in one look counts: one that had the revision may lose it.
        """
        end = self._monotonic() + goal.timeout.total_seconds()
        told = -1
        while True:
            survey = self._look()
            having = survey.having(goal.revision)
            left = end - self._monotonic()
            if goal.is_reached(survey) or left <= 0:
                return survey
            if having != told:
                self._tell(
                    f"{having} of {plural(len(survey.replicas), 'replica')} have revision"
                    f" {goal.revision}; {goal.count} are waited for"
                )
                told = having
            self._sleep(min(WAIT_SECONDS, left))


def lagging(survey: Survey, goal: Goal, *, waited: bool) -> LaggingError:
    """Return the error that says which replicas do not have a revision."""
    having = survey.having(goal.revision)
    after = f" after {goal.timeout.total_seconds():.0f} seconds" if waited else ""
    return LaggingError(
        f"{having} of {plural(len(survey.replicas), 'replica')} have revision {goal.revision}"
        f"{after}, {goal.count} are wanted; missing: {reasons(survey, goal.revision)}",
        hint=f"the revision is published; `cvmfs-publish replicas --wait {goal.revision}` waits"
        " again"
        if goal.revision <= survey.revision
        else f"the newest revision published here is {survey.revision}",
    )


def reasons(survey: Survey, revision: int) -> str:
    """Say of every replica that does not have a revision why it does not count."""
    missing = [standing for standing in survey.replicas if not standing.has(revision)]
    return "; ".join(f"{standing.url}: {_reason(standing)}" for standing in missing)


def _reason(standing: Standing) -> str:
    """Say why a replica does not count, without repeating its address."""
    text = standing.message.removeprefix(f"{standing.url}/").removeprefix(f"{standing.url}: ")
    usual = standing.health in ("behind", "ok")
    return f"has revision {standing.revision}" if usual else f"{standing.health}, {text}"
