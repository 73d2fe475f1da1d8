"""Signatures in SIF files that Apptainer would not write.  Its own are in tests/e2e."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pysequoia import SignatureMode, Tsk, sign

from cvmfs_publish.sources import sif_signature
from cvmfs_publish.sources.openpgp import KeyRing, parse_key_ring
from cvmfs_publish.sources.sif_format import (
    DATA_SIGNATURE,
    DESCRIPTOR,
    GROUP_MASK,
    HEADER,
    parse_sif,
)
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError, find_signers

GENERIC = 0x4006
LAUNCH = b"#!/usr/bin/env run-singularity\n"


@cache
def key() -> Tsk:
    return Tsk.generate("Test <test@example.org>")


def ring(secret: Tsk) -> KeyRing:
    return parse_key_ring(bytes(secret.extract_certificate()), Path("test.pgp"))


def clear_signed(text: bytes, secret: Tsk | None = None) -> bytes:
    return bytes(sign((secret or key()).signer(), text, mode=SignatureMode.CLEAR))


def descriptor(kind: int, number: int, group: int, link: int, offset: int, size: int) -> bytes:
    grouped = group | GROUP_MASK if group else 0
    return DESCRIPTOR.pack(
        *(kind, True, number, grouped, link, offset, size, size, 5, 5, 0, 0, b"name", b"extra")
    )


def header(count: int) -> bytes:
    size = count * DESCRIPTOR.size
    start = HEADER.size + size
    return HEADER.pack(
        *(LAUNCH, b"SIF_MAGIC", b"01", b"02", bytes(range(16)), 0, 0),
        *(0, count, HEADER.size, size, start, 0),
    )


def make_sif(*objects: tuple[int, int, int, bytes]) -> bytes:
    """Return a file of objects: kind, group, link, content."""
    offset = HEADER.size + len(objects) * DESCRIPTOR.size
    table, contents = b"", b""
    for number, (kind, group, link, content) in enumerate(objects, start=1):
        at = offset + len(contents)
        table += descriptor(kind, number, group, link, at, len(content))
        contents += content
    return header(len(objects)) + table + contents


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def claims(*contents: bytes, first: int = 1) -> dict[str, Any]:
    """Return what is to be signed for a group of objects."""
    covered = HEADER.unpack(header(1))
    objects = []
    for number, content in enumerate(contents):
        raw = descriptor(GENERIC, first + number, 1, 0, 0, len(content))
        # everything but group, offset, padded size and time of change; the number is relative
        head = raw[:5] + number.to_bytes(4, "little") + raw[13:17] + raw[25:33] + raw[41:49]
        objects.append(
            {
                "relativeId": number,
                "descriptorDigest": sha256(head + raw[57:]),
                "objectDigest": sha256(content),
            }
        )
    digest = sha256(covered[0] + covered[1] + covered[2] + covered[4])
    return {"version": 1, "header": {"digest": digest}, "objects": objects}


def signed(document: object, *contents: bytes, link: int = 1 | GROUP_MASK) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    parts = [(GENERIC, 1, 0, content) for content in contents]
    return make_sif(*parts, (DATA_SIGNATURE, 0, link, clear_signed(text)))


def signers(data: bytes, keys: SifKeys | None = None) -> tuple[str, ...]:
    def read(offset: int, size: int) -> bytes:
        return data[offset : offset + size]

    sif = parse_sif(read, len(data), "test")
    return find_signers(sif, read, keys or SifKeys(ring(key())))


def test_objects_that_are_signed_as_they_are_are_signed() -> None:
    data = signed(claims(b"one", b""), b"one", b"")
    assert signers(data) == ring(key()).fingerprints


Change = Callable[[dict[str, Any]], object]


def changed(**values: object) -> Change:
    return lambda document: document | values


def first(**values: object) -> Change:
    return lambda document: document | {"objects": [document["objects"][0] | values]}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (changed(version=2), "unknown version"),
        (changed(header={"digest": "sha256:" + "0" * 64}), "the header is not the one"),
        (changed(header={"digest": "md5:" + "0" * 32}), "is of none of sha256, sha384, sha512"),
        (changed(header={}), "malformed"),
        (changed(header=[]), "malformed"),
        (changed(objects=None), "malformed"),
        (changed(objects=[]), r"signed are the objects \[\]"),
        (changed(objects=[{}]), "malformed"),
        (lambda document: document | {"objects": document["objects"] * 2}, "names an object twice"),
        (first(relativeId=1), r"signed are the objects \[2\], there are \[1\]"),
        (first(relativeId="0"), "malformed"),
        (first(objectDigest="sha256:"), "object 1 is not what was signed"),
        (first(objectDigest=7), "is of none of"),
        (first(descriptorDigest="sha512:1"), "the description of object 1 is not"),
        (lambda _: b"SIFHASH:\n" + b"0" * 64, "of a former kind"),
        (lambda _: b"{", "not JSON"),
        (lambda _: b"[" * 100_000, "not JSON"),
        (lambda _: b"[]", "not a JSON object"),
    ],
)
def test_a_signed_text_that_is_about_something_else_is_no_proof(change: Change, what: str) -> None:
    with pytest.raises(UnsignedSifError, match=what):
        signers(signed(change(claims(b"one")), b"one"))


@pytest.mark.parametrize("link", [1, GROUP_MASK | 2, 0, GROUP_MASK])
def test_a_signature_for_something_else_than_the_group_is_none(link: int) -> None:
    with pytest.raises(UnsignedSifError, match="no signature is for the group of the objects 1"):
        signers(signed(claims(b"one"), b"one", link=link))


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"nonsense", b"{}", b'{"payloadType": "x", "payload": "", "signatures": []}'),
        b'{"payloadType": "application/vnd.sylabs.sif-metadata+json", "payload": "", '
        b'"signatures": []}',
    ],
)
def test_a_signature_that_is_none_is_passed_over(data: bytes) -> None:
    bad = (DATA_SIGNATURE, 0, 1 | GROUP_MASK, data)
    good = (DATA_SIGNATURE, 0, 1 | GROUP_MASK, clear_signed(json.dumps(claims(b"one")).encode()))
    part = (GENERIC, 1, 0, b"one")
    with pytest.raises(UnsignedSifError, match="signature 2: "):
        signers(make_sif(part, bad))
    assert signers(make_sif(part, bad, good))


def test_a_file_of_signatures_alone_is_not_signed() -> None:
    with pytest.raises(UnsignedSifError, match="nothing that could be signed"):
        signers(make_sif((DATA_SIGNATURE, 0, 1 | GROUP_MASK, b"x")))


def test_so_many_signatures_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sif_signature, "MAX_SIGNATURES", 2)
    bad = (DATA_SIGNATURE, 0, 1 | GROUP_MASK, b"x")
    with pytest.raises(UnsignedSifError, match="3 signatures; at most 2"):
        signers(make_sif((GENERIC, 1, 0, b"one"), bad, bad, bad))
    monkeypatch.setattr(sif_signature, "MAX_SIGNATURE_BYTES", 9)
    with pytest.raises(UnsignedSifError, match="9 are the most"):
        signers(signed(claims(b"one"), b"one"))


def test_text_around_a_clear_signed_message_does_not_count() -> None:
    """What is read is what was signed, not what stands in the object."""
    evil = json.dumps(claims(b"evil")).encode()
    message = clear_signed(json.dumps(claims(b"one")).encode())
    for data in (evil + b"\n" + message, message + evil, message.replace(b"\n\n", b"\n" + evil)):
        part = (DATA_SIGNATURE, 0, 1 | GROUP_MASK, data)
        with pytest.raises(UnsignedSifError):
            signers(make_sif((GENERIC, 1, 0, b"evil"), part))


def test_a_revoked_certificate_does_not_count() -> None:
    secret = Tsk.generate("Gone <gone@example.org>")
    certificate = secret.extract_certificate()
    revoked = certificate.revoke(secret.certifier())
    merged = certificate.merge(certificate.from_bytes(bytes(certificate) + bytes(revoked)))
    text = json.dumps(claims(b"one")).encode()
    part = (DATA_SIGNATURE, 0, 1 | GROUP_MASK, clear_signed(text, secret))
    data = make_sif((GENERIC, 1, 0, b"one"), part)
    path = Path("test.pgp")
    assert signers(data, SifKeys(parse_key_ring(bytes(certificate), path)))
    with pytest.raises(UnsignedSifError, match="none of the OpenPGP keys, or not good"):
        signers(data, SifKeys(parse_key_ring(bytes(merged), path)))
