"""Storing contents with several processes: exact chunks, true hashes, and never a hang."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from cvmfs_publish.content import ingest as ingest_module
from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.ingest import CHUNK_SIZE, Ingestor, Stored
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.errors import RepositoryError
from tests.unit.content.test_local import small_disk

__all__ = ["small_disk"]
MiB = 1024 * 1024


class Content:
    """Hands out bytes as a layer would."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = memoryview(data), 0

    def readinto(self, view: memoryview) -> None:
        view[:] = self._data[self._position : self._position + len(view)]
        self._position += len(view)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path)
    store.create()
    return store


@pytest.fixture
def ingestor(store: LocalStore) -> Iterator[Ingestor]:
    with Ingestor(store, HashAlgorithm.SHA1, 1) as ingestor:
        yield ingestor


def ingest(ingestor: Ingestor, *contents: bytes) -> list[list[Stored]]:
    stream = ingestor.open()
    pieces = [stream.add(Content(data), len(data)) for data in contents]
    stream.finish()
    return pieces


def read_back(store: LocalStore, pieces: list[Stored]) -> bytes:
    kind = Suffix.DATA if len(pieces) == 1 else Suffix.CHUNK
    result = b""
    for piece in pieces:
        assert piece.hash is not None
        stored = store.read(piece.hash, kind)
        assert len(stored) == piece.stored_size
        data = zlib.decompress(stored)
        assert len(data) == piece.size
        result += data
    return result


def children() -> list[int]:
    """The worker processes this one started; other tests' registries are none of our business."""
    found = []
    for entry in Path("/proc/self/task").iterdir():
        for pid in (entry / "children").read_text().split():
            with suppress(FileNotFoundError):
                if b"cvmfs_publish.content.worker" in Path("/proc", pid, "cmdline").read_bytes():
                    found.append(int(pid))
    return found


def test_small_files_come_back_whatever_their_number(store: LocalStore, ingestor: Ingestor) -> None:
    numbers = random.Random(1)
    contents = [numbers.randbytes(numbers.randrange(2000)) for _ in range(3000)]
    for data, pieces in zip(contents, ingest(ingestor, *contents), strict=True):
        assert read_back(store, pieces) == data


SIZES = {0: [0], 1: [1], 4 * MiB: [4 * MiB], 4 * MiB + 1: [4 * MiB, 1],
         8 * MiB: [4 * MiB] * 2, 9 * MiB: [4 * MiB, 4 * MiB, MiB]}  # fmt: skip


