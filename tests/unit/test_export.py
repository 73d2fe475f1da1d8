"""Exported directories: equal to what is published, complete or absent."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import Suffix
from cvmfs_publish.errors import InputError, IntegrityError, PublishError, RepositoryError
from cvmfs_publish.layers.tree import Chunk, Content, Directory, Node, Tree
from cvmfs_publish.repository.export import Exported, export_tree
from tests.support import Site, site
from tests.unit.content.test_local import small_disk

__all__ = ["small_disk"]
MTIME = 1_234_567_890
LARGE = b"large" * 300_000


def folder(mode: int = 0o755, **children: Directory | Node) -> Directory:
    return Directory(Node(stat.S_IFDIR | mode, mtime=MTIME, mtime_ns=5), dict(children))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A repository with one tree of everything at `.flat/x`."""
    with site(tmp_path_factory.mktemp("export")) as target:
        with target.repository.transaction(int(time.time())) as transaction:

            def file(data: bytes, mode: int = 0o644, **more: object) -> Node:
                node = Node(stat.S_IFREG | mode, 7, 8, MTIME, 999, len(data))
                return node._replace(content=transaction.store(data), **more)  # type: ignore[arg-type]

            editor = transaction._editor
            pieces = []
            for start in range(0, len(LARGE), 400_000):
                part = LARGE[start : start + 400_000]
                whole = editor.store(part).hash
                assert whole is not None
                stored = target.storage / whole.path(Suffix.DATA)
                (target.storage / whole.path(Suffix.CHUNK)).write_bytes(stored.read_bytes())
                pieces.append(Chunk(start, len(part), whole))
            large = file(LARGE)._replace(content=Content(None, tuple(pieces)))
            root = folder(
                0o555,
                empty=file(b""),
                script=file(b"#!/bin/sh\n", 0o4755),
                secret=file(b"x", 0o000),
                large=large,
                tagged=file(b"t", xattrs=(("user.k", b"\0v"),)),
                readonly=folder(0o555, inner=folder(0o500, f=file(b"deep"))),
                absolute=Node(stat.S_IFLNK | 0o777, mtime=-5, target="/etc/passwd"),
                up=Node(stat.S_IFLNK | 0o777, target="../../../../../etc"),
                dangling=Node(stat.S_IFLNK | 0o777, target="\udcff"),
                pipe=Node(stat.S_IFIFO | 0o622, mtime=3),
            )
            root.children["bytes \udcff\n"] = file(b"odd")
            transaction.make_directories(".flat")
            transaction.put_tree(".flat/x", Tree(root))
        yield target


def run(target: Site, to: Path, path: str = ".flat/x") -> Exported:
    with target.repository.snapshot() as snapshot:
        return export_tree(snapshot, path, to)


def test_an_export_is_the_published_tree(published: Site, tmp_path: Path) -> None:
    to = tmp_path / "new" / "image"
    result = run(published, to)
    found = {}
    for directory, names, files in os.walk(to):
        for name in names + files:
            path = os.path.join(directory, name)
            found[os.path.relpath(path, to)] = os.lstat(path)
    with published.repository.snapshot() as snapshot:
        rows = {
            row.path.removeprefix(".flat/x/"): row.node
            for row in snapshot.walk(".flat/x")
            if not row.path.endswith(".cvmfscatalog")
        }
    assert found.keys() == rows.keys()
    assert result.entries == len(rows)
    for name, node in rows.items():
        status = found[name]
        assert status.st_mode == node.mode, name
        assert status.st_mtime_ns == node.mtime * 10**9 + node.mtime_ns, name
        if node.is_symlink:
            assert os.readlink(to / name) == node.target
    assert stat.S_IMODE(to.stat().st_mode) == 0o555
    assert to.stat().st_mtime == MTIME + 5e-9
    assert (to / "large").read_bytes() == LARGE
    assert (to / "readonly/inner/f").read_bytes() == b"deep"
    assert result.bytes == sum(node.size for node in rows.values())
    assert os.listdir(to.parent) == ["image"]
    if result.skipped_xattrs == 0:
        assert os.getxattr(to / "tagged", "user.k") == b"\0v"


def test_an_empty_directory_is_taken_and_a_full_one_left_alone(
    published: Site, tmp_path: Path
) -> None:
    empty, full, file = tmp_path / "empty", tmp_path / "full", tmp_path / "file"
    empty.mkdir()
    full.mkdir()
    (full / "precious").write_text("precious")
    file.write_text("a file")
    link = tmp_path / "link"
    link.symlink_to(empty)
    run(published, empty)
    assert (empty / "script").exists()
    for taken in (full, file, link, empty):
        with pytest.raises(InputError, match=taken.name):
            run(published, taken)
    assert [p.name for p in full.iterdir()] == ["precious"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file", "full", "link"]


@pytest.mark.parametrize("path", ["none", ".flat/x/script", ".flat/x/up"])
def test_what_is_no_directory_cannot_be_exported(
    published: Site, tmp_path: Path, path: str
) -> None:
    with pytest.raises(InputError, match="is no directory"):
        run(published, tmp_path / "to", path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "flipped", "short"])
def test_a_damaged_object_leaves_nothing_behind(
    published: Site, tmp_path: Path, damage: str
) -> None:
    with published.repository.snapshot() as snapshot:
        row = snapshot.lookup(".flat/x/readonly/inner/f")
    assert row is not None
    assert row.node.content is not None
    assert row.node.content.hash is not None
    stored = published.storage / row.node.content.hash.path(Suffix.DATA)
    before = stored.read_bytes()
    try:
        stored.unlink()
        if damage != "missing":
            stored.write_bytes(before[:-1] + (b"\0" if damage == "flipped" else b""))
        with pytest.raises(IntegrityError):
            run(published, tmp_path / "to")
        assert list(tmp_path.iterdir()) == []
    finally:
        stored.write_bytes(before)
    run(published, tmp_path / "to")


def test_the_target_appears_only_when_it_is_complete(
    published: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "to"
    seen = []
    original = os.utime

    def watch(*arguments: object, **options: object) -> None:
        seen.append(to.exists())
        original(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "utime", watch)
    run(published, to)
    assert to.exists()
    assert len(seen) > 10
    assert not any(seen)


def test_a_full_disk_is_an_error_in_words_and_leaves_nothing(
    published: Site, small_disk: Path
) -> None:
    with pytest.raises(RepositoryError, match="No space left") as caught:
        run(published, small_disk / "to")
    assert "free some space" in caught.value.hint
    assert "None" not in str(caught.value)
    assert list(small_disk.iterdir()) == []


def test_a_target_that_cannot_be_made_is_an_error_in_words(published: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match="file"):
        run(published, tmp_path / "file" / "to")
