"""Say who signed a SIF file, if somebody signed all of it.

A signature is an object of the file, for one group of objects.  Its message is JSON with digests of
the header, of every object's descriptor and of every object; it is signed with OpenPGP (clear text)
or, by `apptainer sign --key`, in an envelope (DSSE).  What the former kind of signatures (SIFHASH)
covers leaves out header and descriptors, so they do not count.
Sources: `pkg/integrity` of sylabs/sif, version 2; its golden files for the fields that are covered.

Stricter than `apptainer verify`: nothing in the file may be without a group, and every group needs
a signature by one of the given keys for exactly the objects in it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cvmfs_publish.sources.cosign import ClaimError, open_envelope, parse_object
from cvmfs_publish.sources.openpgp import KeyRing, is_openpgp_text, open_message
from cvmfs_publish.sources.public_keys import PublicKey
from cvmfs_publish.sources.sif_format import (
    DATA_SIGNATURE,
    DESCRIPTOR,
    GROUP_MASK,
    HEADER,
    ReadAt,
    Sif,
    SifObject,
)

METADATA = "application/vnd.sylabs.sif-metadata+json"
MAX_SIGNATURES = 100  # in one file
MAX_SIGNATURE_BYTES = 1 << 20  # of one; 4096 objects need 900 kB
PIECE = 1 << 20  # bytes read at a time
# The specification allows sha224 as well, and truncated sha512; Apptainer writes sha256.
_HASHES = ("sha256", "sha384", "sha512")
# What of a descriptor is covered: all but places and times that change when objects are moved
_COVERED = struct.Struct("<i?2I4q128s384s")


class UnsignedSifError(Exception):
    """The file, or a part of it, is not signed by any of the keys; the text says which and why."""


@dataclass(frozen=True, slots=True)
class SifKeys:
    """Keys of which any may have signed."""

    ring: KeyRing = field(default_factory=KeyRing)
    pem: tuple[PublicKey, ...] = ()

    @property
    def fingerprints(self) -> tuple[str, ...]:
        return (*self.ring.fingerprints, *(key.fingerprint for key in self.pem))


def find_signers(sif: Sif, read: ReadAt, keys: SifKeys) -> tuple[str, ...]:
    """Return the fingerprints of those who signed, one for each group of objects, each once.

    Every byte of every object is read.  Raises `UnsignedSifError`.
    """
    signatures = sif.of_kind(DATA_SIGNATURE)
    objects = [each for each in sif.objects if each.kind != DATA_SIGNATURE]
    groups = sorted({each.group for each in objects})
    if not objects:
        raise UnsignedSifError("it holds nothing that could be signed")
    if not signatures:
        raise UnsignedSifError("it has no signature")
    if groups[0] == 0:
        loose = next(each for each in objects if each.group == 0)
        raise UnsignedSifError(f"object {loose.id} is in no group, so nobody can have signed it")
    if len(signatures) > MAX_SIGNATURES:
        raise UnsignedSifError(f"it has {len(signatures)} signatures; at most {MAX_SIGNATURES}")
    digests = _Digests(read)
    found = dict.fromkeys(
        _signer_of(group, sif, objects, signatures, read, keys, digests) for group in groups
    )
    return tuple(found)


def _signer_of(
    group: int,
    sif: Sif,
    objects: Sequence[SifObject],
    signatures: Sequence[SifObject],
    read: ReadAt,
    keys: SifKeys,
    digests: _Digests,
) -> str:
    """Return who signed all objects of a group."""
    reasons: list[str] = []
    members = [each for each in objects if each.group == group]
    for signature in signatures:
        if signature.link != group | GROUP_MASK:
            continue
        try:
            text, signer = _open(signature, read, keys)
            _check(text, sif, members, digests)
        except ClaimError as error:
            reasons.append(f"signature {signature.id}: {error}")
        else:
            return signer
    if not reasons:
        numbers = ", ".join(str(each.id) for each in members[:10])
        raise UnsignedSifError(f"no signature is for the group of the objects {numbers}")
    raise UnsignedSifError("; ".join(reasons[:5]))


def _open(signature: SifObject, read: ReadAt, keys: SifKeys) -> tuple[bytes, str]:
    """Return the message of a signature, and who signed it."""
    if signature.size > MAX_SIGNATURE_BYTES:
        raise ClaimError(f"has {signature.size} bytes, {MAX_SIGNATURE_BYTES} are the most")
    data = read(signature.offset, signature.size).rstrip(b"\0")
    if is_openpgp_text(data):
        signed = open_message(data, keys.ring)
        if signed is None:
            raise ClaimError("is of none of the OpenPGP keys, or not good")
        return signed.text, signed.fingerprint
    payload_type, message, marks, payload = open_envelope(parse_object(data))
    if payload_type != METADATA:
        raise ClaimError(f"is for {payload_type[:100]!a}, not for {METADATA}")
    for key in keys.pem:
        if any(key.verifies(mark, message) for mark in marks):
            return payload, key.fingerprint
    raise ClaimError("is of none of the PEM keys, or not good")


def _check(text: bytes, sif: Sif, members: Sequence[SifObject], digests: _Digests) -> None:
    """Raise `ClaimError` unless a signed text is about exactly these objects as they are."""
    if text.startswith(b"SIFHASH:"):
        raise ClaimError("is of a former kind, which covers contents only; sign the file again")
    document = parse_object(text)
    try:
        version, header = document["version"], document["header"]["digest"]
        claims = {each["relativeId"]: each for each in document["objects"]}
        if version != 1 or len(claims) != len(document["objects"]):
            raise ClaimError("is of an unknown version, or names an object twice")
        if not _is(header, _covered_header(sif)):
            raise ClaimError("the header is not the one that was signed")
        first = min(each.id for each in members)
        signed, present = {first + number for number in claims}, {each.id for each in members}
        if signed != present:
            raise ClaimError(
                f"signed are the objects {sorted(signed)[:20]}, there are {sorted(present)[:20]}"
            )
        for each in members:
            claim = claims[each.id - first]
            if not _is(claim["descriptorDigest"], _covered_descriptor(each, first)):
                raise ClaimError(f"the description of object {each.id} is not what was signed")
            algorithm, expected = _split(claim["objectDigest"])
            if digests.of(each, algorithm) != expected:
                raise ClaimError(f"object {each.id} is not what was signed")
    except (KeyError, TypeError, AttributeError) as error:
        raise ClaimError(f"the signed text is malformed ({type(error).__name__})") from error


class _Digests:
    """Digests of objects, each computed once: a file may have many signatures."""

    def __init__(self, read: ReadAt) -> None:
        self._read = read
        self._known: dict[tuple[int, str], str] = {}

    def of(self, each: SifObject, algorithm: str) -> str:
        if (each.id, algorithm) not in self._known:
            hasher = hashlib.new(algorithm)
            for piece in _pieces(self._read, each):
                hasher.update(piece)
            self._known[each.id, algorithm] = hasher.hexdigest()
        return self._known[each.id, algorithm]


def _pieces(read: ReadAt, each: SifObject) -> Iterator[bytes]:
    done = 0
    while done < each.size:
        piece = read(each.offset + done, min(PIECE, each.size - done))
        if not piece:
            raise ClaimError(f"object {each.id} ends after {done} of {each.size} bytes")
        done += len(piece)
        yield piece


def _covered_header(sif: Sif) -> bytes:
    launch, magic, version, _, identity = HEADER.unpack(sif.header)[:5]
    return bytes(launch + magic + version + identity)


def _covered_descriptor(each: SifObject, first: int) -> bytes:
    kind, used, number, _, link, _, size, _, created, _, uid, gid, name, extra = DESCRIPTOR.unpack(
        each.raw
    )
    return _COVERED.pack(kind, used, number - first, link, size, created, uid, gid, name, extra)


def _is(claim: object, data: bytes) -> bool:
    algorithm, expected = _split(claim)
    return hashlib.new(algorithm, data).hexdigest() == expected


def _split(claim: object) -> tuple[str, str]:
    algorithm, _, value = str(claim).partition(":")
    if algorithm not in _HASHES:
        raise ClaimError(f"the digest {str(claim)[:100]!a} is of none of {', '.join(_HASHES)}")
    return algorithm, value
