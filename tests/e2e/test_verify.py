"""`verify`: an image as published, or as mounted, against what its registry has."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.objects import Compression
from cvmfs_publish.errors import InputError, IntegrityError, RemoteError
from cvmfs_publish.layers.tree import Content, Node, empty_tree
from cvmfs_publish.publish import PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.compare import Published, StoredTree, Uncompared, compare
from cvmfs_publish.repository.export import export_tree
from cvmfs_publish.repository.native.edit import TreeEditor
from cvmfs_publish.repository.native.repository import NativeOptions, NativeTransaction
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.sandbox.policy import SandboxPolicy
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.registry.source import RegistrySource
from cvmfs_publish.verify import Verification, check_identity, find_in_mount, verify_image
from tests import legal
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import Site, site
from tests.tampering import edit, tamper


def lower() -> bytes:
    """What most tests need: one of each kind, and a file of several chunks."""
    tar = Tar()
    tar.directory("d", 0o755)
    tar.file("d/file", b"some text", owner=(5, 6), xattrs={"user.note": b"kept"})
    tar.file("d/large", bytes(range(256)) * 40_000)
    tar.link("d/linked", "d/file")
    tar.symlink("link", "d/file")
    tar.file("gone", b"removed by the upper layer")
    return tar.done()


def upper() -> bytes:
    tar = Tar()
    tar.whiteout("gone")
    tar.file("new", b"upper")
    return tar.done()


class Case:
    """One published image."""

    def __init__(self, registry: FakeRegistry, target: Site, layers: list[bytes]) -> None:
        registry.add_image("a/all", layers=layers, tag="1")
        self.registry = registry
        self.target = target
        self.name = f"{registry.host}/a/all:1"
        self.publication = self.publish()
        self.sandbox = self.publication.sandbox[1:]

    def publish(self) -> Publication:
        result = self.target.publish(self.name).images[0]
        assert result.error is None
        assert result.publication is not None
        return result.publication

    def verify(
        self, *, settings: PublishSettings | None = None, folder: Path | None = None
    ) -> Verification:
        source = RegistrySource(self.target.client)
        with self.target.repository.snapshot() as snapshot:
            return verify_image(
                self.publication,
                source,
                settings or PublishSettings(),
                snapshot=snapshot,
                folder=folder,
            )

    def found(self, *, folder: Path | None = None) -> list[tuple[str, str]]:
        """Return path and kind of the differences, without that of the tree digest."""
        differences = self.verify(folder=folder).differences
        return [(d.path, d.what) for d in differences if d.what != "tree digest"]

    def export(self, place: Path) -> Path:
        with self.target.repository.snapshot() as snapshot:
            export_tree(snapshot, self.sandbox, place)
        return place


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with FakeRegistry() as registry, site(tmp_path / "site") as target:
        yield Case(registry, target, [lower(), upper()])


def every_layer() -> list[bytes]:
    return [
        legal._names_layer(pax=True),
        legal._kinds_layer(),
        legal._lower_layer(),
        legal._upper_layer(),
        legal._links_layer(),
    ]


@pytest.mark.parametrize("algorithm", [HashAlgorithm.SHA1, HashAlgorithm.SHAKE128])
@pytest.mark.parametrize("compression", [Compression.ADAPTIVE, Compression.NONE])
def test_an_image_with_everything_is_what_its_layers_say(
    tmp_path: Path, algorithm: HashAlgorithm, compression: Compression
) -> None:
    with FakeRegistry() as registry, site(tmp_path, algorithm) as target:
        target.reopen(NativeOptions(max_entries=60, compression=compression))
        case = Case(registry, target, every_layer())
        result = case.verify()
        assert result.differences == []
        assert result.uncompared == []
        assert result.is_same_recipe
        assert result.entries == case.publication.entries + 1
        assert result.bytes == case.publication.content_bytes


def test_nothing_that_was_kept_is_believed_and_the_tag_may_move(case: Case) -> None:
    before = case.registry.count("GET", "/blobs/")
    shutil.rmtree(case.target.state)
    case.registry.add_image("a/all", layers=[upper()], tag="1")
    assert case.verify().differences == []
    assert case.registry.count("GET", "/blobs/") - before == 3  # configuration and two layers


def test_a_manifest_the_registry_forgot_is_a_remote_error(case: Case) -> None:
    case.registry.manifests.clear()
    with pytest.raises(RemoteError):
        case.verify()


def test_a_layer_the_registry_changed_is_an_integrity_error(case: Case) -> None:
    layer = case.publication.layers[0]
    case.registry.blobs[layer] = case.registry.blobs[case.publication.layers[1]]
    with pytest.raises(IntegrityError):
        case.verify()


Change = Callable[[Node], Node]
FILE = b"other txt"
TAMPERINGS: dict[str, tuple[str, Change]] = {
    "mode": ("d/file", lambda node: node._replace(mode=node.mode ^ 0o111)),
    "owner": ("d/file", lambda node: node._replace(uid=0)),
    "mtime": ("d", lambda node: node._replace(mtime=node.mtime + 1)),
    "size": ("d/file", lambda node: node._replace(size=node.size + 1)),
    "link target": ("link", lambda node: node._replace(target="/etc/passwd")),
    "extended attribute user.note": ("d/file", lambda node: node._replace(xattrs=())),
    "extended attribute user.more": (
        "d/large",
        lambda node: node._replace(xattrs=(("user.more", b"x"),)),
    ),
    "type": ("link", lambda node: node._replace(mode=stat.S_IFIFO | 0o644, target="")),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_each_kind_of_tampering_is_found_where_it_is(case: Case, what: str) -> None:
    path, change = TAMPERINGS[what]
    tamper(case.target, f"{case.sandbox}/{path}", change)
    found = case.found()
    assert (path, what) in found
    # a size that is wrong makes the content unreadable as well
    assert {where for where, _ in found} == {path}
    assert [d.what for d in case.verify().differences if d.path.startswith("/")] == ["tree digest"]


def test_content_removed_added_and_exchanged_entries_are_found(case: Case) -> None:
    def change(transaction: NativeTransaction, _: TreeEditor) -> None:
        transaction.remove(f"{case.sandbox}/new")
        transaction.put_file(f"{case.sandbox}/more", b"not of the image")

    edit(case.target, change)
    with case.target.repository.transaction(int(datetime.now(UTC).timestamp())) as transaction:
        other = transaction.store(FILE)
    tamper(case.target, f"{case.sandbox}/d/file", lambda node: node._replace(content=other))
    found = case.found()
    assert ("new", "missing") in found
    assert ("more", "not expected") in found
    assert ("d/file", "content") in found
    assert ("d/linked", "content") not in found


def test_what_hides_behind_the_name_of_a_marker_is_found(case: Case, tmp_path: Path) -> None:
    folder = case.export(tmp_path / "out")
    (folder / ".cvmfscatalog").write_bytes(b"")
    (folder / "d" / ".cvmfscatalog").mkdir()
    (folder / "d" / ".cvmfscatalog" / "more").write_bytes(b"not of the image")
    found = [path for path, what in case.found(folder=folder) if what == "not expected"]
    assert found == ["d/.cvmfscatalog", "d/.cvmfscatalog/more"]

    def change(transaction: NativeTransaction, _: TreeEditor) -> None:
        transaction.put_file(f"{case.sandbox}/d/.cvmfscatalog", b"")

    edit(case.target, change)
    assert ("d/.cvmfscatalog", "not expected") in case.found()


def test_the_record_of_another_image_is_not_believed(case: Case) -> None:
    wanted = Reference.parse(case.name)
    check_identity(case.publication, wanted, Platform.default())
    with pytest.raises(IntegrityError, match=f"the record of {case.name} .*, not of docker"):
        check_identity(case.publication, Reference.parse("debian:12"), Platform.default())
    with pytest.raises(IntegrityError, match=r"\(linux/amd64\), not of .* \(linux/arm64\)"):
        check_identity(case.publication, wanted, Platform.parse("linux/arm64"))


def test_chunks_in_another_order_are_found(case: Case) -> None:
    def change(node: Node) -> Node:
        assert node.content is not None
        first, second, *rest = node.content.chunks
        swapped = (first._replace(hash=second.hash), second._replace(hash=first.hash), *rest)
        return node._replace(content=node.content._replace(chunks=swapped))

    tamper(case.target, f"{case.sandbox}/d/large", change)
    # both chunks have the same size and, as the pattern repeats, the same bytes
    assert case.found() == []
    tamper(case.target, f"{case.sandbox}/d/large", _drop_last_chunk)
    assert case.found() == [("d/large", "content")]


def _drop_last_chunk(node: Node) -> Node:
    assert node.content is not None
    return node._replace(content=node.content._replace(chunks=node.content.chunks[:-1]))


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_an_object_that_is_lost_or_damaged_is_a_difference_of_its_file(
    case: Case, damage: str
) -> None:
    with case.target.repository.snapshot() as snapshot:
        row = snapshot.lookup(f"{case.sandbox}/d/large")
    assert row is not None
    assert row.node.content is not None
    path = case.target.storage / row.node.content.chunks[-1].hash.path(Suffix.CHUNK)
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    assert case.found() == [("d/large", "content")]
    assert path.name in case.verify().differences[0].found


def test_records_and_names_that_lie_are_found(case: Case) -> None:
    def change(transaction: NativeTransaction, _: TreeEditor) -> None:
        transaction.put_symlink(case.publication.path[1:], "../elsewhere")
        folder = f".metadata{case.publication.path}"
        transaction.put_file(f"{folder}/manifest.json", b"{}")

    edit(case.target, change)
    found = case.found()
    assert (case.publication.path, "name leads to") in found
    assert (f"/.metadata{case.publication.path}/manifest.json", "content") in found
    assert len(found) == 2


def test_another_recipe_is_told(case: Case) -> None:
    settings = PublishSettings(policy=SandboxPolicy(roots=("/only",)))
    result = case.verify(settings=settings)
    assert not result.is_same_recipe
    assert ("only", "missing") in [(d.path, d.what) for d in result.differences]


# folders


def test_an_export_is_what_the_registry_says(case: Case, tmp_path: Path) -> None:
    folder = case.export(tmp_path / "out")
    result = case.verify(folder=folder)
    assert result.differences == []
    if os.geteuid() == 0:  # 5:6 in the image, and all the same in an export
        assert result.uncompared == [Uncompared("", "owners: everything belongs to 0:0 here")]


def test_each_kind_of_change_in_a_folder_is_found(case: Case, tmp_path: Path) -> None:
    folder = case.export(tmp_path / "out")
    (folder / "d" / "file").write_bytes(FILE)  # of the same length
    (folder / "d" / "large").chmod(0o600)
    (folder / "new").unlink()
    (folder / "more").write_bytes(b"")
    (folder / "link").unlink()
    (folder / "link").symlink_to("/etc/passwd")
    os.utime(folder / "d", (1, 1))
    found = set(case.found(folder=folder))
    assert found >= {
        ("d/file", "content"),
        ("d/file", "mtime"),
        ("d/large", "mode"),
        ("new", "missing"),
        ("more", "not expected"),
        ("link", "link target"),
        ("d", "mtime"),
    }
    assert {path for path, _ in found} <= {"", "d", "d/file", "d/large", "new", "more", "link"}


def test_a_link_out_of_the_folder_is_not_followed(case: Case, tmp_path: Path) -> None:
    folder = case.export(tmp_path / "out")
    shutil.rmtree(folder / "d")
    (folder / "d").symlink_to(case.export(tmp_path / "other") / "d")
    found = case.found(folder=folder)
    assert ("d", "type") in found
    assert ("d/file", "missing") in found


def test_a_mounted_repository_is_entered_at_the_sandbox(case: Case, tmp_path: Path) -> None:
    mount = tmp_path / "mount"
    folder = case.export(mount / case.sandbox)
    assert find_in_mount(mount, case.publication) == folder
    assert find_in_mount(folder, case.publication) == folder
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no directory"):
        find_in_mount(mount, case.publication)
    with pytest.raises(InputError, match="no directory"):
        find_in_mount(tmp_path / "nowhere", case.publication)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="nothing is mounted there"):
        find_in_mount(tmp_path / "empty", case.publication)


class Unreadable:
    """A tree with one file that cannot be read."""

    def __init__(self) -> None:
        self.uncompared: list[Uncompared] = []

    def entries(self) -> Iterator[tuple[str, Node]]:
        yield "", Node(stat.S_IFDIR | 0o755)
        yield "file", Node(stat.S_IFREG | 0o600, size=1)

    def content(self, path: str) -> Iterator[bytes]:
        raise PermissionError(13, "Permission denied", path)

    def tell_xattrs(self) -> bool:
        return False


def test_what_cannot_be_read_is_told_and_no_difference() -> None:
    tree = empty_tree()
    content = Content(ContentHash(hashlib.sha256(b"x").digest()))
    tree.root.children["file"] = Node(stat.S_IFREG | 0o600, size=1, content=content)
    published: Published = Unreadable()
    told: list[tuple[int, int]] = []
    differences, _ = compare(tree, published, lambda done, total: told.append((done, total)))
    assert differences == []
    assert published.uncompared == [Uncompared("file", "content cannot be read: Permission denied")]
    assert told == [(1, 1)]


def test_a_sandbox_that_is_not_there_is_all_missing(case: Case) -> None:
    edit(case.target, lambda transaction, _: transaction.remove(case.sandbox))
    found = case.found()
    assert ("", "missing") in found
    with case.target.repository.snapshot() as snapshot:
        assert list(StoredTree(snapshot, case.sandbox).entries()) == []
