"""Images that are one file: what is in them, what is refused, and that the bytes stay the same."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, PublishError, RepositoryError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform, SourceLimits
from cvmfs_publish.sources.held import HeldFile, LocalFiles
from cvmfs_publish.sources.registry.manifest import NotAnImageError
from cvmfs_publish.sources.sif import FileSource
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError
from cvmfs_publish.sources.squashfs import SquashfsTool
from cvmfs_publish.sources.transports import Sources
from tests.images import Tar
from tests.sifs import (
    DEFFILE,
    JSON_OBJECT,
    LABELS,
    PARTITION,
    Object,
    make_sif,
    squashfs_of,
    system,
)
from tests.sources import open_sources

AMD64 = Platform.default()
NAME = "example.org/a/b:1"
FAKE = system(b"hsqs" + bytes(5000))


@pytest.fixture
def sources(tmp_path: Path) -> Iterator[Sources]:
    with open_sources(tmp_path) as opened:
        yield opened


def place(sources: Sources, folder: Path, data: bytes, transport: str = "sif") -> Reference:
    (folder / "image").write_bytes(data)
    return sources.locate(f"{transport}:{folder}/image", NAME)


def test_metadata_of_the_file_is_in_configuration_and_manifest(
    tmp_path: Path, sources: Sources
) -> None:
    inspect = {
        "data": {
            "attributes": {
                "labels": {"maker": "me"},
                "runscript": "#!/bin/sh\nexec me\n",
                "environment": {"/.singularity.d/env/90-environment.sh": "A=1"},
            }
        }
    }
    config = {"Env": ["A=1"], "Cmd": ["/bin/sh"], "Labels": {"old": "x"}, "Unknown": 1}
    data = make_sif(
        [
            Object(DEFFILE, b"bootstrap: docker\n"),
            Object(JSON_OBJECT, json.dumps(inspect).encode(), "inspect-metadata.json"),
            Object(JSON_OBJECT, json.dumps(config).encode(), "oci-config.json"),
            FAKE,
        ]
    )
    image = sources.resolve(place(sources, tmp_path, data), AMD64)
    assert image.has_runtime_files
    assert image.digest == image.layers[0].digest == Digest.of(data)
    document = json.loads(image.config)
    assert document["config"] == {
        "Env": ["A=1"], "Cmd": ["/bin/sh"], "Labels": {"maker": "me"}
    }  # fmt: skip
    assert document["created"] == "2023-11-14T22:13:20Z"
    assert document["rootfs"] == {"type": "layers", "diff_ids": [str(Digest.of(data))]}
    annotations = json.loads(image.manifest)["annotations"]
    assert annotations == {
        "sif.id": "00010203-0405-0607-0809-0a0b0c0d0e0f",
        "sif.deffile": "bootstrap: docker\n",
        "sif.runscript": "#!/bin/sh\nexec me\n",
        "sif.environment": json.dumps({"/.singularity.d/env/90-environment.sh": "A=1"}),
    }


def test_labels_of_older_files_are_an_object_of_their_own(tmp_path: Path, sources: Sources) -> None:
    data = make_sif([Object(LABELS, b'{"MAINTAINER": "me"}'), FAKE])
    image = sources.resolve(place(sources, tmp_path, data), AMD64)
    assert json.loads(image.config)["config"] == {"Labels": {"MAINTAINER": "me"}}


@pytest.mark.parametrize("junk", [b"", b"[", b"[1]", b"[" * 100_000, b"\xff\xfe", b'"x"'])
def test_metadata_that_cannot_be_read_is_left_out(
    tmp_path: Path, sources: Sources, junk: bytes
) -> None:
    names = ("inspect-metadata.json", "oci-config.json")
    objects = [Object(JSON_OBJECT, junk, name) for name in names]
    data = make_sif([*objects, Object(LABELS, junk), Object(DEFFILE, b"\xff"), FAKE])
    image = sources.resolve(place(sources, tmp_path, data), AMD64)
    assert json.loads(image.config)["config"] == {}
    assert json.loads(image.manifest)["annotations"]["sif.deffile"] == "\ufffd"


REFUSED: dict[str, tuple[Callable[[], bytes], type[PublishError], str]] = {
    "encrypted": (lambda: make_sif([system(b"x", file_system=5)]), NotAnImageError, "encrypted"),
    "ext3": (lambda: make_sif([system(b"x", file_system=2)]), NotAnImageError, "type 2"),
    "raw": (lambda: make_sif([system(b"x", file_system=4)]), NotAnImageError, "type 4"),
    "data alone": (lambda: make_sif([system(b"x", purpose=3)]), NotAnImageError, "has 0 primary"),
    "two systems": (lambda: make_sif([FAKE, FAKE]), NotAnImageError, "has 2 primary"),
    "an overlay": (
        lambda: make_sif([FAKE, system(b"x", file_system=2, purpose=4)]),
        NotAnImageError,
        "overlay",
    ),
    "an OCI-SIF": (lambda: make_sif([Object(0x400A, b"{}")]), NotAnImageError, "OCI-SIF"),
    "foreign": (
        lambda: make_sif([system(b"hsqs", b"04")], b"04"),
        InputError,
        "is an image for linux/arm64, not for linux/amd64",
    ),
    "two architectures": (
        lambda: make_sif([system(b"hsqs", b"04")], b"02"),
        IntegrityError,
        "for amd64 by its header, its system for arm64",
    ),
    "unknown architecture": (
        lambda: make_sif([system(b"hsqs", b"99")], b"99"),
        NotAnImageError,
        "nobody knows",
    ),
    "an old image": (
        lambda: bytes(1080) + struct.pack("<H", 0xEF53) + bytes(3000),
        NotAnImageError,
        "ext3 image",
    ),
    "a tar": (lambda: Tar().done(), NotAnImageError, "not a SIF file, nor a squashfs"),
    "nothing": (lambda: b"", NotAnImageError, "not a SIF file, nor a squashfs"),
    "short partition descriptor": (
        lambda: make_sif([Object(PARTITION, b"hsqs")]),
        NotAnImageError,
        "has 0 primary",
    ),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_what_cannot_be_published_is_refused_with_its_reason(
    tmp_path: Path, sources: Sources, what: str
) -> None:
    make, error, message = REFUSED[what]
    reference = place(sources, tmp_path, make())
    with pytest.raises(error, match=message):
        sources.resolve(reference, AMD64)


def test_a_sif_is_no_tar(tmp_path: Path, sources: Sources) -> None:
    reference = place(sources, tmp_path, make_sif([FAKE]), "tar")
    with pytest.raises(NotAnImageError, match="is not a tar") as caught:
        sources.resolve(reference, AMD64)
    assert "sif:FILE" in caught.value.hint


def test_a_tar_has_a_configuration_for_whatever_platform_is_asked(
    tmp_path: Path, sources: Sources
) -> None:
    data = Tar().done()
    reference = place(sources, tmp_path, data, "tar")
    image = sources.resolve(reference, Platform.parse("linux/arm/v6"))
    document = json.loads(image.config)
    assert (document["architecture"], document["variant"]) == ("arm", "v6")
    assert document["config"] == {}
    assert "created" not in document
    assert not image.has_runtime_files


# the stream of a squashfs


def real() -> bytes:
    tar = Tar()
    tar.file("file", b"content" * 1000)
    return make_sif([system(squashfs_of(tar.done()))])


def drain(sources: Sources, reference: Reference) -> int:
    image = sources.resolve(reference, AMD64)
    with sources.open_layer(reference, image.layers[0]) as stream:
        total = 0
        while data := stream.read(1 << 20):
            total += len(data)
        return total


@pytest.mark.slow
def test_a_file_that_changes_between_is_refused(tmp_path: Path, sources: Sources) -> None:
    data = real()
    reference = place(sources, tmp_path, data)
    image = sources.resolve(reference, AMD64)
    (tmp_path / "image").write_bytes(data[:-1] + b"!")
    with sources.open_layer(reference, image.layers[0]) as stream:
        with pytest.raises(IntegrityError, match="is now"):
            stream.read(1)
        with pytest.raises(IntegrityError, match="is now"):
            stream.read(1)


@pytest.mark.slow
def test_a_damaged_squashfs_is_refused(tmp_path: Path, sources: Sources) -> None:
    refused = 0
    squashfs = real()
    start = squashfs.index(b"hsqs")
    for offset in range(start, start + 400, 16):
        data = bytearray(squashfs)
        data[offset : offset + 4] = b"\xff\x00\xff\x7f"
        reference = place(sources, tmp_path, bytes(data))
        try:
            drain(sources, reference)
        except (IntegrityError, NotAnImageError):
            refused += 1
    assert refused > 5


@pytest.mark.slow
def test_a_squashfs_that_is_a_bomb_is_refused(tmp_path: Path) -> None:
    tar = Tar()
    tar.file("zeros", bytes(100 << 20))
    data = make_sif([system(squashfs_of(tar.done()))])
    assert len(data) < 2 << 20
    with open_sources(tmp_path, limits=SourceLimits(ratio=20)) as sources:
        reference = place(sources, tmp_path, data)
        with pytest.raises(IntegrityError, match="decompression bomb") as caught:
            drain(sources, reference)
    assert "limits.compression_ratio" in caught.value.hint


@pytest.mark.slow
def test_an_image_before_sif_is_a_squashfs_behind_a_line(tmp_path: Path, sources: Sources) -> None:
    tar = Tar()
    tar.file("file", b"content" * 1000)
    squashfs = squashfs_of(tar.done())
    for data in (squashfs, b"#!/usr/bin/env run-singularity\n" + squashfs):
        assert drain(sources, place(sources, tmp_path, data)) > 7000


def test_without_the_program_the_message_says_what_to_install(tmp_path: Path) -> None:
    with open_sources(tmp_path, sqfs2tar=None) as sources:
        reference = place(sources, tmp_path, make_sif([FAKE]))
        image = sources.resolve(reference, AMD64)
        with pytest.raises(InputError, match="no sqfs2tar") as caught:
            sources.open_layer(reference, image.layers[0])
    assert "squashfs-tools-ng" in caught.value.hint


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with open_sources(tmp_path, sqfs2tar=tmp_path / "none") as sources:
        reference = place(sources, tmp_path, make_sif([FAKE]))
        image = sources.resolve(reference, AMD64)
        with (
            sources.open_layer(reference, image.layers[0]) as stream,
            pytest.raises(InputError, match="cannot be started"),
        ):
            stream.read(1)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo it breaks >&2; exit 3", "status 3: it breaks"),
        ("printf begun; echo Lost. >&2", r"status 0: Lost\."),
        ("kill -SEGV $$", "status -11"),
    ],
)
@pytest.mark.slow
def test_a_program_that_fails_makes_no_image(tmp_path: Path, script: str, message: str) -> None:
    program = tmp_path / "sqfs2tar"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with open_sources(tmp_path, sqfs2tar=program) as sources:
        reference = place(sources, tmp_path, make_sif([FAKE]))
        with pytest.raises(IntegrityError, match=message):
            drain(sources, reference)


@pytest.mark.slow
def test_a_program_that_never_answers_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvmfs_publish.sources.squashfs.STALL", 0.05)
    program = tmp_path / "sqfs2tar"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    with open_sources(tmp_path, sqfs2tar=program) as sources:
        reference = place(sources, tmp_path, make_sif([FAKE]))
        with pytest.raises(IntegrityError, match="has said nothing"):
            drain(sources, reference)


def test_a_disk_of_ours_that_is_full_is_not_the_fault_of_the_image(tmp_path: Path) -> None:
    with open_sources(tmp_path, scratch=tmp_path / "none") as sources:
        reference = place(sources, tmp_path, make_sif([FAKE]))
        image = sources.resolve(reference, AMD64)
        with (
            sources.open_layer(reference, image.layers[0]) as stream,
            pytest.raises(RepositoryError, match="copying a squashfs there fails"),
        ):
            stream.read(1)


@pytest.mark.parametrize("transport", ["sif", "tar"])
def test_a_local_file_larger_than_a_layer_may_be_is_not_read(
    tmp_path: Path, transport: str
) -> None:
    """A file of holes has no bytes on disk, and hashing it would take for ever."""
    with (tmp_path / "image").open("wb") as file:
        file.truncate(1 << 43)
    limits = SourceLimits(layer_bytes=1 << 40)
    with open_sources(tmp_path, limits=limits) as sources:
        reference = sources.locate(f"{transport}:{tmp_path}/image", NAME)
        for ask in (sources.head, lambda each: sources.resolve(each, AMD64)):
            with pytest.raises(IntegrityError, match=f"more than {1 << 40} bytes") as caught:
                ask(reference)
            assert "`limits.layer_bytes`" in caught.value.hint


class Exchanged(LocalFiles):
    """A file that is another one at the first look at what is in it, and itself ever after."""

    def __init__(self, own: bytes, other: bytes) -> None:
        super().__init__(1 << 30)
        self._own = own
        self._looks = [other]

    def hold(self, origin: Origin, platform: Platform, top: Digest | None) -> HeldFile:
        digest = Digest.of(self._own)
        return HeldFile(digest, len(self._own), self._open, digest)

    def _open(self) -> BinaryIO:
        return io.BytesIO(self._looks.pop() if self._looks else self._own)


def test_what_a_signature_is_to_cover_is_what_was_looked_at(tmp_path: Path) -> None:
    """Else variables and start commands of an unsigned file came with the name of a signer."""
    own, other = (
        make_sif(
            [Object(JSON_OBJECT, json.dumps({"Env": [env]}).encode(), "oci-config.json"), FAKE]
        )
        for env in ("A=good", "A=evil")
    )
    reference = replace(Reference.parse(NAME), origin=Origin.parse(f"sif:{tmp_path}/image"))
    tool = SquashfsTool(None, tmp_path, 200)
    source = FileSource(Exchanged(own, other), tool, {"sif"})
    image = source.resolve(reference, AMD64)
    assert b"evil" in image.config
    with pytest.raises(IntegrityError, match="was changed while it was read"):
        source.find_signers(image, SifKeys())
    source = FileSource(Exchanged(own, own), tool, {"sif"})
    with pytest.raises(UnsignedSifError):
        source.find_signers(source.resolve(reference, AMD64), SifKeys())
