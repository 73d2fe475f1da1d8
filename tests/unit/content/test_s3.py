"""What is particular about object stores: headers, errors, few requests, and the lock."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.holder import Holder
from cvmfs_publish.content.s3 import S3Store
from cvmfs_publish.content.s3_client import S3Error
from cvmfs_publish.content.s3_lock import CLOCK_NAME
from cvmfs_publish.content.s3_lock import FILE_NAME as LOCK
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.errors import LockedError, RepositoryError
from tests.fakes.lying_s3 import UNCONDITIONAL, Asked, Lie, LyingS3
from tests.s3 import SECRET_KEY, S3Bucket, S3Server

pytestmark = pytest.mark.slow  # a server has to be started, and locks have to grow old

MANIFEST = ".cvmfspublished"


@pytest.fixture
def lying(s3_server: S3Server) -> Iterator[LyingS3]:
    with LyingS3(s3_server) as server:
        yield server


@pytest.fixture
def store(bucket: S3Bucket, lying: LyingS3) -> Iterator[S3Store]:
    opened = S3Store(bucket.by(lying.url, patience=0.3, timeout=2.0))
    yield opened
    opened.close()


def an_object(data: bytes) -> tuple[bytes, ContentHash, Suffix]:
    return data, ContentHash.of(data, HashAlgorithm.SHA1), Suffix.DATA


# ---------------------------------------------------------------- what is sent


@pytest.mark.parametrize(
    ("name", "kind", "cache"),
    [
        ("data/ab/cdC", "application/octet-stream", "max-age=259200"),
        (".cvmfspublished", "application/x-cvmfs", "max-age=61"),
        (".cvmfswhitelist", "application/x-cvmfs", "max-age=61"),
        ("index.html", "text/html", "max-age=61"),
    ],
)
def test_readers_and_caches_are_told_what_the_stock_server_tells_them(
    store: S3Store, bucket: S3Bucket, name: str, kind: str, cache: str
) -> None:
    store.write(name, b"1")
    assert bucket.headers(name) == {"Content-Type": kind, "Cache-Control": cache}
    store.replace(store.prepare(name + "2", b"1", None))
    found = bucket.headers(name + "2")
    assert found["Cache-Control"] == cache


def test_a_large_object_is_one_request(store: S3Store, lying: LyingS3, bucket: S3Bucket) -> None:
    data, content_hash, kind = an_object(bytes(30_000_000))
    store.put(data, content_hash, kind)
    assert [asked.method for asked in lying.asked] == ["HEAD", "PUT"]
    assert bucket.get(content_hash.path(kind)) == data


def test_an_upload_that_broke_off_goes_on_where_it_was(store: S3Store, lying: LyingS3) -> None:
    objects = [an_object(b"%d" % number) for number in range(20)]
    lying.rule = lambda asked: Lie(403) if lying.count("PUT") > 10 else None
    with pytest.raises(S3Error):
        store.put_many(objects)
    lying.rule = lambda _: None
    arrived = sum(
        store.size(content_hash.path(kind)) is not None for _, content_hash, kind in objects
    )
    before = lying.count("PUT")
    assert sum(store.put_many(objects)) == 20 - arrived
    assert lying.count("PUT") - before == 20 - arrived < 20


def test_no_more_than_so_many_connections(bucket: S3Bucket, lying: LyingS3) -> None:
    under_way: list[int] = []
    most = []

    def rule(_: Asked) -> Lie:
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.02)
        under_way.pop()
        return Lie()

    lying.rule = rule
    store = S3Store(bucket.by(lying.url, connections=3))
    store.put_many([an_object(b"%d" % number) for number in range(30)])
    store.close()
    assert 1 < max(most) <= 3


def test_processes_share_the_connections(bucket: S3Bucket) -> None:
    store = S3Store(replace(bucket.settings, connections=32))
    assert store.description()["connections"] == 32
    assert store.description(4)["connections"] == 8
    assert store.description(100)["connections"] == 4
    store.close()


def test_a_store_without_bulk_removal_gets_single_ones(store: S3Store, lying: LyingS3) -> None:
    objects = [an_object(b"%d" % number) for number in range(5)]
    store.put_many(objects)
    lying.rule = lambda asked: Lie(405, "MethodNotAllowed") if asked.method == "POST" else None
    store.remove(content_hash.path(kind) for _, content_hash, kind in objects)
    assert not store.has_all([objects[0][1].path(Suffix.DATA)])
    assert lying.count("DELETE", "data/") == 5


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("lie", "reason", "remedy"),
    [
        (Lie(403, "AccessDenied", "no"), "AccessDenied (403)", "s3:ListBucket"),
        (Lie(403), "the server answered 403", "s3:ListBucket"),
        (Lie(401), "the server answered 401", "AWS_ACCESS_KEY_ID"),
        (Lie(400), "the server answered 400", "try again later"),
        (Lie(404, "NoSuchBucket"), "NoSuchBucket (404)", "create the bucket"),
        (Lie(403, "InvalidAccessKeyId"), "InvalidAccessKeyId", "repository.s3"),
        (Lie(403, "SignatureDoesNotMatch"), "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        (Lie(403, "RequestTimeTooSkewed"), "RequestTimeTooSkewed", "set the clock"),
        (Lie(400, "ExpiredToken"), "ExpiredToken", "AWS_SESSION_TOKEN"),
        (Lie(400, "AuthorizationHeaderMalformed"), "AuthorizationHeaderMalformed", "s3.region"),
        (Lie(301, "PermanentRedirect"), "sends elsewhere", "repository.s3.endpoint"),
        (Lie(503, "SlowDown"), "SlowDown (503)", "repository.s3.connections"),
        (Lie(500, "InternalError"), "InternalError (500)", "try again later"),
        (Lie(507, "InsufficientStorage"), "InsufficientStorage (507)", "quota"),
        (Lie(403, "QuotaExceeded"), "QuotaExceeded (403)", "quota"),
        (Lie(400, "XMinioStorageFull"), "XMinioStorageFull (400)", "free some space"),
        (Lie(drops=True), "the connection broke", "repository.s3.endpoint"),
        (Lie(seconds=0.6), "no answer in time", "repository.s3.endpoint"),
    ],
)
def test_an_error_names_file_reason_and_remedy(
    bucket: S3Bucket, lying: LyingS3, lie: Lie, reason: str, remedy: str
) -> None:
    store = S3Store(bucket.by(lying.url, patience=0.05, timeout=0.3))
    lying.rule = lambda _: lie
    data, content_hash, kind = an_object(b"1")
    place = bucket.name if lie.code == "NoSuchBucket" else bucket.settings.location
    for attempt in (
        lambda: store.fetch(MANIFEST, 100),
        lambda: store.write(MANIFEST, b"1"),
        lambda: store.put(data, content_hash, kind),
        lambda: store.read(content_hash, kind),
        lambda: list(store.pieces(MANIFEST)),
        lambda: list(store.objects("ab")),
        lambda: store.remove([MANIFEST, LOCK]),
        lambda: store.replace(store.prepare(MANIFEST, b"1", None)),
        lambda: store.lock().__enter__(),
    ):
        with pytest.raises(RepositoryError) as caught:
            attempt()
        assert place in str(caught.value)
        assert reason in str(caught.value)
        assert remedy in caught.value.hint
        assert SECRET_KEY not in str(caught.value) + caught.value.hint
    lying.rule = lambda _: None
    store.close()


def test_the_secret_is_in_no_text(bucket: S3Bucket) -> None:
    store = S3Store(bucket.settings)
    assert SECRET_KEY not in repr(bucket.settings)
    assert SECRET_KEY not in repr(vars(store))
    assert store.description()["secret_key"] == SECRET_KEY  # goes through a pipe
    store.close()


def test_a_bucket_that_is_not_there_is_no_empty_repository(s3_server: S3Server) -> None:
    store = S3Store(S3Bucket(s3_server, "no-such-bucket").settings)
    with pytest.raises(S3Error, match="NoSuchBucket") as caught:
        store.fetch(MANIFEST, 100)
    assert caught.value.hint == "create the bucket, or correct `repository.storage`"
    store.close()


def test_a_server_that_speaks_no_tls(bucket: S3Bucket) -> None:
    settings = bucket.by(bucket.server.url.replace("http:", "https:"), patience=0.1)
    store = S3Store(settings)
    with pytest.raises(S3Error, match=r"TLS|connection") as caught:
        store.fetch(MANIFEST, 100)
    assert "repository.s3.endpoint" in caught.value.hint
    store.close()


@pytest.mark.parametrize(
    "changes", [{"virtual_host": True}, {"endpoint": "http://1.2.3.4.5"}, {"token": "a\nb"}]
)
def test_what_no_request_can_be_made_of_is_an_error_like_others(
    bucket: S3Bucket, changes: dict[str, Any]
) -> None:
    """The library panics; a bucket's name before an address, for example, is no host."""
    store = S3Store(replace(bucket.settings, **changes))
    with pytest.raises(S3Error, match="no request can be made") as caught:
        store.fetch(MANIFEST, 1000)
    assert "repository.s3.endpoint" in caught.value.hint
    store.close()


