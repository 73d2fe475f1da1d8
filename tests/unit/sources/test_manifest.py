"""Manifests and configs: what is accepted, and which lies are noticed."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.registry.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_SIZE,
    OCI_INDEX,
    OCI_MANIFEST,
    Config,
    Index,
    Manifest,
    NotAnImageError,
    describe_layers,
    parse_config,
    parse_manifest,
)

DIGEST = f"sha256:{'a' * 64}"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def descriptor(media_type: str, **changes: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 5, **changes}


def manifest(**changes: object) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG),
        "layers": [descriptor(OCI_LAYER)],
        **changes,
    }
    return {name: value for name, value in document.items() if value is not ...}


def index(**changes: object) -> dict[str, Any]:
    platform = {"os": "linux", "architecture": "arm", "variant": "v7"}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(OCI_MANIFEST, platform=platform)],
        **changes,
    }
    return {name: value for name, value in document.items() if value is not ...}


def parse(
    document: object, content_type: str = OCI_MANIFEST, promised: str = ""
) -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), content_type, "a/b:1", promised)


def test_an_oci_manifest_gives_config_and_layers() -> None:
    parsed = parse(manifest())
    assert isinstance(parsed, Manifest)
    assert str(parsed.config.digest) == DIGEST
    assert [layer.size for layer in parsed.layers] == [5]


def test_an_index_gives_entries_with_platforms() -> None:
    parsed = parse(index(), OCI_INDEX)
    assert isinstance(parsed, Index)
    assert parsed.entries[0].platform == Platform("linux", "arm", "v7")


def test_docker_types_are_accepted() -> None:
    layer = descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip")
    config = descriptor("application/vnd.docker.container.image.v1+json")
    document = manifest(mediaType=DOCKER_MANIFEST, config=config, layers=[layer])
    assert isinstance(parse(document, DOCKER_MANIFEST), Manifest)
    assert isinstance(parse(index(mediaType=DOCKER_INDEX), DOCKER_INDEX), Index)


@pytest.mark.parametrize(
    "layer",
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ],
)
def test_every_tar_layer_type_is_accepted(layer: str) -> None:
    assert isinstance(parse(manifest(layers=[descriptor(layer)])), Manifest)


@pytest.mark.parametrize("content_type", ["", "application/json", "text/plain; charset=utf-8"])
def test_a_server_that_knows_no_types_is_asked_no_more_than_the_body(content_type: str) -> None:
    assert isinstance(parse(manifest(), content_type), Manifest)
    assert isinstance(parse(manifest(mediaType=...), content_type), Manifest)
    assert isinstance(parse(index(), content_type), Index)
    assert isinstance(parse(index(mediaType=...), content_type), Index)


def test_a_content_type_with_parameters_is_understood() -> None:
    assert isinstance(parse(manifest(mediaType=...), f"{OCI_MANIFEST}; charset=utf-8"), Manifest)


@pytest.mark.parametrize(
    ("document", "content_type", "promised"),
    [
        (manifest(), OCI_INDEX, ""),
        (index(), OCI_MANIFEST, ""),
        (manifest(), DOCKER_MANIFEST, ""),
        (manifest(), OCI_MANIFEST, DOCKER_MANIFEST),
        (manifest(mediaType=...), OCI_MANIFEST, OCI_INDEX),
        (manifest(mediaType=...), OCI_INDEX, ""),
        (index(mediaType=...), OCI_MANIFEST, ""),
        (manifest(manifests=[]), OCI_MANIFEST, ""),
        (manifest(manifests=[]), "", ""),
        (manifest(manifests=[], mediaType=...), "", ""),
        (index(layers=[]), OCI_INDEX, ""),
        (index(config={}), OCI_INDEX, ""),
        (manifest(mediaType=5), OCI_MANIFEST, ""),
    ],
)
def test_nothing_is_an_index_to_one_reader_and_a_manifest_to_another(
    document: object, content_type: str, promised: str
) -> None:
    with pytest.raises(IntegrityError):
        parse(document, content_type, promised)


@pytest.mark.parametrize("size", [-1, -(2**63), MAX_SIZE + 1, 1.5, "5", None, True, [], 1e300])
def test_a_size_is_a_number_of_bytes(size: object) -> None:
    with pytest.raises(IntegrityError, match="size"):
        parse(manifest(layers=[descriptor(OCI_LAYER, size=size)]))


def test_a_repeated_name_is_refused_because_readers_differ() -> None:
    body = json.dumps(manifest()).encode().replace(b"{", b'{"layers": [], ', 1)
    with pytest.raises(IntegrityError, match="not valid JSON"):
        parse_manifest(body, OCI_MANIFEST, "a/b:1")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"null", b"[]", b"{", b"{}", b"\xff\xfe", b"[" * 100_000),
        *(b'{"schemaVersion": 1e999999}', b'{"schemaVersion": ' + b"9" * 5000 + b"}"),
    ],
)
def test_a_body_that_is_no_manifest_is_an_integrity_error(body: bytes) -> None:
    with pytest.raises(IntegrityError, match="a/b:1"):
        parse_manifest(body, OCI_MANIFEST, "a/b:1")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/json",
    ],
)
def test_docker_schema_1_is_refused_with_the_remedy(content_type: str) -> None:
    with pytest.raises(NotAnImageError, match="schema 1") as caught:
        parse({"schemaVersion": 1, "fsLayers": []}, content_type)
    assert "skopeo copy" in caught.value.hint


@pytest.mark.parametrize(
    "changes",
    [
        {"config": descriptor("application/vnd.cncf.helm.config.v1+json")},
        {"config": descriptor("application/vnd.oci.empty.v1+json"), "artifactType": "text/x"},
        {"config": descriptor("application/vnd.unknown.config.v1+json")},
        {"layers": [descriptor("application/vnd.sylabs.sif.layer.v1.sif")]},
        {"layers": [descriptor("application/vnd.dev.cosign.simplesigning.v1+json")]},
        {"layers": [descriptor(f"{OCI_LAYER}+encrypted")]},
        {"mediaType": "application/vnd.example+json"},
    ],
)
def test_artefacts_are_not_container_images(changes: dict[str, object]) -> None:
    with pytest.raises(NotAnImageError, match="a/b:1"):
        parse(manifest(**changes), "")


def test_a_web_page_is_the_fault_of_the_server_and_may_pass() -> None:
    with pytest.raises(RemoteError, match="web page"):
        parse_manifest(b"<html>", "text/html; charset=utf-8", "a/b:1")


def test_a_config_larger_than_any_real_one_is_refused_before_it_is_fetched() -> None:
    with pytest.raises(IntegrityError, match="limit"):
        parse(manifest(config=descriptor(OCI_CONFIG, size=9 << 20)))


def test_odd_platforms_of_an_index_never_reach_a_message() -> None:
    entries = [
        descriptor(OCI_MANIFEST, platform={"os": "linux", "architecture": "amd64\x1b[2J"}),
        descriptor(OCI_MANIFEST, platform={"os": 5}),
        descriptor(OCI_MANIFEST, platform="linux/amd64"),
    ]
    parsed = parse(index(manifests=entries), OCI_INDEX)
    assert isinstance(parsed, Index)
    assert [entry.platform for entry in parsed.entries] == [
        Platform("unknown", "unknown"),
        None,
        None,
    ]


def config(**changes: object) -> bytes:
    rootfs = {"type": "layers", "diff_ids": [DIGEST]}
    return json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": rootfs, **changes}
    ).encode()


def test_a_config_gives_platform_and_diff_ids() -> None:
    assert parse_config(config(), "a") == Config(Platform.default(), (Digest.parse(DIGEST),))


def test_a_config_may_have_no_layers_and_no_platform() -> None:
    body = config(architecture="", rootfs={"type": "layers", "diff_ids": None})
    assert parse_config(body, "a") == Config(None, ())


@pytest.mark.parametrize(
    "rootfs",
    [
        *(None, [], {}, {"type": "other"}, {"type": "layers", "diff_ids": {}}),
        *({"type": "layers", "diff_ids": ["sha256:1"]}, {"type": "layers", "diff_ids": [5]}),
    ],
)
def test_a_config_without_proper_diff_ids_is_refused(rootfs: object) -> None:
    with pytest.raises(IntegrityError):
        parse_config(config(rootfs=rootfs), "a")


def test_each_layer_has_one_diff_id_or_the_image_is_refused() -> None:
    parsed = parse(manifest(layers=[descriptor(OCI_LAYER), descriptor(OCI_LAYER)]))
    assert isinstance(parsed, Manifest)
    with pytest.raises(IntegrityError, match="2 layers, the config 1 diff ids"):
        describe_layers(parsed, parse_config(config(), "a"), "a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=10,
)
FIELDS = st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "rootfs"])


@given(st.dictionaries(FIELDS, JSON, max_size=4), st.sampled_from(["", OCI_MANIFEST, OCI_INDEX]))
def test_any_document_is_a_manifest_or_one_of_our_errors(
    changes: dict[str, object], content_type: str
) -> None:
    for document in (manifest(**changes), index(**changes)):
        with contextlib.suppress(PublishError):
            parse(document, content_type)
    with contextlib.suppress(PublishError):
        parse_config(config(**changes), "a")
