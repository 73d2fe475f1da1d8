"""Name stored objects as CernVM-FS does: content hash, algorithm suffix, kind suffix, path.

Source: facts/cvmfs-format.md sections 1.1 to 1.3 (cvmfs/crypto/hash.h).
"""

from __future__ import annotations

import hashlib
import re
from enum import Enum
from typing import NamedTuple

from cvmfs_publish.errors import IntegrityError

DIGEST_BYTES = 20  # every content hash algorithm is cut to 160 bits


class HashAlgorithm(Enum):
    """A content hash algorithm; the value is its name in configuration files."""

    SHA1 = "sha1"
    RMD160 = "rmd160"
    SHAKE128 = "shake128"

    def __init__(self, name: str) -> None:
        # Attributes, not properties: both are looked up for every file.
        self.suffix = "" if name == "sha1" else f"-{name}"  # follows the hex digits
        # Bits 8-10 of a catalog row's flags: algorithm id - 1 (section 3.6).
        self.flags = {"sha1": 0, "rmd160": 0x100, "shake128": 0x200}[name]

    def digest(self, data: bytes | memoryview) -> bytes:
        """Return the 20 raw bytes that identify `data`."""
        if self is HashAlgorithm.SHA1:
            return hashlib.sha1(data, usedforsecurity=False).digest()
        if self is HashAlgorithm.SHAKE128:
            return hashlib.shake_128(data).digest(DIGEST_BYTES)
        return hashlib.new("ripemd160", data, usedforsecurity=False).digest()


class Suffix(Enum):
    """The kind of an object: the last letter of its file name, never part of its hash."""

    DATA = ""
    CHUNK = "P"
    CATALOG = "C"
    HISTORY = "H"
    CERTIFICATE = "X"
    METAINFO = "M"


_TEXT = re.compile(r"([0-9a-f]{40})(?:-(rmd160|shake128))?")


class ContentHash(NamedTuple):
    """Identity of a stored object: the hash of its stored (compressed) bytes."""

    digest: bytes
    algorithm: HashAlgorithm = HashAlgorithm.SHA1

    @classmethod
    def parse(cls, text: str) -> ContentHash:
        """Raise `IntegrityError` unless `text` is 40 hex digits and perhaps an algorithm suffix."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise IntegrityError(f"{text[:100]!r} is not a CernVM-FS content hash")
        return cls(bytes.fromhex(match[1]), HashAlgorithm(match[2] or "sha1"))

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: HashAlgorithm) -> ContentHash:
        return cls(algorithm.digest(data), algorithm)

    def __str__(self) -> str:
        return self.digest.hex() + self.algorithm.suffix

    def path(self, kind: Suffix) -> str:
        """Where the object lies, relative to the repository root."""
        text = self.digest.hex()
        return f"data/{text[:2]}/{text[2:]}{self.algorithm.suffix}{kind.value}"
