"""Turn JSON that a registry sent into values that have one meaning only.  Pure."""

from __future__ import annotations

import json
from typing import Any

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError


def parse_digest(value: object, subject: str) -> Digest:
    try:
        return Digest.parse(value if isinstance(value, str) else "")
    except IntegrityError as exc:
        raise IntegrityError(f"{subject}: {str(value)[:100]!a} is not a digest") from exc


def parse_object(body: bytes, subject: str) -> dict[str, Any]:
    try:
        value = json.loads(body.decode(), object_pairs_hook=_unique_keys)
    # RecursionError: a megabyte of "[" is valid UTF-8 and exhausts the parser's stack
    except (ValueError, RecursionError) as exc:
        raise IntegrityError(f"{subject}: not valid JSON ({type(exc).__name__})") from exc
    if not isinstance(value, dict):
        raise IntegrityError(f"{subject}: the JSON is not an object")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """RFC 8259 leaves the meaning of repeated names open: two readers could see two images."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name is repeated in one object")
    return document
