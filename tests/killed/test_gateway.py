"""Publishing behind a gateway, several at once, with a fault or a death at every command.

Readers never see a name that leads nowhere, nothing of anybody is lost or there twice, and neither
a transaction nor a lease is left for a person to end; nobody else's is touched.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError, LockedError, RepositoryError
from cvmfs_publish.layers.tree import Node, empty_tree
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository import base, gateway
from cvmfs_publish.repository.base import OvertakenError, Repository, persist
from cvmfs_publish.repository.gateway import LeaseLostError
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM, listing_of
from cvmfs_publish.repository.names import pin, read_history, rollback, unpublish_images
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.repository.server_program import LeaseBusyError, ServerError
from cvmfs_publish.repository.tree_check import check_tree
from tests import versions
from tests.gateway_world import GatewayHost, World, stand_in
from tests.stock_host import in_child
from tests.support import NAME
from tests.versions import at, leads_to, sandbox

pytestmark = pytest.mark.slow

IMAGE = "ghcr.io/a/b:1"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(gateway, "_SHORTEST", 0.1)
    monkeypatch.setattr(base, "_PAUSE", 0.02)
    return World(tmp_path / "world", stand_in(), int(at(0).timestamp()))


@pytest.fixture
def host(world: World) -> GatewayHost:
    return world.host("a")


def publish(
    repository: Repository, version: str, day: float = 1, name: str = IMAGE, *, force: bool = False
) -> None:
    def work() -> None:
        with repository.transaction(int(at(day).timestamp())) as transaction:
            versions.put(transaction, name, version, at(day), force=force)

    persist(work)


def in_children(*work: Callable[[], None]) -> list[int]:
    """Do several things at once, each in a process of its own; return how they ended."""
    children = []
    for each in work:
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(each))
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def leads(host: GatewayHost, path: str = "ghcr.io/a/b:1") -> str | None:
    with host.repository().open() as view:
        return leads_to(view, path)


def assert_nobody_has_to_end_anything(world: World) -> None:
    """Neither a transaction nor a lease is left: a lease on everything is to be had."""
    for place in world.base.glob("*/spool"):
        assert not (place / "in_transaction.lock").exists()
        assert not (place / "session_token").exists()
    host = world.host("last")
    for words in (["transaction"], ["abort", "-f"]):
        subprocess.run([host.program, *words, NAME], check=True)
    assert check_tree(host.repository()).problems == []


# several at once


def test_two_publishers_interleave_two_hundred_publishes_and_nothing_is_lost_or_double(
    world: World,
) -> None:
    """Four images a transaction; ten share a sandbox, so that most of them are names alone."""
    count = 100
    publish(world.host("first").repository(), "A")

    def publish_all(writer: str) -> None:
        repository = world.host(writer).repository(lease_wait=120)

        def publish_four(number: int) -> None:
            with repository.transaction(int(at(1).timestamp())) as transaction:
                for each in range(number, number + 4):
                    name = f"ghcr.io/{writer}/{each % 7}:{each}"
                    versions.put(transaction, name, f"{writer}{each % 10}-{each}", at(1))

        for number in range(0, count, 4):
            persist(partial(publish_four, number))

    assert in_children(lambda: publish_all("a"), lambda: publish_all("b")) == [0, 0]
    repository = world.host("last").repository()
    with repository.open() as view:
        records = [each for each in iter_publications(view) if each.reference != IMAGE]
        assert len(records) == len({record.reference for record in records}) == 2 * count
        assert all(not record.history for record in records)
        writers = [r.reference[8] for r in sorted(records, key=lambda r: r.revision)]
        assert len({tuple(writers[:count]), ("a",) * count, ("b",) * count}) == 3  # interleaved
        for record in records:
            assert leads_to(view, record.path[1:]) == record.sandbox[1:]
            assert 1 < record.revision <= repository.revision().number
    report = check_tree(repository)
    assert report.problems == []
    assert report.counts["sandboxes"] == 2 * 10 + 1


def test_two_that_publish_the_same_name_again_and_again_leave_one_of_them_whole(
    world: World,
) -> None:
    def work(writer: str) -> Callable[[], None]:
        def publish_some() -> None:
            repository = world.host(writer).repository(lease_wait=120)
            for number in range(4):
                publish(repository, f"{writer}{number}")

        return publish_some

    assert in_children(work("a"), work("b")) == [0, 0]
    repository = world.host("last").repository()
    assert check_tree(repository).problems == []
    with repository.open() as view:
        (record,) = iter_publications(view)
        assert leads_to(view, IMAGE) == record.sandbox[1:]
        past = [event.manifest_digest for event in record.events]
    wanted = {str(versions.manifest_digest(f"{w}{n}")) for w in "ab" for n in range(4)}
    assert set(past) <= wanted
    assert all(one != other for one, other in pairwise(past))


def test_leases_are_on_the_narrowest_path(world: World) -> None:
    host = world.host("a")
    repository = host.repository()
    publish(repository, "A")
    assert host.leases() == [".flat", "ghcr.io", ".metadata"]
    publish(repository, "B", 2)
    publish(repository, "B-2", 3, "ghcr.io/a/b:2")
    with repository.transaction(int(at(4).timestamp())) as transaction:
        pin(transaction, Reference.parse(IMAGE), DEFAULT_PLATFORM, at(4))
    narrow = [sandbox("B")[:8], "ghcr.io/a", ".metadata"]
    assert host.leases()[3:6] == narrow
    assert host.leases()[6:8] == ["ghcr.io/a", ".metadata/ghcr.io/a/b:2"]
    assert host.leases()[8:] == [".metadata/ghcr.io/a/b:1/publication.json"]


def test_a_long_lease_elsewhere_is_in_nobodys_way(world: World) -> None:
    first, second = world.host("a"), world.host("b")
    publish(first.repository(), "A")
    first.fault(publish_before="wait")
    other = threading.Thread(target=lambda: publish(first.repository(lease_wait=60), "B", 2))
    other.start()
    wait_for(first.place / "reached")
    assert first.leases()[-1] == sandbox("B")[:8]
    publish(second.repository(), "C", 2, "docker.io/c/c:1")
    (first.place / "go").touch()
    other.join()
    assert leads(second) == sandbox("B")
    assert leads(second, "docker.io/c/c:1") == sandbox("C")
    assert_nobody_has_to_end_anything(world)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    path.unlink()


def test_what_was_published_between_the_mount_and_the_lease_is_not_undone(world: World) -> None:
    """The manifest is read before the lease is asked for: cvmfs/cvmfs#3867."""
    first, second = world.host("a"), world.host("b")
    publish(first.repository(), "A")
    first.fault(mounted="wait")
    repository = first.repository(lease_wait=60)
    other = threading.Thread(target=lambda: publish(repository, "A-2", 2, "ghcr.io/a/b:2"))
    other.start()
    wait_for(first.place / "reached")
    publish(second.repository(), "A-3", 2, "ghcr.io/a/b:3")
    (first.place / "go").touch()
    other.join()
    for tag in "123":
        assert leads(second, f"ghcr.io/a/b:{tag}") == sandbox("A")
    assert "abort" in first.commands()
    assert_nobody_has_to_end_anything(world)


