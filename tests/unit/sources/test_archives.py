"""Images in archives: which one is meant, what it is called, and that every byte proves itself."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, PublishError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.archives import (
    ArchiveSource,
    DockerArchiveSource,
    OciArchiveSource,
    OciSource,
)
from cvmfs_publish.sources.base import ImageNotFoundError, Platform, ResolvedImage, SourceLimits
from cvmfs_publish.sources.registry.manifest import NotAnImageError
from tests.archives import (
    COMPRESSIONS,
    docker_config,
    docker_members,
    legacy_members,
    oci_archive,
    oci_members,
    pack,
)
from tests.images import Tar, multi_platform_image, write_oci_layout

AMD64 = Platform.default()
LIMITS = SourceLimits()
NAME = Reference.parse("example.org/a/b:1")
Members = dict[str, Any]


def layer(name: str, data: bytes = b"content") -> bytes:
    tar = Tar()
    tar.file(name, data)
    return tar.done()


LAYERS = [layer("one", b"1" * 5000), layer("two")]


def at(text: str) -> Reference:
    origin = Origin.parse(text)
    assert origin is not None
    return replace(NAME, origin=origin)


def where(reference: Reference) -> Origin:
    assert reference.origin is not None
    return reference.origin


def read_layers(source: ArchiveSource, image: ResolvedImage) -> list[bytes]:
    found = []
    for described in image.layers:
        with source.open_layer(image.reference, described) as stream:
            data = b"".join(iter(lambda: stream.read(999), b""))
        assert Digest.of(data) == described.digest
        assert len(data) == described.size
        found.append(data)
    return found


# OCI layouts


def test_a_layout_gives_the_bytes_that_are_in_it(tmp_path: Path) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS, {"Env": ["A=1"]}, tag="1")
    source = OciSource(LIMITS)
    reference = at(f"oci:{layout}:1")
    image = source.resolve(reference, AMD64)
    assert image.digest == image.manifest_digest == Digest.of(image.manifest)
    assert source.head(reference) == image.digest
    assert Digest.of(image.config) == image.config_digest
    assert json.loads(image.config)["config"] == {"Env": ["A=1"]}
    assert [described.diff_id for described in image.layers] == [Digest.of(tar) for tar in LAYERS]
    read_layers(source, image)


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_an_archive_is_the_same_image_as_its_layout(tmp_path: Path, compression: str) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS, tag="1")
    archive = oci_archive(tmp_path / "archive", layout, compression)
    expected = OciSource(LIMITS).resolve(at(f"oci:{layout}"), AMD64)
    source = OciArchiveSource(LIMITS)
    image = source.resolve(at(f"oci-archive:{archive}"), AMD64)
    assert replace(image, reference=expected.reference) == expected
    assert source.head(image.reference) == expected.digest
    assert read_layers(source, image) == read_layers(OciSource(LIMITS), expected)


def test_several_images_are_told_apart_by_tag(tmp_path: Path) -> None:
    layout = write_oci_layout(tmp_path / "layout", [LAYERS[0]], tag="1")
    write_oci_layout(layout, [LAYERS[1]], tag="2")
    source = OciSource(LIMITS)
    one, two = (source.resolve(at(f"oci:{layout}:{tag}"), AMD64) for tag in "12")
    assert one.layers[0].diff_id == Digest.of(LAYERS[0])
    assert two.layers[0].diff_id == Digest.of(LAYERS[1])
    with pytest.raises(InputError, match=r"several images: 1, 2") as caught:
        source.head(at(f"oci:{layout}"))
    assert "FILE:TAG" in caught.value.hint
    with pytest.raises(ImageNotFoundError, match=r"called '3'; it has 1, 2"):
        source.head(at(f"oci:{layout}:3"))


def test_an_index_inside_is_resolved_for_its_platform(tmp_path: Path) -> None:
    layout = multi_platform_image(tmp_path / "layout", tag="1")
    source = OciSource(LIMITS)
    images = [
        source.resolve(at(f"oci:{layout}:1"), platform)
        for platform in (AMD64, Platform.parse("linux/arm64"))
    ]
    assert images[0].digest == images[1].digest == source.head(images[0].reference)
    assert images[0].manifest_digest != images[1].manifest_digest
    with pytest.raises(InputError, match=r"has no image for linux/s390x"):
        source.resolve(at(f"oci:{layout}:1"), Platform.parse("linux/s390x"))


def test_entries_of_one_name_are_its_platforms(tmp_path: Path) -> None:
    layout = multi_platform_image(tmp_path / "layout", tag="1")
    index = json.loads((layout / "index.json").read_bytes())
    inner = json.loads(
        (layout / "blobs" / index["manifests"][0]["digest"].replace(":", "/")).read_bytes()
    )
    (layout / "index.json").write_text(json.dumps(inner))
    source = OciSource(LIMITS)
    image = source.resolve(at(f"oci:{layout}"), AMD64, source.head(at(f"oci:{layout}")))
    assert image.manifest_digest == Digest.parse(inner["manifests"][0]["digest"])
    again = source.resolve(at(f"oci:{layout}"), AMD64, image.manifest_digest)
    assert again.layers == image.layers


def test_a_manifest_is_found_by_digest_after_its_tag_moved(tmp_path: Path) -> None:
    layout = write_oci_layout(tmp_path / "layout", [LAYERS[0]], tag="1")
    source = OciSource(LIMITS)
    old = source.resolve(at(f"oci:{layout}:1"), AMD64)
    write_oci_layout(layout, [LAYERS[1]], tag="1")
    new = source.resolve(at(f"oci:{layout}:1"), AMD64)
    assert new.digest != old.digest
    assert source.resolve(at(f"oci:{layout}:1"), AMD64, old.manifest_digest).layers == old.layers
    (layout / "blobs/sha256" / old.manifest_digest.hex).unlink()
    with pytest.raises(ImageNotFoundError, match="any more"):
        source.resolve(at(f"oci:{layout}:1"), AMD64, old.manifest_digest)


@pytest.mark.parametrize(
    ("annotations", "name"),
    [
        ({"org.opencontainers.image.ref.name": "ghcr.io/a/b:1"}, "ghcr.io/a/b:1"),
        ({"org.opencontainers.image.ref.name": "localhost/b:1"}, "localhost/b:1"),
        (
            {
                "io.containerd.image.name": "docker.io/library/b:1",
                "org.opencontainers.image.ref.name": "1",
            },
            "docker.io/library/b:1",
        ),
        ({"org.opencontainers.image.ref.name": "latest"}, ""),
        ({"org.opencontainers.image.ref.name": "a/b:1"}, ""),
        ({"org.opencontainers.image.ref.name": 5}, ""),
        ({}, ""),
    ],
)
def test_the_name_of_an_image_is_what_names_its_registry(
    tmp_path: Path, annotations: Members, name: str
) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS)
    index = json.loads((layout / "index.json").read_bytes())
    index["manifests"][0]["annotations"] = annotations
    (layout / "index.json").write_text(json.dumps(index))
    assert OciSource(LIMITS).name(where(at(f"oci:{layout}"))) == name


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("oci:{0}/nothing", NotAnImageError, "no index.json"),
        ("oci-archive:{0}/nothing", ImageNotFoundError, "there is no file"),
        ("oci-archive:{0}/layout", InputError, "is a directory"),
        ("oci:{0}/archive", InputError, "is a file"),
        ("oci-archive:{0}/fifo", InputError, "not a regular file"),
        ("oci-archive:{0}/archive@sha256:" + "0" * 64, IntegrityError, "not sha256:000"),
        ("oci:{0}/layout@sha256:" + "0" * 64, InputError, "a directory has no digest"),
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, text: str, error: type[PublishError], message: str
) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS)
    oci_archive(tmp_path / "archive", layout)
    os.mkfifo(tmp_path / "fifo")
    source = OciSource(LIMITS) if text.startswith("oci:") else OciArchiveSource(LIMITS)
    with pytest.raises(error, match=message):
        source.head(at(text.format(tmp_path)))


def test_a_pinned_archive_is_read(tmp_path: Path) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS)
    archive = oci_archive(tmp_path / "archive", layout)
    pin = Digest.of(archive.read_bytes())
    found = OciArchiveSource(LIMITS).head(at(f"oci-archive:{archive}@{pin}"))
    assert found == OciSource(LIMITS).head(at(f"oci:{layout}"))


def test_a_changed_file_has_another_state_and_is_read_anew(tmp_path: Path) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS)
    archive = oci_archive(tmp_path / "archive", layout)
    source = OciArchiveSource(LIMITS)
    reference = at(f"oci-archive:{archive}")
    state, digest = source.state(where(reference), AMD64), source.head(reference)
    assert source.state(where(reference), AMD64) == state
    other = write_oci_layout(tmp_path / "other", LAYERS[:1])
    oci_archive(tmp_path / "new", other).replace(archive)
    assert source.state(where(reference), AMD64) != state
    assert source.head(reference) != digest


# what `docker save` writes


@pytest.mark.parametrize("packed", sorted(COMPRESSIONS))
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_saved_image_gives_its_layers(tmp_path: Path, compression: str, packed: str) -> None:
    archive = tmp_path / "archive"
    members = docker_members(LAYERS, compression=compression)
    archive.write_bytes(COMPRESSIONS[packed](pack(members)))
    source = DockerArchiveSource(LIMITS)
    reference = at(f"docker-archive:{archive}")
    image = source.resolve(reference, AMD64, source.head(reference))
    assert image.config == docker_config(LAYERS)
    assert image.digest == image.config_digest == Digest.of(image.config)
    assert Digest.of(image.manifest) == image.manifest_digest
    assert [each.diff_id for each in image.layers] == [Digest.of(tar) for tar in LAYERS]
    found = read_layers(source, image)
    assert found == [COMPRESSIONS[compression](tar) for tar in LAYERS]
    assert source.resolve(reference, AMD64, image.manifest_digest) == image
    assert source.name(where(reference)) == "example.org/a/b:1"


def test_a_saved_image_of_docker_25_names_its_layers_by_digest(tmp_path: Path) -> None:
    members: Members = docker_members(LAYERS)
    entry = json.loads(members["manifest.json"])[0]
    for number, name in enumerate(entry["Layers"]):
        blob = f"blobs/sha256/{Digest.of(LAYERS[number]).hex}"
        members[blob] = members.pop(name)
        entry["Layers"][number] = blob
    members["blobs/sha256/" + entry["Config"][:-5]] = members.pop(entry["Config"])
    entry["Config"] = "blobs/sha256/" + entry["Config"][:-5]
    members["manifest.json"] = json.dumps([entry]).encode()
    (tmp_path / "archive").write_bytes(pack(members))
    source = DockerArchiveSource(LIMITS)
    image = source.resolve(at(f"docker-archive:{tmp_path}/archive"), AMD64)
    assert read_layers(source, image) == LAYERS


def test_links_between_members_are_followed_inside_the_archive(tmp_path: Path) -> None:
    """docker save wrote equal layers once, and symbolic links to them."""
    members: Members = docker_members([LAYERS[0], LAYERS[0]])
    entry = json.loads(members["manifest.json"])[0]
    first = entry["Layers"][0]
    second = "f" * 64 + "/layer.tar"
    members[second] = (tarfile.SYMTYPE, f"../{first}")
    members["h/layer.tar"] = (tarfile.LNKTYPE, second)
    for name in (second, "h/layer.tar"):
        entry["Layers"] = [first, name]
        members["manifest.json"] = json.dumps([entry]).encode()
        (tmp_path / "archive").write_bytes(pack(members))
        source = DockerArchiveSource(LIMITS)
        image = source.resolve(at(f"docker-archive:{tmp_path}/archive"), AMD64)
        assert read_layers(source, image) == [LAYERS[0], LAYERS[0]]


def test_an_archive_of_before_docker_1_10_is_read_along_its_parents(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(pack(legacy_members(LAYERS, "example.org/old", "1")))
    source = DockerArchiveSource(LIMITS)
    reference = at(f"docker-archive:{tmp_path}/archive")
    image = source.resolve(reference, AMD64, source.head(reference))
    assert read_layers(source, image) == LAYERS
    assert json.loads(image.config)["config"] == {"Env": ["OLD=1"]}
    assert source.name(where(reference)) == "example.org/old:1"


def test_one_saved_image_of_several_is_chosen_by_name_tag_or_number(tmp_path: Path) -> None:
    one: Members = docker_members([LAYERS[0]], tags=["debian:12", "debian:stable"])
    two: Members = docker_members([LAYERS[1]], tags=["ghcr.io/a/b:2"])
    entries = [json.loads(members["manifest.json"])[0] for members in (one, two)]
    members = {**one, **two, "manifest.json": json.dumps(entries).encode()}
    (tmp_path / "archive").write_bytes(pack(members))
    source = DockerArchiveSource(LIMITS)
    for tag, expected in {
        "debian:12": 0, "docker.io/library/debian:12": 0, "12": 0, "stable": 0, "@0": 0,
        "ghcr.io/a/b:2": 1, "2": 1, "@1": 1,
    }.items():  # fmt: skip
        image = source.resolve(at(f"docker-archive:{tmp_path}/archive:{tag}"), AMD64)
        assert image.layers[0].diff_id == Digest.of(LAYERS[expected]), tag
    with pytest.raises(InputError, match="several images: @0, @1, debian:12, debian:stable"):
        source.head(at(f"docker-archive:{tmp_path}/archive"))
    with pytest.raises(ImageNotFoundError, match="called '3'"):
        source.head(at(f"docker-archive:{tmp_path}/archive:3"))
    assert source.name(where(at(f"docker-archive:{tmp_path}/archive:2"))) == "ghcr.io/a/b:2"
    assert source.name(where(at(f"docker-archive:{tmp_path}/archive:12"))) == ""


def test_a_layer_that_was_replaced_since_is_not_taken_for_it(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(pack(docker_members(LAYERS)))
    source = DockerArchiveSource(LIMITS)
    image = source.resolve(at(f"docker-archive:{archive}"), AMD64)
    archive.write_bytes(pack(docker_members([LAYERS[1]])))
    with pytest.raises(ImageNotFoundError, match="any more"):
        source.open_layer(image.reference, image.layers[0])
    with pytest.raises(ImageNotFoundError, match="any more"):
        source.resolve(image.reference, AMD64, image.digest)


# archives that lie


def without(name: str) -> Callable[[Members], None]:
    return lambda members: members.pop(name)


def with_entry(**changes: Any) -> Callable[[Members], None]:  # noqa: ANN401
    def change(members: Members) -> None:
        entry = json.loads(members["manifest.json"])[0]
        members["manifest.json"] = json.dumps([{**entry, **changes}]).encode()

    return change


def with_member(name: str, value: Any) -> Callable[[Members], None]:  # noqa: ANN401
    return lambda members: members.update({name: value})


LIES: dict[str, tuple[Callable[[Members], None], str]] = {
    "no config": (with_entry(Config="nothing.json"), "has no 'nothing.json'"),
    "no layer": (with_entry(Layers=["x/layer.tar", "y/layer.tar"]), "has no 'x/layer.tar'"),
    "too few layers": (with_entry(Layers=[]), "0 layers"),
    "null layers": (with_entry(Layers=None), "0 layers"),
    "layers of numbers": (with_entry(Layers=[1, 2]), "names no config"),
    "a config outside": (with_entry(Config="../../../etc/passwd"), "has no"),
    "an absolute config": (with_entry(Config="/etc/passwd"), "has no"),
    "an object": (with_member("manifest.json", b"{}"), "not a list of images"),
    "no JSON": (with_member("manifest.json", b"["), "not valid JSON"),
    "deep JSON": (with_member("manifest.json", b"[" * 100_000), "not valid JSON"),
    "a wrong config": (
        with_member(f"{Digest.of(docker_config(LAYERS)).hex}.json", docker_config([])),
        "the config",
    ),
    "a device": (with_member("device", (tarfile.CHRTYPE, "")), "no plain file"),
    "a fifo": (with_member("fifo", (tarfile.FIFOTYPE, "")), "no plain file"),
    "a link to itself": (with_member("manifest.json", (tarfile.SYMTYPE, "manifest.json")), "no"),
    "a link outside": (with_member("manifest.json", (tarfile.SYMTYPE, "/etc/passwd")), "neither"),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_saved_image_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    change, message = LIES[lie]
    members: Members = docker_members(LAYERS)
    change(members)
    (tmp_path / "archive").write_bytes(pack(members))
    with pytest.raises((IntegrityError, NotAnImageError), match=message):
        DockerArchiveSource(LIMITS).resolve(at(f"docker-archive:{tmp_path}/archive"), AMD64)


def test_a_layer_with_other_bytes_is_found_out_before_its_last_piece(tmp_path: Path) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS, compression="none")
    source = OciSource(LIMITS)
    image = source.resolve(at(f"oci:{layout}"), AMD64)
    path = layout / "blobs/sha256" / image.layers[0].digest.hex
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with source.open_layer(image.reference, image.layers[0]) as stream:
        assert stream.read(512)
        with pytest.raises(IntegrityError, match=r"its [0-9]+ bytes are sha256"):
            while stream.read(1 << 20):
                pass
        with pytest.raises(IntegrityError):
            stream.read(1)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="promised"):
        source.open_layer(image.reference, image.layers[0])


def lying_layout(members: Members, descriptor: str, **changes: Any) -> Members:  # noqa: ANN401
    index = json.loads(members["index.json"])
    blob = f"blobs/sha256/{index['manifests'][0]['digest'][7:]}"
    if descriptor == "manifest":
        index["manifests"][0] |= changes
        members["index.json"] = json.dumps(index).encode()
        return members
    manifest = json.loads(members.pop(blob))
    if descriptor == "config":
        manifest["config"] |= changes
    else:
        manifest["layers"][0] |= changes
    body = json.dumps(manifest).encode()
    index["manifests"][0] |= {"digest": str(Digest.of(body)), "size": len(body)}
    members[f"blobs/sha256/{Digest.of(body).hex}"] = body
    members["index.json"] = json.dumps(index).encode()
    return members


@pytest.mark.parametrize("descriptor", ["manifest", "config", "layer"])
@pytest.mark.parametrize(
    "change",
    [
        {"digest": "sha256:" + "0" * 64},
        {"digest": "sha256:../../../../etc/passwd"},
        {"digest": "md5:" + "0" * 32},
        {"size": -1},
        {"size": 1},
        {"size": 1 << 62},
        {"mediaType": "text/plain"},
    ],
    ids=str,
)
def test_a_layout_whose_descriptors_lie_is_refused(
    tmp_path: Path, descriptor: str, change: Members
) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS)
    members = lying_layout(oci_members(layout), descriptor, **change)
    (tmp_path / "archive").write_bytes(pack(members))
    source = OciArchiveSource(LIMITS)
    with pytest.raises((IntegrityError, NotAnImageError)):
        image = source.resolve(at(f"oci-archive:{tmp_path}/archive"), AMD64)
        read_layers(source, image)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS)
    members = oci_members(layout)
    twice = pack({**members, "./index.json": b"{}"})
    (tmp_path / "archive").write_bytes(twice)
    with pytest.raises(IntegrityError, match=r"'index\.json' twice"):
        OciArchiveSource(LIMITS).head(at(f"oci-archive:{tmp_path}/archive"))


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_an_archive_that_is_cut_short_is_refused_wherever_it_ends(
    tmp_path: Path, compression: str
) -> None:
    layout = write_oci_layout(tmp_path / "layout", LAYERS)
    whole = oci_archive(tmp_path / "archive", layout, compression).read_bytes()
    whole = whole.rstrip(b"\0")  # padding, which nobody misses
    for part in range(1, 10):
        (tmp_path / "archive").write_bytes(whole[: len(whole) * part // 10])
        source = OciArchiveSource(LIMITS)
        with pytest.raises((IntegrityError, NotAnImageError)):
            image = source.resolve(at(f"oci-archive:{tmp_path}/archive"), AMD64)
            read_layers(source, image)


@pytest.mark.parametrize("compression", sorted({*COMPRESSIONS} - {"none"}))
def test_an_archive_that_is_a_bomb_is_refused(tmp_path: Path, compression: str) -> None:
    bomb = pack({"blobs/zeros": bytes(80 << 20)})
    (tmp_path / "archive").write_bytes(COMPRESSIONS[compression](bomb))
    with pytest.raises(IntegrityError, match="bomb"):
        OciArchiveSource(SourceLimits(ratio=20)).head(at(f"oci-archive:{tmp_path}/archive"))


def test_members_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvmfs_publish.sources.members.MAX_MEMBERS", 10)
    (tmp_path / "archive").write_bytes(pack({f"f{n}": b"" for n in range(11)}))
    with pytest.raises(IntegrityError, match="more than 10 members"):
        OciArchiveSource(LIMITS).head(at(f"oci-archive:{tmp_path}/archive"))


@pytest.mark.parametrize("place", ["", "blobs", "index.json"])
def test_a_layout_that_may_not_be_read_is_told_and_no_crash(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so it is the system that is made to refuse."""
    layout = write_oci_layout(tmp_path / "layout", LAYERS)

    def refuse(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
            if str(path).startswith(str(layout / place)):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call

    monkeypatch.setattr(os, "open", refuse(os.open))
    monkeypatch.setattr(os, "stat", refuse(os.stat))
    with pytest.raises(InputError, match="cannot be read: Permission denied"):
        OciSource(LIMITS).resolve(at(f"oci:{layout}"), AMD64)


def test_names_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvmfs_publish.sources.members.MAX_NAMES", 999)
    (tmp_path / "archive").write_bytes(pack({f"{n:050}": b"" for n in range(20)}))
    with pytest.raises(IntegrityError, match="more than 999 bytes of names"):
        OciArchiveSource(LIMITS).head(at(f"oci-archive:{tmp_path}/archive"))


def test_a_manifest_larger_than_manifests_are_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(pack({"index.json": b" " * (5 << 20)}))
    with pytest.raises(IntegrityError, match="the limit is 4194304"):
        OciArchiveSource(LIMITS).head(at(f"oci-archive:{tmp_path}/archive"))


def test_legacy_layers_that_lead_in_a_circle_are_refused(tmp_path: Path) -> None:
    members = legacy_members(LAYERS, "example.org/old", "1")
    (top,) = json.loads(members["repositories"])["example.org/old"].values()
    document = json.loads(members[f"{top}/json"])
    members[f"{top}/json"] = json.dumps({**document, "parent": top}).encode()
    (tmp_path / "archive").write_bytes(pack(members))
    with pytest.raises(IntegrityError, match="more than 127 parents"):
        DockerArchiveSource(LIMITS).head(at(f"docker-archive:{tmp_path}/archive"))
