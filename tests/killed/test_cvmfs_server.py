"""Publishing by `cvmfs_server`, with a fault or a death at every command.

Readers see the old state or the new one, and no transaction is ever left for a person to end;
nobody else's is touched.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import InputError, LockedError, RepositoryError
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.base import Repository
from cvmfs_publish.repository.export import export_tree
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import rollback
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.repository.server_program import ServerError
from cvmfs_publish.repository.tree_check import check_tree
from tests import versions
from tests.stock_host import StockHost, in_child
from tests.support import NAME
from tests.versions import at, leads_to, sandbox

pytestmark = pytest.mark.slow

IMAGE = "ghcr.io/a/b:1"
TRANSACTION = ["transaction:before", "opening", "transaction:after"]
PUBLISH = ["publish:before", "publishing", "published", "publish:after"]
INGEST = ["ingest:before", "ingested", "ingest:after"]


@pytest.fixture
def host(tmp_path: Path) -> StockHost:
    return StockHost(tmp_path / "host", int(at(0).timestamp()))


def publish(repository: Repository, version: str, day: float = 1) -> None:
    with repository.transaction(int(at(day).timestamp())) as transaction:
        versions.put(transaction, IMAGE, version, at(day))


def make_shards(repository: Repository, *names: str) -> None:
    """Make the directories of sandboxes, which `ingest` wants to be there."""
    with repository.transaction(int(at(0).timestamp())) as transaction:
        for name in names:
            directory = sandbox(name).rpartition("/")[0]
            transaction.make_directories(directory, [".flat", directory])


def leads(host: StockHost) -> str | None:
    with host.repository().open() as view:
        return leads_to(view, IMAGE)


@pytest.mark.parametrize(
    ("place", "death"),
    [
        *((place, "kill parent") for place in [*TRANSACTION, *PUBLISH]),
        *((place, "kill both") for place in ("opening", "transaction:after", "publishing")),
        *((place, "die") for place in ("opening", "publishing")),
    ],
)
def test_killed_at_any_command_nobody_has_to_end_a_transaction(
    host: StockHost, place: str, death: str
) -> None:
    publish(host.repository(), "A")
    host.fault(**{place: death})
    code = in_child(lambda: publish(host.repository(), "B", 2))
    assert code == (1 if death == "die" else -signal.SIGKILL)
    publish(host.repository(wait=30), "C", 3)
    assert leads(host) == sandbox("C")
    assert not host.flag.exists()
    repository = host.repository()
    assert check_tree(repository).problems == []
    with repository.open() as view:
        past = [event.manifest_digest for record in iter_publications(view)
                for event in record.events]  # fmt: skip
    known = [str(versions.manifest_digest(version)) for version in "ABC"]
    assert past in (known, [known[0], known[2]])


@pytest.mark.parametrize(
    ("place", "death"),
    [
        *((place, "kill parent") for place in INGEST),
        ("ingested", "kill both"),
        ("ingested", "exit 1"),
    ],
)
def test_killed_while_a_sandbox_is_ingested_it_is_made_again(
    host: StockHost, place: str, death: str
) -> None:
    repository = host.repository("ingest")
    make_shards(repository, "A", "B")
    publish(repository, "A")
    host.fault(**{place: death})
    in_child(lambda: publish(host.repository("ingest"), "B", 2))
    assert leads(host) == sandbox("A")
    publish(host.repository("ingest", wait=30), "B", 3)
    assert leads(host) == sandbox("B")
    assert not host.flag.exists()
    assert check_tree(host.repository()).problems == []


@pytest.mark.parametrize("place", ["transaction:before", "opening", "publish:before", "publishing"])
def test_a_command_that_fails_is_told_and_the_transaction_is_ended(
    host: StockHost, place: str
) -> None:
    publish(host.repository(), "A")
    before = host.repository().revision()
    host.fault(**{place: "exit 5"})
    with pytest.raises(ServerError, match=f"told to fail at {place}") as caught:
        publish(host.repository(), "B", 2)
    assert (caught.value.exit_code, caught.value.code) == (5, 5)
    assert host.repository().revision() == before
    assert leads(host) == sandbox("A")
    assert not host.flag.exists()
    publish(host.repository(), "B", 2)
    assert leads(host) == sandbox("B")


def test_a_command_that_hangs_is_ended_in_time(host: StockHost) -> None:
    publish(host.repository(), "A")
    host.fault(publish_before="hang")
    with pytest.raises(ServerError, match="did not end within 3 seconds and was killed"):
        publish(host.repository(timeout=3), "B", 2)
    assert not host.flag.exists()
    publish(host.repository(), "B", 2)
    assert leads(host) == sandbox("B")


def test_an_abort_that_fails_is_told_and_made_good_by_the_next_publish(host: StockHost) -> None:
    publish(host.repository(), "A")
    host.fault(publish_before="exit 1", abort_before="exit 1")
    with pytest.raises(ServerError, match="abort"):
        publish(host.repository(), "B", 2)
    assert host.flag.exists()
    publish(host.repository(), "B", 2)
    assert leads(host) == sandbox("B")
    assert host.commands().count("abort") == 2


def test_an_expired_whitelist_is_told_with_what_to_do(host: StockHost) -> None:
    host.fault(transaction_before="exit 22")
    with pytest.raises(ServerError) as caught:
        publish(host.repository(), "A")
    assert "cvmfs_server resign" in caught.value.hint


def test_a_program_that_is_not_there_is_told(host: StockHost) -> None:
    repository = host.repository()
    host.program.unlink()
    with pytest.raises(ServerError, match="cannot be run: not found") as caught:
        publish(repository, "A")
    assert "install cvmfs-server" in caught.value.hint


def test_a_program_that_is_too_old_is_refused_before_anything_is_done(host: StockHost) -> None:
    (host.base / "version").write_text("2.7.5-1")
    with pytest.raises(ServerError, match=r"version 2\.7\.5, too old: 2\.8\.0 or newer") as caught:
        publish(host.repository(), "A")
    assert (caught.value.exit_code, host.commands()) == (5, [])
    assert "update cvmfs-server" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "commands"),
    [
        ("2.11.5", ["transaction", "publish"]),
        ("2.12.0", ["ingest", "transaction", "publish"]),
        ("not to be understood", ["ingest", "transaction", "publish"]),
    ],
)
def test_an_ingest_that_cannot_keep_owners_is_not_used(
    host: StockHost, version: str, commands: list[str]
) -> None:
    make_shards(host.repository(), "A")
    (host.base / "version").write_text(version)
    before = len(host.commands())
    publish(host.repository("ingest"), "A")
    assert host.commands()[before:] == commands


# others


@pytest.mark.parametrize("moment", ["before", "in between", "after a crash of ours"])
def test_the_transaction_of_somebody_else_is_never_touched(host: StockHost, moment: str) -> None:
    repository = host.repository()
    publish(repository, "A")

    def open_theirs() -> None:
        host.flag.touch()
        (host.base / "spool/scratch/current/theirs").write_text("unpublished work")

    if moment == "after a crash of ours":
        host.fault(**{"publish:after": "kill parent"})
        assert in_child(lambda: publish(host.repository(), "B", 2)) == -signal.SIGKILL
        while host.flag.exists() or repository.revision().number < 3:
            pass
    if moment != "in between":
        open_theirs()
    with (
        pytest.raises(LockedError, match="transaction of somebody else") as caught,
        repository.transaction(int(at(3).timestamp())) as transaction,
    ):
        open_theirs()
        versions.put(transaction, IMAGE, "C", at(3))
    assert "cvmfs_server abort" in caught.value.hint or moment == "in between"
    assert host.flag.exists()
    assert (host.base / "spool/scratch/current/theirs").exists()
    assert "abort" not in host.commands()
    host.flag.unlink()
    publish(host.repository(), "C", 3)
    assert leads(host) == sandbox("C")


def test_a_publish_or_gc_of_somebody_else_is_waited_for(host: StockHost) -> None:
    ready, release = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        import fcntl

        descriptor = os.open(host.base / "spool/is_collecting.lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(ready[1], b"1")
        os.read(release[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(LockedError, match="gc or check is running"):
        publish(host.repository(), "A")
    os.write(release[1], b"1")
    publish(host.repository(wait=30), "A")
    os.waitpid(pid, 0)


def test_two_publishers_take_turns(host: StockHost) -> None:
    def work(tag: str) -> Callable[[], None]:
        def publish_some() -> None:
            for number in range(3):
                repository = host.repository(wait=120)
                with repository.transaction(int(at(1).timestamp())) as transaction:
                    versions.put(transaction, f"ghcr.io/{tag}/x:{number}", f"{tag}{number}", at(1))

        return publish_some

    children = []
    for tag in "ab":
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(work(tag)))
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    repository = host.repository()
    assert repository.revision().number == 7
    with repository.open() as view:
        assert len(list(iter_publications(view))) == 6
    assert check_tree(repository).problems == []


# how sandboxes go in


def test_how_a_sandbox_goes_in_is_chosen_and_told(host: StockHost) -> None:
    told: list[str] = []
    repository = host.repository("ingest")
    make_shards(repository, "B")
    for version in "AB":
        with repository.transaction(int(at(1).timestamp()), told.append) as transaction:
            versions.put(transaction, IMAGE, version, at(1))
    chosen = [text for text in told if text.startswith("/.flat")]
    assert chosen == [
        f"/{sandbox('A')}: transaction, because its directory is new, and `ingest` would make it"
        " as it likes",
        f"/{sandbox('B')}: ingest",
    ]
    assert host.commands() == ["transaction", "publish"] * 2 + ["ingest", "transaction", "publish"]
    with repository.open() as view:
        (record,) = iter_publications(view)
    assert record.revision == repository.revision().number == 5
    assert [event.revision for event in record.history] == [3]
    told.clear()
    with host.repository().transaction(int(at(2).timestamp()), told.append) as transaction:
        versions.put(transaction, IMAGE, "B", at(2), force=True)
    assert told[0].endswith("transaction, because it replaces another one")


def test_several_images_take_one_transaction(host: StockHost) -> None:
    repository = host.repository()
    with repository.transaction(int(at(1).timestamp())) as transaction:
        for number in range(4):
            versions.put(transaction, f"ghcr.io/a/b:{number}", f"A{number}", at(1))
    assert host.commands() == ["transaction", "publish"]
    assert repository.revision().number == 2


def test_what_is_removed_goes_with_its_listing(host: StockHost) -> None:
    repository = host.repository()
    publish(repository, "A", 1)
    publish(repository, "B", 2)
    planned = repository.plan(at(14), timedelta(days=10))
    assert [removal.path for removal in planned.removals] == [sandbox("A")]
    assert repository.collect(at(14), timedelta(days=10)).removals == planned.removals
    with repository.open() as view:
        assert not view.is_directory(sandbox("A"))
        assert leads_to(view, IMAGE) == sandbox("B")
    left = list((host.base / "mount/.cvmfs-publish/trees").rglob("*.zst"))
    assert [path.stem for path in left] == [sandbox("B").rpartition("/")[2]]


def test_a_sandbox_that_was_published_without_cvmfs_server_can_be_gone_back_to(
    host: StockHost,
) -> None:
    native = NativeRepository(NAME, LocalStore(host.base / "srv"), host.base / "keys")
    for day, version in ((1, "A"), (2, "B")):
        publish(native, version, day)
    with native.snapshot() as snapshot:  # the mount of the host shows it
        export_tree(snapshot, "", host.base / "views/3")
    (host.base / "mount").unlink()
    (host.base / "mount").symlink_to("views/3")
    repository = host.repository()
    with repository.transaction(int(at(3).timestamp())) as transaction:
        assert transaction.tree_digest("none") is None
        rollback(transaction, Reference.parse(IMAGE), DEFAULT_PLATFORM, at(3))
    assert leads(host) == sandbox("A")


def test_a_gateway_is_refused(host: StockHost) -> None:
    conf = host.base / "server.conf"
    text = conf.read_text().replace("=local,", "=gw,", 1)
    conf.write_text(
        text.replace(f",{host.base}/srv\n", ",http://gateway.example.org:4929/api/v1\n")
    )
    with pytest.raises(InputError, match="gateway"):
        host.repository()


def test_whoever_does_not_own_the_repository_is_told_how_to(
    host: StockHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(RepositoryError, match=f"{NAME} belongs to root") as caught:
        publish(host.repository(), "A")
    assert "sudo -u root cvmfs-publish" in caught.value.hint