def test_two_that_publish_the_same_image_put_its_sandbox_once(world: World) -> None:
    first, second = world.host("a"), world.host("b")
    publish(first.repository(), "A")
    first.fault(publish_before="wait")
    other = threading.Thread(target=lambda: publish(first.repository(lease_wait=60), "B", 2))
    other.start()
    wait_for(first.place / "reached")
    waiting = threading.Thread(
        target=lambda: publish(second.repository(lease_wait=60), "B-2", 2, "docker.io/x/y:1")
    )
    waiting.start()
    while not (second.place / "log").exists() or len(second.leases()) < 2:
        time.sleep(0.01)
    (first.place / "go").touch()
    other.join()
    waiting.join()
    assert leads(first) == leads(second, "docker.io/x/y:1") == sandbox("B")
    published = [
        lease
        for lease, then in pairwise(second.log())
        if then.startswith("publish") and ".flat" in lease
    ]
    assert published == []
    assert_nobody_has_to_end_anything(world)


def test_what_others_have_changed_meanwhile_begins_the_transaction_again(world: World) -> None:
    first, second = world.host("a").repository(), world.host("b").repository()
    publish(first, "A")
    with (
        pytest.raises(OvertakenError, match="another publisher has changed /"),
        first.transaction(int(at(2).timestamp())) as transaction,
    ):
        versions.put(transaction, IMAGE, "B", at(2))
        publish(second, "C", 2)
    assert leads(world.host("c")) == sandbox("C")
    publish(first, "B", 3)
    with second.open() as view:
        past = read_history(view, Reference.parse(IMAGE), DEFAULT_PLATFORM)
    digests = [version.event.manifest_digest for version in past.versions]
    assert digests == [str(versions.manifest_digest(version)) for version in "ACB"]


