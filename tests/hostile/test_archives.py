"""Archives and files that attack: refused, or kept inside; readers see the old revision."""

from __future__ import annotations

import gzip
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.errors import IntegrityError, PublishError
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import ImageResult, Publisher, PublishSettings
from cvmfs_publish.sources.transports import Sources
from tests.archives import docker_members, oci_archive, oci_members, pack
from tests.hostile.test_layers import REFUSED
from tests.images import Tar, write_oci_layout
from tests.sifs import make_sif, squashfs_of, system
from tests.sources import open_sources
from tests.support import Site, site

NAME = "example.org/a/evil:1"
# How a layer gets here; a flat tar is a layer of its own
WAYS: dict[str, Callable[[Path, bytes], str]] = {}


def way(make: Callable[[Path, bytes], str]) -> Callable[[Path, bytes], str]:
    WAYS[make.__name__.removeprefix("as_").replace("_", "-")] = make
    return make


@way
def as_oci_archive(folder: Path, layer: bytes) -> str:
    layout = write_oci_layout(folder / f"layout-{len(list(folder.iterdir()))}", [layer])
    oci_archive(folder / "evil.tar", layout)
    return f"oci-archive:{folder}/evil.tar"


@way
def as_docker_archive(folder: Path, layer: bytes) -> str:
    (folder / "evil.tar").write_bytes(pack(docker_members([layer])))
    return f"docker-archive:{folder}/evil.tar"


@way
def as_tar(folder: Path, layer: bytes) -> str:
    (folder / "evil.tar").write_bytes(layer)
    return f"tar:{folder}/evil.tar"


@dataclass
class Attacked:
    """A repository with a good image, for all attacks in turn."""

    folder: Path
    target: Site
    sources: Sources

    def publish(self, text: str, name: str = NAME) -> ImageResult:
        publisher = Publisher(
            self.target.repository,
            self.sources,
            RecordStore(self.target.state / "layers", self.target.algorithm),
            PublishSettings(),
        )
        return publisher.publish([text], names={text: name}, now=datetime.now(UTC)).images[0]

    def refused(self, text: str) -> PublishError:
        """Publish what must be refused; nothing may have changed."""
        before = self.target.repository.revision()
        error = self.publish(text).error
        assert error is not None
        assert self.target.repository.revision() == before
        return error


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    base = tmp_path_factory.mktemp("attacked") / "a/b/inner"
    base.mkdir(parents=True)
    victim = base.parents[2] / "victim"
    victim.mkdir()
    (victim / "precious").write_text("precious")
    scratch, files = base / "scratch", base / "files"
    scratch.mkdir()
    files.mkdir()
    with site(base) as target, open_sources(scratch) as sources:
        stand = Attacked(files, target, sources)
        good = Tar()
        good.file("hello", b"world")
        text = WAYS["tar"](files, good.done())
        assert stand.publish(text, "example.org/a/good:1").error is None
        yield stand
        assert target.judge() == []
        assert [path.name for path in victim.iterdir()] == ["precious"]
        assert (victim / "precious").read_text() == "precious"
        assert not list(base.parents[2].rglob("evil"))
        assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("how", ["docker-archive", "tar"])
@pytest.mark.parametrize("attack", sorted(REFUSED))
def test_an_attack_is_refused_wherever_it_comes_from(
    attacked: Attacked, attack: str, how: str
) -> None:
    error = attacked.refused(WAYS[how](attacked.folder, REFUSED[attack]()))
    assert isinstance(error, IntegrityError), error


