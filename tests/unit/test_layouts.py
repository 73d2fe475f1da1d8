"""Where images, names and records go."""

from __future__ import annotations

import posixpath

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import catalog_roots, place, place_name, relative
from cvmfs_publish.sources.base import Platform

IMAGE = Digest.of(b"config")
MANIFEST = Digest.of(b"manifest")
AMD64 = Platform.default()
NAMES = {
    "debian:12": "docker.io/library/debian:12",
    "ghcr.io/a/b:1": "ghcr.io/a/b:1",
    "registry.example.org:5000/x:tag": "registry.example.org:5000/x:tag",
    "quay.io/a/b/c/d:v1": "quay.io/a/b/c/d:v1",
}


@pytest.mark.parametrize("text", NAMES)
@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64", "linux/arm/v7"])
def test_every_link_leads_to_the_sandbox(text: str, platform: str) -> None:
    placement = place(Reference.parse(text), Platform.parse(platform), IMAGE, MANIFEST)
    assert placement.sandbox == f".flat/{IMAGE.hex[:2]}/{IMAGE.hex}"
    assert placement.name == NAMES[text]
    for link in (placement.name, placement.platform_name, placement.immutable_name):
        target = relative(link, placement.sandbox)
        assert not target.startswith("/")
        assert posixpath.normpath(f"{posixpath.dirname(link)}/{target}") == placement.sandbox


def test_the_public_name_of_several_platforms_leads_to_each() -> None:
    for platform, directory in {"linux/amd64": "amd64", "linux/arm64": "arm64"}.items():
        placement = place(
            Reference.parse("ghcr.io/a/b:1"), Platform.parse(platform), IMAGE, MANIFEST
        )
        assert placement.platform_name == f".multiarch/{directory}/ghcr.io/a/b:1"
        text = placement.variant_target()
        assert text == "../../.multiarch/$(CVMFS_ARCH:-amd64)/ghcr.io/a/b:1"
        chosen = text.replace("$(CVMFS_ARCH:-amd64)", directory)
        assert posixpath.normpath(f"ghcr.io/a/{chosen}") == placement.platform_name


def test_a_variant_is_part_of_the_architecture() -> None:
    names = place_name(Reference.parse("a:1"), Platform.parse("linux/arm/v7"))
    assert names.platform_name == ".multiarch/arm:v7/docker.io/library/a:1"
    assert names.metadata == ".metadata/.multiarch/arm:v7/docker.io/library/a:1"


def test_records_of_the_default_platform_have_the_short_path() -> None:
    reference = Reference.parse("ghcr.io/a/b:1")
    names = place_name(reference, AMD64)
    assert names.publication == ".metadata/ghcr.io/a/b:1/publication.json"
    placement = place(reference, AMD64, IMAGE, MANIFEST)
    assert placement.immutable_name == f"ghcr.io/a/b@{MANIFEST}"
    assert placement.image_record == f".metadata/.images/{IMAGE.hex[:2]}/{IMAGE.hex}.json"


CATALOGS = {
    ".flat/ab/abcd": [".flat", ".flat/ab"],
    "ghcr.io/a/b:1": ["ghcr.io", "ghcr.io/a"],
    "ghcr.io/a/b/c/d:1": ["ghcr.io", "ghcr.io/a"],
    "docker.io/x:1": ["docker.io"],
    ".metadata/ghcr.io/a/b:1": [".metadata", ".metadata/ghcr.io", ".metadata/ghcr.io/a"],
    ".metadata/.images/ab/abcd.json": [
        ".metadata", ".metadata/.images", ".metadata/.images/ab"
    ],
    ".multiarch/arm64/ghcr.io/a/b:1": [
        ".multiarch", ".multiarch/arm64", ".multiarch/arm64/ghcr.io", ".multiarch/arm64/ghcr.io/a"
    ],
    ".metadata/.multiarch/arm64/ghcr.io/a/b:1": [
        ".metadata", ".metadata/.multiarch", ".metadata/.multiarch/arm64",
        ".metadata/.multiarch/arm64/ghcr.io", ".metadata/.multiarch/arm64/ghcr.io/a",
    ],
    "alone": [],
}  # fmt: skip


@pytest.mark.parametrize("path", CATALOGS)
def test_directories_above_images_are_catalogs(path: str) -> None:
    assert catalog_roots(path) == CATALOGS[path]


@pytest.mark.parametrize(
    ("link", "target", "text"),
    [("a", "b", "b"), ("a/b", "c", "../c"), ("a/b", "a/c", "c"), ("a/b/c", "a/d/e", "../d/e"),
     ("a:1", ".flat/x", ".flat/x")],
)  # fmt: skip
def test_a_relative_link(link: str, target: str, text: str) -> None:
    assert relative(link, target) == text
