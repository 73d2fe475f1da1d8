"""Object stores, libraries, hubs, SIF files in registries: what is asked of them, and as whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, RemoteError
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import AccessDeniedError, ImageNotFoundError, Platform
from cvmfs_publish.sources.downloads import Downloads
from cvmfs_publish.sources.library import LibraryFiles, LibraryName, parse_library
from cvmfs_publish.sources.objectstore import S3Access, S3Files, SwiftAccess
from cvmfs_publish.sources.oras import SIF_LAYER
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.manifest import NotAnImageError
from cvmfs_publish.sources.shub import HubFiles, HubName, parse_hub
from cvmfs_publish.sources.transports import Sources
from tests.fakes.places import KEY, PROJECT, USER, FakePlaces
from tests.fakes.registry import Reply, body, status, wrong_bytes
from tests.sifs import make_sif, system
from tests.sources import open_sources

AMD64, ARM64 = Platform.default(), Platform.parse("linux/arm64")
NAME = "example.org/a/b:1"
SIF = make_sif([system(b"hsqs" + bytes(5000))])
ARM_SIF = make_sif([system(b"hsqs" + bytes(5000), b"04")], b"04")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def places() -> Iterator[FakePlaces]:
    with FakePlaces() as running:
        running.images["image.sif"] = SIF
        running.objects["images/a b/image.sif"] = SIF
        yield running


def read(sources: Sources, text: str, platform: Platform = AMD64) -> Digest:
    reference = sources.locate(text, NAME)
    return sources.resolve(reference, platform).layers[0].digest


# S3


@pytest.mark.parametrize("signed", [False, True])
def test_requests_to_s3_are_signed_if_there_are_keys(
    tmp_path: Path, places: FakePlaces, signed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # what the environment says must not meddle: the command line alone reads it
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of somebody else")
    monkeypatch.setenv("AWS_ENDPOINT", "http://somewhere.invalid")
    places.files["/bucket/a%20b/image.sif"] = SIF
    s3 = S3Access(
        places.url,
        "eu-one",
        access_key="KEY" if signed else "",
        secret_key="secret" if signed else "",
    )
    with open_sources(tmp_path, s3=s3) as sources:
        assert read(sources, "s3://bucket/a b/image.sif") == Digest.of(SIF)
    for request in places.requests:
        query = parse_qs(urlsplit(request.path).query)
        assert ("X-Amz-Signature" in query) == signed
        if signed:
            assert "/eu-one/s3/aws4_request" in query["X-Amz-Credential"][0]
            assert "X-Amz-Security-Token" not in query


@pytest.mark.parametrize("key", ["", "KEY"])
@pytest.mark.parametrize(
    ("endpoint", "virtual", "url"),
    [
        ("https://s3.example.org", False, "https://s3.example.org/bucket/a%20b"),
        ("https://s3.example.org", True, "https://bucket.s3.example.org/a%20b"),
        ("", False, "https://s3.eu-one.amazonaws.com/bucket/a%20b"),
        ("", True, "https://bucket.s3.eu-one.amazonaws.com/a%20b"),
    ],
)
def test_the_bucket_is_in_the_host_or_in_the_path(
    tmp_path: Path, key: str, endpoint: str, virtual: bool, url: str
) -> None:
    access = S3Access(endpoint, "eu-one", virtual, key, key and "secret", key and "temporary")
    with RegistryClient() as client, ExitStack() as stack:
        files = S3Files(Downloads(client, stack, tmp_path, 1), access)
        origin = Origin("s3", "bucket/a b")
        made = files.request(origin, AMD64)("GET")
    assert made.url.partition("?")[0] == url
    assert ("X-Amz-Security-Token=temporary" in made.url) == bool(key)


# Swift


def swift_3(places: FakePlaces, **changes: str) -> SwiftAccess:
    values = {"auth_url": f"{places.url}/v3", "user": USER, "key": KEY, "project": PROJECT}
    return SwiftAccess(**{**values, "region": "one", **changes})


@pytest.mark.parametrize("version", [1, 3])
def test_swift_gives_objects_to_who_logs_in(
    tmp_path: Path, places: FakePlaces, version: int
) -> None:
    access = SwiftAccess(f"{places.url}/auth/v1.0", USER, KEY)
    if version == 3:
        access = swift_3(places)
    with open_sources(tmp_path, swift=access) as sources:
        assert read(sources, "swift://images/a b/image.sif") == Digest.of(SIF)
        assert read(sources, "swift://images/a b/image.sif") == Digest.of(SIF)
    assert places.count("POST" if version == 3 else "GET", "/v3/|/auth/") == 1  # one login


def test_a_login_that_expired_is_renewed_once(tmp_path: Path, places: FakePlaces) -> None:
    with open_sources(tmp_path, swift=swift_3(places)) as sources:
        read(sources, "swift://images/a b/image.sif")
        places.swift_tokens.clear()
        places.objects["images/a b/image.sif"] = ARM_SIF
        assert read(sources, "swift://images/a b/image.sif", ARM64) == Digest.of(ARM_SIF)
    assert places.count("POST", "/v3/") == 2


def test_public_containers_need_no_login(tmp_path: Path, places: FakePlaces) -> None:
    places.public = True
    access = SwiftAccess(storage_url=f"{places.url}/storage")
    with open_sources(tmp_path, swift=access) as sources:
        assert read(sources, "swift://images/a b/image.sif") == Digest.of(SIF)
    assert all("x-auth-token" not in request.headers for request in places.requests)


@pytest.mark.parametrize("changes", [{"key": "wrong"}, {"project": "other"}])
def test_a_login_that_is_refused_is_told(
    tmp_path: Path, places: FakePlaces, changes: dict[str, str]
) -> None:
    with (
        open_sources(tmp_path, swift=swift_3(places, **changes)) as sources,
        pytest.raises(AccessDeniedError, match="the login at"),
    ):
        read(sources, "swift://images/a b/image.sif")


def test_without_a_place_to_log_in_the_message_says_what_to_set(tmp_path: Path) -> None:
    with open_sources(tmp_path) as sources, pytest.raises(InputError) as caught:
        read(sources, "swift://images/image.sif")
    assert "sources.swift.auth_url" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"[", "not JSON"),
        (b"[]", "not an object"),
        (b"{}", "names no storage"),
        (b'{"token": {"catalog": [{"type": "object-store", "endpoints": [5]}]}}', "no storage"),
        (
            b'{"token": {"catalog": [{"type": "object-store", "endpoints": [{"interface": "public",'
            b' "region": "one", "url": "file:///etc"}]}]}}',
            "names no storage",
        ),
    ],
)
def test_a_login_server_that_talks_nonsense_is_told(
    tmp_path: Path, places: FakePlaces, answer: bytes, message: str
) -> None:
    places.fault("POST", "/v3/", body(answer), times=None)
    with (
        open_sources(tmp_path, swift=swift_3(places)) as sources,
        pytest.raises(RemoteError, match=message),
    ):
        read(sources, "swift://images/a b/image.sif")


# libraries


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("alpine", LibraryName("l.org", "library/default/alpine", "latest")),
        ("a/b/c", LibraryName("l.org", "a/b/c", "latest")),
        ("a/b/c:1.0", LibraryName("l.org", "a/b/c", "1.0")),
        ("/a/b/c:1.0", LibraryName("l.org", "a/b/c", "1.0")),
        ("host.org/a/b/c:1.0", LibraryName("host.org", "a/b/c", "1.0")),
        ("host.org:8/a/b/c:1.0", LibraryName("host.org:8", "a/b/c", "1.0")),
        ("Entity/Some/Thing:sha256.00", LibraryName("l.org", "Entity/Some/Thing", "sha256.00")),
    ],
)
def test_names_in_libraries_are_those_of_apptainer(place: str, name: LibraryName) -> None:
    assert parse_library(place, "l.org") == name


@pytest.mark.parametrize("place", ["a/b/c/d/e", "a//c", "../b/c", "a/b/c:", "a b", "h:1:2/a/b/c"])
def test_what_is_no_name_in_a_library_is_refused(place: str) -> None:
    with pytest.raises(InputError, match="names no image in a library"):
        parse_library(place, "l.org")


def put_into_library(places: FakePlaces) -> str:
    places.images["arm.sif"] = ARM_SIF
    places.library["Group/apps/image:1", "amd64"] = "image.sif"
    places.library["Group/apps/image:1", "arm64"] = "arm.sif"
    return f"library://{places.host}/Group/apps/image:1"


def test_a_library_has_an_image_for_each_platform(tmp_path: Path, places: FakePlaces) -> None:
    text = put_into_library(places)
    with open_sources(tmp_path) as sources:
        reference = sources.locate(text)
        assert str(reference) == f"{places.host}/group/apps/image:1"
        assert sources.head(reference) == Digest.of(SIF)
        assert places.count("GET", "imagefile") == 0  # the library promises the digest
        digest = sources.head(reference)
        assert sources.resolve(reference, AMD64, digest).digest == Digest.of(SIF)
        assert sources.resolve(reference, ARM64, digest).digest == Digest.of(ARM_SIF)
        states = {sources.state(reference, platform) for platform in (AMD64, ARM64)}
        assert len(states) == 2
        with pytest.raises(ImageNotFoundError):
            sources.resolve(reference, Platform.parse("linux/s390x"), digest)


def test_a_library_that_sends_other_bytes_than_it_promises_is_found_out(
    tmp_path: Path, places: FakePlaces
) -> None:
    text = put_into_library(places)
    places.fault("GET", "/files/", wrong_bytes(), times=None)
    with (
        open_sources(tmp_path) as sources,
        pytest.raises(IntegrityError, match="the library promises"),
    ):
        sources.resolve(sources.locate(text), AMD64)


def test_an_older_library_promises_nothing(tmp_path: Path, places: FakePlaces) -> None:
    places.hash_form = "sif"
    text = put_into_library(places)
    with open_sources(tmp_path) as sources:
        reference = sources.locate(text)
        assert sources.head(reference) == Digest.of(SIF)
        assert sources.resolve(reference, AMD64, Digest.of(SIF)).digest == Digest.of(SIF)
    assert places.count("GET", "/files/") == 1


def test_a_server_cannot_fill_records_with_what_it_says(
    tmp_path: Path, places: FakePlaces, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of an image is kept in its record, for everybody to read."""
    monkeypatch.setattr(LibraryFiles, "_describe", lambda *_: {"hash": "x" * 1_000_000})
    monkeypatch.setattr(HubFiles, "_describe", lambda *_: {"version": "x" * 1_000_000})
    with open_sources(tmp_path) as sources:
        for text in (put_into_library(places), f"shub://{places.host}/a/b:1"):
            assert len(sources.state(sources.locate(text), AMD64)) == 200


