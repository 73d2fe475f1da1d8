"""Images from an honest registry: what is asked, how often, and what comes out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ImageNotFoundError, ImageSource, LayerDescriptor, Platform
from cvmfs_publish.sources.registry import schema1
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from tests.fakes.registry import (
    TYPES,
    Change,
    FakeRegistry,
    chunked,
    status,
    tar_of,
    with_header,
    without_header,
)

AMD64 = Platform.default()
LAYERS = [tar_of({"a": b"1" * 3000}), tar_of({"b": b"2"})]


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def client() -> Iterator[RegistryClient]:
    with RegistryClient(sleep=lambda _: None, read_timeout=timedelta(seconds=5)) as opened:
        yield opened


@pytest.fixture
def source(client: RegistryClient) -> RegistrySource:
    return RegistrySource(client)


def read(
    source: ImageSource, reference: Reference, layer: LayerDescriptor, size: int = 999
) -> bytes:
    with source.open_layer(reference, layer) as stream:
        return b"".join(iter(lambda: stream.read(size), b""))


@pytest.mark.parametrize("flavour", ["oci", "docker"])
@pytest.mark.parametrize("compress", ["gzip", "zstd", "none"])
def test_an_image_is_resolved_and_its_layers_read(
    registry: FakeRegistry, source: RegistrySource, flavour: str, compress: str
) -> None:
    config = {"config": {"Env": ["A=1"]}}
    digest = registry.add_image("a/b", LAYERS, config, compress=compress, flavour=flavour)
    reference = Reference.parse(registry.name("a/b"))
    image = source.resolve(reference, AMD64)
    assert image.digest == image.manifest_digest == digest == Digest.of(image.manifest)
    assert Digest.of(image.config) == image.config_digest
    assert json.loads(image.config)["config"] == {"Env": ["A=1"]}
    assert image.platform == AMD64
    assert [layer.diff_id for layer in image.layers] == [Digest.of(tar) for tar in LAYERS]
    assert [layer.media_type for layer in image.layers] == [TYPES[flavour][compress]] * 2
    for layer in image.layers:
        data = read(source, reference, layer)
        assert Digest.of(data) == layer.digest
        assert len(data) == layer.size


def test_an_unchanged_image_costs_one_head_request(
    registry: FakeRegistry, source: RegistrySource, client: RegistryClient
) -> None:
    digest = registry.add_image("a/b", LAYERS)
    assert source.head(Reference.parse(registry.name("a/b"))) == digest
    assert dict(client.requests_made) == {"HEAD": 1}
    assert client.bytes_received == 0
    assert len(registry.requests) == 1


def test_a_digest_in_the_reference_is_believed_without_asking(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    digest = registry.add_image("a/b", LAYERS, tag="")
    reference = Reference.parse(f"{registry.host}/a/b@{digest}")
    assert source.head(reference) == digest
    assert registry.requests == []
    assert source.resolve(reference, AMD64).digest == digest


def test_resolving_needs_two_requests_and_no_layer(
    registry: FakeRegistry, source: RegistrySource, client: RegistryClient
) -> None:
    registry.add_image("a/b", LAYERS)
    image = source.resolve(Reference.parse(registry.name("a/b")), AMD64)
    assert dict(client.requests_made) == {"GET": 2}
    assert client.bytes_received == len(image.manifest) + len(image.config)


@pytest.mark.parametrize(
    "reply", [without_header("Docker-Content-Digest"), status(405), status(501)]
)
def test_a_registry_whose_head_says_nothing_is_asked_with_get(
    registry: FakeRegistry, source: RegistrySource, client: RegistryClient, reply: Change
) -> None:
    digest = registry.add_image("a/b", LAYERS)
    registry.fault("HEAD", "/manifests/", reply)
    assert source.head(Reference.parse(registry.name("a/b"))) == digest
    assert dict(client.requests_made) == {"HEAD": 1, "GET": 1}


def test_a_registry_that_never_names_digests_is_no_problem(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    digest = registry.add_image("a/b", LAYERS)
    registry.fault("GET", "/manifests/", without_header("Docker-Content-Digest"), times=None)
    assert source.resolve(Reference.parse(registry.name("a/b")), AMD64).digest == digest


@pytest.mark.parametrize("flavour", ["oci", "docker"])
def test_the_right_platform_of_an_index_is_resolved(
    registry: FakeRegistry, source: RegistrySource, flavour: str
) -> None:
    images = {
        platform: registry.add_image(
            "a/b", [tar_of({platform: b""})], platform=platform, tag="", flavour=flavour
        )
        for platform in ("linux/arm64/v8", "linux/amd64", "linux/arm/v7")
    }
    attestation = {
        **registry.describe("a/b", images["linux/arm64/v8"]),
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    index = registry.add_index("a/b", images, flavour=flavour, extra=[attestation])
    reference = Reference.parse(registry.name("a/b"))
    assert source.head(reference) == index
    for platform, digest in images.items():
        image = source.resolve(reference, Platform.parse(platform))
        assert (image.digest, image.manifest_digest) == (index, digest)
        assert image.platform == Platform.parse(platform)
    with pytest.raises(InputError, match="linux/amd64, linux/arm/v7, linux/arm64"):
        source.resolve(reference, Platform.parse("linux/s390x"))


def test_an_image_without_index_for_another_platform_is_refused(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_image("a/b", LAYERS, platform="linux/arm64")
    reference = Reference.parse(registry.name("a/b"))
    with pytest.raises(InputError, match=r"is an image for linux/arm64, not for linux/amd64"):
        source.resolve(reference, AMD64)
    assert source.resolve(reference, Platform.parse("linux/arm64/v8")).layers


def test_an_image_without_layers_and_an_empty_layer_are_images(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_image("a/none")
    assert source.resolve(Reference.parse(registry.name("a/none")), AMD64).layers == ()
    empty = LayerDescriptor(Digest.of(b""), 0, TYPES["oci"]["none"], None)
    registry.add_blob(b"")
    assert read(source, Reference.parse(registry.name("a/none")), empty) == b""


def test_nothing_is_asked_before_the_first_read(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_image("a/b", LAYERS)
    reference = Reference.parse(registry.name("a/b"))
    image = source.resolve(reference, AMD64)
    with source.open_layer(reference, image.layers[0]):
        assert registry.count("GET", str(image.layers[0].digest)) == 0


def test_a_stream_may_be_left_early_and_ends_as_often_as_asked(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_image("a/b", LAYERS)
    reference = Reference.parse(registry.name("a/b"))
    layer = source.resolve(reference, AMD64).layers[0]
    with source.open_layer(reference, layer) as stream:
        assert len(stream.read(10)) == 10
    with source.open_layer(reference, layer) as stream:
        while stream.read(1 << 20):
            pass
        assert stream.read(1) == b""
        assert stream.read(1) == b""


def test_a_body_without_length_is_read_like_any_other(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_image("a/b", LAYERS)
    registry.fault("GET", "/(blobs|manifests)/", chunked(), times=None)
    reference = Reference.parse(registry.name("a/b"))
    image = source.resolve(reference, AMD64)
    assert gzip.decompress(read(source, reference, image.layers[0])) == LAYERS[0]


def test_threads_read_layers_at_once_over_connections_that_are_used_again(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.require_bearer("bot", "s3cret")
    tars = [tar_of({f"f{n}": bytes([n]) * 200_000}) for n in range(12)]
    registry.add_image("a/b", tars, compress="none")
    reference = Reference.parse(registry.name("a/b"))
    credentials = {registry.host: Credential("bot", "s3cret")}
    with RegistryClient(credentials=credentials) as client, ThreadPoolExecutor(6) as pool:
        source = RegistrySource(client)
        layers = source.resolve(reference, AMD64).layers
        registry.tokens.clear()  # all threads meet the 401 together
        assert list(pool.map(lambda layer: read(source, reference, layer, 65536), layers)) == tars
    assert registry.count("GET", "/token") == 2


def test_an_unknown_image_is_not_found_and_says_how_surely(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_image("a/b", LAYERS)
    for name in (registry.name("a/b", "other"), registry.name("a/other")):
        reference = Reference.parse(name)
        with pytest.raises(ImageNotFoundError, match=name) as caught:
            source.head(reference)
        assert caught.value.code == ""
        assert caught.value.exit_code == 3
        with pytest.raises(ImageNotFoundError) as caught:
            source.resolve(reference, AMD64)
        assert caught.value.code in {"MANIFEST_UNKNOWN", "NAME_UNKNOWN"}


def test_a_digest_of_the_other_algorithm_is_verified_too(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    digest = registry.add_image("a/b", LAYERS)
    _, manifest = registry.manifests["a/b", str(digest)]
    hasher = Digest("sha512", "").hasher()
    hasher.update(manifest)
    stated = f"sha512:{hasher.hexdigest()}"
    registry.fault("GET", "/manifests/", with_header("Docker-Content-Digest", stated))
    reference = Reference.parse(registry.name("a/b"))
    assert str(source.resolve(reference, AMD64).digest) == stated


def test_requests_name_the_program_and_accept_no_transport_encoding(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_image("a/b", LAYERS)
    source.resolve(Reference.parse(registry.name("a/b")), AMD64)
    for request in registry.requests:
        assert request.headers["user-agent"].startswith("cvmfs-publish/")
        assert request.headers["accept-encoding"] == "identity"
    accepted = registry.requests[0].headers["accept"].split(", ")
    current = {TYPES[f][k] for f in TYPES for k in ("manifest", "index")}
    assert current == set(accepted[:-2])
    assert set(accepted[-2:]) == schema1.TYPES  # the last resort


def test_the_fake_lists_tags_in_pages(registry: FakeRegistry, client: RegistryClient) -> None:
    registry.page_size = 2
    for tag in ("1", "2", "3"):
        registry.add_image("a/b", tag=tag)
    reference = Reference.parse(registry.name("a/b"))
    first, header = client.fetch(reference, "tags/list", {}, 1000)
    assert json.loads(first)["tags"] == ["1", "2"]
    assert 'rel="next"' in header("Link")
    second, header = client.fetch(reference, "tags/list?n=2&last=2", {}, 1000)
    assert json.loads(second)["tags"] == ["3"]
    assert header("Link") == ""


def test_a_manifest_that_is_only_different_json_is_kept_byte_for_byte(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    digest = registry.add_image("a/b", LAYERS)
    media_type, manifest = registry.manifests["a/b", str(digest)]
    spaced = json.dumps(json.loads(manifest), indent=7).encode() + b"\n\n"
    registry.add_manifest("a/b", spaced, media_type, tag="spaced")
    image = source.resolve(Reference.parse(registry.name("a/b", "spaced")), AMD64)
    assert image.manifest == spaced
