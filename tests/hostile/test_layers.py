"""Layers that attack: each is refused with the right family, and readers see the old revision."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cvmfs_publish.errors import IntegrityError, PublishError
from cvmfs_publish.layers import read
from cvmfs_publish.layers.read import LayerLimits
from cvmfs_publish.publish import PublishSettings
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import Site, site


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", data: bytes = b"") -> bytes:
    tar = Tar()
    tar.file("innocent", b"looks fine")
    tar.add(name, kind, 0o644, data=data, target=target)
    return tar.done()


def through(first: tuple[str, bytes, str], second: str) -> bytes:
    tar = Tar()
    tar.add(first[0], first[1], 0o777, target=first[2])
    tar.file(second, b"evil")
    return tar.done()


REFUSED: dict[str, Callable[[], bytes]] = {
    "dots": lambda: member("../evil"),
    "dots inside": lambda: member("a/../../evil"),
    "hard link out": lambda: member("x", tarfile.LNKTYPE, "../../etc/passwd"),
    "hard link to nothing": lambda: member("x", tarfile.LNKTYPE, "etc/passwd"),
    "hard link to the host": lambda: member("x", tarfile.LNKTYPE, "/etc/passwd"),
    "below a file": lambda: member("innocent/child"),
    "below a loop": lambda: through(("loop", tarfile.SYMTYPE, "loop"), "loop/evil"),
    "bare whiteout": lambda: member("a/.wh."),
    "whiteout of dot": lambda: member("a/.wh.."),
    "whiteout of dots": lambda: member("a/.wh..."),
    "below a whiteout": lambda: member(".wh.a/b"),
    "root as a file": lambda: member("./", tarfile.REGTYPE, data=b"root"),
    "root as a link": lambda: member("./", tarfile.SYMTYPE, "/etc"),
    "long name": lambda: member("n" * 256),
    "long path": lambda: member("/".join(["d" * 200] * 25)),
    "long target": lambda: member("x", tarfile.SYMTYPE, "t" * 5000),
    "empty target": lambda: empty_target(),
    "unknown type": lambda: member("x", b"Z"),
    "cut": lambda: member("x", data=b"y" * 10_000)[:4096],
    "garbage": lambda: b"this is no tar archive" * 1000,
    "checksum": lambda: member("x")[:200] + b"!" + member("x")[201:],
}


def empty_target() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        info = tarfile.TarInfo("x")
        info.type = tarfile.SYMTYPE
        tar.addfile(info)
    return data.getvalue()


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeRegistry, Site]]:
    """One repository with a good image, for all attacks in turn."""
    base = tmp_path_factory.mktemp("attacked") / "inner"
    base.mkdir()
    good = Tar()
    good.file("hello", b"world")
    with FakeRegistry() as registry, site(base) as target:
        registry.add_image("a/good", [good.done()], tag="1")
        assert target.publish(f"{registry.host}/a/good:1").exit_code == 0
        yield registry, target
        assert target.judge() == []
        assert target.publish(f"{registry.host}/a/good:1", force=True).exit_code == 0
        assert target.judge() == []
        assert not (base / "evil").exists()
        assert not (base.parent / "evil").exists()


@pytest.mark.parametrize("attack", sorted(REFUSED))
def test_an_attack_is_refused_and_the_old_revision_stays(
    attacked: tuple[FakeRegistry, Site], attack: str
) -> None:
    registry, target = attacked
    before = target.repository.revision()
    registry.add_image("a/evil", [REFUSED[attack]()], tag="1")
    result = target.publish(f"{registry.host}/a/evil:1")
    error = result.images[0].error
    assert isinstance(error, IntegrityError), error
    assert result.exit_code == 4
    assert target.repository.revision() == before


LINKS = {
    "absolute": ("link", tarfile.SYMTYPE, "{outside}"),
    "dots": ("link", tarfile.SYMTYPE, "../" * 30 + "{outside}"),
}


@pytest.mark.parametrize("kind", sorted(LINKS))
def test_an_entry_through_a_link_to_the_host_lands_inside_the_image(
    tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    name, flag, text = LINKS[kind]
    archive = through((name, flag, text.format(outside=str(outside))), "link/evil")
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/evil", [archive], tag="1")
        result = target.publish(f"{registry.host}/a/evil:1")
        publication = result.images[0].publication
        assert publication is not None
        tree = target.published_tree(publication.sandbox, tmp_path)
        assert str(outside).strip("/").encode() + b"/evil" in tree
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "path",
    [
        "etc/hosts",
        "etc/resolv.conf",
        ".singularity.d",
        ".singularity.d/env",
        "environment",
        "nfs",
        "dev",
        "var/tmp",
        "ch",
        "etc",
    ],
)
def test_a_link_where_the_publisher_writes_leads_nothing_out(tmp_path: Path, path: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    tar = Tar()
    tar.symlink(path, str(outside / "precious"))
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/evil", [tar.done()], tag="1")
        result = target.publish(f"{registry.host}/a/evil:1")
        assert result.exit_code == 0
        assert target.judge() == []
        publication = result.images[0].publication
        assert publication is not None
        tree = target.published_tree(publication.sandbox, tmp_path)
        assert tree[b".singularity.d/env/99-base.sh"]["type"] == "file"
    assert sorted(p.name for p in outside.iterdir()) == ["precious"]
    assert (outside / "precious").read_text() == "precious"


def test_a_decompression_bomb_is_refused_early(tmp_path: Path) -> None:
    tar = Tar()
    tar.file("zeros", bytes(300 * 1024 * 1024))
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/bomb", [tar.done()], tag="1")
        result = target.publish(f"{registry.host}/a/bomb:1")
        error = result.images[0].error
        assert isinstance(error, IntegrityError)
        assert "bomb" in str(error)
        assert "compression_ratio" in error.hint
        assert target.judge() == []


def test_a_sparse_file_that_claims_terabytes_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("huge")
        info.pax_headers = {
            "GNU.sparse.map": "0,0", "GNU.sparse.realsize": str(1 << 50), "GNU.sparse.name": "huge"
        }  # fmt: skip
        tar.addfile(info)
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/bomb", [data.getvalue()], tag="1")
        result = target.publish(f"{registry.host}/a/bomb:1")
        assert isinstance(result.images[0].error, IntegrityError)


@pytest.mark.parametrize("kind", ["names", "targets", "attributes"])
def test_what_is_kept_of_entries_in_memory_is_bounded(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four thousand bytes of name, or a megabyte of attributes, times half a million."""
    long = "/".join(["x" * 200] * 15)
    tar = Tar()
    for number in range(40):
        if kind == "names":
            tar.file(f"{number}/{long}", b"")
        elif kind == "targets":
            tar.symlink(str(number), long)
        else:
            tar.file(str(number), b"", xattrs={"user.x": b"x" * 3000})
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/long", [tar.done()], tag="1")
        monkeypatch.setattr(read, "MAX_METADATA", 100_000)
        error = target.publish(f"{registry.host}/a/long:1").images[0].error
        assert isinstance(error, IntegrityError)
        assert "more than 100000 bytes of names, link targets and attributes" in str(error)
        monkeypatch.setattr(read, "MAX_METADATA", 130_000)
        assert target.publish(f"{registry.host}/a/long:1").images[0].error is None


