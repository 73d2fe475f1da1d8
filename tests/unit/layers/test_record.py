"""Records of layers: kept and found again, or read anew; never half believed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import zstandard

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.digest import Digest
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers.record import LayerEntry, LayerRecord, RecordStore
from cvmfs_publish.layers.tree import Chunk, Content, Node
from cvmfs_publish.layers.whiteouts import Change

DIGEST = Digest.of(b"layer")


def record(algorithm: HashAlgorithm = HashAlgorithm.SHA1) -> LayerRecord:
    one, two = (ContentHash.of(data, algorithm) for data in (b"1", b"2"))
    plain = Node(
        stat.S_IFREG | 0o4755, 1, 4294967294, -5, 999_999_999, 3,
        xattrs=(("user.\udcff", b"\0\xff"),), content=Content(one),
    )  # fmt: skip
    chunked = plain._replace(
        size=9, content=Content(None, (Chunk(0, 4, one), Chunk(4, 5, two))), xattrs=()
    )
    entries = (
        LayerEntry(Change.PUT, "bytes \udcff\n", plain),
        LayerEntry(Change.PUT, "chunked", chunked),
        LayerEntry(Change.PUT, "raw", plain._replace(content=Content(one, (), False))),
        LayerEntry(
            Change.PUT,
            "raw chunks",
            chunked._replace(content=Content(None, (Chunk(0, 9, one),), False)),
        ),
        LayerEntry(Change.PUT, "l", Node(stat.S_IFLNK | 0o777, target="\udc80")),
        LayerEntry(Change.PUT, "dev", Node(stat.S_IFCHR | 0o600, device=259)),
        LayerEntry(Change.WHITEOUT, "w"),
        LayerEntry(Change.OPAQUE, ""),
        LayerEntry(Change.LINK, "h", None, "chunked"),
    )
    return LayerRecord(DIGEST, Digest.of(b"x"), 7, 8, entries, (Finding("p", "what"),))


@pytest.mark.parametrize("algorithm", HashAlgorithm)
def test_a_record_comes_back_as_it_was(tmp_path: Path, algorithm: HashAlgorithm) -> None:
    store = RecordStore(tmp_path / "new" / "layers", algorithm)
    assert store.load(DIGEST) is None
    store.save(record(algorithm))
    store.save(record(algorithm))
    assert store.load(DIGEST) == record(algorithm)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [f"{DIGEST.hex}.json.zst"]


def test_a_record_names_the_objects_it_needs() -> None:
    one, two = (ContentHash.of(data, HashAlgorithm.SHA1) for data in (b"1", b"2"))
    assert list(record().objects()) == [
        (one, Suffix.DATA), (one, Suffix.CHUNK), (two, Suffix.CHUNK),
        (one, Suffix.DATA), (one, Suffix.CHUNK),
    ]  # fmt: skip


def test_a_record_of_another_hash_algorithm_is_no_use(tmp_path: Path) -> None:
    RecordStore(tmp_path, HashAlgorithm.SHA1).save(record())
    assert RecordStore(tmp_path, HashAlgorithm.SHAKE128).load(DIGEST) is None


DAMAGES = {
    "empty": b"",
    "no zstd": b"{}",
    "no json": zstandard.compress(b"{"),
    "a list": zstandard.compress(b"[]"),
    "another format": zstandard.compress(b'{"format": 2, "hash": "sha1"}'),
    "fields missing": zstandard.compress(b'{"format": 1, "hash": "sha1"}'),
    "bad entries": zstandard.compress(
        json.dumps(
            {"format": 1, "hash": "sha1", "diff_id": str(DIGEST), "size": 1, "stored_bytes": 1,
             "findings": [], "entries": [["x"]]}
        ).encode()
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_none(tmp_path: Path, damage: str) -> None:
    store = RecordStore(tmp_path, HashAlgorithm.SHA1)
    store.save(record())
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    path.write_bytes(DAMAGES[damage])
    assert store.load(DIGEST) is None


def test_a_record_cut_or_flipped_anywhere_is_none_or_equal_in_form(tmp_path: Path) -> None:
    store = RecordStore(tmp_path, HashAlgorithm.SHA1)
    store.save(record())
    (path,) = (p for p in tmp_path.rglob("*") if p.is_file())
    packed = path.read_bytes()
    for length in range(len(packed)):
        path.write_bytes(packed[:length])
        assert store.load(DIGEST) is None
