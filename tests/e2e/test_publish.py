"""Publishing end to end: a registry, the real format, two judges after every step."""

from __future__ import annotations

import gzip
import json
import os
import stat
import struct
import tarfile
from pathlib import Path

import pytest

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.digest import Digest
from cvmfs_publish.publish import PublishSettings
from cvmfs_publish.repository.native.repository import NativeOptions
from cvmfs_publish.repository.records import Publication, iter_publications, read_publication
from cvmfs_publish.sandbox.policy import SandboxPolicy
from cvmfs_publish.sources.base import Platform
from tests.fakes.registry import TYPES, FakeRegistry, tar_of
from tests.images import Tar
from tests.support import Site, assert_sound, site

ALGORITHMS = list(HashAlgorithm)


def layer(**files: bytes) -> bytes:
    tar = Tar()
    for name, data in files.items():
        tar.file(name, data)
    return tar.done()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_revision_is_sound(tmp_path: Path, algorithm: HashAlgorithm) -> None:
    common = layer(common=b"in both images")
    with FakeRegistry() as registry, site(tmp_path, algorithm) as target:
        assert_sound(target)
        registry.add_image("a/one", layers=[common, layer(one=b"1")], tag="1")
        first = target.publish(f"{registry.host}/a/one:1")
        assert [image.status for image in first.images] == ["published"]
        assert_sound(target)
        registry.add_image("a/two", layers=[common, layer(two=b"2")], tag="1")
        second = target.publish(f"{registry.host}/a/two:1")
        assert second.revision == first.revision + 1
        assert (second.images[0].layers_total, second.images[0].layers_reused) == (2, 1)
        assert_sound(target)
        third = target.publish(f"{registry.host}/a/one:1", f"{registry.host}/a/two:1")
        assert [image.status for image in third.images] == ["unchanged", "unchanged"]
        assert (third.revision, third.root_hash) == (second.revision, second.root_hash)
        assert_sound(target)


