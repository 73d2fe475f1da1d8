"""Turn the signed text `.cvmfspublished` into a `Manifest` and back.

Source: facts/cvmfs-format.md section 2.1 (manifest.cc, manifest_fetch.cc, crypto/signature.cc).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.repository.native.signing import (
    join_signed,
    sign_text,
    split_signed,
    verify_text,
)

FILE_NAME = ".cvmfspublished"
MAX_BYTES = 4095  # local loaders of stock programs read no more
ROOT_PATH_HASH = "d41d8cd98f00b204e9800998ecf8427e"  # MD5 of the empty path; clients insist on it
DEFAULT_TTL = 240  # seconds between two looks of a client for a new revision; what stock writes
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a repository publishes at one moment.  Fields as in section 2.1, by their letters."""

    name: str  # N: fully qualified repository name
    root_hash: ContentHash  # C: root catalog
    revision: int  # S: equals property `revision` of the root catalog
    timestamp: int  # T: Unix seconds of signing; 0 means absent
    certificate: ContentHash | None  # X
    root_size: int = 0  # B: bytes of the uncompressed root catalog; 0 means unknown
    history: ContentHash | None = None  # H
    metainfo: ContentHash | None = None  # M
    reflog: ContentHash | None = None  # Y: hash of the raw bytes of .cvmfsreflog
    ttl: int = DEFAULT_TTL  # D: seconds
    garbage_collectable: bool = False  # G
    alternative_paths: bool = False  # A
    root_path_hash: str = ROOT_PATH_HASH  # R
    unknown: tuple[tuple[str, str], ...] = ()  # other letters and their values, kept as they are


def split_fields(payload: bytes) -> list[tuple[str, str]]:
    """Return letter and value of every line, in order, repeated letters included."""
    text = payload.decode("utf-8", "surrogateescape")
    return [(line[0], line[1:]) for line in text.split("\n") if line]


def parse_manifest(data: bytes) -> tuple[Manifest, bytes, bytes]:
    """Return the manifest, the hash text that was signed, and the signature, unverified.

    Raises:
        IntegrityError: the file is too large, has no signature block, lacks a required field or
            has a malformed one.
    """
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"manifest has {len(data)} bytes, more than {MAX_BYTES}")
    signed = split_signed(data, "manifest")
    pairs = split_fields(signed.payload)
    fields = dict(pairs)  # the last of repeated letters wins, as in stock parsers
    for letter in "CRDS":
        if letter not in fields:
            raise IntegrityError(f"manifest has no field {letter}")
    manifest = Manifest(
        name=fields.get("N", ""),
        root_hash=_hash("C", fields["C"]),
        revision=_number(fields, "S"),
        timestamp=_number(fields, "T"),
        certificate=_optional_hash(fields, "X"),
        root_size=_number(fields, "B"),
        history=_optional_hash(fields, "H"),
        metainfo=_optional_hash(fields, "M"),
        reflog=_optional_hash(fields, "Y"),
        ttl=_number(fields, "D"),
        garbage_collectable=fields.get("G") == "yes",
        alternative_paths=fields.get("A") == "yes",
        root_path_hash=fields["R"],
        unknown=tuple((k, v) for k, v in fields.items() if k not in "CBRDSGANXHTMY"),
    )
    return manifest, signed.hash_text, signed.signature


def _number(fields: Mapping[str, str], letter: str) -> int:
    text = fields.get(letter, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= _MAX_NUMBER):
        raise IntegrityError(f"manifest field {letter} is {text!r}, not a number")
    return int(text)


def _optional_hash(fields: Mapping[str, str], letter: str) -> ContentHash | None:
    return _hash(letter, fields[letter]) if letter in fields else None


def _hash(letter: str, text: str) -> ContentHash:
    try:
        return ContentHash.parse(text)
    except IntegrityError as error:
        raise IntegrityError(f"manifest field {letter}: {error}") from error


def format_manifest(manifest: Manifest) -> bytes:
    """Return the text that is hashed and signed: the fields in the order stock writes them."""
    pairs: list[tuple[str, object]] = [
        ("C", manifest.root_hash),
        ("B", manifest.root_size),
        ("R", manifest.root_path_hash),
        ("D", manifest.ttl),
        ("S", manifest.revision),
        ("G", "yes" if manifest.garbage_collectable else "no"),
        ("A", "yes" if manifest.alternative_paths else "no"),
        ("N", manifest.name),
        ("X", manifest.certificate),
        ("H", manifest.history),
        ("T", manifest.timestamp),
        ("M", manifest.metainfo),
        ("Y", manifest.reflog),
        *manifest.unknown,
    ]
    lines = [f"{letter}{value}" for letter, value in pairs if value is not None]
    for line in lines:
        if "\n" in line:
            raise IntegrityError(f"manifest field {line[0]} contains a line break: {line!r}")
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")


def sign_manifest(manifest: Manifest, key: rsa.RSAPrivateKey) -> bytes:
    """Return the file `.cvmfspublished`, verified by reading it back.

    Raises:
        IntegrityError: the manifest is too large or would not be read back as it is.
    """
    payload = format_manifest(manifest)
    hash_text = str(ContentHash.of(payload, manifest.root_hash.algorithm)).encode()
    data = join_signed(payload, hash_text, sign_text(hash_text, key))
    if parse_manifest(data)[0] != manifest:
        raise IntegrityError(f"manifest of {manifest.name!r} does not survive being written")
    return data


def verify_manifest(data: bytes, certificate: x509.Certificate) -> Manifest:
    """Return the manifest if the certificate's key signed it.

    Raises:
        IntegrityError: it cannot be parsed.
        SignatureError: its hash line or its signature is wrong.
    """
    manifest, hash_text, signature = parse_manifest(data)
    split_signed(data, "manifest").check_hash("manifest")
    verify_text(hash_text, signature, certificate)
    return manifest
