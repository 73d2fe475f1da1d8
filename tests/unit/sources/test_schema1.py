"""Docker schema 1: what its digest and its layers prove is used, and nothing else is believed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, PublishError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.schema1 import PLAIN, parse_old_manifest, payload_of
from cvmfs_publish.sources.registry.source import RegistrySource
from tests.fakes.registry import (
    FakeRegistry,
    body,
    pack,
    sign_old_manifest,
    tar_of,
    with_header,
    without_header,
)

AMD64 = Platform.default()
LAYERS = [tar_of({"a": b"1" * 3000}), tar_of({"b": b"2"})]
SUMS = [f"sha256:{letter * 64}" for letter in "ab"]


def header(**fields: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(fields).encode()).decode().rstrip("=")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def source() -> Iterator[RegistrySource]:
    with RegistryClient(sleep=lambda _: None) as client:
        yield RegistrySource(client)


def document(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a manifest of two layers, the newest first."""
    history = [{"id": "1" * 64, "parent": "0" * 64, "os": "linux"}, {"id": "0" * 64}]
    return {
        "schemaVersion": 1,
        "architecture": "amd64",
        "fsLayers": [{"blobSum": SUMS[1]}, {"blobSum": SUMS[0]}],
        "history": [{"v1Compatibility": json.dumps(entry)} for entry in history],
        **changes,
    }


def histories(*entries: object) -> list[dict[str, str]]:
    return [{"v1Compatibility": json.dumps(entry)} for entry in entries]


def encode(**changes: Any) -> bytes:  # noqa: ANN401
    return json.dumps(document(**changes), indent=3).encode()


@pytest.mark.parametrize("media_type", ["signed", PLAIN, "application/json; charset=utf-8"])
@pytest.mark.parametrize("says_digest", [True, False])
def test_an_image_is_resolved_and_its_layers_read(
    registry: FakeRegistry, source: RegistrySource, media_type: str, says_digest: bool
) -> None:
    kind = {} if media_type == "signed" else {"media_type": media_type}
    digest = registry.add_old_image("a/b", LAYERS, empty_on_top=True, **kind)
    if not says_digest:
        registry.fault("GET", "/manifests/", without_header("Docker-Content-Digest"), times=None)
    reference = Reference.parse(registry.name("a/b"))
    image = source.resolve(reference, AMD64)
    assert image.digest == image.manifest_digest == digest == Digest.of(image.manifest)
    assert b"signatures" not in image.manifest
    assert [layer.diff_id for layer in image.layers] == [None, None]
    for layer, tar in zip(image.layers, LAYERS, strict=True):
        with source.open_layer(reference, layer) as stream:
            assert b"".join(iter(partial(stream.read, 999), b"")) == pack(tar, "gzip")
    config = json.loads(image.config)
    assert config["config"] == {"Cmd": ["sh"]}
    assert image.config_digest == Digest.of(image.config)
    assert source.resolve(reference, AMD64, digest) == image