def test_an_unchanged_image_costs_one_head_request(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", layers=[layer(one=b"1")], tag="1")
        target.publish(f"{registry.host}/a/one:1")
        before = len(registry.requests)
        target.publish(f"{registry.host}/a/one:1")
        assert [request.method for request in registry.requests[before:]] == ["HEAD"]


def test_a_changed_policy_makes_an_unchanged_image_due_without_fetching_layers(
    tmp_path: Path,
) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", layers=[layer(one=b"1")], tag="1")
        target.publish(f"{registry.host}/a/one:1")
        policy = SandboxPolicy(roots=("/nfs", "/new/root"))
        result = target.publish(f"{registry.host}/a/one:1", settings=PublishSettings(policy=policy))
        assert result.images[0].status == "published"
        assert result.images[0].fetched_bytes == 0
        publication = result.images[0].publication
        assert publication is not None
        assert b"new/root" in target.published_tree(publication.sandbox, tmp_path)
        assert_sound(target)


def test_a_lost_object_makes_its_layer_be_read_again(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", layers=[layer(one=b"precious")], tag="1")
        target.publish(f"{registry.host}/a/one:1")
        tree = target.published_tree(publication_of(target, registry).sandbox, tmp_path)
        content = tree[b"one"]["hash"]
        (target.storage / "data" / content[:2] / content[2:]).unlink()
        result = target.publish(f"{registry.host}/a/one:1", force=True)
        assert result.images[0].layers_reused == 0
        assert_sound(target)


def test_names_lead_to_the_sandbox_and_records_say_what_was_done(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        digest = registry.add_image("a/b/one", layers=[layer(one=b"1")], tag="1")
        result = target.publish(f"{registry.host}/a/b/one:1")
        publication = result.images[0].publication
        assert publication is not None
        with target.repository.open() as view:
            name = f"{registry.host}/a/b/one:1"
            assert view.read_symlink(name) == f"../../../{publication.sandbox.strip('/')}"
            immutable = f"{registry.host}/a/b/one@{digest}"
            assert view.read_symlink(immutable) == view.read_symlink(name)
            metadata = f".metadata/{name}"
            manifest = view.read_file(f"{metadata}/manifest.json")
            assert manifest is not None
            assert str(digest) == publication.manifest_digest
            document = json.loads(view.read_file(f"{metadata}/publication.json") or b"")
            assert document["revision"] == result.revision
            assert document["image_id"] == publication.image_id
            assert "/nfs" in document["roots_added"]


def test_a_tag_that_moved_leads_to_the_new_image_and_the_old_one_stays(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", layers=[layer(one=b"old")], tag="1")
        old = target.publish(f"{registry.host}/a/one:1").images[0].publication
        registry.add_image("a/one", layers=[layer(one=b"new")], tag="1")
        new = target.publish(f"{registry.host}/a/one:1").images[0].publication
        assert old is not None
        assert new is not None
        with target.repository.open() as view:
            assert (view.read_symlink(f"{registry.host}/a/one:1") or "").endswith(
                new.sandbox.strip("/")
            )
            assert view.is_directory(old.sandbox.strip("/"))
            assert view.read_symlink(f"{registry.host}/a/one@{old.manifest_digest}")
        assert_sound(target)


def test_one_image_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/good", layers=[layer(one=b"1")], tag="1")
        result = target.publish(
            f"{registry.host}/a/good:1", f"{registry.host}/a/missing:1", "not a reference"
        )
        assert [image.status for image in result.images] == ["published", "failed", "failed"]
        assert result.exit_code == 6
        assert_sound(target)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        registry.add_image("a/one", layers=[layer(one=b"1")], tag="1")
        before = sorted(path for path in target.storage.rglob("*"))
        result = target.publish(f"{registry.host}/a/one:1", dry_run=True)
        assert result.images[0].status == "published"
        assert (result.images[0].layers_total, result.images[0].layers_reused) == (1, 0)
        assert sorted(path for path in target.storage.rglob("*")) == before
        assert registry.count("GET", "/blobs/") == 1  # the configuration


def publication_of(target: Site, registry: FakeRegistry) -> Publication:
    with target.repository.open() as view:
        found = read_publication(view, f".metadata/{registry.host}/a/one:1/publication.json")
    assert found is not None
    return found


def add_platforms(registry: FakeRegistry) -> None:
    images = {
        platform: registry.add_image(
            "a/one", layers=[layer(platform=platform.encode())], tag="", platform=platform
        )
        for platform in ("linux/amd64", "linux/arm64")
    }
    registry.add_index("a/one", images, tag="1")


@pytest.mark.parametrize("first", ["linux/amd64", "linux/arm64"])
def test_two_platforms_are_published_side_by_side(tmp_path: Path, first: str) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        add_platforms(registry)
        name = f"{registry.host}/a/one:1"
        for platform in sorted(("linux/amd64", "linux/arm64"), key=lambda text: text != first):
            result = target.publish(name, platform=Platform.parse(platform))
            assert [image.status for image in result.images] == ["published"]
            assert_sound(target)
        with target.repository.open() as view:
            target_text = view.read_symlink(name)
            assert target_text == f"../../.multiarch/$(CVMFS_ARCH:-amd64)/{name}"
            for architecture in ("amd64", "arm64"):
                link = f".multiarch/{architecture}/{name}"
                text = view.read_symlink(link)
                assert text is not None
                assert text.startswith("../../../../.flat/")
            assert [p.platform for p in iter_publications(view)] == ["linux/arm64", "linux/amd64"]
        again = target.publish(name, platform=Platform.parse("linux/arm64"))
        assert [image.status for image in again.images] == ["unchanged"]


def test_several_platforms_of_a_call_are_of_one_index_and_in_one_revision(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        add_platforms(registry)
        platforms = [Platform.parse(text) for text in ("linux/arm64", "linux/amd64", "linux/arm64")]
        result = target.publish(f"{registry.host}/a/one:1", platform=platforms)
        assert [(image.platform, image.status) for image in result.images] == [
            ("linux/arm64", "published"),
            ("linux/amd64", "published"),
        ]
        assert result.revision == 2
        assert len({image.publication and image.publication.digest for image in result.images}) == 1
        assert registry.count("HEAD") == 1
        assert registry.count("GET", "/manifests/") == 3  # one index, two manifests
        assert_sound(target)
        again = target.publish(f"{registry.host}/a/one:1", platform=platforms)
        assert [image.status for image in again.images] == ["unchanged", "unchanged"]
        assert registry.count("HEAD") == 2


def test_a_platform_that_is_missing_does_not_hold_back_the_others(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        add_platforms(registry)
        platforms = [Platform.parse("linux/riscv64"), Platform.default()]
        result = target.publish(f"{registry.host}/a/one:1", platform=platforms)
        assert [image.status for image in result.images] == ["failed", "published"]
        assert "no image for linux/riscv64" in str(result.images[0].error)
        assert result.exit_code == 6
        with target.repository.open() as view:  # one platform alone: a link that needs no client
            link = view.read_symlink(f"{registry.host}/a/one:1")
        assert link is not None
        assert link.startswith("../../.flat/")


def test_layers_in_all_compressions_give_the_same_tree(tmp_path: Path) -> None:
    archive = layer(one=b"1" * 100_000, two=b"")
    with FakeRegistry() as registry, site(tmp_path) as target:
        digests = set()
        for compression in ("gzip", "zstd", "none"):
            registry.add_image("a/one", layers=[archive], tag=compression, compress=compression)
            result = target.publish(f"{registry.host}/a/one:{compression}")
            publication = result.images[0].publication
            assert publication is not None
            digests.add(publication.tree_digest)
        assert len(digests) == 1
        assert_sound(target)


def estargz(files: dict[str, bytes]) -> bytes:
    """Pack as eStargz does: one gzip member per file, then a table of contents, then a footer."""

    def entry(name: str, data: bytes) -> bytes:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        return info.tobuf() + data.ljust(-(-len(data) // 512) * 512, b"\0")

    members = [gzip.compress(entry(name, data), mtime=0) for name, data in files.items()]
    offset = sum(map(len, members))
    contents = json.dumps({"version": 1, "entries": []}).encode()
    table = gzip.compress(entry("stargz.index.json", contents) + bytes(1024), mtime=0)
    # RFC 1952: an empty stored block behind an extra field, `SG` and where the table begins
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % offset
    header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<H", len(extra)) + extra
    return b"".join([*members, table, header + b"\x01\x00\x00\xff\xff" + bytes(8)])


def test_layers_of_many_gzip_members_and_estargz_are_read_to_their_ends(tmp_path: Path) -> None:
    files = {"one": b"1" * 100_000, "two": b"", "three": os.urandom(3000)}
    archive = tar_of(files)
    pieces = [archive[start : start + 700] for start in range(0, len(archive), 700)]
    packed = {
        "members": b"".join(gzip.compress(piece, mtime=0) for piece in pieces),
        "estargz": estargz(files),
    }
    with FakeRegistry() as registry, site(tmp_path) as target:
        digests = []
        registry.add_image("a/one", layers=[archive], tag="plain", compress="none")
        for form, data in packed.items():
            config = {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(gzip.decompress(data)))]},
            }
            config_bytes, media_type = json.dumps(config).encode(), TYPES["oci"]["config"]
            manifest = {
                "schemaVersion": 2,
                "config": registry.add_blob(config_bytes, media_type),
                "layers": [registry.add_blob(data, TYPES["oci"]["gzip"])],
            }
            registry.add_manifest("a/one", manifest, TYPES["oci"]["manifest"], tag=form)
        for form in ("plain", *packed):
            (image,) = target.publish(f"{registry.host}/a/one:{form}").images
            assert image.publication is not None, image.error
            digests.append(image.publication.tree_digest)
            with target.repository.open() as view:
                sandbox = image.publication.sandbox.lstrip("/")
                assert view.read_file(f"{sandbox}/three") == files["three"]
        assert digests[0] == digests[1]
        # the table of contents is a file of the archive, as every container engine unpacks it
        assert digests[2] != digests[0]
        assert_sound(target)


def test_an_image_whose_configuration_alone_changed_is_published_again(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        archive = layer(one=b"1")
        registry.add_image("a/one", layers=[archive], config={"config": {"Env": ["A=1"]}}, tag="1")
        target.publish(f"{registry.host}/a/one:1")
        registry.add_image("a/one", layers=[archive], config={"config": {"Env": ["A=2"]}}, tag="1")
        result = target.publish(f"{registry.host}/a/one:1")
        assert (result.images[0].status, result.images[0].fetched_bytes) == ("published", 0)
        assert_sound(target)


def test_a_large_image_is_divided_into_catalogs(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        tar = Tar()
        for directory in range(30):
            tar.directory(f"usr/d{directory}")
            for number in range(100):
                tar.file(f"usr/d{directory}/f{number}", b"")
        registry.add_image("a/one", layers=[tar.done()], tag="1")
        target.reopen(NativeOptions(max_entries=1000))
        result = target.publish(f"{registry.host}/a/one:1")
        assert_sound(target)
        with target.repository.snapshot() as snapshot:
            sizes = {}
            for path, _ in snapshot.catalogs():
                sizes[path] = snapshot.catalog(path).count()
        publication = result.images[0].publication
        assert publication is not None
        assert max(sizes.values()) <= 1000
        below = [path for path in sizes if path.startswith(publication.sandbox.strip("/") + "/")]
        assert len(below) >= 3


def test_a_web_server_may_read_everything_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with FakeRegistry() as registry, site(tmp_path) as target:
            registry.add_image("a/one", layers=[layer(one=b"1")], tag="1")
            target.publish(f"{registry.host}/a/one:1")
            for path in (target.storage, *target.storage.rglob("*")):
                assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)
    finally:
        os.umask(before)


def test_a_name_by_digest_never_moves_whatever_the_platform(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        digest = registry.add_image(
            "a/one", layers=[layer(one=b"arm")], tag="1", platform="linux/arm64"
        )
        name = f"{registry.host}/a/one@{digest}"
        result = target.publish(name, platform=Platform.parse("linux/arm64"))
        publication = result.images[0].publication
        assert publication is not None
        with target.repository.open() as view:
            assert view.read_symlink(name) == f"../../{publication.sandbox.strip('/')}"
            assert view.list_names(".multiarch") == []
        again = target.publish(name, platform=Platform.parse("linux/arm64"))
        assert again.images[0].status == "unchanged"
        assert_sound(target)
