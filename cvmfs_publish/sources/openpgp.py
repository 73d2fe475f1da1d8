"""Verify OpenPGP messages against a ring of certificates: the one door to Sequoia (`pysequoia`).

Sequoia decides what is a good signature: made by a certificate that was valid at that time, not
revoked, with algorithms that are not broken.  No exception of it gets out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pysequoia import Cert, verify

from cvmfs_publish.errors import InputError

_SECRET = b"-----BEGIN PGP PRIVATE KEY BLOCK-----"
# RFC 9580, section 4.2: the first byte of a secret key (packet 5), in the present and former format
_SECRET_PACKETS = (b"\xc5", b"\x94", b"\x95", b"\x96", b"\x97")


@dataclass(frozen=True, slots=True)
class KeyRing:
    """Certificates of which each one may sign."""

    fingerprints: tuple[str, ...] = ()  # of their primary keys, hexadecimal, upper case
    _certificates: tuple[Cert, ...] = field(default=(), repr=False, compare=False)

    def merged(self, other: KeyRing) -> KeyRing:
        """Return the certificates of both."""
        known = dict(zip(self.fingerprints, self._certificates, strict=True))
        known |= dict(zip(other.fingerprints, other._certificates, strict=True))
        return KeyRing(tuple(known), tuple(known.values()))


@dataclass(frozen=True, slots=True)
class Signed:
    """A message that a certificate of the ring has signed."""

    text: bytes  # exactly what is signed
    fingerprint: str


def is_openpgp_text(data: bytes) -> bool:
    """Whether this is a clear-signed message: text between lines of OpenPGP's."""
    return data.lstrip().startswith(b"-----BEGIN PGP SIGNED MESSAGE-----")


def parse_key_ring(data: bytes, path: Path) -> KeyRing:
    """Return the certificates in a file, armoured or not, at least one.

    Raises `InputError` naming `path` for anything else, secret keys included.
    """
    try:
        certificates: Sequence[Cert] = Cert.split_bytes(data)
    except RuntimeError as error:
        raise InputError(
            f"public key {path}: cannot be understood: {_first_line(error)}",
            hint="`apptainer key export --armor 0 FILE` or `gpg --export` write such a file",
        ) from error
    if not certificates:
        raise InputError(
            f"public key {path}: holds neither an OpenPGP certificate nor a PEM block PUBLIC KEY"
        )
    if _SECRET in data or data[:1] in _SECRET_PACKETS:
        raise InputError(
            f"public key {path}: holds a secret key",
            hint="give the public one, and keep the secret one elsewhere",
        )
    known = {each.fingerprint.upper(): each for each in certificates}
    return KeyRing(tuple(known), tuple(known.values()))


def open_message(data: bytes, ring: KeyRing) -> Signed | None:
    """Return what is signed in a message, if one of the ring's certificates signed it."""
    if not ring.fingerprints:
        return None
    try:
        found = verify(data, lambda _: list(ring._certificates))
    except RuntimeError:
        return None
    signers = {each.certificate.upper() for each in found.valid_sigs}
    known = sorted(signers.intersection(ring.fingerprints))
    if found.bytes is None or not known:
        return None
    return Signed(bytes(found.bytes), known[0])


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].strip()