def test_more_entries_than_the_limit_are_refused(tmp_path: Path) -> None:
    tar = Tar()
    for number in range(50):
        tar.file(f"f{number}", b"")
    settings = PublishSettings(limits=LayerLimits(entries=49))
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/many", [tar.done()], tag="1")
        result = target.publish(f"{registry.host}/a/many:1", settings=settings)
        error = result.images[0].error
        assert isinstance(error, IntegrityError)
        assert "49" in str(error)
        assert "limits.entries" in error.hint


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[:-20], lambda b: b[:50] + b"\xff" * 50 + b[100:], lambda b: b + b"garbage",
     lambda b: b""],
    ids=["cut", "flipped", "trailing", "empty"],
)  # fmt: skip
def test_a_corrupt_gzip_stream_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """The registry promises exactly these damaged bytes: its digest is right, the layer is not."""
    packed = damage(gzip.compress(member("x", data=b"some content" * 1000)))
    with FakeRegistry() as registry, site(tmp_path) as target:
        digest = registry.add_image("a/bad", [member("x", data=b"some content" * 1000)], tag="1")
        kind, body = registry.manifests["a/bad", str(digest)]
        manifest = json.loads(body)
        manifest["layers"] = [registry.add_blob(packed, manifest["layers"][0]["mediaType"])]
        registry.add_manifest("a/bad", manifest, kind, tag="1")
        result = target.publish(f"{registry.host}/a/bad:1")
        error = result.images[0].error
        assert isinstance(error, IntegrityError), error
        assert target.judge() == []


def test_multi_member_gzip_and_trailing_zeros_are_fine(tmp_path: Path) -> None:
    archive = member("x", data=b"some content" * 1000)
    packed = gzip.compress(archive[:700]) + gzip.compress(archive[700:]) + bytes(512)
    with FakeRegistry() as registry, site(tmp_path) as target:
        digest = registry.add_image("a/ok", [archive], tag="1")
        kind, body = registry.manifests["a/ok", str(digest)]
        manifest = json.loads(body)
        manifest["layers"] = [registry.add_blob(packed, manifest["layers"][0]["mediaType"])]
        registry.add_manifest("a/ok", manifest, kind, tag="1")
        result = target.publish(f"{registry.host}/a/ok:1")
        assert result.images[0].error is None


def test_a_wrong_diff_id_is_refused(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        rootfs = {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}
        registry.add_image("a/bad", [member("x")], config={"rootfs": rootfs}, tag="1")
        result = target.publish(f"{registry.host}/a/bad:1")
        error: PublishError | None = result.images[0].error
        assert isinstance(error, IntegrityError)
        assert "0" * 64 in str(error)