def test_a_token_opens_its_own_library_alone(tmp_path: Path, places: FakePlaces) -> None:
    text = put_into_library(places)
    places.library_token = "token"
    with open_sources(tmp_path) as sources, pytest.raises(AccessDeniedError):
        sources.head(sources.locate(text))
    logins = {places.host: Credential("who", "token"), "other.org": Credential("who", "other")}
    with open_sources(tmp_path, credentials=logins) as sources:
        assert sources.resolve(sources.locate(text), AMD64).digest == Digest.of(SIF)


# hubs


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("user/image", HubName("h.org", "user/image", "latest", "")),
        ("user/image:1.0", HubName("h.org", "user/image", "1.0", "")),
        ("Host.org:8/user/Image:1", HubName("host.org:8", "user/Image", "1", "")),
        (f"user/image@{'a' * 32}", HubName("h.org", "user/image", "", "a" * 32)),
        (f"user/image:1@{'a' * 40}", HubName("h.org", "user/image", "1", "a" * 40)),
    ],
)
def test_names_in_hubs_are_those_of_apptainer(place: str, name: HubName) -> None:
    assert parse_hub(place, "h.org") == name


@pytest.mark.parametrize("place", ["image", "a/b/c/d", "../b", "a/b:", "a/b@xyz", "a b/c", "é/b"])
def test_what_is_no_name_in_a_hub_is_refused(place: str) -> None:
    with pytest.raises(InputError, match="names no image in a hub"):
        parse_hub(place, "h.org")


