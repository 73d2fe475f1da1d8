"""Layers that several repositories want: fetched once, given only as they were proven."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, RemoteError
from cvmfs_publish.sources.base import BlobStream, LayerDescriptor
from cvmfs_publish.sources.shared import KEPT_SECONDS, SharedBlobs, _SharedBlob

DATA = bytes(range(256)) * 40
LAYER = LayerDescriptor(Digest.of(DATA), len(DATA), "", None)


class Fetch:
    """What opens streams of a layer, and counts them."""

    def __init__(self, error_at: int = -1) -> None:
        self.count = 0
        self.error_at = error_at

    def __call__(self) -> BlobStream:
        self.count += 1
        return _Stream(self.error_at)


class _Stream:
    def __init__(self, error_at: int) -> None:
        self._file = io.BytesIO(DATA)
        self._error_at = error_at

    def __enter__(self) -> _Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        if 0 <= self._error_at <= self._file.tell():
            raise IntegrityError("not what was promised")
        return self._file.read(size)


@pytest.fixture
def blobs(tmp_path: Path) -> SharedBlobs:
    return SharedBlobs(tmp_path / "blobs", wait=lambda _: None)


def take(blobs: SharedBlobs, fetch: Fetch, size: int = 1000) -> bytes:
    with blobs.open(LAYER, fetch) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


def files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "blobs").iterdir())


def test_a_layer_is_fetched_once_and_gone_when_it_is_not_needed(
    tmp_path: Path, blobs: SharedBlobs
) -> None:
    fetch = Fetch()
    assert [take(blobs, fetch), take(blobs, fetch, 77), take(blobs, fetch)] == [DATA] * 3
    assert fetch.count == 1
    assert files(tmp_path) == [f"sha256-{LAYER.digest.hex}"]
    blobs.close()
    assert files(tmp_path) == []


def test_nothing_is_fetched_before_it_is_read(blobs: SharedBlobs) -> None:
    fetch = Fetch()
    with blobs.open(LAYER, fetch):
        pass
    assert fetch.count == 0


def test_what_did_not_come_to_its_end_is_not_given_to_others(
    tmp_path: Path, blobs: SharedBlobs
) -> None:
    fetch = Fetch(error_at=2000)
    with pytest.raises(IntegrityError):
        take(blobs, fetch)
    assert files(tmp_path) == []
    with blobs.open(LAYER, Fetch()) as stream:
        stream.read(100)
    assert files(tmp_path) == []
    assert take(blobs, whole := Fetch()) == DATA
    assert whole.count == 1


def test_a_copy_that_was_damaged_is_found_at_its_end_and_fetched_again(
    tmp_path: Path, blobs: SharedBlobs
) -> None:
    take(blobs, Fetch())
    path = blobs.path(LAYER.digest)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    fetch = Fetch()
    with pytest.raises(RemoteError, match=r"the copy of layer .* is damaged"):
        take(blobs, fetch)
    assert fetch.count == 0
    assert files(tmp_path) == []
    assert blobs.distrust(LAYER.digest)  # so whoever reads asks once more
    assert not blobs.distrust(LAYER.digest)
    assert take(blobs, fetch) == DATA


def test_a_full_disk_costs_the_copy_and_not_the_layer(tmp_path: Path, blobs: SharedBlobs) -> None:
    fetch = Fetch()
    with blobs.open(LAYER, fetch) as stream:
        first = stream.read(1000)

        class Full(io.BytesIO):
            def write(self, data: Any) -> int:  # noqa: ANN401
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        assert isinstance(stream, _SharedBlob)
        assert stream._new is not None
        stream._new.close()
        stream._new = Full()
        rest = b"".join(iter(lambda: stream.read(1000), b""))
    assert first + rest == DATA
    assert files(tmp_path) == []
    assert take(blobs, fetch) == DATA
    assert fetch.count == 2


def test_no_more_than_a_part_of_what_is_free_is_taken(
    tmp_path: Path, blobs: SharedBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)

    def almost_full(_: object) -> os.statvfs_result:
        values = list(real)
        values[4] = len(DATA) * 3 // real.f_frsize  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", almost_full)
    fetch = Fetch()
    assert [take(blobs, fetch), take(blobs, fetch)] == [DATA] * 2
    assert fetch.count == 2
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_copies(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    blobs = SharedBlobs(tmp_path / "file" / "blobs")
    fetch = Fetch()
    assert [take(blobs, fetch), take(blobs, fetch)] == [DATA] * 2
    assert fetch.count == 2


def test_two_who_want_the_same_at_once_fetch_it_once(tmp_path: Path) -> None:
    """The second waits while the first gets on, in another process or thread."""
    folder, fetch, other = tmp_path / "blobs", Fetch(), Fetch()
    got: list[bytes] = []
    waited = threading.Event()
    second = SharedBlobs(folder, wait=lambda _: waited.set())
    with SharedBlobs(folder).open(LAYER, fetch) as stream:
        data = stream.read(1000)
        thread = threading.Thread(target=lambda: got.append(take(second, other)))
        thread.start()
        assert waited.wait(30)
        data += b"".join(iter(lambda: stream.read(1000), b""))
    thread.join(30)
    assert [data, *got] == [DATA] * 2
    assert (fetch.count, other.count) == (1, 0)


def test_whoever_does_not_get_on_is_not_waited_for(tmp_path: Path) -> None:
    times: Iterator[float] = iter(range(0, 10_000, 10))
    blobs = SharedBlobs(tmp_path / "blobs", wait=lambda _: None, clock=lambda: next(times))
    part = blobs.path(LAYER.digest).with_suffix(".part")
    part.parent.mkdir()
    with part.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fetch = Fetch()
        assert take(blobs, fetch) == DATA
        assert fetch.count == 1
        assert files(tmp_path) == [part.name]  # which is not ours


def test_who_died_while_fetching_is_followed_by_the_next(
    tmp_path: Path, blobs: SharedBlobs
) -> None:
    part = blobs.path(LAYER.digest).with_suffix(".part")
    part.parent.mkdir()
    part.write_bytes(b"half of it")
    assert take(blobs, Fetch()) == DATA
    fetch = Fetch()
    assert take(blobs, fetch) == DATA
    assert fetch.count == 0


def test_old_layers_and_parts_of_the_dead_are_swept(tmp_path: Path) -> None:
    blobs = SharedBlobs(tmp_path / "blobs", stays=True)
    take(blobs, Fetch())
    blobs.close()
    path = blobs.path(LAYER.digest)
    (path.parent / "sha256-ff.part").write_bytes(b"x")
    with (path.parent / "sha256-ee.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        kept_at = path.stat().st_mtime
        blobs.sweep(kept_at + KEPT_SECONDS - 1)
        assert files(tmp_path) == [path.name, "sha256-ee.part"]
        blobs.sweep(kept_at + KEPT_SECONDS)
        assert files(tmp_path) == ["sha256-ee.part"]