def test_gc_waits_until_nobody_is_at_work_and_removes_nothing_that_was_named_meanwhile(
    world: World,
) -> None:
    first, second = world.host("a"), world.host("b")
    publish(first.repository(), "A", 1)
    publish(first.repository(), "B", 2)
    publish(first.repository(), "C", 3)
    planned = first.repository().plan(at(20), timedelta(days=10))
    assert {each.path for each in planned.removals} == {sandbox("A"), sandbox("B")}
    second.fault(publish_before="wait")
    other = threading.Thread(target=lambda: publish(second.repository(), "A", 20, "ghcr.io/x/y:1"))
    other.start()
    wait_for(second.place / "reached")
    with pytest.raises(LeaseBusyError, match="lease path busy"):
        first.repository().collect(at(20), timedelta(days=10))
    (second.place / "go").touch()
    other.join()
    done = first.repository(lease_wait=60).collect(at(20), timedelta(days=10))
    assert [each.path for each in done.removals] == [sandbox("B")]
    assert first.leases()[-1] == ""
    assert leads(first, "ghcr.io/x/y:1") == sandbox("A")
    with first.repository().open() as view:
        assert not view.is_directory(sandbox("B"))
        assert view.read_file(listing_of(sandbox("B"))) is None
    assert first.repository().collect(at(20), timedelta(days=10)).removals == ()
    assert_nobody_has_to_end_anything(world)


@pytest.mark.parametrize(
    ("place", "death"), [("opened", "kill both"), ("committed", "kill parent")]
)
def test_killed_while_it_collects_the_next_one_does(world: World, place: str, death: str) -> None:
    host = world.host("a")
    publish(host.repository(), "A", 1)
    publish(host.repository(), "B", 2)

    def collect() -> None:
        host.repository(wait=30).collect(at(20), timedelta(days=10))

    host.fault(**{place: death})
    assert in_child(collect) == -signal.SIGKILL
    collect()
    with host.repository().open() as view:
        assert not view.is_directory(sandbox("A"))
        assert leads_to(view, "ghcr.io/a/b:1") == sandbox("B")
    assert_nobody_has_to_end_anything(world)


# deaths and faults

TRANSACTION = [
    "transaction:before", "mounted", "opening", "leased", "opened", "transaction:after",
]  # fmt: skip
PUBLISH = ["publish:before", "publishing", "committed", "publish:after"]


@pytest.mark.parametrize(
    ("part", "place", "death"),
    [
        *((0, place, "kill parent") for place in [*TRANSACTION, *PUBLISH]),
        *((0, place, "kill both") for place in ("opening", "publishing")),
        *((0, place, "die") for place in ("opened", "publishing", "committed")),
        *((part, "opened", "kill both") for part in (1, 2)),
        *((part, "committed", "kill both") for part in (0, 1, 2)),
    ],
)
def test_killed_at_any_command_nobody_has_to_end_anything(
    world: World, part: int, place: str, death: str
) -> None:
    """Part 0 is the sandbox, 1 are names, 2 are records."""
    host = world.host("a")
    publish(host.repository(), "A")
    host.fault(**{place: part * "later " + death})
    code = in_child(lambda: publish(host.repository(), "B", 2))
    assert code in ((0, 1) if death == "die" else (-signal.SIGKILL,))
    assert leads(host) in (sandbox("A"), sandbox("B"))
    publish(host.repository(wait=30, lease_wait=30), "C", 3)
    assert leads(host) == sandbox("C")
    assert_nobody_has_to_end_anything(world)
    with host.repository().open() as view:
        (record, *others) = iter_publications(view)
        past = [event.manifest_digest for event in record.events]
    assert others == []
    known = [str(versions.manifest_digest(version)) for version in "ABC"]
    assert past in (known, [known[0], known[2]])


def test_a_sandbox_that_a_killed_publisher_has_left_is_not_put_again(world: World) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    host.fault(**{"transaction:before": "later kill parent"})
    assert in_child(lambda: publish(host.repository(), "B", 2)) == -signal.SIGKILL
    before = len(host.leases())
    publish(host.repository(wait=30), "B", 2)
    assert host.leases()[before:] == ["ghcr.io/a", ".metadata"]
    assert leads(host) == sandbox("B")
    assert_nobody_has_to_end_anything(world)


