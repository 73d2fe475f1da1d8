"""Turn the text `sha256:<hex>` into a typed digest of an image, manifest, config or layer.

Source: OCI image-spec `descriptor.md`, section "Digests".
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cvmfs_publish.errors import IntegrityError

if TYPE_CHECKING:
    from hashlib import _Hash

# digest ::= algorithm ":" encoded; only the registered algorithms can be verified
HEX_LENGTH = {"sha256": 64, "sha512": 128}
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]+)")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The digest of a blob as registries name it.  `hex` is lower case and of the right length."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raise `IntegrityError` unless `text` is a digest that can be verified."""
        match = _DIGEST.fullmatch(text)
        if match is None or len(match[2]) != HEX_LENGTH[match[1]]:
            raise IntegrityError(f"{text[:200]!r} is not a sha256 or sha512 digest")
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """Return the sha256 digest of `data`."""
        return cls("sha256", hashlib.sha256(data).hexdigest())

    def hasher(self) -> _Hash:
        """Return a fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"
