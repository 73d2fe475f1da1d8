"""The source against Debian's registry, with images that skopeo pushed."""

from __future__ import annotations

import json
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import AccessDeniedError, ImageNotFoundError, Platform
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from tests import parts
from tests.fakes.registry import TYPES, pack, tar_of

pytestmark = pytest.mark.parts


def go_tar(name: str, data: bytes) -> bytes:
    """Return an archive as Go writes it: two empty blocks at its end, not a whole record.

    Of a record's padding, skopeo 1.9 leaves some out when it makes zstd:chunked, and lets the
    configuration promise the digest of the archive with it.
    """
    end = 512 + -(-len(data) // 512) * 512
    return tar_of({name: data})[: end + 1024]


TARS = [go_tar("a", b"1" * 100_000), go_tar("b", b"2")]


def write_layout(root: Path, compress: str = "gzip") -> Digest:
    """Write an OCI image layout, as builders leave it; return the digest of its manifest."""
    types = TYPES["oci"]

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = Digest.of(data)
        path = root / "blobs" / digest.algorithm / digest.hex
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"mediaType": media_type, "digest": str(digest), "size": len(data)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(tar)) for tar in TARS]},
        "history": [{"created_by": "a"}, {"created_by": "b"}, {"empty_layer": True}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": types["manifest"],
        "config": put(json.dumps(config).encode(), types["config"]),
        "layers": [put(pack(tar, compress), types[compress]) for tar in TARS],
    }
    entry = put(json.dumps(manifest).encode(), types["manifest"])
    index = {"schemaVersion": 2, "manifests": [entry]}
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}', "utf-8")
    (root / "index.json").write_text(json.dumps(index), "utf-8")
    return Digest.parse(str(entry["digest"]))


def push(layout: Path, server: parts.RegistryServer, name: str, form: str = "oci") -> None:
    skopeo = parts.require("skopeo")
    login = [f"--dest-creds={server.username}:{server.password}"] if server.username else []
    source, target = f"oci:{layout}", f"docker://{server.host}/{name}"
    words = [str(skopeo), "copy", "--format", form, "--dest-tls-verify=false", *login]
    parts.run([*words, source, target])


@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_an_image_pushed_by_skopeo_is_resolved_and_read(
    registry: parts.RegistryServer, tmp_path: Path, form: str
) -> None:
    digest = write_layout(tmp_path)
    name = f"sources/{form}:1"
    push(tmp_path, registry, name, form)
    reference = Reference.parse(f"{registry.host}/{name}")
    with RegistryClient() as client:
        source = RegistrySource(client)
        head = source.head(reference)
        assert dict(client.requests_made) == {"HEAD": 1}
        image = source.resolve(reference, Platform.default(), head)
        assert image.digest == head == Digest.of(image.manifest)
        if form == "oci":
            assert head == digest
        assert [layer.diff_id for layer in image.layers] == [Digest.of(tar) for tar in TARS]
        for layer, tar in zip(image.layers, TARS, strict=True):
            with source.open_layer(reference, layer) as stream:
                assert b"".join(iter(partial(stream.read, 9999), b"")) == pack(tar, "gzip")
        assert dict(client.requests_made) == {"HEAD": 1, "GET": 4}


def test_the_real_registry_continues_a_blob_where_it_is_asked_to(
    registry: parts.RegistryServer, tmp_path: Path
) -> None:
    write_layout(tmp_path)
    push(tmp_path, registry, "sources/range:1")
    reference = Reference.parse(f"{registry.host}/sources/range:1")
    with RegistryClient() as client:
        image = RegistrySource(client).resolve(reference, Platform.default())
        layer = image.layers[0]
        path, headers = f"blobs/{layer.digest}", {"Range": "bytes=100-"}
        with client.open("GET", reference, path, headers) as reply:
            assert reply.status == 206
            assert reply.header("Content-Range") == f"bytes 100-{layer.size - 1}/{layer.size}"


def test_what_the_real_registry_lacks_is_not_found(registry: parts.RegistryServer) -> None:
    reference = Reference.parse(f"{registry.host}/sources/absent:1")
    with RegistryClient() as client:
        with pytest.raises(ImageNotFoundError):
            RegistrySource(client).head(reference)
        with pytest.raises(ImageNotFoundError) as caught:
            RegistrySource(client).resolve(reference, Platform.default())
    assert caught.value.code == "MANIFEST_UNKNOWN"


def test_the_real_registry_opens_to_its_password_only(
    registry_with_password: parts.RegistryServer, tmp_path: Path
) -> None:
    server = registry_with_password
    digest = write_layout(tmp_path)
    push(tmp_path, server, "sources/private:1")
    reference = Reference.parse(f"{server.host}/sources/private:1")
    right = Credential(server.username, server.password)
    with RegistryClient(credentials={server.host: right}) as client:
        assert RegistrySource(client).head(reference) == digest
    wrong = {server.host: Credential(server.username, "wrong")}
    for credentials, who in ((wrong, f"user {server.username!r}"), ({}, "without credentials")):
        with (
            RegistryClient(credentials=credentials, read_timeout=timedelta(seconds=10)) as client,
            pytest.raises(AccessDeniedError, match=who),
        ):
            RegistrySource(client).head(reference)
