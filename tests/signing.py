"""Sign images in a fake registry: as cosign's specification says, or with what it wrote itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from cvmfs_publish.digest import Digest
from cvmfs_publish.sources import cosign
from cvmfs_publish.sources.public_keys import PublicKey, parse_public_keys
from tests.fakes.registry import TYPES, FakeRegistry

VECTORS = Path(__file__).parent / "golden" / "cosign" / "vectors.json"
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@cache
def vectors() -> Any:  # noqa: ANN401 - JSON
    """What real cosign wrote; see the README beside it."""
    return json.loads(VECTORS.read_text("ascii"))


def load_vector(registry: FakeRegistry, repository: str) -> Digest:
    """Put a signed image of the vectors into a registry; return the digest of the image."""
    found = vectors()["repositories"][repository]
    for digest, (media_type, text) in found["manifests"].items():
        registry.manifests[repository, digest] = (media_type, text.encode())
    registry.tags[repository] = dict(found["tags"])
    registry.blobs |= {name: base64.b64decode(data) for name, data in found["blobs"].items()}
    return Digest.parse(found["tags"]["1"])


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: PrivateKey) -> bytes:
    """Return the public key as a PEM file."""
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def public(*keys: PrivateKey) -> tuple[PublicKey, ...]:
    return tuple(one for key in keys for one in parse_public_keys(pem(key), Path("test.pub")))


def sign_bytes(key: PrivateKey, data: bytes, *, pss: bool = False) -> bytes:
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    if pss:
        salted = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)
        return key.sign(data, salted, hashes.SHA256())
    return key.sign(data, padding.PKCS1v15(), hashes.SHA256())


def simple_payload(
    digest: Digest | str,
    name: str = "example.org/a/b",
    annotations: Mapping[str, str] | None = None,
) -> bytes:
    return json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": str(digest)},
                "type": "cosign container image signature",
            },
            "optional": dict(annotations) if annotations else None,
        }
    ).encode()


def sign_by_tag(
    registry: FakeRegistry,
    repository: str,
    digest: Digest,
    *signed: tuple[bytes, bytes],
) -> None:
    """Put payloads with their signatures under the tag of an image, in place of any before."""
    layers = []
    for payload, signature in signed:
        text = base64.b64encode(signature).decode()
        described = registry.add_blob(payload, cosign.SIMPLE_SIGNING)
        layers.append({**described, "annotations": {cosign.SIGNATURE_ANNOTATION: text}})
    manifest = {
        "schemaVersion": 2,
        "mediaType": TYPES["oci"]["manifest"],
        "config": registry.add_blob(b"{}", TYPES["oci"]["config"]),
        "layers": layers,
    }
    tag = f"{digest.algorithm}-{digest.hex}.sig"
    registry.add_manifest(repository, manifest, TYPES["oci"]["manifest"], tag=tag)


def sign(
    registry: FakeRegistry,
    repository: str,
    digest: Digest,
    key: PrivateKey,
    *,
    name: str = "example.org/a/b",
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Sign as `cosign sign --key` of cosign 2 does."""
    payload = simple_payload(digest, name, annotations)
    sign_by_tag(registry, repository, digest, (payload, sign_bytes(key, payload)))


def statement(digest: Digest, **changes: object) -> dict[str, Any]:
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {digest.algorithm: digest.hex}}],
        "predicateType": cosign.SIGNED,
        "predicate": {},
    } | changes


def bundle(key: PrivateKey, document: object, payload_type: str = cosign.IN_TOTO) -> bytes:
    """Return a bundle as cosign 3 writes it."""
    payload = json.dumps(document).encode()
    kind = payload_type.encode()
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signature = base64.b64encode(sign_bytes(key, message)).decode()
    return json.dumps(
        {
            "mediaType": cosign.BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": ""}},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": payload_type,
                "signatures": [{"sig": signature}],
            },
        }
    ).encode()


def refer(
    registry: FakeRegistry, repository: str, subject: Digest, data: bytes, kind: str = cosign.BUNDLE
) -> Digest:
    """Store an artefact that refers to an image."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": TYPES["oci"]["manifest"],
        "artifactType": kind,
        "config": registry.add_blob(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [registry.add_blob(data, kind)],
        "subject": {"mediaType": TYPES["oci"]["manifest"], "digest": str(subject), "size": 2},
    }
    return registry.add_manifest(repository, manifest, TYPES["oci"]["manifest"])
