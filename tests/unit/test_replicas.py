"""Replicas: what is wrong with each is found out, and only what clients can mount is waited for."""

from __future__ import annotations

import dataclasses
import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, cast

import pytest

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import IntegrityError, RemoteError
from cvmfs_publish.replicas import (
    Goal,
    Health,
    Observer,
    Source,
    Waiting,
    http_target,
    lagging,
)
from cvmfs_publish.repository.native.origin import Origin
from tests.stratum1 import MANIFEST, WHITELIST, Stratum1, World, stranger
from tests.support import NAME
from tests.tampering import edit

MINUTE = timedelta(minutes=1)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def health(world: World) -> list[Health]:
    return [standing.health for standing in world.look().replicas]


# one look


def test_a_replica_that_has_everything_is_well(world: World) -> None:
    world.add(2)
    survey = world.look()
    assert [standing.health for standing in survey.replicas] == ["ok", "ok"]
    first = survey.replicas[0]
    assert (first.revision, first.behind, first.late) == (world.revision, 0, timedelta())
    assert first.published_at == survey.published_at
    assert survey.having(world.revision) == 2
    assert survey.having(world.revision + 1) == 0


def test_a_replica_that_is_behind_has_the_revisions_before(world: World) -> None:
    world.add()
    world.publish()
    newest = world.publish()
    (standing,) = world.look().replicas
    assert (standing.health, standing.behind) == ("behind", 2)
    assert standing.late is not None
    assert standing.has(newest - 2)
    assert not standing.has(newest - 1)
    assert f"has revision {newest - 2}, 2 revisions behind" in standing.message


def unsign(stratum: Stratum1) -> None:
    path = stratum.folder / MANIFEST
    path.write_bytes(path.read_bytes().partition(b"\n--\n")[0] + b"\n")


def alter(stratum: Stratum1) -> None:
    path = stratum.folder / MANIFEST
    data = path.read_bytes()
    assert b"\nS1\n" in data
    path.write_bytes(data.replace(b"\nS1\n", b"\nS9\n"))


def lose_certificate(stratum: Stratum1) -> None:
    for path in stratum.folder.glob(f"data/*/*{Suffix.CERTIFICATE.value}"):
        path.unlink()


def damage_certificate(stratum: Stratum1) -> None:
    for path in stratum.folder.glob(f"data/*/*{Suffix.CERTIFICATE.value}"):
        path.chmod(0o644)
        path.write_bytes(b"no certificate")


def replace(stratum: Stratum1, source: Path, *names: str) -> None:
    for name in names:
        shutil.copy(source / name, stratum.folder / name)


@pytest.mark.parametrize(
    ("harm", "found", "words"),
    [
        (unsign, "unsigned", "manifest has no signature block"),
        (alter, "bad-signature", "hash line says"),
        (lose_certificate, "incomplete", "X"),
        (damage_certificate, "damaged", "is not a zlib stream"),
        (lambda s: (s.folder / MANIFEST).unlink(), "incomplete", MANIFEST),
        (lambda s: (s.folder / MANIFEST).write_bytes(b"<html>" * 4000), "damaged", "more than"),
        (lambda s: (s.folder / WHITELIST).write_bytes(b"<html>"), "unsigned", "whitelist"),
    ],
)
def test_what_cannot_be_verified_counts_as_nothing(
    world: World, harm: Callable[[Stratum1], object], found: Health, words: str
) -> None:
    (stratum,) = world.add()
    harm(stratum)
    (standing,) = world.look().replicas
    assert (standing.health, standing.revision) == (found, None), standing
    assert words in standing.message
    assert not standing.has(1)


def test_a_repository_signed_by_somebody_else_is_not_ours(world: World, tmp_path: Path) -> None:
    stratum, mixed = world.add(2)
    other = stranger(tmp_path / "other")
    shutil.rmtree(stratum.folder)
    shutil.copytree(other, stratum.folder)
    shutil.copytree(other / "data", mixed.folder / "data", dirs_exist_ok=True)
    replace(mixed, other, MANIFEST)  # with our whitelist
    standings = world.look().replicas
    assert [s.health for s in standings] == ["wrong-key", "wrong-key"]
    assert "none of the given master keys" in standings[0].message
    assert "not on the whitelist" in standings[1].message