# Names of members of the archive itself: nothing is ever written by them
OUTSIDE = [
    "../../../../victim/precious",
    "/etc/passwd",
    "../evil",
    "a/../../evil",
    "\udcff\n",
    "..",
]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["file", "link", "hard link"])
def test_a_member_beside_the_image_is_written_nowhere(
    attacked: Attacked, name: str, kind: str
) -> None:
    good = Tar()
    good.file("hello", name.encode("utf-8", "surrogateescape"))
    layout = write_oci_layout(attacked.folder / f"layout-{abs(hash((name, kind)))}", [good.done()])
    outer = Tar()
    if kind == "file":
        outer.file(name, b"overwritten")
    elif kind == "link":
        outer.symlink(name, "/etc/passwd")
    else:
        outer.link(name, "../../../../victim/precious")
    for member, data in oci_members(layout).items():
        assert isinstance(data, bytes)
        outer.file(member, data)
    (attacked.folder / "outer.tar").write_bytes(outer.done())
    result = attacked.publish(f"oci-archive:{attacked.folder}/outer.tar")
    assert result.error is None, result.error


def leading(kind: bytes, target: str) -> bytes:
    """A docker-archive whose layer is a link to where it should not lead."""
    members = docker_members([Tar().done()])
    (name,) = (key for key in members if key.endswith("layer.tar"))
    return pack({**members, name: (kind, target)})


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../../etc/passwd", "manifest.json/x"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["link", "hard link"])
def test_a_layer_that_is_a_link_leads_out_of_no_archive(
    attacked: Attacked, kind: bytes, target: str
) -> None:
    (attacked.folder / "linked.tar").write_bytes(leading(kind, target))
    error = attacked.refused(f"docker-archive:{attacked.folder}/linked.tar")
    assert isinstance(error, IntegrityError)
    assert "has no" in str(error)


# What umoci's and the OCI community's bad tars do, made by hand: they land inside, or are refused
Step = Callable[[Tar], None]
BAD: dict[str, list[Step]] = {
    "a whiteout through a link": [
        lambda t: t.symlink("link", "/../../victim"),
        lambda t: t.whiteout("link/precious"),
    ],
    "an opaque mark through a link": [
        lambda t: t.symlink("link", "../../../../victim"),
        lambda t: t.opaque("link"),
    ],
    "a directory over a link": [
        lambda t: t.symlink("link", "/etc"),
        lambda t: t.directory("link"),
        lambda t: t.file("link/passwd", b"evil"),
    ],
    "a file through two links": [
        lambda t: t.symlink("one", "/"),
        lambda t: t.symlink("two", "one/etc"),
        lambda t: t.file("two/shadow", b"evil"),
    ],
    "a hard link to a link outside": [
        lambda t: t.symlink("link", "/etc/passwd"),
        lambda t: t.link("hard", "link"),
        lambda t: t.file("hard", b"evil"),
    ],
    "a device": [lambda t: t.add("dev-mem", tarfile.CHRTYPE, 0o666, device=(1, 1))],
    "a name with a newline": [lambda t: t.file("new\nline", b"")],
    "a name that is not UTF-8": [lambda t: t.file(b"\xff\xfe", b"")],
    "names that differ in case": [lambda t: t.file("A", b""), lambda t: t.file("a", b"")],
    "one name three times": [
        lambda t: t.file("x", b"1"),
        lambda t: t.directory("x"),
        lambda t: t.file("x", b"3"),
    ],
    "a setuid program of root": [lambda t: t.file("su", b"", 0o4755)],
    "very old and very new": [
        lambda t: t.file("old", b"", mtime=-1.5),
        lambda t: t.file("new", b"", mtime=2.0**40),
    ],
}


@pytest.mark.parametrize("how", ["oci-archive", "tar"])
@pytest.mark.parametrize("trick", sorted(BAD))
def test_a_bad_tar_stays_inside(attacked: Attacked, trick: str, how: str) -> None:
    bad = Tar()
    bad.file("marker", trick.encode())
    for step in BAD[trick]:
        step(bad)
    result = attacked.publish(WAYS[how](attacked.folder, bad.done()), NAME)
    assert result.error is None or isinstance(result.error, IntegrityError)
    if result.publication is None:
        return
    with attacked.target.repository.open() as view:
        sandbox = result.publication.sandbox.strip("/")
        assert view.read_file(f"{sandbox}/marker") == trick.encode()
        if trick == "a directory over a link":
            assert view.read_file(f"{sandbox}/link/passwd") == b"evil"
        if trick == "a setuid program of root":
            assert any(finding.path == "su" for finding in result.publication.findings)