def test_an_image_for_another_platform_is_refused(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_old_image("a/b", LAYERS)
    with pytest.raises(InputError, match="is an image for linux/amd64"):
        source.resolve(Reference.parse(registry.name("a/b")), Platform.parse("linux/arm64"))


def test_a_changed_payload_is_refused_whatever_its_signature_says(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    registry.add_old_image("a/b", LAYERS)
    forged = sign_old_manifest(encode())
    registry.fault("GET", "/manifests/", body(forged), times=None)
    with pytest.raises(IntegrityError, match="the manifest should be sha256:"):
        source.resolve(Reference.parse(registry.name("a/b")), AMD64)


def test_what_stands_beside_the_signed_text_is_not_read(
    registry: FakeRegistry, source: RegistrySource
) -> None:
    """Two readers, one of the whole body and one of the payload, would see two images."""
    digest = registry.add_old_image("a/b", LAYERS)
    media_type, honest = registry.manifests["a/b", str(digest)]
    evil = json.dumps(document()["fsLayers"]).encode()
    forged = honest.replace(b'"signatures"', b'"fsLayers": ' + evil + b', "signatures"')
    registry.manifests["a/b", str(digest)] = (media_type, forged)
    with pytest.raises(IntegrityError, match="not valid JSON"):  # a name twice in one object
        source.resolve(Reference.parse(registry.name("a/b")), AMD64)


@pytest.mark.parametrize("length", ["", "many", "-1", "9" * 19])
def test_a_registry_that_does_not_say_how_large_a_layer_is_has_to(
    registry: FakeRegistry, source: RegistrySource, length: str
) -> None:
    registry.add_old_image("a/b", LAYERS)
    registry.fault("HEAD", "/blobs/", with_header("Content-Length", length), times=None)
    with pytest.raises(RemoteError):
        source.resolve(Reference.parse(registry.name("a/b")), AMD64)


def test_layers_come_lowest_first_without_those_that_hold_nothing() -> None:
    image = parse_old_manifest(encode(), "x")
    assert [str(layer) for layer in image.layers] == SUMS
    top = {"id": "2" * 64, "parent": "1" * 64, "throwaway": True}
    entries = [top, {"id": "1" * 64, "parent": "0" * 64}, {"id": "0" * 64}]
    layers = [{"blobSum": f"sha256:{'c' * 64}"}, *document()["fsLayers"]]
    thrown = parse_old_manifest(encode(history=histories(*entries), fsLayers=layers), "x")
    assert thrown.layers == image.layers


def test_an_entry_that_is_repeated_counts_once() -> None:
    entries = [{"id": "1" * 64, "parent": "0" * 64}] * 2 + [{"id": "0" * 64}]
    layers = [document()["fsLayers"][0], *document()["fsLayers"]]
    image = parse_old_manifest(encode(history=histories(*entries), fsLayers=layers), "x")
    assert [str(layer) for layer in image.layers] == SUMS


def test_the_image_id_follows_from_the_manifest_and_binds_the_layers() -> None:
    first, same = parse_old_manifest(encode(), "x"), parse_old_manifest(encode(name="other"), "y")
    assert first.config == same.config
    layers = document()["fsLayers"][::-1]
    assert parse_old_manifest(encode(fsLayers=layers), "x").config != first.config
    assert Digest.of(first.config).hex == (
        "3a25eb79026176d1c5588fd1e74effd231f77c61d78f14c95ab6ba4c58def75d"
    )
    assert json.loads(first.config) == {
        "architecture": "amd64",
        "layers": SUMS,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"schemaVersion": 2},
        {"signatures": []},
        {"fsLayers": []},
        {"fsLayers": None},
        {"fsLayers": [{"blobSum": SUMS[0]}]},
        {"fsLayers": [{"blobSum": "md5:1"}, {"blobSum": SUMS[0]}]},
        {"fsLayers": [7, 8]},
        {"history": []},
        {"history": {}},
        {"history": [1, 2]},
        {"history": [{"v1Compatibility": {}}, {"v1Compatibility": {}}]},
        {"history": [{"v1Compatibility": "x"}, {"v1Compatibility": "[]"}]},
        {"history": histories({"id": "1" * 64}, {"id": "0" * 64})},
        {"history": histories({"id": "1" * 64, "parent": "2" * 64}, {"id": "0" * 64})},
        {"history": histories({"id": "1", "parent": "0"}, {"id": "0"})},
        {
            "history": histories(
                {"id": "1" * 64, "parent": "0" * 64}, {"id": "0" * 64, "parent": "1" * 64}
            )
        },
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="a/b:1"):
        parse_old_manifest(encode(**changes), "a/b:1")


def test_a_chain_that_returns_to_itself_is_refused() -> None:
    entries = [
        {"id": "1" * 64, "parent": "0" * 64},
        {"id": "0" * 64, "parent": "1" * 64},
        {"id": "1" * 64},
    ]
    layers = [{"blobSum": SUMS[0]}] * 3
    with pytest.raises(IntegrityError, match="its own ancestor"):
        parse_old_manifest(encode(history=histories(*entries), fsLayers=layers), "x")


def test_the_signed_text_is_found_and_whole() -> None:
    payload = encode()
    assert payload_of(sign_old_manifest(payload), "x") == payload
    assert payload_of(payload, "x") == payload


@pytest.mark.parametrize(
    "signatures",
    [
        [],
        {},
        [7],
        [{}],
        [{"protected": "é"}],
        [{"protected": "*"}],
        [{"protected": header()}],
        [{"protected": header(formatLength=10**9, formatTail="")}],
        [{"protected": header(formatLength=-1, formatTail="")}],
        [{"protected": header(formatLength=True, formatTail="")}],
        [{"protected": header(formatLength=5)}],
        [
            {"protected": header(formatLength=5, formatTail="")},
            {"protected": header(formatLength=6, formatTail="")},
        ],
    ],
)
def test_signatures_that_are_none_are_refused(signatures: object) -> None:
    with pytest.raises(IntegrityError):
        payload_of(json.dumps(document(signatures=signatures)).encode(), "x")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(SUMS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(document())), VALUES), VALUES)
def test_any_document_is_an_image_or_one_of_our_errors(
    changes: dict[str, Any], signatures: object
) -> None:
    for text in (encode(**changes), encode(**changes, signatures=signatures)):
        try:
            parse_old_manifest(payload_of(text, "x"), "x")
        except PublishError:
            continue