def test_an_image_of_a_hub_is_where_the_hub_says(tmp_path: Path, places: FakePlaces) -> None:
    places.hub["user/Image:1"] = "image.sif"
    with open_sources(tmp_path) as sources:
        reference = sources.locate(f"shub://{places.host}/user/Image:1")
        assert str(reference) == f"{places.host}/user/image:1"
        assert sources.resolve(reference, AMD64).digest == Digest.of(SIF)
    assert places.count("GET", "/files/") == 1


@pytest.mark.parametrize(
    "image", [None, 5, "file:///etc/passwd", "http://images.example.org/a", "x"]
)
def test_a_hub_that_sends_nowhere_sensible_is_told(
    tmp_path: Path, places: FakePlaces, image: object
) -> None:
    places.hub["user/image:1"] = "image.sif"
    answer = json.dumps({"image": image, "version": "1"}).encode()
    places.fault("GET", "/api/", lambda _: Reply(200, {}, answer), times=None)
    with open_sources(tmp_path) as sources:
        reference = sources.locate(f"shub://{places.host}/user/image:1")
        with pytest.raises(RemoteError, match=r"names no image|without TLS"):
            sources.resolve(reference, AMD64)


# SIF files in registries


def put_into_registry(places: FakePlaces, kind: str = SIF_LAYER, count: int = 1) -> Digest:
    layer = places.add_blob(SIF, kind)
    config = places.add_blob(b"{}", "application/vnd.sylabs.sif.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config}
    return places.add_manifest("s/i", {**document, "layers": [layer] * count}, MANIFEST, tag="1")


def oras(sources: Sources, places: FakePlaces, name: str = "s/i:1") -> Reference:
    return sources.locate(f"oras://{places.host}/{name}")


def test_the_record_of_a_sif_in_a_registry_is_the_registrys_manifest(
    tmp_path: Path, places: FakePlaces
) -> None:
    digest = put_into_registry(places)
    with open_sources(tmp_path) as sources:
        reference = oras(sources, places)
        assert str(reference) == f"{places.host}/s/i:1"
        assert sources.head(reference) == digest
        assert dict.fromkeys(r.method for r in places.requests) == {"HEAD": None}
        image = sources.resolve(reference, AMD64, digest)
        assert image.digest == image.manifest_digest == digest == Digest.of(image.manifest)
        assert image.layers[0].digest == Digest.of(SIF)
        pinned = oras(sources, places, f"s/i@{digest}")
        assert sources.resolve(pinned, AMD64).manifest_digest == digest


@pytest.mark.parametrize(
    ("kind", "count"), [("application/vnd.oci.image.layer.v1.tar", 1), (SIF_LAYER, 2)]
)
def test_another_artefact_is_no_sif(
    tmp_path: Path, places: FakePlaces, kind: str, count: int
) -> None:
    put_into_registry(places, kind, count)
    with open_sources(tmp_path) as sources, pytest.raises(NotAnImageError, match="no SIF file"):
        sources.resolve(oras(sources, places), AMD64)


@pytest.mark.parametrize("answer", [b"[", b"[]", b"{}", b'{"layers": 5}', b'{"layers": [5]}'])
def test_a_manifest_that_names_no_layer_is_refused(
    tmp_path: Path, places: FakePlaces, answer: bytes
) -> None:
    put_into_registry(places)
    places.fault("GET", "/manifests/", body(answer), times=None)
    with open_sources(tmp_path) as sources, pytest.raises(NotAnImageError, match="no manifest"):
        sources.resolve(oras(sources, places), AMD64)


def test_a_registry_that_sends_another_sif_is_found_out(tmp_path: Path, places: FakePlaces) -> None:
    put_into_registry(places)
    places.fault("GET", "/blobs/", wrong_bytes(), times=None)
    with open_sources(tmp_path) as sources, pytest.raises(IntegrityError):
        sources.resolve(oras(sources, places), AMD64)


# plain URLs


def test_a_login_goes_to_its_own_host_alone(tmp_path: Path, places: FakePlaces) -> None:
    logins = {places.host: Credential("user", "password")}
    with FakePlaces() as other:
        other.images["image.sif"] = SIF
        with open_sources(tmp_path, credentials=logins) as sources:
            read(sources, places.url_of("image.sif"))
            read(sources, other.url_of("image.sif"))
        assert all("authorization" not in request.headers for request in other.requests)
    assert all("authorization" in request.headers for request in places.requests)


def test_a_signed_url_is_fetched_though_it_may_not_be_looked_at(
    tmp_path: Path, places: FakePlaces
) -> None:
    places.fault("HEAD", "/files/", status(403), times=None)
    with open_sources(tmp_path) as sources:
        reference = sources.locate(places.url_of("image.sif") + "?signature=secret", NAME)
        image = sources.resolve(reference, AMD64, sources.head(reference))
        assert image.digest == Digest.of(SIF)
    assert places.count("GET", "signature=secret") == 1
    assert "secret" not in str(reference.origin)