# SIF


def sif_of(write: Step) -> bytes:
    tar_ = Tar()
    write(tar_)
    return make_sif([system(squashfs_of(tar_.done()))])


@pytest.mark.parametrize(
    "path", [".singularity.d", ".singularity.d/env", "environment", "etc/hosts", "dev", "nfs"]
)
def test_a_link_in_a_sif_where_the_publisher_writes_leads_nothing_out(
    attacked: Attacked, path: str
) -> None:
    data = sif_of(lambda t: t.symlink(path, "/../../../../victim/precious"))
    (attacked.folder / "evil.sif").write_bytes(data)
    result = attacked.publish(f"sif:{attacked.folder}/evil.sif")
    assert result.error is None
    assert result.publication is not None
    with attacked.target.repository.open() as view:
        sandbox = result.publication.sandbox.strip("/")
        assert view.is_directory(f"{sandbox}/.singularity.d/env")


def test_names_in_a_squashfs_are_bytes(attacked: Attacked) -> None:
    def write(t: Tar) -> None:
        t.file(b"\xff\xfe", b"1")
        t.file("new\nline", b"2")
        t.file("n" * 255, b"3")

    (attacked.folder / "odd.sif").write_bytes(sif_of(write))
    result = attacked.publish(f"sif:{attacked.folder}/odd.sif")
    assert result.publication is not None
    with attacked.target.repository.open() as view:
        sandbox = result.publication.sandbox.strip("/")
        assert view.read_file(f"{sandbox}/\udcff\udcfe") == b"1"
        assert view.read_file(f"{sandbox}/new\nline") == b"2"
        assert view.read_file(f"{sandbox}/{'n' * 255}") == b"3"


@pytest.mark.parametrize("how", ["sif", "tar"])
def test_a_name_that_means_a_whiteout_is_dropped_and_told(attacked: Attacked, how: str) -> None:
    """There is nothing below; a file of such a name could never be stored (E-10)."""
    tar_ = Tar()
    tar_.file("a/.wh.b", b"x")
    data = tar_.done() if how == "tar" else sif_of(lambda t: t.file("a/.wh.b", b"x"))
    (attacked.folder / f"wh.{how}").write_bytes(data)
    result = attacked.publish(f"{how}:{attacked.folder}/wh.{how}")
    assert result.publication is not None
    told = {finding.path: finding.what for finding in result.publication.findings}
    assert told["a/b"] == "whiteout dropped: there is no layer below"
    with attacked.target.repository.open() as view:
        names = list(view.list_names(f"{result.publication.sandbox[1:]}/a"))
        assert not any(name.startswith(".wh.") for name, _ in names)


def test_superblocks_that_lie_never_crash_the_publisher(attacked: Attacked) -> None:
    """inode count, block size, flags, tables: all numbers of the first 96 bytes, one by one."""
    tar_ = Tar()
    tar_.file("file", b"content" * 1000)
    squashfs = squashfs_of(tar_.done())
    for offset in range(4, 96, 8):
        for value in (0, (1 << 64) - 1, 1 << 40):
            data = bytearray(squashfs)
            struct.pack_into("<Q", data, offset, value)
            (attacked.folder / "lie.sif").write_bytes(make_sif([system(bytes(data))]))
            result = attacked.publish(f"sif:{attacked.folder}/lie.sif")
            assert result.error is None or result.error.exit_code in (2, 4), result.error


@pytest.mark.parametrize("data", [b"", bytes(1024), gzip.compress(bytes(10240))], ids=len)
def test_a_tar_of_nothing_is_no_image(attacked: Attacked, data: bytes) -> None:
    """A download that was cut off before its first byte, a disk full of zeros: all valid tars."""
    (attacked.folder / "empty.tar").write_bytes(data)
    error = attacked.refused(f"tar:{attacked.folder}/empty.tar")
    assert "holds no files at all" in str(error)
    assert error.exit_code == 4