def test_the_environment_of_the_process_does_not_matter(
    bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_BUCKET": "another",
        "AWS_CONDITIONAL_PUT": "disabled",
    }.items():
        monkeypatch.setenv(name, value)
    store = S3Store(bucket.settings)
    store.write(MANIFEST, b"1")
    with store.lock():
        pass
    assert bucket.get(MANIFEST) == b"1"
    store.close()


# ---------------------------------------------------------------- the lock

HOLDER = """
import json, os, sys, time
from cvmfs_publish.content.stores import open_store

store = open_store(json.loads(sys.stdin.readline()))
with store.lock():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(bucket: S3Bucket) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps({"kind": "s3", **bucket.settings.as_dict()}) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "held\n"
        yield process
        with suppress(BrokenPipeError):
            process.stdin.close()


def lock_file(bucket: S3Bucket) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bucket.get(LOCK))
    return found


def test_the_lock_says_who_holds_it(
    store: S3Store, bucket: S3Bucket, holder: subprocess.Popen[str]
) -> None:
    found = lock_file(bucket)
    assert found["pid"] == holder.pid
    with pytest.raises(LockedError, match=f"is locked by process {holder.pid} on ") as caught:
        store.lock().__enter__()
    assert found["host"] in str(caught.value)
    assert found["taken_at"] in str(caught.value)
    assert "ends in 6" in caught.value.hint  # the lease has 60 seconds
    assert lock_file(bucket) == found


def test_the_lock_of_a_process_that_was_killed_is_free_at_once(
    store: S3Store,
    bucket: S3Bucket,
    holder: subprocess.Popen[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    holder.kill()
    holder.wait()
    assert LOCK in bucket.names()
    with caplog.at_level(logging.WARNING), store.lock() as lock:
        lock.check()
        assert lock_file(bucket)["pid"] == os.getpid()
    assert f"process {holder.pid} on " in caplog.text  # not silently
    assert LOCK not in bucket.names()


@pytest.mark.parametrize("what", ["host", "container"])
def test_a_process_of_another_host_or_container_is_not_taken_for_dead(
    store: S3Store, bucket: S3Bucket, what: str
) -> None:
    gone = replace(Holder.this_process(60), pid=2**22 + 1, started="1")
    assert gone.is_gone()
    elsewhere = replace(gone, boot="x") if what == "host" else replace(gone, namespace="x")
    bucket.put(LOCK, elsewhere.dump())
    with pytest.raises(LockedError, match="is locked by process"):
        store.lock().__enter__()
    bucket.put(LOCK, gone.dump())
    with store.lock():
        pass


def test_a_process_number_that_is_used_again_is_another_process() -> None:
    ours = Holder.this_process(60)
    assert not ours.is_gone()
    assert replace(ours, started="1").is_gone()


def strange_locks() -> Iterator[bytes]:
    yield from (b"", b"not json", b"[]", b"{}", b'{"pid": -1}', b"\xff")
    yield from (b"[" * 4000, b"x" * 100_000)
    sound = json.loads(Holder.this_process(60).dump())
    for key, value in {"host": "\x1b[2J", "pid": "1", "lease_seconds": None, "owner": 7}.items():
        yield json.dumps(sound | {key: value}).encode()


@pytest.mark.parametrize("content", list(strange_locks()))
def test_a_lock_that_says_nothing_is_respected_until_it_is_old(
    bucket: S3Bucket, content: bytes
) -> None:
    store = S3Store(replace(bucket.settings, lease=1.0))
    bucket.put(LOCK, content)
    with pytest.raises(LockedError, match="somebody who left no name"):
        store.lock().__enter__()
    store.close()


def test_two_who_ask_for_the_time_do_not_mislead_each_other(
    store: S3Store, bucket: S3Bucket, lying: LyingS3
) -> None:
    bucket.put(LOCK, b"somebody else's")
    lying.rule = lambda a: Lie(404) if (a.method, a.name) == ("HEAD", CLOCK_NAME) else None
    with pytest.raises(LockedError) as caught:
        store.lock().__enter__()
    assert "ends in 62 seconds" in caught.value.hint


def test_a_lock_that_somebody_took_meanwhile_is_not_removed(
    store: S3Store, bucket: S3Bucket, lying: LyingS3
) -> None:
    def rule(asked: Asked) -> Lie | None:
        if asked.method != "PUT" or "if-match" not in asked.headers:
            return None
        bucket.put(LOCK, b"somebody else's")
        return Lie(403, "AccessDenied")

    lying.rule = rule
    with pytest.raises(S3Error, match="AccessDenied"):
        store.lock().__enter__()
    assert bucket.get(LOCK) == b"somebody else's"


def test_who_loses_the_lock_during_a_removal_removes_no_more(
    store: S3Store, bucket: S3Bucket, lying: LyingS3
) -> None:
    def rule(asked: Asked) -> Lie | None:
        if asked.method == "POST":
            bucket.put(LOCK, b"somebody else's")
        return None

    names = [f"data/00/{number:038x}" for number in range(1001)]
    bucket.put(names[-1], b"what the other one needs")
    with store.lock():
        lying.rule = rule
        with pytest.raises(LockedError, match="was lost"):
            store.remove(names)
        lying.rule = lambda _: None
    assert bucket.get(names[-1]) == b"what the other one needs"


def test_nothing_is_removed_after_somebody_else_published(store: S3Store, bucket: S3Bucket) -> None:
    bucket.put("data/00/" + "1" * 38, b"what the other one needs as well")
    with store.lock():
        bucket.put(MANIFEST, b"somebody else's")
        with pytest.raises(LockedError, match="was changed by somebody else"):
            store.replace(store.prepare(MANIFEST, b"ours", '"of-before"'))
        with pytest.raises(RepositoryError, match="nothing is removed"):
            store.remove(["data/00/" + "1" * 38])


def test_a_lock_that_is_not_refreshed_is_taken_over_and_its_holder_told(
    bucket: S3Bucket, lying: LyingS3, caplog: pytest.LogCaptureFixture
) -> None:
    """The first holder's refreshes do not arrive, as if its host slept."""
    settings = bucket.by(lying.url, lease=1.0, patience=0.1)
    first, second = S3Store(settings), S3Store(replace(bucket.settings, lease=1.0))
    with first.lock() as lock:
        lying.rule = lambda _: Lie(drops=True)
        deadline = time.monotonic() + 20
        while True:
            try:
                with second.lock() as other:
                    lying.rule = lambda _: None
                    with pytest.raises(LockedError, match=r"was lost"):
                        lock.check()
                    with pytest.raises(LockedError, match=r"was lost"):
                        first.replace(first.prepare(MANIFEST, b"1", None))
                    with pytest.raises(LockedError, match=r"was lost"):
                        first.write(MANIFEST, b"1")
                    with pytest.raises(LockedError, match=r"was lost"):
                        first.remove([MANIFEST])
                    other.check()
                break
            except LockedError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert LOCK not in bucket.names()
    assert "has not refreshed it for" in caplog.text
    assert MANIFEST not in bucket.names()
    first.close()
    second.close()