def test_large_files_are_cut_exactly(store: LocalStore, ingestor: Ingestor) -> None:
    pattern = random.Random(2).randbytes(4099)
    assert CHUNK_SIZE / MiB == 4
    for size, wanted in SIZES.items():
        data = (pattern * (size // len(pattern) + 1))[:size]
        (pieces,) = ingest(ingestor, data)
        assert [piece.size for piece in pieces] == wanted
        assert read_back(store, pieces) == data


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_every_algorithm_names_objects_by_their_stored_bytes(
    store: LocalStore, algorithm: HashAlgorithm
) -> None:
    with Ingestor(store, algorithm, 1) as ingestor:
        pieces = ingest(ingestor, b"one", b"", b"two" * 999)
    for (piece,) in pieces:
        assert piece.hash is not None
        assert piece.hash.algorithm is algorithm
        stored = (store.root / piece.hash.path(Suffix.DATA)).read_bytes()
        assert ContentHash.of(stored, algorithm) == piece.hash


def test_equal_contents_are_one_object(store: LocalStore, ingestor: Ingestor) -> None:
    (first,), (second,) = ingest(ingestor, b"same", b"same")
    assert first == second
    assert first.stored_size > 0
    assert first.hash is not None
    path = store.root / first.hash.path(Suffix.DATA)
    before = path.stat()
    ((third,),) = ingest(ingestor, b"same")
    assert third == first
    assert path.stat() == before


def test_discarding_removes_what_is_new_and_nothing_that_was_there(
    store: LocalStore, ingestor: Ingestor
) -> None:
    ingest(ingestor, b"was there", bytes(5 * MiB))
    before = objects(store)
    with Ingestor(store, HashAlgorithm.SHA1, 1) as second:
        ingest(second, b"was there", b"is new", bytes(5 * MiB), bytes(6 * MiB))
        assert objects(store) > before
        second.discard()
        assert objects(store) == before
        second.discard()
    assert objects(store) == before


def objects(store: LocalStore) -> set[str]:
    return {path.name for path in store.root.rglob("*") if path.is_file()}


def test_nothing_to_store_is_done_at_once(ingestor: Ingestor) -> None:
    assert ingest(ingestor) == []
    ingestor.open().abandon()
    assert children() == []


def test_several_readers_store_at_the_same_time(store: LocalStore) -> None:
    readers, results = 6, dict[int, list[list[Stored]]]()
    contents = {
        number: [random.Random(number * 99 + n).randbytes(n % 700) for n in range(500)]
        + [bytes([number]) * (5 * MiB)]
        for number in range(readers)
    }
    with Ingestor(store, HashAlgorithm.SHA1, readers) as ingestor:

        def work(number: int) -> None:
            results[number] = ingest(ingestor, *contents[number])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, data in contents.items():
        assert [read_back(store, pieces) for pieces in results[number]] == data
    assert children() == []


class Bad:
    def readinto(self, view: memoryview) -> None:
        raise ValueError("the layer is damaged")


def test_a_reader_that_fails_leaves_the_others_and_the_memory_alone(
    store: LocalStore, ingestor: Ingestor
) -> None:
    for _ in range(50):  # more often than there are slabs
        stream = ingestor.open()
        stream.add(Content(b"x"), 1)
        with pytest.raises(ValueError, match="damaged"):
            stream.add(Bad(), 10)
        stream.abandon()
    ((piece,),) = ingest(ingestor, b"fine")
    assert read_back(store, [piece]) == b"fine"


# failure


def test_a_worker_that_is_killed_is_an_error_and_not_a_hang(ingestor: Ingestor) -> None:
    ingest(ingestor, b"start it")
    stream = ingestor.open()
    for pid in children():
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(RepositoryError, match="storing file contents"):
        for _ in range(20):
            stream.add(Content(bytes(4 * MiB)), 4 * MiB)
        stream.finish()
    stream.abandon()


def test_workers_killed_while_they_work_are_errors_and_not_hangs(store: LocalStore) -> None:
    with Ingestor(store, HashAlgorithm.SHA1, 1) as ingestor:
        stopped = threading.Event()

        def kill() -> None:
            while not stopped.is_set():
                for pid in children():
                    os.kill(pid, signal.SIGKILL)
                time.sleep(0.01)

        killer = threading.Thread(target=kill)
        killer.start()
        stream = ingestor.open()
        data = random.Random(3).randbytes(4 * MiB)
        try:
            with pytest.raises(RepositoryError):
                for _ in range(20):
                    stream.add(Content(data), len(data))
                stream.finish()
        finally:
            stopped.set()
            killer.join()
            stream.abandon()


def test_a_worker_that_cannot_start_is_an_error_and_not_a_hang(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(store.root / "no-python"))
    with Ingestor(store, HashAlgorithm.SHA1, 1) as ingestor:
        for _ in range(3):
            with pytest.raises(RepositoryError, match="no-python"):
                ingest(ingestor, b"x")


def test_a_store_without_its_directories_is_an_error_with_a_hint(tmp_path: Path) -> None:
    with (
        Ingestor(LocalStore(tmp_path / "none"), HashAlgorithm.SHA1, 1) as ingestor,
        pytest.raises(RepositoryError, match="No such file") as caught,
    ):
        ingest(ingestor, b"x")
    assert "make the folder" in caught.value.hint


def test_a_full_store_is_an_error_with_a_hint_and_the_next_layer_is_tried(
    small_disk: Path,
) -> None:
    store = LocalStore(small_disk)
    store.create()
    with Ingestor(store, HashAlgorithm.SHA1, 1) as ingestor:
        with pytest.raises(RepositoryError, match="No space left") as caught:
            ingest(ingestor, *(os.urandom(MiB) for _ in range(9)))
        assert "free some space" in caught.value.hint
        ingestor.discard()
        assert objects(store) == set()
        ((piece,),) = ingest(ingestor, b"now it fits")
        assert read_back(store, [piece]) == b"now it fits"


def test_leaving_ends_every_process_and_closes_every_file(store: LocalStore) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with Ingestor(store, HashAlgorithm.SHA1, 2) as ingestor:
        ingest(ingestor, b"x", bytes(9 * MiB))
        assert children() != []
    assert children() == []
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one worker does one thing at a time")
def test_an_object_two_layers_store_at_once_outlives_the_one_that_fails(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, go_on = threading.Event(), threading.Event()
    original = ingest_module._read

    def slow(replies: BinaryIO, size: int) -> bytes:
        data = original(replies, size)
        if not stored.is_set():  # the first worker has stored the object, and is not heard yet
            stored.set()
            assert go_on.wait(60)
        return data

    monkeypatch.setattr(ingest_module, "_read", slow)
    with Ingestor(store, HashAlgorithm.SHA1, 2) as ingestor:
        failing = ingestor.open()
        failing.add(Content(b"in both"), 7)
        failing._submit()
        assert stored.wait(60)
        (pieces,) = ingest(ingestor, b"in both")
        go_on.set()
        failing._batch.wait()
        failing.abandon()
    assert read_back(store, pieces) == b"in both"


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_what_is_not_there_after_it_was_stored_is_an_error(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    original = Ingestor._run

    def run(self: Ingestor, job: Any, process: Any) -> None:  # noqa: ANN401
        original(self, job, process)
        path = store.root / job.pieces[0][0].hash.path(Suffix.DATA)
        path.unlink() if damage == "gone" else os.truncate(path, 3)

    monkeypatch.setattr(Ingestor, "_run", run)
    text = {"gone": "is gone", "cut": "has 3 bytes"}[damage]
    with (
        Ingestor(store, HashAlgorithm.SHA1, 1) as ingestor,
        pytest.raises(RepositoryError) as error,
    ):
        ingest(ingestor, b"some content")
    assert text in str(error.value)
    assert error.value.hint
