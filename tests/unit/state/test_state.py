"""The watcher's memory keeps what it was told, gives it back, and says what is wrong with it."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.state import database, schema, state
from cvmfs_publish.state.database import StateError
from cvmfs_publish.state.model import (
    Budget,
    Event,
    Facts,
    Failure,
    Image,
    ImageKey,
    LayerProgress,
    ListProblem,
    ListState,
    Polled,
    Progress,
    Push,
    Replica,
    Result,
    Search,
    TagList,
    Wish,
)
from cvmfs_publish.state.reading import Reader
from cvmfs_publish.state.state import State, WatchLock

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
ONE = ImageKey("ghcr.io/a/one:1", "linux/amd64")
TWO = ImageKey("quay.io/b/two:2", "linux/amd64")
D1, D2 = (f"sha256:{digit * 64}" for digit in "12")


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as opened:
        yield opened


def wish(key: ImageKey, list_name: str = "a.yaml", **fields: object) -> Wish:
    return Wish(key, key.name, list_name, **fields)  # type: ignore[arg-type]


def saw(key: ImageKey, digest: str, minutes: int = 15) -> Polled:
    return Polled(key, NOW + minutes * MINUTE, digest)


def publish(memory: State, status: str, facts: Facts, minutes: int = 0) -> None:
    """Let the image that is wished be published, as far as `status` says."""
    now = NOW + minutes * MINUTE
    memory.replace_wishes([wish(ONE)], now)
    memory.enqueue([ONE], now, "poll")
    run = memory.begin_run(memory.due_jobs(now), {}, now)
    memory.finish_run(run, [Result(ONE, status, facts)], now)  # type: ignore[arg-type]


def test_a_staged_image_is_not_published_before_its_name_leads_there(memory: State) -> None:
    publish(memory, "staged", Facts(D1, revision=5, layers_total=3))
    image = get(memory)
    assert (image.status, image.published_at, image.digest_published) == ("staged", None, D1)
    assert memory.record_polls([saw(ONE, D1)], NOW) == ()  # nothing is to be done about it
    memory.record_replica(Replica("u", 9, NOW), ["u"], NOW)
    assert get(memory).replicated_at is None
    memory.settle_staged({ONE: Facts(D1, revision=5)}, {}, NOW + MINUTE)
    assert get(memory).status == "staged"
    memory.settle_staged({}, {ONE: Facts(D1, revision=6)}, NOW + 2 * MINUTE)
    image = get(memory)
    assert (image.status, image.published_at) == ("published", NOW + 2 * MINUTE)
    assert image.facts == Facts(D1, revision=6, layers_total=3)
    memory.record_replica(Replica("u", 6, NOW), ["u"], NOW)
    assert get(memory).replicated_at == NOW
    kinds = [event.kind for event in memory.events_since(0)]
    assert kinds == ["image-staged", "image-published"]


def test_a_publish_that_names_at_once_what_was_staged_is_told(memory: State) -> None:
    publish(memory, "staged", Facts(D1, revision=5))
    publish(memory, "published", Facts(D1, revision=6), minutes=1)
    image = get(memory)
    assert (image.status, image.published_at) == ("published", NOW + MINUTE)
    kinds = [event.kind for event in memory.events_since(0)]
    assert kinds == ["image-staged", "image-published"]


def test_a_rollback_of_what_was_staged_stays(memory: State) -> None:
    publish(memory, "published", Facts(D1, revision=4))
    publish(memory, "staged", Facts(D2, revision=5), minutes=1)
    memory.settle_staged({}, {ONE: Facts(D1, revision=4)}, NOW + 2 * MINUTE)
    image = get(memory)
    assert (image.status, image.published_at) == ("published", NOW)
    assert memory.record_polls([saw(ONE, D2)], NOW) == ()
    kinds = [event.kind for event in memory.events_since(0)]
    assert kinds == ["image-published", "image-staged"]


def test_a_staged_image_that_is_gone_is_published_anew(memory: State) -> None:
    publish(memory, "staged", Facts(D1, revision=5))
    memory.settle_staged({}, {}, NOW)
    assert get(memory).status == "queued"
    assert memory.events_since(0)[-1].kind == "image-missing"


def test_what_waits_is_not_taken_for_published(memory: State) -> None:
    publish(memory, "unchanged", Facts(D1, revision=5))
    memory.settle_staged({ONE: Facts(D2, revision=6)}, {}, NOW)
    assert get(memory).status == "unchanged"  # the watcher has not heard of it yet
    memory.settle_staged({ONE: Facts(D1, revision=6), TWO: Facts(D2)}, {}, NOW)
    assert get(memory).status == "staged"


def get(memory: Reader, key: ImageKey = ONE) -> Image:
    image = memory.image(key)
    assert image is not None
    return image


def published(key: ImageKey, digest: str, revision: int = 2) -> Result:
    return Result(key, "published", Facts(digest, revision=revision))


def run(memory: State, *results: Result, at: datetime = NOW) -> None:
    number = memory.begin_run(memory.due_jobs(at), {}, at)
    memory.finish_run(number, results, at)


def test_an_image_goes_from_wish_to_replica(memory: State) -> None:
    assert memory.replace_wishes([wish(ONE, owner="me@example.org", line=7)], NOW) == (ONE,)
    assert get(memory).status == "waiting"
    assert [image.key for image in memory.due_polls(NOW, 10)] == [ONE]
    later = NOW + MINUTE
    assert memory.record_polls([saw(ONE, D1)], later) == (ONE,)
    assert memory.due_polls(later, 10) == ()
    (job,) = memory.due_jobs(later)
    assert (job.digest, job.owner, job.reason, job.attempts) == (D1, "me@example.org", "poll", 0)
    number = memory.begin_run([job], {"me@example.org": 1.5}, later)
    assert memory.shares() == {"me@example.org": 1.5}
    assert memory.due_jobs(later) == ()
    memory.set_progress({ONE: Progress("fetching", (LayerProgress(D2, 3, 10),))})
    image = get(memory)
    assert (image.status, image.attempts, image.fetching_at) == ("publishing", 1, later)
    assert image.progress is not None
    assert (image.progress.done, image.progress.total) == (3, 10)
    memory.finish_run(number, [published(ONE, D1)], later + MINUTE)
    image = get(memory)
    assert (image.status, image.attempts, image.progress) == ("published", 0, None)
    assert image.published_at == later + MINUTE
    assert image.digest_published == D1
    memory.record_replica(Replica("http://one", 2, later), ["http://one", "http://two"], later)
    assert get(memory).replicated_at is None
    memory.record_replica(Replica("http://two", 3, later), ["http://one", "http://two"], later)
    assert get(memory).replicated_at == later


def test_the_same_digest_is_published_once(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    assert memory.record_polls([saw(ONE, D1)], NOW) == (ONE,)
    assert memory.record_polls([saw(ONE, D1)], NOW, "push") == ()
    assert [job.reason for job in memory.due_jobs(NOW)] == ["push"]
    number = memory.begin_run(memory.due_jobs(NOW), {}, NOW)
    assert memory.record_polls([saw(ONE, D1)], NOW) == ()
    memory.finish_run(number, [published(ONE, D1)], NOW)
    assert memory.record_polls([saw(ONE, D1)], NOW) == ()
    assert memory.queue() == ()


def test_what_is_pushed_while_it_is_published_is_published_again(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.record_polls([saw(ONE, D1)], NOW)
    number = memory.begin_run(memory.due_jobs(NOW), {}, NOW)
    memory.record_polls([saw(ONE, D2)], NOW)
    memory.finish_run(number, [published(ONE, D1)], NOW)
    assert [job.digest for job in memory.due_jobs(NOW)] == [D2]
    assert get(memory).status == "queued"
    # the registry's tag had moved before it was resolved: nothing is left to do
    number = memory.begin_run(memory.due_jobs(NOW), {}, NOW)
    memory.finish_run(number, [published(ONE, D2)], NOW)
    assert memory.queue() == ()


def test_a_failure_waits_and_a_new_digest_does_not(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.record_polls([saw(ONE, D1)], NOW)
    failure = Failure("remote", "the registry is tired", "wait")
    later = NOW + 10 * MINUTE
    run(memory, Result(ONE, "failed", failure=failure, next_attempt_at=later))
    image = get(memory)
    assert (image.status, image.failure, image.next_attempt_at) == ("failed", failure, later)
    assert memory.due_jobs(NOW) == ()
    memory.record_polls([saw(ONE, D1)], NOW)
    assert memory.due_jobs(NOW) == ()
    assert get(memory).failure == failure
    assert memory.next_job_at() == later
    memory.record_polls([saw(ONE, D2)], NOW)
    assert [job.attempts for job in memory.due_jobs(NOW)] == [0]


def test_quarantine_ends_with_a_new_digest_or_by_hand(memory: State) -> None:
    memory.replace_wishes([wish(ONE), wish(TWO)], NOW)
    memory.record_polls([saw(ONE, D1), saw(TWO, D1)], NOW)
    failure = Failure("integrity", "damaged")
    run(memory, *(Result(key, "quarantined", failure=failure) for key in (ONE, TWO)))
    assert memory.counts() == {"quarantined": 2}
    assert memory.record_polls([saw(ONE, D1), saw(TWO, D1)], NOW) == ()
    assert memory.record_polls([saw(ONE, D2)], NOW) == (ONE,)
    memory.enqueue([TWO], NOW, "command")
    assert {job.key for job in memory.due_jobs(NOW)} == {ONE, TWO}
    assert [event.kind for event in memory.latest_events()] == ["image-released"] * 2 + [
        "image-quarantined"
    ] * 2


def test_a_run_that_died_is_counted_and_its_images_go_alone(memory: State) -> None:
    memory.replace_wishes([wish(ONE), wish(TWO)], NOW)
    memory.record_polls([saw(ONE, D1), saw(TWO, D1)], NOW)
    number = memory.begin_run(memory.due_jobs(NOW), {}, NOW)
    assert memory.open_runs() == (number,)
    assert len(memory.abandon_run(number, NOW, is_counted=True)) == 2
    assert [(job.is_alone, job.attempts) for job in memory.due_jobs(NOW)] == [(True, 1)] * 2
    first = memory.due_jobs(NOW)[:1]
    number = memory.begin_run(first, {}, NOW)
    memory.abandon_run(number, NOW, is_counted=False)
    assert [(job.is_alone, job.attempts) for job in memory.due_jobs(NOW)] == [(True, 1)] * 2
    assert memory.open_runs() == ()


def test_lists_that_cannot_be_read_keep_their_wishes(memory: State) -> None:
    memory.replace_wishes([wish(ONE, "a"), wish(TWO, "b")], NOW)
    memory.replace_wishes([], NOW + MINUTE, kept_lists={"a"})
    assert get(memory, ONE).is_wished
    assert get(memory, TWO).unlisted_at == NOW + MINUTE
    assert [image.key for image in memory.unlisted()] == [TWO]
    memory.replace_wishes([wish(ONE, "a"), wish(TWO, "b")], NOW + 2 * MINUTE)
    assert get(memory, TWO).is_wished
    assert memory.unlisted() == ()


def test_of_two_wishes_the_more_urgent_counts_else_the_first(memory: State) -> None:
    memory.replace_wishes([wish(ONE, "a"), wish(ONE, "b"), wish(ONE, "c", priority=3)], NOW)
    assert get(memory).list == "c"
    memory.replace_wishes([wish(ONE, "a"), wish(ONE, "b")], NOW)
    assert get(memory).list == "a"


def test_what_is_no_longer_wished_is_not_published(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.record_polls([saw(ONE, D1)], NOW)
    memory.replace_wishes([], NOW)
    assert memory.queue() == ()
    assert get(memory).status == "waiting"
    memory.forget([ONE])
    assert memory.image(ONE) is None


def test_outages_are_shown_and_take_nothing_away(memory: State) -> None:
    memory.replace_wishes([wish(ONE), wish(TWO)], NOW)
    memory.record_polls([saw(ONE, D1)], NOW)
    run(memory, published(ONE, D1))
    failure = Failure("remote", "unreachable")
    out = [Polled(key, NOW + MINUTE, failure=failure) for key in (ONE, TWO)]
    memory.record_polls(out, NOW)
    assert (get(memory, ONE).status, get(memory, ONE).failure) == ("published", failure)
    assert get(memory, TWO).status == "failed"
    memory.record_polls([saw(ONE, D1), saw(TWO, D2)], NOW)
    assert get(memory, ONE).failure is None
    assert get(memory, TWO).status == "queued"


def test_an_image_that_its_registry_lost_is_gone_until_it_is_back(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.record_polls([saw(ONE, D1)], NOW)
    run(memory, published(ONE, D1))
    lost = Polled(ONE, NOW, failure=Failure("not-found", "unknown"), is_absent=True)
    memory.record_polls([lost], NOW)
    memory.record_polls([lost], NOW + MINUTE)
    assert (get(memory).status, get(memory).absent_at) == ("gone", NOW)
    memory.record_polls([saw(ONE, D1)], NOW + MINUTE)
    assert (get(memory).status, get(memory).absent_at) == ("published", None)


def test_pushes_are_taken_once_and_stay_until_they_were_looked_at(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.record_polls([saw(ONE, D1)], NOW)
    push = Push("ghcr.io", "a/one", "1", D2, "distribution", "delivery-1")
    assert memory.submit([push, push], NOW) == 1
    assert memory.submit([push], NOW) == 0
    assert memory.submit([push], NOW + timedelta(days=40)) == 1
    assert len(memory.pushes()) == 2
    assert memory.take_pushes(memory.pushes(), {ONE: D2, TWO: D2}, NOW) == (ONE,)
    assert memory.pushes() == ()
    assert [(job.key, job.digest, job.reason) for job in memory.due_jobs(NOW)] == [
        (ONE, D2, "push")
    ]


def test_images_are_found_by_words_and_filters(memory: State) -> None:
    other = ImageKey("ghcr.io/a/one_more:1", "linux/arm64")
    memory.replace_wishes([wish(ONE, owner="ann"), wish(TWO, "b"), wish(other)], NOW)

    def found(**fields: object) -> list[ImageKey]:
        return [image.key for image in memory.search(Search(**fields)).images]  # type: ignore[arg-type]

    assert found() == [ONE, other, TWO]
    assert found(text="ONE ghcr") == [ONE, other]
    assert found(text="e_m") == [other]
    assert found(text="%") == []
    assert found(owner="ann") == [ONE]
    assert found(registry="quay.io") == [TWO]
    assert found(list="b", status="waiting") == [TWO]
    assert found(platform="linux/arm64") == [other]
    page = memory.search(Search(offset=1, limit=1))
    assert (page.total, [image.key for image in page.images]) == (3, [other])
    assert memory.registries() == {"ghcr.io": 2, "quay.io": 1}
    assert memory.owners() == {"": 2, "ann": 1}
    assert memory.oldest_wish() == NOW


def test_events_have_growing_numbers_and_the_oldest_go(
    memory: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "MAX_EVENTS", 3)
    memory.log([Event(0, NOW, "k", f"{n}", name=f"n{n % 2}", details={"n": n}) for n in range(5)])
    assert [event.message for event in memory.events_since(0)] == ["2", "3", "4"]
    assert [event.details for event in memory.events_since(4)] == [{"n": 4}]
    assert [event.message for event in memory.latest_events(2)] == ["4", "3"]
    assert [event.id for event in memory.latest_events(before=5)] == [4, 3]
    assert [event.id for event in memory.latest_events(name="n0")] == [5, 3]


def test_problems_that_stay_keep_their_time_and_new_ones_are_told(memory: State) -> None:
    first = ListProblem("a", 3, "x y", Failure("input", "blanks"), "ann")
    second = ListProblem("a", 4, "!", Failure("input", "bad"))
    found = [ListState("a", 2, 0, NOW, NOW)]
    assert [p.text for p in memory.set_lists(found, [first], NOW)] == ["x y"]
    assert [p.text for p in memory.set_lists(found, [first, second], NOW + MINUTE)] == ["!"]
    assert [p.since for p in memory.problems()] == [NOW, NOW + MINUTE]
    assert memory.problems("b") == ()
    assert [each.name for each in memory.lists()] == ["a"]


def test_tags_budgets_counters_and_times_are_kept(memory: State) -> None:
    tags = TagList("ghcr.io", "a/one", ("1", "2"), '"etag"', NOW, NOW + MINUTE)
    memory.set_tag_list(tags)
    assert memory.tag_list("ghcr.io", "a/one") == tags
    assert memory.tag_list("ghcr.io", "a/two") is None
    assert memory.tag_lists() == {("ghcr.io", "a/one"): tags}
    budget = Budget("docker.io", 100, 7, NOW, None, 12, 1, NOW)
    memory.set_budgets([budget], NOW)
    assert memory.budgets() == (budget,)
    memory.count({("bytes", ""): 2.0, ("seconds", "fetching"): 0.5})
    memory.count({("bytes", ""): 3.0})
    assert memory.counters() == {("bytes", ""): 5.0, ("seconds", "fetching"): 0.5}
    memory.mark("alive", NOW)
    assert (memory.moment("alive"), memory.moment("other")) == (NOW, None)


def test_the_clock_may_be_set(memory: State) -> None:
    memory.replace_wishes([wish(ONE), wish(TWO)], NOW)
    memory.record_polls([saw(ONE, D1), saw(TWO, D2)], NOW)
    run(memory, published(TWO, D2), Result(ONE, "failed", None, Failure("x", "y"), NOW + MINUTE))
    memory.shift_times(timedelta(days=-1))
    assert memory.next_job_at() == NOW + MINUTE - timedelta(days=1)
    assert memory.next_poll_at() == NOW + 15 * MINUTE - timedelta(days=1)
    memory.shift_times(timedelta(days=1000))
    memory.limit_waits(NOW, timedelta(hours=1), timedelta(hours=6))
    assert memory.next_job_at() == memory.next_poll_at() == NOW


def test_what_is_found_published_is_not_published_again(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.adopt([(ONE, Facts(D1, revision=2), NOW - MINUTE), (TWO, Facts(D2), NOW)], NOW)
    assert [image.key for image in memory.published()] == [ONE]
    assert (get(memory).status, get(memory).published_at) == ("unchanged", NOW - MINUTE)
    assert memory.record_polls([saw(ONE, D1)], NOW) == ()


# the file


def test_it_survives_being_closed_and_readers_see_it_meanwhile(tmp_path: Path) -> None:
    with State.open(tmp_path) as memory, Reader.open(tmp_path) as reader:
        memory.replace_wishes([wish(ONE)], NOW)
        assert get(reader).status == "waiting"
        with memory._database.writing():
            memory.replace_wishes([], NOW)
            assert get(reader).is_wished  # neither waits for the other
    with State.open(tmp_path) as memory:
        assert not get(memory).is_wished


def test_an_exception_discards_the_whole_transaction(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    with pytest.raises(ZeroDivisionError), memory._database.writing():
        memory.record_polls([saw(ONE, D1)], NOW)
        raise ZeroDivisionError
    assert get(memory).status == "waiting"


def test_threads_have_connections_of_their_own(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    found: list[Image] = []
    threads = [threading.Thread(target=lambda: found.append(get(memory))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [image.key for image in found] == [ONE] * 4


def test_nothing_is_read_where_no_watcher_ran(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no watcher has run here yet"):
        Reader.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / schema.FILE_NAME
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(StateError, match="another program's"):
        State.open(tmp_path)
    assert path.read_bytes() == before


def test_a_newer_state_is_refused_with_both_versions(tmp_path: Path) -> None:
    State.open(tmp_path).close()
    with sqlite3.connect(tmp_path / schema.FILE_NAME) as newer:
        newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StateError, match=f"version 99.*version {schema.VERSION}"):
        State.open(tmp_path)


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b"SQLite format 3\0" + b"x" * 500])
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / schema.FILE_NAME
    path.write_bytes(damage)
    with pytest.raises(StateError, match="damaged") as caught:
        State.open(tmp_path)
    assert "move it away" in caught.value.hint
    assert path.read_bytes() == damage


def test_a_torn_page_is_found_when_it_is_opened(tmp_path: Path) -> None:
    with State.open(tmp_path) as memory:
        keys = [ImageKey(f"ghcr.io/a/i{n}:1", "linux/amd64") for n in range(500)]
        memory.replace_wishes(map(wish, keys), NOW)
    path = tmp_path / schema.FILE_NAME
    data = bytearray(path.read_bytes())
    data[8192:12288] = os.urandom(4096)
    path.write_bytes(data)
    with pytest.raises(StateError, match="damaged"):
        State.open(tmp_path)


def test_who_holds_it_locked_is_waited_for_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    with State.open(tmp_path) as memory:
        other = sqlite3.connect(tmp_path / schema.FILE_NAME, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StateError, match="locked by another program"):
            memory.mark("alive", NOW)
        other.execute("ROLLBACK")
        other.close()
        memory.mark("alive", NOW)
        assert memory.moment("alive") == NOW


def test_a_full_disk_is_named_and_what_was_there_stays(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    (pages,) = memory._database.rows("PRAGMA page_count")[0]
    memory._database.rows(f"PRAGMA max_page_count = {pages}")
    many = [wish(ImageKey(f"ghcr.io/a/i{n}:1", "linux/amd64")) for n in range(5000)]
    with pytest.raises(StateError, match="the disk is full") as caught:
        memory.replace_wishes(many, NOW)
    assert "free space" in caught.value.hint
    assert get(memory).is_wished
    assert memory.search(Search()).total == 1


def test_a_second_watcher_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    with WatchLock(tmp_path), pytest.raises(StateError, match=rf"process {os.getpid()}\b"):
        WatchLock(tmp_path)
    with WatchLock(tmp_path):
        pass


def test_what_is_wished_and_no_longer_in_the_repository_is_published_again(memory: State) -> None:
    memory.replace_wishes([wish(ONE), wish(TWO)], NOW)
    memory.adopt([(ONE, Facts(D1), NOW), (TWO, Facts(D2), NOW)], NOW)
    memory.record_polls([saw(ONE, D1), saw(TWO, D2)], NOW)
    assert memory.due_jobs(NOW) == ()
    # an older repository was restored
    memory.adopt([(TWO, Facts(D2), NOW)], NOW + MINUTE)
    assert [job.key for job in memory.due_jobs(NOW + MINUTE)] == [ONE]
    assert (get(memory, ONE).digest_published, get(memory, ONE).status) == ("", "queued")
    assert get(memory, TWO).status == "unchanged"
    assert [event.kind for event in memory.events_since(0)] == ["image-missing"]


def test_what_was_published_while_somebody_looked_is_not_missing(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.adopt([(ONE, Facts(D1), NOW + MINUTE)], NOW)
    memory.adopt([], NOW)
    assert get(memory).digest_published == D1


def test_an_unlisted_name_does_not_go_because_the_clock_was_set(memory: State) -> None:
    memory.replace_wishes([wish(ONE)], NOW)
    memory.replace_wishes([], NOW)
    by = timedelta(days=2)
    memory.shift_times(by)
    memory.confirm_unlisted([ONE], NOW + by + MINUTE)
    image = get(memory)
    assert image.unlisted_at is not None
    assert image.unlisted_checked_at is not None
    assert image.unlisted_checked_at - image.unlisted_at == MINUTE


def test_connections_of_threads_that_have_ended_are_closed(memory: State, tmp_path: Path) -> None:
    def count() -> int:
        names = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return names.count(str(tmp_path / schema.FILE_NAME))

    before = count()
    for _ in range(20):
        thread = threading.Thread(target=memory.counts)
        thread.start()
        thread.join()
    assert count() < before + 10  # SQLite keeps some to use again
