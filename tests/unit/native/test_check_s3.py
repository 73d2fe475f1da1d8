"""`check` of a repository in an object store, which can be listed as a directory can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.s3 import S3Store
from cvmfs_publish.repository.native.check import Advance, Report, check_repository
from tests.fixed import NAME, NOW, copy_keys, make_repository
from tests.s3 import S3Bucket

pytestmark = pytest.mark.slow


class InBucket:
    """A repository in a bucket and how it is checked."""

    def __init__(self, base: Path, bucket: S3Bucket, store: S3Store) -> None:
        self.bucket, self.store = bucket, store
        self.keys = copy_keys(base / "keys")
        make_repository(store, self.keys, HashAlgorithm.SHA1)
        self.told: list[Advance] = []

    def check(self) -> Report:
        key = self.keys / f"{NAME}.pub"
        return check_repository(
            self.store, [key], now=NOW, name=NAME, scrub=True, progress=self.told.append
        )


@pytest.fixture
def stored(tmp_path: Path, bucket: S3Bucket) -> Iterator[InBucket]:
    with closing(S3Store(bucket.settings)) as store:
        yield InBucket(tmp_path, bucket, store)


def test_a_sound_repository_is_scrubbed_to_the_last_byte(stored: InBucket) -> None:
    report = stored.check()
    assert report.problems == []
    objects = [name for name in stored.bucket.names() if name.startswith("data/")]
    last = stored.told[-1]
    assert (last.done, last.total) == (len(objects), len(objects))
    size = sum(len(stored.bucket.get(name)) for name in objects)
    assert (last.done_bytes, last.total_bytes) == (size, size)
    assert report.counts["objects hashed"] > 5


def test_every_object_that_is_damaged_is_named(stored: InBucket) -> None:
    repaired = {}
    for name in sorted(stored.bucket.names()):
        if name.startswith("data/") and name[-1] not in "CHMX":
            repaired[name] = stored.bucket.get(name)
            stored.bucket.put(name, repaired[name][:-1])
    report = stored.check()
    said = " ".join(f"{problem.place} {problem.text}" for problem in report.errors)
    assert [name for name in repaired if name not in said] == []
    for name, data in repaired.items():
        stored.bucket.put(name, data)
    assert stored.check().problems == []


def test_what_is_no_object_is_named(stored: InBucket) -> None:
    strays = ["data/ab/notes.txt", "data/ab/" + "0" * 37, "data/ab/below/" + "0" * 38]
    for name in strays:
        stored.bucket.put(name, b"x")
    stored.bucket.put("data/ab/" + "0" * 38, b"x")
    report = stored.check()
    found = {problem.place: problem.text for problem in report.errors}
    assert found.pop("data/ab/" + "0" * 38).startswith("object is damaged: its hash is ")
    assert found == dict.fromkeys(strays, "is not the name of an object")


def test_what_is_missing_is_named(stored: InBucket) -> None:
    objects = [
        name for name in stored.bucket.names() if name.startswith("data/") and name[-1] == "P"
    ]
    stored.bucket.delete(min(objects))
    (problem,) = stored.check().errors
    assert (problem.place, problem.text) == (
        "/images/first/bin/large",
        f"object {min(objects)} is missing",
    )


def test_a_server_that_is_gone_is_an_error_and_not_a_sound_repository(
    tmp_path: Path, bucket: S3Bucket
) -> None:
    with closing(S3Store(bucket.by("http://127.0.0.1:9", patience=0.2))) as store:
        report = check_repository(store, [], now=NOW)
    assert [problem.place for problem in report.errors] == [".cvmfspublished"]