def test_another_repository_is_told_by_its_name(world: World, tmp_path: Path) -> None:
    (stratum,) = world.add()
    other = stranger(tmp_path / "other", "other.example.org")
    replace(stratum, other, MANIFEST)
    (standing,) = world.look().replicas
    assert standing.health == "foreign"
    assert "'other.example.org', not of 'test.example.org'" in standing.message
    stratum.fetch(world.site.storage)
    replace(stratum, other, WHITELIST)
    assert health(world) == ["foreign"]


def test_clients_refuse_a_replica_whose_whitelist_has_expired_however_new_its_revision(
    world: World,
) -> None:
    stale, fresh = world.add(2)
    world.seconds = timedelta(days=25).total_seconds()
    world.site.repository.resign(world.now, 30)
    fresh.fetch(world.site.storage)
    assert health(world) == ["ok", "ok"]
    world.seconds = timedelta(days=31).total_seconds()
    survey = world.look()
    assert [s.health for s in survey.replicas] == ["expired", "ok"]
    assert survey.replicas[0].revision == 1  # told, and not counted
    assert not survey.replicas[0].has(1)
    assert survey.replicas[0].url == stale.url


def test_a_revision_that_was_never_published_here_is_not_counted(world: World) -> None:
    (stratum,) = world.add()
    backup = world.keep()
    lost = world.publish()
    stratum.fetch(world.site.storage)
    world.restore(backup)
    (standing,) = world.look().replicas
    assert (standing.health, standing.revision) == ("future", lost)
    assert not standing.has(1)
    assert f"has revision {lost}; the newest one published here is {lost - 1}" in standing.message


def test_another_content_under_the_same_number_is_not_counted(world: World) -> None:
    (stratum,) = world.add()
    backup = world.keep()
    world.publish()
    stratum.fetch(world.site.storage)
    world.restore(backup)
    edit(world.site, lambda transaction, _: transaction.put_file("other", b"other"))
    (standing,) = world.look().replicas
    assert standing.health == "forked"
    assert not standing.has(1)


def test_another_content_under_an_earlier_number_is_not_counted_either(world: World) -> None:
    stratum, behind = world.add(2)
    backup = world.keep()
    world.publish()
    stratum.fetch(world.site.storage)
    world.restore(backup)
    edit(world.site, lambda transaction, _: transaction.put_file("other", b"other"))
    behind.fetch(world.site.storage)
    world.publish()
    assert health(world) == ["forked", "behind"]
    assert not world.look().replicas[0].has(1)


def test_what_was_collected_here_is_not_held_against_a_replica(world: World) -> None:
    world.add()
    old = world.site.repository.manifest().root_hash
    world.publish()
    (world.site.storage / old.path(Suffix.CATALOG)).unlink()
    assert health(world) == ["behind"]


def test_each_earlier_revision_is_looked_up_once(world: World) -> None:
    world.add()
    observer = world.observer()
    asked: list[ContentHash] = []
    known = observer.source.look_back
    assert known is not None

    def look_back(root: ContentHash) -> tuple[int, ContentHash | None]:
        asked.append(root)
        return known(root)

    observer = Observer(dataclasses.replace(observer.source, look_back=look_back), observer.targets)
    for _ in range(3):
        world.publish()
        for _ in range(2):
            assert [each.health for each in observer.look(world.now).replicas] == ["behind"]
    assert len(asked) == len(set(asked)) == 4


def test_a_snapshot_that_was_cut_short_has_nothing(world: World) -> None:
    (stratum,) = world.add()
    (stratum.folder / world.site.repository.manifest().root_hash.path(Suffix.CATALOG)).unlink()
    (standing,) = world.look().replicas
    assert (standing.health, standing.revision) == ("incomplete", None)


def test_a_revision_published_during_the_look_is_not_taken_for_a_stray(world: World) -> None:
    (stratum,) = world.add()

    def publish_first(folder: Path) -> Origin:
        if world.revision == 1:
            world.publish()
            stratum.fetch(world.site.storage)
        return LocalStore(folder)

    stratum.reach = publish_first
    survey = world.look()
    assert (survey.revision, survey.replicas[0].health) == (2, "ok")