def test_a_lease_that_nobody_can_give_back_ends_by_itself(world: World) -> None:
    """Killed after the gateway gave it and before anybody wrote down which it is."""
    host = world.host("a")
    publish(host.repository(), "A")
    host.fault(leased="kill both")
    assert in_child(lambda: publish(host.repository(), "B", 2)) == -signal.SIGKILL
    with pytest.raises(LeaseBusyError, match="lease path busy"):
        publish(host.repository(), "B", 2)
    assert not host.flag.exists()
    host.fault(**{"transaction:before": "expire"})
    publish(host.repository(), "B", 2)
    assert_nobody_has_to_end_anything(world)


@pytest.mark.parametrize("part", [0, 1, 2], ids=["sandbox", "names", "records"])
@pytest.mark.parametrize("place", ["publishing", "opened"])
def test_a_lease_that_is_lost_is_asked_for_again(world: World, place: str, part: int) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    before = len(host.leases())
    host.fault(**{place: part * "later " + "expire"})
    publish(host.repository(), "B", 2)
    wanted = [sandbox("B")[:8], "ghcr.io/a", ".metadata"]
    assert host.leases()[before:] == [*wanted[: part + 1], *wanted[part:]]
    assert leads(host) == sandbox("B")
    assert_nobody_has_to_end_anything(world)


def test_a_lease_that_is_lost_again_and_again_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "_ATTEMPTS", 1)
    host = world.host("a")
    publish(host.repository(), "A")
    before = host.repository().revision()
    host.fault(publishing="expire")
    with pytest.raises(LeaseLostError, match=r"the lease on /\.flat/\w\w of") as caught:
        publish(host.repository(), "B", 2)
    assert caught.value.exit_code == 5
    assert "max_lease_time" in caught.value.hint
    assert host.repository().revision() == before
    assert_nobody_has_to_end_anything(world)


def test_a_busy_path_is_waited_for_and_told_if_it_stays_busy(world: World) -> None:
    first, second = world.host("a"), world.host("b")
    publish(first.repository(), "A")
    first.fault(**{"publish:before": "later wait"})
    other = threading.Thread(target=lambda: publish(first.repository(lease_wait=60), "B", 2))
    other.start()
    wait_for(first.place / "reached")
    with pytest.raises(LeaseBusyError, match="lease path busy") as caught:
        publish(second.repository(), "A-2", 2, "ghcr.io/a/b:2")
    assert caught.value.exit_code == 5
    assert "lease_wait" in caught.value.hint
    waiting = threading.Thread(
        target=lambda: publish(second.repository(lease_wait=60), "A-2", 2, "ghcr.io/a/b:2")
    )
    waiting.start()
    count = len(second.leases())
    while len(second.leases()) < count + 2:
        time.sleep(0.01)
    (first.place / "go").touch()
    other.join()
    waiting.join()
    assert leads(second, "ghcr.io/a/b:2") == sandbox("A")
    assert_nobody_has_to_end_anything(world)


@pytest.mark.parametrize("place", ["transaction:before", "opening", "publish:before", "publishing"])
def test_a_command_that_fails_is_told_and_the_transaction_is_ended(
    world: World, place: str
) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    before = host.repository().revision()
    host.fault(**{place: "exit 5"})
    with pytest.raises(ServerError, match=f"told to fail at {place}") as caught:
        publish(host.repository(), "B", 2)
    assert (caught.value.exit_code, caught.value.code) == (5, 5)
    assert host.repository().revision() == before
    publish(host.repository(), "B", 2)
    assert leads(host) == sandbox("B")
    assert_nobody_has_to_end_anything(world)


def test_an_answer_that_is_lost_is_found_out_by_looking(world: World) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    for part in range(3):
        version = "BCD"[part]
        host.fault(committed=part * "later " + "exit 1")
        publish(host.repository(), version, 2 + part)
        assert leads(host) == sandbox(version)
    with host.repository().open() as view:
        (record,) = iter_publications(view)
        past = [event.manifest_digest for event in record.events]
    assert past == [str(versions.manifest_digest(version)) for version in "ABCD"]
    assert_nobody_has_to_end_anything(world)


def test_a_command_that_hangs_is_ended_in_time(world: World) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    host.fault(publishing="hang")
    with pytest.raises(ServerError, match="did not end within 3 seconds and was killed"):
        publish(host.repository(timeout=3), "B", 2)
    publish(host.repository(), "B", 2)
    assert leads(host) == sandbox("B")
    assert_nobody_has_to_end_anything(world)


