"""Mirrors are asked first and fail without harm; whatever they say, digests prove the bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ImageNotFoundError, Platform, SecondSource
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.mirrors import REST, Mirrors, MirrorSettings
from cvmfs_publish.sources.registry.source import RegistrySource
from tests.fakes.registry import (
    TYPES,
    Change,
    FakeRegistry,
    body,
    cut,
    html,
    reset,
    status,
    tar_of,
    wrong_bytes,
)

AMD64 = Platform.default()
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
CONTENT = bytes(range(256)) * 4096
LAYERS = [tar_of({"a": CONTENT})]
OUTSIDE = tar_of({"w": CONTENT})


class Site:
    """A registry, its mirror, and a source that knows both."""

    def __init__(self, origin: FakeRegistry, mirror: FakeRegistry) -> None:
        self.origin, self.mirror = origin, mirror
        self.digest = origin.add_image("a/b", LAYERS, compress="none")
        mirror.add_image("hub/a/b", LAYERS, compress="none")
        self.now = NOW
        self.reference = Reference.parse(origin.name("a/b"))
        self.client = RegistryClient(
            sleep=lambda _: None, read_timeout=timedelta(seconds=5), clock=lambda: self.now
        )
        self.source = self.open()

    def open(self, **options: Any) -> RegistrySource:  # noqa: ANN401
        settings = MirrorSettings(((self.mirror.host, "hub"),), **options)
        return RegistrySource(self.client, mirrors={self.origin.host: settings})

    def fetch(self) -> bytes:
        """Resolve the image and read its layer."""
        image = self.source.resolve(self.reference, AMD64)
        assert image.reference == self.reference
        return self.read(image.layers[0])

    def read(self, layer: Any) -> bytes:  # noqa: ANN401
        with self.source.open_layer(self.reference, layer) as stream:
            return b"".join(iter(lambda: stream.read(1000), b""))


@pytest.fixture
def site() -> Iterator[Site]:
    with FakeRegistry() as origin, FakeRegistry() as mirror:
        made = Site(origin, mirror)
        with made.client:
            yield made


def test_a_mirror_that_has_all_leaves_the_registry_alone(site: Site) -> None:
    assert site.source.head(site.reference) == site.digest
    assert site.fetch() == LAYERS[0]
    assert site.origin.requests == []
    assert [r.method for r in site.mirror.requests] == ["HEAD", "GET", "GET", "GET"]
    assert all(r.path.startswith("/v2/hub/a/b/") for r in site.mirror.requests)


def test_a_digest_is_asked_of_the_mirror_and_a_tag_of_the_registry_where_it_is_set_so(
    site: Site,
) -> None:
    site.source = site.open(serve_tags=False)
    site.mirror.add_image("hub/a/b", [tar_of({"old": b"1"})])  # as a stale proxy has it
    assert site.source.head(site.reference) == site.digest
    assert site.fetch() == LAYERS[0]
    assert [r.method for r in site.origin.requests] == ["HEAD", "GET"]
    assert site.mirror.count("GET", "/manifests/") == 0
    assert site.mirror.count("GET", "/blobs/") == 2


def test_tags_are_listed_by_the_registry_alone(site: Site) -> None:
    """Proxies list what they happen to have."""
    site.mirror.add_image("hub/a/b", LAYERS, tag="stale")
    assert site.source.tags(site.origin.host, "a/b") == ("latest",)
    assert site.mirror.requests == []


@pytest.mark.parametrize(
    "fault",
    [
        status(404),
        status(401),
        status(403),
        status(429),
        status(500),
        status(503, retry_after="9"),
        html(),
        reset(0),
        cut(3),
        body(b"{}"),
        wrong_bytes(),
    ],
)
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
def test_whatever_a_mirror_fails_with_the_registry_has_the_image(
    site: Site, fault: Change, kind: str
) -> None:
    site.mirror.fault("GET", f"/{kind}/", fault, times=None)
    image = site.source.resolve(site.reference, AMD64)
    assert image.manifest_digest == site.digest
    if kind == "manifests":
        assert site.read(image.layers[0]) == LAYERS[0]
    assert site.origin.count("GET", f"/{kind}/") == 1


@pytest.mark.parametrize("honoured", [True, False])
def test_a_layer_whose_mirror_breaks_off_is_continued_from_the_registry(
    site: Site, honoured: bool
) -> None:
    image = site.source.resolve(site.reference, AMD64)
    site.origin.honours_ranges = honoured
    site.mirror.fault("GET", "/blobs/", cut(500_000), times=None)
    assert site.read(image.layers[0]) == LAYERS[0]
    assert site.mirror.count("GET", "/blobs/") == 2  # the configuration, and this
    asked = site.origin.find("GET", "/blobs/")
    assert [r.headers.get("range") for r in asked] == ["bytes=500000-"]


def test_a_layer_that_a_mirror_has_wrong_is_read_again_from_the_registry(site: Site) -> None:
    source: SecondSource = site.source
    image = site.source.resolve(site.reference, AMD64)
    layer = image.layers[0]
    site.mirror.fault("GET", "/blobs/", wrong_bytes(), times=None)
    with pytest.raises(IntegrityError):
        site.read(layer)
    assert source.distrust(layer.digest)
    assert site.read(layer) == LAYERS[0]
    assert not source.distrust(layer.digest)  # the registry's own bytes: nobody else to ask
    assert site.mirror.count("GET", str(layer.digest)) == 1


def test_a_mirror_that_fails_is_given_up_soon_and_left_alone_for_a_while(site: Site) -> None:
    site.mirror.fault("HEAD", "", status(502), times=None)
    assert site.source.head(site.reference) == site.digest
    assert site.mirror.count("HEAD") == 2
    assert site.source.head(site.reference) == site.digest
    assert site.mirror.count("HEAD") == 2
    site.now += REST
    assert site.source.head(site.reference) == site.digest
    assert site.mirror.count("HEAD") == 4
    assert site.origin.count("HEAD") == 3


def test_a_mirror_that_only_lacks_an_image_is_asked_for_the_next(site: Site) -> None:
    site.origin.add_image("c/d", LAYERS)
    site.source.head(Reference.parse(site.origin.name("c/d")))
    site.source.head(site.reference)
    assert (site.mirror.count("HEAD"), site.origin.count("HEAD")) == (2, 1)


def test_an_image_is_gone_only_if_its_registry_says_so(site: Site) -> None:
    gone = Reference.parse(site.origin.name("no/such"))
    with pytest.raises(ImageNotFoundError, match=f"^{site.origin.host}/no/such:latest is not"):
        site.source.head(gone)
    site.origin.fault("HEAD", "", status(500), times=None)
    with pytest.raises(RemoteError, match="500") as caught:
        site.source.head(gone)
    assert not isinstance(caught.value, ImageNotFoundError)
    assert "a mirror failed as well" in caught.value.hint
    assert f"{site.mirror.host}/hub/no/such:latest is not in the registry" in caught.value.hint


def test_each_place_gets_its_own_login_and_no_other(site: Site) -> None:
    site.origin.require_basic("origin", "one")
    site.mirror.require_basic("mirror", "two")
    credentials = {
        site.origin.host: Credential("origin", "one"),
        site.mirror.host: Credential("mirror", "two"),
    }
    with RegistryClient(credentials=credentials, sleep=lambda _: None) as client:
        site.client = client
        site.source = site.open()
        site.mirror.fault("GET", "/blobs/", status(404), times=None)
        assert site.fetch() == LAYERS[0]
    for server in (site.origin, site.mirror):
        sent = {r.headers.get("authorization") for r in server.requests} - {None}
        assert len(sent) == 1
    assert credentials[site.origin.host].basic not in str(site.mirror.requests)
    assert credentials[site.mirror.host].basic not in str(site.origin.requests)


def test_what_is_read_through_a_mirror_costs_the_registry_no_pull(site: Site) -> None:
    site.fetch()
    used = site.client.budgets.snapshots(NOW)
    assert list(used) == [site.mirror.host]
    assert (used[site.mirror.host].pulls, used[site.mirror.host].requests) == (1, 3)


def test_several_mirrors_are_asked_in_their_order() -> None:
    settings = {"docker.io": MirrorSettings((("one.example.org", ""), ("two.example.org", "x/y")))}
    mirrors = Mirrors(settings, lambda: NOW)
    reference = Reference.parse("debian:12")
    assert [str(place) for place in mirrors.find(reference, "12")] == [
        "one.example.org/library/debian:12",
        "two.example.org/x/y/library/debian:12",
    ]
    assert mirrors.find(Reference.parse("ghcr.io/library/debian:12"), "12") == []


# ------------------------------------------------------------------ layers outside the registry


def foreign(registry: FakeRegistry, *urls: object) -> Reference:
    """Push an image whose layer is not in the registry."""
    layer = OUTSIDE
    config: dict[str, Any] = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer))]},
    }
    types = TYPES["oci"]

    manifest = {
        "schemaVersion": 2,
        "config": registry.add_blob(json.dumps(config).encode(), types["config"]),
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
                "digest": str(Digest.of(layer)),
                "size": len(layer),
                "urls": list(urls),
            }
        ],
    }
    registry.add_manifest("w/x", manifest, types["manifest"], tag="1")
    return Reference.parse(registry.name("w/x", "1"))


def read_foreign(source: RegistrySource, reference: Reference) -> bytes:
    image = source.resolve(reference, AMD64)
    with source.open_layer(reference, image.layers[0]) as stream:
        return b"".join(iter(lambda: stream.read(1000), b""))


def test_a_layer_outside_the_registry_is_not_fetched_without_leave(site: Site) -> None:
    reference = foreign(site.origin, f"{site.mirror.url}/layer")
    with pytest.raises(RemoteError, match="the manifest says is at") as caught:
        read_foreign(RegistrySource(site.client), reference)
    assert f"registries.{site.origin.host}.foreign_layers: true" in caught.value.hint
    assert site.mirror.requests == []


def test_a_layer_outside_the_registry_is_fetched_with_leave_and_without_credentials(
    site: Site,
) -> None:
    site.origin.require_basic("bot", "s3cret")
    site.mirror.files["/layer"] = OUTSIDE
    credentials = {
        host: Credential("bot", "s3cret") for host in (site.origin.host, site.mirror.host)
    }
    reference = foreign(site.origin, f"{site.mirror.url}/gone", f"{site.mirror.url}/layer")
    with RegistryClient(credentials=credentials, sleep=lambda _: None) as client:
        source = RegistrySource(client, foreign_layers=[site.origin.host])
        site.mirror.fault("GET", "/layer", cut(200_000))
        assert read_foreign(source, reference) == OUTSIDE
    assert not any("authorization" in r.headers for r in site.mirror.requests)
    assert site.mirror.find("GET", "/layer")[-1].headers["range"] == "bytes=200000-"


def test_a_layer_from_outside_is_proven_by_its_digest(site: Site) -> None:
    site.mirror.files["/layer"] = OUTSIDE[:-1] + b"x"
    reference = foreign(site.origin, f"{site.mirror.url}/layer")
    source = RegistrySource(site.client, foreign_layers=[site.origin.host])
    with pytest.raises(IntegrityError):
        read_foreign(source, reference)


def test_a_layer_that_the_registry_has_is_taken_from_there(site: Site) -> None:
    site.origin.add_blob(OUTSIDE)
    reference = foreign(site.origin, f"{site.mirror.url}/layer")
    source = RegistrySource(site.client, foreign_layers=[site.origin.host])
    assert read_foreign(source, reference) == OUTSIDE
    assert site.mirror.requests == []


def test_a_layer_that_the_registry_has_is_continued_there_whatever_the_manifest_says(
    site: Site,
) -> None:
    site.origin.add_blob(OUTSIDE)
    reference = foreign(site.origin, f"{site.mirror.url}/layer")
    site.origin.fault("GET", str(Digest.of(OUTSIDE)), cut(200_000))
    assert read_foreign(RegistrySource(site.client), reference) == OUTSIDE
    assert site.mirror.requests == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "http://a@b/c", 7, "", None])
def test_an_address_outside_the_web_is_never_asked(site: Site, url: object) -> None:
    reference = foreign(site.origin, url)
    source = RegistrySource(site.client, foreign_layers=[site.origin.host])
    with pytest.raises(RemoteError, match=r"is not the address of a layer|BLOB_UNKNOWN"):
        read_foreign(source, reference)
