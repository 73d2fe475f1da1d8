"""Turn PEM files into public keys, and say whether one of them made a signature.

The keys are those that `cosign` and `apptainer sign --key` use: ECDSA on the NIST curves, RSA with
either padding, Ed25519.  cosign signs with Ed25519ph (RFC 8032, section 5.1: the hash is signed),
which `cryptography` does not have and libsodium does; others sign with plain Ed25519.  This is the
sources' door to both libraries; no exception of theirs gets out.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from nacl.bindings import (
    crypto_sign_ed25519ph_final_verify,
    crypto_sign_ed25519ph_state,
    crypto_sign_ed25519ph_update,
)
from nacl.exceptions import CryptoError

from cvmfs_publish.errors import InputError

MAX_KEY_FILE = 1 << 20  # bytes; a key has less than one thousand
MIN_RSA_BITS = 2048  # NIST SP 800-131A: fewer are not acceptable
PEM_START = b"-----BEGIN PUBLIC KEY-----"

_BLOCK = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)
# What signers are configured with; SHA-256 is the default of every key type
_HASHES = (hashes.SHA256(), hashes.SHA384(), hashes.SHA512())
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_Key: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One public key.  `fingerprint` is `sha256:` over its DER form (SubjectPublicKeyInfo)."""

    fingerprint: str
    _key: _Key = field(repr=False, compare=False)

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether this key made `signature` for `data`, with any hash that is good enough."""
        return any(_holds(attempt) for attempt in _attempts(self._key, signature, data))


def read_key_file(path: Path) -> bytes:
    """Return the bytes of a file of keys; raise `InputError` if there is none of its size."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
    except OSError as exc:
        raise InputError(
            f"public key {path}: cannot be read: {exc.strerror or exc}",
            hint="correct the path in `trust`; nothing is published while a key is missing",
        ) from exc
    if len(data) > MAX_KEY_FILE:
        raise InputError(f"public key {path}: larger than {MAX_KEY_FILE} bytes; not a file of keys")
    return data


def parse_public_keys(data: bytes, path: Path) -> tuple[PublicKey, ...]:
    """Return the keys in a PEM file, at least one; raise `InputError` naming `path`."""
    blocks = _BLOCK.findall(data)
    if not blocks:
        private = b"PRIVATE KEY-----" in data
        raise InputError(
            f"public key {path}: holds no PEM block PUBLIC KEY"
            + (", but a private key" if private else ""),
            hint="`cosign public-key --key cosign.key` writes the public key of a private one; keep"
            " the private one elsewhere"
            if private
            else "`cosign generate-key-pair` writes cosign.pub",
        )
    return tuple(_parse(block, path) for block in blocks)


def _parse(block: bytes, path: Path) -> PublicKey:
    try:
        key = serialization.load_pem_public_key(block)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise InputError(f"public key {path}: cannot be understood: {exc}") from exc
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < MIN_RSA_BITS:
            raise InputError(
                f"public key {path}: RSA of {key.key_size} bits, {MIN_RSA_BITS} are the least"
            )
    elif isinstance(key, ec.EllipticCurvePublicKey):
        if key.curve.name not in _CURVES:
            raise InputError(
                f"public key {path}: on the curve {key.curve.name}; known are {', '.join(_CURVES)}"
            )
    elif not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(
            f"public key {path}: of the type {type(key).__name__}; known are ECDSA, RSA, Ed25519"
        )
    der = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return PublicKey(f"sha256:{hashlib.sha256(der).hexdigest()}", key)


def _attempts(key: _Key, signature: bytes, data: bytes) -> Iterable[Callable[[], object]]:
    """Yield every way in which the signature may have been made; each raises if it was not."""
    if isinstance(key, ed25519.Ed25519PublicKey):
        yield partial(key.verify, signature, data)
        yield partial(_verify_ed25519ph, key.public_bytes_raw(), signature, data)
        return
    for algorithm in _HASHES:
        if isinstance(key, ec.EllipticCurvePublicKey):
            yield partial(key.verify, signature, data, ec.ECDSA(algorithm))
            continue
        pss = padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO)
        for pad in (padding.PKCS1v15(), pss):
            yield partial(key.verify, signature, data, pad, algorithm)


def _verify_ed25519ph(key: bytes, signature: bytes, data: bytes) -> None:
    state = crypto_sign_ed25519ph_state()
    crypto_sign_ed25519ph_update(state, data)
    crypto_sign_ed25519ph_final_verify(state, signature, key)


def _holds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except (InvalidSignature, ValueError, CryptoError):
        return False
    return True
