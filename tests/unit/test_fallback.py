"""The parts of which images as files are made: the tar stream, the list, the frame of a SIF."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.layers.tree import Directory, Node, RepoPath, Tree, empty_tree
from cvmfs_publish.repository.archive import BATCH_FILES, SMALL, iter_tar
from cvmfs_publish.repository.artefact import walk_tree
from cvmfs_publish.repository.base import Transaction
from cvmfs_publish.repository.fallback import (
    Line,
    format_copy,
    format_list,
    parse_list,
    point_immutable_names,
    point_names,
    read_lines,
    repository_of,
)
from cvmfs_publish.repository.layouts import image_record_of
from cvmfs_publish.repository.names import put_sandbox_record
from cvmfs_publish.repository.records import Artefact, Publication, SandboxRecord
from cvmfs_publish.repository.sif import DATA_OFFSET, make_frame
from cvmfs_publish.repository.staging import StagedName, switch_names
from cvmfs_publish.sources.base import Platform
from tests.memory import MemoryRepository
from tests.versions import at, image_id, manifest_digest, put, stage

DIGEST = "sha256:" + "a" * 64
ARTEFACT = Artefact("sif", "c" * 64, 10, 20)


def contents(path: RepoPath, node: Node) -> Iterator[bytes]:
    yield path.encode("utf-8", "surrogateescape")[:1] * node.size


def unpacked(data: bytes) -> list[tarfile.TarInfo]:
    options = {"encoding": "utf-8", "errors": "surrogateescape"}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", **options) as archive:  # type: ignore[call-overload]
        members: list[tarfile.TarInfo] = archive.getmembers()
        for member in members:
            if member.isreg():
                file = archive.extractfile(member)
                assert file is not None
                name = member.name.encode("utf-8", "surrogateescape")
                assert file.read() == name[:1] * member.size
        return members


_NAMES = st.binary(min_size=1, max_size=150).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
_TIMES = st.tuples(st.integers(-(2**33), 2**35), st.integers(0, 999_999_999))
_MODES = st.integers(0, 0o7777)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        _NAMES, st.tuples(st.sampled_from("fdlp"), _MODES, _TIMES, st.integers(0, 3000))
    ),
    st.binary(max_size=300).filter(lambda value: b"\0" not in value),
)
def test_a_tar_says_of_every_entry_what_the_tree_says(
    entries: dict[bytes, tuple[str, int, tuple[int, int], int]], text: bytes
) -> None:
    kinds = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO}
    nodes: dict[str, Node] = {}
    for name, (kind, mode, (seconds, fraction), size) in entries.items():
        nodes[name.decode("utf-8", "surrogateescape")] = Node(
            kinds[kind] | mode,
            uid=size * 1000,
            mtime=seconds,
            mtime_ns=fraction,
            size=size if kind == "f" else 0,
            target=(text or b"x").decode("utf-8", "surrogateescape") if kind == "l" else "",
            xattrs=(("user.it", text),) if kind == "f" and text else (),
        )
    data = b"".join(iter_tar(nodes.items(), contents))
    members = unpacked(data)
    assert [member.name for member in members] == list(nodes)
    for member, node in zip(members, nodes.values(), strict=True):
        assert stat.S_IMODE(node.mode) == member.mode
        assert (member.uid, member.gid, member.uname) == (node.uid, 0, "")
        assert (member.issym(), member.linkname) == (node.is_symlink, node.target)
        assert member.isfifo() == stat.S_ISFIFO(node.mode)
        assert member.isdir() == node.is_dir
        assert abs(member.mtime - (node.mtime + node.mtime_ns / 1e9)) < 1e-4
        assert member.pax_headers.get("SCHILY.xattr.user.it", "") == (
            text.decode("utf-8", "surrogateescape") if node.xattrs else ""
        )
    assert data == b"".join(iter_tar(nodes.items(), contents))


def test_large_files_and_many_small_ones_come_in_their_order() -> None:
    sizes = [*range(BATCH_FILES), SMALL + 1, 5, 0, 2 * SMALL, *range(3 * BATCH_FILES)]
    entries = [
        (f"{number}", Node(stat.S_IFREG | 0o644, size=size)) for number, size in enumerate(sizes)
    ]
    members = unpacked(b"".join(iter_tar(entries, contents)))
    assert [(member.name, member.size) for member in members] == [
        (path, node.size) for path, node in entries
    ]


def test_a_content_that_is_damaged_ends_the_stream_and_its_threads() -> None:
    def damaged(path: RepoPath, node: Node) -> Iterator[bytes]:
        yield b""
        raise IntegrityError(f"{path} is damaged")

    before = threading.active_count()
    entries = [(str(number), Node(stat.S_IFREG, size=1)) for number in range(10 * BATCH_FILES)]
    with pytest.raises(IntegrityError, match=r"\d+ is damaged"):
        list(iter_tar(entries, damaged))
    assert threading.active_count() == before


def test_no_device_gets_into_a_file() -> None:
    with pytest.raises(IntegrityError, match="/dev/x is a device"):
        list(iter_tar([("dev/x", Node(stat.S_IFCHR | 0o666, device=5))], contents))


def test_a_directory_is_followed_by_what_is_in_it() -> None:
    def folder(**children: Directory | Node) -> Directory:
        return Directory(Node(stat.S_IFDIR | 0o755), dict(reversed(children.items())))

    file = Node(stat.S_IFREG | 0o644)
    tree = Tree(folder(a=folder(b=folder(c=file), d=file), e=file, f=folder()))
    assert [path for path, _ in walk_tree(tree)] == ["a", "a/b", "a/b/c", "a/d", "e", "f"]
    assert list(walk_tree(empty_tree())) == []


# the list


def test_a_list_is_sorted_and_reads_back_as_it_was() -> None:
    other = Artefact("tar.gz", "d" * 64, 2**40, 0)
    lines = {
        "docker.io/library/debian@" + DIGEST: Line(DIGEST, DIGEST, other),
        "docker.io/library/debian:12": Line(DIGEST, DIGEST, ARTEFACT),
    }
    data = format_list(lines)
    assert parse_list(data) == lines
    first, second = [text for text in data.decode().splitlines() if not text.startswith("#")]
    assert first == (
        f"docker.io/library/debian:12 {DIGEST} {DIGEST} sif {'c' * 64} 10 20 {'c' * 64}.sif"
    )
    assert second.endswith(f" tar.gz {'d' * 64} 1099511627776 0 {'d' * 64}.tar.gz")
    copy = format_copy("a.example.org", lines)
    assert parse_list(copy) == lines
    assert (repository_of(copy), repository_of(data)) == ("a.example.org", "")


@pytest.mark.parametrize(
    "change",
    [
        ("sif ", "zip "),
        (" 10 ", " ten "),
        (" 10 ", " 0 "),
        (" 20 ", " -1 "),
        ("c" * 64, "../" + "c" * 61),
        (".sif", ".tar.gz"),
        (" 20 ", " 20 20 "),
        ("sha256:", "sha256;"),
    ],
)
def test_a_line_that_is_none_is_refused(change: tuple[str, str]) -> None:
    data = format_list({"a.org/b:1": Line(DIGEST, DIGEST, ARTEFACT)}).decode()
    assert parse_list(data.encode())
    with pytest.raises(IntegrityError):
        parse_list(data.replace(*change).encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_refused(data: bytes) -> None:
    with suppress(IntegrityError):
        parse_list(data)
    repository_of(data)


def test_a_sandbox_record_keeps_its_artefact_and_old_records_have_none() -> None:
    record = SandboxRecord("r", "t", ARTEFACT)
    assert SandboxRecord.from_json(record.to_json()) == record
    old = SandboxRecord("r", "t")
    assert old.to_json() == b'{"recipe": "r", "tree_digest": "t"}\n'
    assert SandboxRecord.from_json(old.to_json()) == old
    assert old.is_same(record)
    for damage in (b'"sif"', b"20", b'"size"'):
        with pytest.raises(IntegrityError):
            SandboxRecord.from_json(record.to_json().replace(damage, b'"x"'))


# the frame of a SIF


def test_the_frame_has_its_fields_where_the_specification_has_them() -> None:
    frame = make_frame(8192, Platform.parse("linux/arm64"), "identity", 1_700_000_000)
    assert len(frame) == DATA_OFFSET
    assert frame[:32] == b"#!/usr/bin/env run-singularity\n\0"
    assert frame[32:48] == b"SIF_MAGIC\x0001\x0004\0"
    numbers = struct.unpack_from("<8q", frame, 64)
    assert numbers[:6] == (1_700_000_000, 1_700_000_000, 47, 48, 4096, 48 * 585)
    assert numbers[6] + numbers[7] == DATA_OFFSET + 8192
    assert struct.unpack_from("<i?3I3q", frame, 4096) == (
        0x4004, True, 1, 0xF0000001, 0, DATA_OFFSET, 8192, numbers[7],
    )  # fmt: skip
    assert struct.unpack_from("<2i3s", frame, 4096 + 585 - 384) == (1, 2, b"04\0")
    assert frame == make_frame(8192, Platform.parse("linux/arm64"), "identity", 1_700_000_000)
    assert frame[48:64] != make_frame(8192, Platform.default(), "other", 1)[48:64]


def test_a_platform_that_sif_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match="linux/loong64") as caught:
        make_frame(1, Platform.parse("linux/loong64"), "", 0)
    assert "tar.gz" in caught.value.hint


def test_a_name_that_waits_for_replicas_is_not_listed_before_it_leads_there() -> None:
    repository = MemoryRepository()
    name, by_digest = "ghcr.io/a/b:1", f"ghcr.io/a/b@{manifest_digest('B')}"

    def listed() -> dict[RepoPath, str]:
        with repository.open() as view:
            return {path: line.image_id for path, line in read_lines(view).items()}

    with repository.transaction(0) as transaction:
        record = put(transaction, name, "A", at(1))
        give_artefact(transaction, record)
        point_names(transaction, [record])
    with repository.transaction(0) as transaction:
        staged = stage(transaction, name, "B", at(2), 2)
        give_artefact(transaction, staged.publication)
        point_immutable_names(transaction, [staged.publication])
    assert listed()[name] == str(image_id("A"))
    assert listed()[by_digest] == str(image_id("B"))
    with repository.transaction(0) as transaction:
        switch_names(transaction, [StagedName.of(staged)], at(3))
    assert listed()[name] == str(image_id("B"))


def give_artefact(transaction: Transaction, record: Publication) -> None:
    path = image_record_of(Digest.parse(record.image_id))
    put_sandbox_record(
        transaction, path, SandboxRecord(record.recipe, record.tree_digest, ARTEFACT)
    )