def test_a_cache_that_keeps_an_older_revision_is_told_and_counts_for_what_it_gives_out(
    world: World, tmp_path: Path
) -> None:
    (stratum,) = world.add()
    stratum.cache = shutil.copytree(stratum.folder, tmp_path / "cache")
    assert health(world) == ["ok"]
    newest = world.publish()
    assert health(world) == ["behind"]  # both are
    stratum.fetch(world.site.storage)
    (standing,) = world.look().replicas
    assert (standing.health, standing.revision, standing.behind) == ("stale-proxy", newest - 1, 1)
    assert standing.has(newest - 1)
    assert not standing.has(newest)
    assert f"gives out revision {newest - 1}, the replica has {newest}" in standing.message


def test_a_server_that_hangs_holds_nobody_back_and_is_not_asked_twice(world: World) -> None:
    hanging, well = world.add(2)
    release, calls = threading.Event(), []

    def hang(folder: Path) -> Origin:
        calls.append(folder)
        release.wait()
        return LocalStore(folder)

    hanging.reach = hang
    observer = world.observer(seconds=2.0)
    try:
        for _ in range(3):
            survey = observer.look(world.now)
            assert [s.health for s in survey.replicas] == ["unreachable", "ok"]
            assert "no whole answer within" in survey.replicas[0].message
        assert len(calls) == 1
        assert survey.replicas[1].url == well.url
    finally:
        release.set()


def test_a_bug_that_one_server_triggers_is_told_of_that_server(world: World) -> None:
    broken, _ = world.add(2)

    def fail(_: Path) -> Origin:
        raise ZeroDivisionError("what it sent")

    broken.reach = fail
    survey = world.look()
    assert [s.health for s in survey.replicas] == ["unreachable", "ok"]
    assert "ZeroDivisionError: what it sent" in survey.replicas[0].message


def test_a_repository_that_cannot_be_read_itself_says_so(world: World) -> None:
    world.add()
    (world.site.storage / MANIFEST).write_bytes(b"")
    with pytest.raises(IntegrityError):
        world.look()


# over HTTP