def test_a_lock_is_kept_for_longer_than_its_lease(bucket: S3Bucket) -> None:
    first, second = (S3Store(replace(bucket.settings, lease=1.0)) for _ in range(2))
    with first.lock():
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            with pytest.raises(LockedError):
                second.lock().__enter__()
            time.sleep(0.2)
        assert lock_file(bucket)["refreshed"] > 4
    first.close()
    second.close()


def test_a_lock_that_cannot_be_given_back_is_no_hindrance_for_this_process(
    store: S3Store, bucket: S3Bucket, lying: LyingS3, caplog: pytest.LogCaptureFixture
) -> None:
    lying.rule = lambda asked: Lie(403, "AccessDenied") if asked.method == "DELETE" else None
    with store.lock():
        pass
    assert "could not be given back" in caplog.text
    assert LOCK in bucket.names()
    lying.rule = lambda _: None
    with store.lock():
        pass
    assert LOCK not in bucket.names()


@pytest.mark.parametrize("condition", ["if-match", "if-none-match"])
def test_a_store_that_ignores_conditions_is_no_store(
    store: S3Store, bucket: S3Bucket, lying: LyingS3, condition: str
) -> None:
    lying.rule = lambda asked: UNCONDITIONAL if condition in asked.headers else None
    with pytest.raises(RepositoryError, match=f"(?i)ignores {condition}") as caught:
        store.lock().__enter__()
    assert "local directory" in caught.value.hint
    assert bucket.names() == set()


def test_a_lock_costs_few_requests(store: ContentStore, lying: LyingS3) -> None:
    with store.lock():
        pass
    assert [asked.method for asked in lying.asked] == ["PUT", "PUT", "PUT", "PUT", "DELETE"]
