"""Names of files as text and as the bytes they are, without loss either way."""

from __future__ import annotations


def encode_name(name: str) -> bytes:
    """Return the bytes of a name or path."""
    return name.encode("utf-8", "surrogateescape")


def decode_name(name: bytes) -> str:
    """Return a name or path as text; undo with `encode_name`."""
    return name.decode("utf-8", "surrogateescape")