class CachingProxy(http.server.BaseHTTPRequestHandler):
    """A proxy that keeps what it has for ever, unless asked not to."""

    folders: ClassVar[dict[str, Path]] = {}
    kept: ClassVar[dict[str, bytes]] = {}

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        is_fresh = self.headers.get("Cache-Control") == "no-cache"
        url, _, name = self.path.partition(f"/cvmfs/{NAME}/")
        path = self.folders.get(url, Path("/nowhere")) / name
        if self.path not in self.kept or is_fresh:
            if not path.is_file():
                self.send_error(404)
                return
            self.kept[self.path] = path.read_bytes()
        data = self.kept[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def proxy(folders: dict[str, Path]) -> Iterator[str]:
    """Run a proxy that knows these servers."""
    handler = cast(
        type[CachingProxy], type("Proxy", (CachingProxy,), {"folders": folders, "kept": {}})
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def source_of(world: World) -> Source:
    return world.observer().source


def test_a_stale_proxy_is_found_by_asking_past_it(world: World) -> None:
    (stratum,) = world.add()
    with proxy({"http://s1.example.org": stratum.folder}) as address:
        observer = Observer(
            source_of(world),
            [
                http_target(stratum.url, proxy=address),
                http_target(f"{stratum.url}/", proxy=address, compare=True),
            ],
        )
        assert [s.health for s in observer.look(world.now).replicas] == ["ok", "ok"]
        world.publish()
        stratum.fetch(world.site.storage)
        plain = Observer(observer.source, observer.targets[:1])
        compared = Observer(observer.source, observer.targets[1:])
        assert [s.health for s in plain.look(world.now).replicas] == ["behind"]
        # asking past it has let the proxy fetch what is new: the next client gets it
        assert [s.health for s in compared.look(world.now).replicas] == ["stale-proxy"]
        assert [s.health for s in plain.look(world.now).replicas] == ["ok"]


def test_no_server_and_no_repository_are_different_things(world: World) -> None:
    (stratum,) = world.add()
    with proxy({"http://s1.example.org": stratum.folder}) as address:
        absent = http_target(f"http://s2.example.org/cvmfs/{NAME}", proxy=address)
        (standing,) = Observer(source_of(world), [absent]).look(world.now).replicas
        assert standing.health == "incomplete"
        assert "is missing (404)" in standing.message
    gone = http_target(stratum.url, proxy=address)
    (standing,) = Observer(source_of(world), [gone]).look(world.now).replicas
    assert standing.health == "unreachable"


# waiting, in a world of twelve


def twelve(world: World) -> list[Stratum1]:
    """Nine that fetch every minute to nine, and three that are ill for ever."""
    strata = world.add(12)
    for number, stratum in enumerate(strata[:9], 1):
        stratum.every = stratum.next_at = 60.0 * number
    for stratum in strata[9:]:
        stratum.next_at = float("inf")
    strata[9].reach = unreachable
    unsign(strata[10])
    alter(strata[11])
    return strata


def unreachable(folder: Path) -> Origin:
    raise RemoteError(f"{folder.name}: connection refused")


def waiting(world: World, said: list[str]) -> Waiting:
    return Waiting(world.look, monotonic=lambda: world.seconds, sleep=world.sleep, tell=said.append)


@pytest.mark.parametrize("count", [1, 5, 9])
def test_the_waiting_ends_when_as_many_as_wanted_have_it(world: World, count: int) -> None:
    twelve(world)
    revision = world.publish()
    said: list[str] = []
    survey = waiting(world, said).wait(Goal(revision, count, 10 * MINUTE))
    assert survey.having(revision) == count
    assert world.seconds == 60 * count
    # told when the number changes, and not at every look
    assert len(said) == count
    assert said[0] == f"0 of 12 replicas have revision {revision}; {count} are waited for"


def test_the_ill_are_named_when_the_time_is_over(world: World) -> None:
    strata = twelve(world)
    revision = world.publish()
    goal = Goal(revision, 12, 5 * MINUTE)
    survey = waiting(world, []).wait(goal)
    assert world.seconds == 300
    assert survey.having(revision) == 5
    error = lagging(survey, goal, waited=True)
    assert error.exit_code == 3
    text = str(error)
    assert text.startswith(
        f"5 of 12 replicas have revision {revision} after 300 seconds, 12 are wanted; missing: "
    )
    for stratum in strata[:5]:
        assert f"{stratum.url}:" not in text
    for stratum in strata[5:9]:
        assert f"{stratum.url}: has revision {revision - 1}" in text
    assert f"{strata[9].url}: unreachable, s10: connection refused" in text
    assert f"{strata[10].url}: unsigned, manifest has no signature block" in text
    assert f"{strata[11].url}: bad-signature, manifest: hash line" in text


def test_what_is_there_already_is_not_waited_for(world: World) -> None:
    world.add(3)
    survey = waiting(world, []).wait(Goal(1, 3, timedelta()))
    assert (survey.having(1), world.seconds, world.looks) == (3, 0.0, 1)


def test_a_look_that_comes_after_the_time_still_counts(world: World) -> None:
    (stratum,) = world.add()
    revision = world.publish()
    stratum.next_at = 15.0
    survey = waiting(world, []).wait(Goal(revision, 1, timedelta(seconds=15)))
    assert (survey.having(revision), world.seconds, world.looks) == (1, 15.0, 3)


def test_one_that_had_the_revision_and_lost_it_counts_no_more(world: World) -> None:
    first, second = world.add(2)
    backup = world.keep()
    revision = world.publish()
    first.fetch(world.site.storage)
    first.next_at, second.next_at = float("inf"), 30.0

    def sleep(seconds: float) -> None:
        world.sleep(seconds)
        if world.seconds == 20.0:  # a load balancer takes another server
            shutil.copy(backup / MANIFEST, first.folder / MANIFEST)
        if world.seconds == 50.0:
            first.fetch(world.site.storage)

    waits = Waiting(world.look, monotonic=lambda: world.seconds, sleep=sleep)
    survey = waits.wait(Goal(revision, 2, 2 * MINUTE))
    assert (survey.having(revision), world.seconds) == (2, 50.0)


def test_a_revision_that_does_not_exist_is_never_reached(world: World) -> None:
    world.add(2)
    goal = Goal(5, 1, MINUTE)
    survey = waiting(world, []).wait(goal)
    error = lagging(survey, goal, waited=True)
    assert error.hint == "the newest revision published here is 1"
