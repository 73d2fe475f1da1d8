"""Platforms: one spelling for each, and the right entry of an index."""

from __future__ import annotations

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.registry.manifest import (
    DOCKER_MANIFEST,
    OCI_MANIFEST,
    Descriptor,
    Index,
)
from cvmfs_publish.sources.registry.platform import check_platform, choose_manifest


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("Linux/AMD64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/ppc64le", "linux/ppc64le"),
    ],
)
def test_a_platform_has_one_spelling(text: str, canonical: str) -> None:
    assert str(Platform.parse(text)) == canonical
    assert Platform.parse(canonical) == Platform.parse(text)


@pytest.mark.parametrize("text", ["", "linux", "amd64", "linux/", "/amd64", "a/b/c/d", "linux/a b"])
def test_what_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a platform"):
        Platform.parse(text)


def test_the_default_is_what_worker_nodes_are() -> None:
    assert str(Platform.default()) == "linux/amd64"


def entry(platform: str, name: bytes = b"", **options: object) -> Descriptor:
    values: dict[str, object] = {"media_type": OCI_MANIFEST, "annotations": {}, **options}
    return Descriptor(
        str(values["media_type"]),
        Digest.of(name or platform.encode()),
        1,
        Platform.parse(platform) if platform else None,
        values["annotations"],  # type: ignore[arg-type]
    )


def choose(asked: str, *entries: Descriptor) -> Descriptor:
    return choose_manifest(Index(entries), Platform.parse(asked), "a/b:1")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
    ],
)
def test_operating_system_architecture_and_variant_decide(asked: str, found: str) -> None:
    others = [entry("windows/amd64"), entry("linux/amd64/v3"), entry("linux/arm/v5")]
    wanted = entry(found, b"wanted")
    assert choose(asked, *others, wanted, entry("linux/s390x")) is wanted


def test_the_first_of_several_equal_entries_is_taken() -> None:
    first, second = entry("linux/amd64", b"1"), entry("linux/amd64", b"2")
    assert choose("linux/amd64", first, second) is first


def test_attestations_and_other_artefacts_are_no_images() -> None:
    attestation = entry("linux/amd64", annotations={"vnd.docker.reference.type": "attestation"})
    unknown = entry("unknown/unknown")
    sbom = entry("linux/amd64", media_type="application/spdx+json")
    image = entry("linux/amd64", b"image", media_type=DOCKER_MANIFEST)
    assert choose("linux/amd64", attestation, unknown, sbom, image) is image


def test_a_missing_platform_is_an_error_that_lists_the_others() -> None:
    entries = [entry("linux/arm64"), entry("unknown/unknown"), entry("linux/s390x")]
    with pytest.raises(InputError) as caught:
        choose("linux/amd64", *entries)
    assert "a/b:1 has no image for linux/amd64; it has linux/arm64, linux/s390x" in str(
        caught.value
    )
    assert "--platform linux/arm64" in caught.value.hint


def test_a_newer_variant_is_not_taken_for_the_plain_architecture() -> None:
    with pytest.raises(InputError, match="linux/amd64/v3"):
        choose("linux/amd64", entry("linux/amd64/v3"))


def test_an_empty_index_has_no_platform_at_all() -> None:
    with pytest.raises(InputError, match="none at all"):
        choose("linux/amd64")


def test_a_lone_entry_without_platform_is_taken_and_two_are_not() -> None:
    lone = entry("", b"lone")
    assert choose("linux/amd64", lone) is lone
    with pytest.raises(InputError, match="no image for"):
        choose("linux/amd64", lone, entry("", b"other"))


def test_an_image_for_another_platform_is_refused_naming_both() -> None:
    with pytest.raises(InputError, match=r"is an image for linux/arm64, not for linux/amd64"):
        check_platform(Platform.parse("linux/arm64"), Platform.default(), "a/b:1")
    check_platform(None, Platform.default(), "a/b:1")
    check_platform(Platform.default(), Platform.default(), "a/b:1")