def test_a_gateway_that_cannot_be_reached_is_told_and_made_good_later(world: World) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    world.down.touch()
    with pytest.raises(ServerError, match="cannot acquire lease"):
        publish(host.repository(), "B", 2)
    assert not host.flag.exists()
    world.down.unlink()
    host.fault(publishing="wait")
    failed: list[BaseException] = []

    def work() -> None:
        try:
            publish(host.repository(), "B", 2)
        except ServerError as error:
            failed.append(error)

    other = threading.Thread(target=work)
    other.start()
    wait_for(host.place / "reached")
    world.down.touch()
    (host.place / "go").touch()
    other.join()
    assert "cannot drop lease" in str(failed[0])
    assert host.flag.exists()
    assert host.token.exists()
    with pytest.raises(ServerError, match="abort"):
        publish(host.repository(), "B", 2)
    world.down.unlink()
    publish(host.repository(), "B", 2)
    assert leads(host) == sandbox("B")
    assert_nobody_has_to_end_anything(world)


# others on the same machine


@pytest.mark.parametrize("what", ["transaction", "lease"])
def test_what_somebody_else_has_open_here_is_never_touched(world: World, what: str) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    theirs = host.flag if what == "transaction" else host.token
    theirs.write_text("theirs")
    with pytest.raises(LockedError, match=f"{what} of somebody else") as caught:
        publish(host.repository(), "B", 2)
    assert "cvmfs_server abort" in caught.value.hint
    assert theirs.read_text() == "theirs"
    assert "abort" not in host.commands()
    theirs.unlink()
    publish(host.repository(), "B", 2)
    assert_nobody_has_to_end_anything(world)


# what else there is


def test_what_a_gateway_loses_is_noticed(world: World) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    (world.base / "gateway/forgets").touch()
    with pytest.raises(RepositoryError, match="what the gateway published is not") as caught:
        publish(host.repository(), "B", 2)
    assert "publication.json" in str(caught.value)
    (world.base / "gateway/forgets").unlink()
    publish(host.repository(), "B", 2)
    assert_nobody_has_to_end_anything(world)


def test_names_are_unpublished_and_rolled_back(world: World) -> None:
    host = world.host("a")
    repository = host.repository()
    publish(repository, "A", 1)
    publish(repository, "B", 2)
    reference = Reference.parse(IMAGE)
    with repository.transaction(int(at(3).timestamp())) as transaction:
        assert rollback(transaction, reference, DEFAULT_PLATFORM, at(3)).is_changed
    assert leads(host) == sandbox("A")
    result = unpublish_images(repository, [IMAGE], now=at(4))
    assert result.exit_code == 0
    assert leads(host) is None
    with repository.transaction(int(at(5).timestamp())) as transaction:
        rollback(transaction, reference, DEFAULT_PLATFORM, at(5))
    assert leads(host) == sandbox("A")
    with repository.open() as view:
        past = read_history(view, reference, DEFAULT_PLATFORM)
    assert [version.event.what for version in past.versions] == [
        "published", "published", "rolled back", "unpublished", "rolled back",
    ]  # fmt: skip
    assert_nobody_has_to_end_anything(world)


def test_a_sandbox_is_made_anew_if_that_is_asked_for(world: World) -> None:
    host = world.host("a")
    publish(host.repository(), "A")
    before = host.leases()
    host.fault(publishing="expire")  # what is there is not taken for what is to be put there
    publish(host.repository(), "A", 2, force=True)
    assert host.leases()[len(before) :][:2] == [sandbox("A"), sandbox("A")]
    assert_nobody_has_to_end_anything(world)


def test_an_image_with_a_pipe_is_refused_for_gateways_drop_them(world: World) -> None:
    repository = world.host("a").repository()
    with repository.transaction(int(at(1).timestamp())) as transaction:
        tree = empty_tree()
        tree.root.children["pipe"] = Node(stat.S_IFIFO | 0o600)
        with pytest.raises(InputError, match="/pipe is a named pipe"):
            transaction.put_tree("t", tree)


def test_the_published_revision_is_verified(world: World) -> None:
    repository = world.host("a").repository()
    publish(repository, "A")
    manifest = world.base / "gateway/srv/.cvmfspublished"
    data = manifest.read_bytes()
    manifest.write_bytes(data[:-20] + bytes(20))
    with pytest.raises(RepositoryError, match="is damaged"):
        repository.revision()
