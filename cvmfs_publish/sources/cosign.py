"""Turn what `cosign` keeps beside an image into claims, and find the key that signed one.  Pure.

Two forms are in use.  *Simple signing* (cosign 1 and 2): a payload of JSON, and its signature in an
annotation.  A *bundle* (cosign 3): an envelope (DSSE) around an in-toto statement.
Sources: cosign `specs/SIGNATURE_SPEC.md`; `containers/image` "Atomic signature format"; DSSE
`protocol.md`; in-toto attestation framework v1; sigstore protobuf-specs, bundle v0.3.

Transparency log entries and certificates are not looked at: the key alone decides.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.public_keys import PublicKey

MAX_SIGNATURES = 20  # around one payload; cosign and Apptainer make one
SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
SIGNATURE_ANNOTATION = "dev.cosignproject.cosign/signature"
SIGNATURE_ARTEFACT = "application/vnd.dev.cosign.artifact.sig.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
IN_TOTO = "application/vnd.in-toto+json"
STATEMENTS = frozenset({"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"})
# What a statement says about its subject: "signed".  Others are SBOMs, provenance and the like,
# which the same key may have signed without wanting the image to run.
SIGNED = "https://sigstore.dev/cosign/sign/v1"


class ClaimError(Exception):
    """What was found beside an image is no signature of it; the next one may be."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What may be a signature: nothing in it is proven."""

    where: str  # for messages: the tag, or the digest of a referrer
    message: bytes  # what was signed
    signatures: tuple[bytes, ...]
    claim: bytes  # JSON in the form `kind`
    kind: str  # SIMPLE_SIGNING or IN_TOTO


@dataclass(frozen=True, slots=True)
class Claim:
    """What a signature is about."""

    digests: frozenset[str]
    name: str  # of the image when it was signed; "" where the form has no place for it
    annotations: Mapping[str, object] = field(default_factory=dict)


def parse_simple_signing(where: str, payload: bytes, signature: str) -> Candidate:
    """Raise `ClaimError` unless `signature` is base64."""
    return Candidate(where, payload, (_decode(signature),), payload, SIMPLE_SIGNING)


def parse_bundle(where: str, data: bytes) -> Candidate:
    """Raise `ClaimError` unless `data` is a bundle around a signed in-toto statement."""
    bundle = parse_object(data)
    envelope = bundle.get("dsseEnvelope")
    if bundle.get("mediaType") != BUNDLE or not isinstance(envelope, dict):
        raise ClaimError(f"not a bundle {BUNDLE} with a DSSE envelope")
    payload_type, message, signatures, payload = open_envelope(envelope)
    if payload_type != IN_TOTO:
        raise ClaimError(f"the envelope holds {payload_type[:100]!a}, not a statement")
    return Candidate(where, message, signatures, payload, IN_TOTO)


def open_envelope(envelope: Mapping[str, Any]) -> tuple[str, bytes, tuple[bytes, ...], bytes]:
    """Return type, signed bytes, signatures and payload of a DSSE envelope.

    DSSE, "Protocol": what is signed is PAE(type, payload), so that neither can be reinterpreted.
    """
    payload_type, signatures = envelope.get("payloadType"), envelope.get("signatures")
    if not isinstance(payload_type, str) or not isinstance(signatures, list):
        raise ClaimError("the envelope has no payloadType or no signatures")
    if len(signatures) > MAX_SIGNATURES:
        raise ClaimError(f"the envelope has {len(signatures)} signatures; at most {MAX_SIGNATURES}")
    payload = _decode(envelope.get("payload"))
    kind = payload_type.encode("utf-8", "replace")
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    found = [each.get("sig") if isinstance(each, dict) else None for each in signatures]
    return payload_type, message, tuple(map(_decode, found)), payload


def find_signer(candidate: Candidate, keys: Iterable[PublicKey]) -> PublicKey | None:
    """Return the key that signed; the claim may be read only if there is one."""
    for key in keys:
        if any(key.verifies(signature, candidate.message) for signature in candidate.signatures):
            return key
    return None


def read_claim(candidate: Candidate) -> Claim:
    """Return what a candidate is about; raise `ClaimError` for what is not about an image."""
    document = parse_object(candidate.claim)
    try:
        if candidate.kind == SIMPLE_SIGNING:
            return _simple_claim(document)
        return _statement_claim(document)
    except (KeyError, TypeError, AttributeError) as exc:
        raise ClaimError(f"the signed document is malformed ({type(exc).__name__})") from exc


def check_claim(
    claim: Claim,
    digest: Digest,
    reference: Reference,
    annotations: Mapping[str, str],
    *,
    same_name: bool,
) -> None:
    """Raise `ClaimError` unless a claim is about this image and says all that is wanted."""
    if str(digest) not in claim.digests:
        signed = ", ".join(sorted(claim.digests))[:300]
        raise ClaimError(f"signed is {signed or 'nothing'}, not {digest}")
    for name, value in annotations.items():
        if claim.annotations.get(name) != value:
            raise ClaimError(
                f"signed with {name}={claim.annotations.get(name)!a}, wanted is {value!r}"
            )
    if same_name and _repository(claim.name) != (reference.registry, reference.repository):
        wanted = f"{reference.registry}/{reference.repository}"
        raise ClaimError(f"signed as {claim.name[:300]!a}, not as {wanted}")


def _simple_claim(document: dict[str, Any]) -> Claim:
    critical, optional = document["critical"], document.get("optional")
    name = critical.get("identity", {}).get("docker-reference")
    return Claim(
        frozenset({str(critical["image"]["docker-manifest-digest"])}),
        name if isinstance(name, str) else "",
        optional if isinstance(optional, dict) else {},
    )


def _statement_claim(document: dict[str, Any]) -> Claim:
    if document.get("_type") not in STATEMENTS:
        raise ClaimError(f"the statement is of type {str(document.get('_type'))[:100]!a}")
    if document.get("predicateType") != SIGNED:
        what = str(document.get("predicateType"))[:100]
        raise ClaimError(f"the statement says {what!a} about the image, not {SIGNED}")
    (subject,) = _one(document["subject"])
    pairs = subject["digest"].items()
    annotations = subject.get("annotations")
    return Claim(
        frozenset(f"{algorithm}:{value}" for algorithm, value in pairs),
        "",
        annotations if isinstance(annotations, dict) else {},
    )


def _one(values: Any) -> list[Any]:  # noqa: ANN401 - JSON
    if not isinstance(values, list) or len(values) != 1:
        raise ClaimError("the statement is not about exactly one image")
    return values


def _repository(name: str) -> tuple[str, str] | None:
    try:
        reference = Reference.parse(name)
    except InputError:
        return None
    return reference.registry, reference.repository


def _decode(text: object) -> bytes:
    if not isinstance(text, str):
        raise ClaimError("there is no signature or payload where one belongs")
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error) as exc:
        raise ClaimError("signature or payload is not base64") from exc


def parse_object(data: bytes) -> dict[str, Any]:
    """Return a JSON object; raise `ClaimError` for anything else."""
    try:
        document = json.loads(data.decode())
    except (ValueError, RecursionError) as exc:
        raise ClaimError(f"not JSON ({type(exc).__name__})") from exc
    if not isinstance(document, dict):
        raise ClaimError("not a JSON object")
    return document
