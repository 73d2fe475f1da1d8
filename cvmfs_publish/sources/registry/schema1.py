"""Turn a Docker schema 1 manifest into what newer ones are: layers, and a configuration.  Pure.

Sources: Docker distribution, `docs/spec/manifest-v2-1.md` (fields, order, signed payload); Docker's
`distribution/pull_v2.go` (chain of parents, repeated entries, throwaway).

The signature is made by the registry with a key nobody knows, so it proves nothing and is not
looked at.  What is proven: the payload has the digest that was asked for, and every layer has its
own.  Not proven before layers are read: their sizes and their unpacked digests, which such a
manifest does not state.

There is no configuration with a digest, so there is no image id.  Ours is the digest of the
configuration made here, a function of the payload alone: the newest entry of `history` without the
keys of Docker's old chain of layers, with `rootfs` without diff ids and with the layers' digests,
as JSON with sorted keys and without blanks.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.sources.registry.values import parse_digest, parse_object

SIGNED = "application/vnd.docker.distribution.manifest.v1+prettyjws"
PLAIN = "application/vnd.docker.distribution.manifest.v1+json"
TYPES = frozenset({SIGNED, PLAIN})
MAX_LAYERS = 1000  # Docker stops at 127
# Of the old chain of layers, or said by `rootfs` now
_OLD_KEYS = frozenset({"id", "parent", "parent_id", "layer_id", "Size", "throwaway"})
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class OldImage:
    """What a schema 1 manifest says."""

    layers: tuple[Digest, ...]  # lowest first
    config: bytes  # made here


def payload_of(body: bytes, subject: str) -> bytes:
    """Return what the digest of a manifest is about: the body without its signatures.

    libtrust's "pretty" JWS: each signature has a `protected` header that says how many bytes of the
    body are signed, and what stands behind them.
    """
    document = parse_object(body, subject)
    signatures = document.get("signatures")
    if signatures is None:
        return body
    if not isinstance(signatures, list) or not signatures:
        raise _malformed(subject, "its signatures are not a list")
    payloads = {_signed_part(body, signature, subject) for signature in signatures}
    if len(payloads) != 1:
        raise _malformed(subject, "its signatures are about different texts")
    return payloads.pop()


def parse_old_manifest(payload: bytes, subject: str) -> OldImage:
    """Return layers and configuration; raise `IntegrityError` for what contradicts itself."""
    document = parse_object(payload, subject)
    if document.get("schemaVersion") != 1 or "signatures" in document:
        raise _malformed(subject, "it is not of schema version 1")
    layers, history = document.get("fsLayers"), document.get("history")
    if not isinstance(layers, list) or not isinstance(history, list):
        raise _malformed(subject, "it lacks fsLayers or history")
    if not 0 < len(layers) == len(history) <= MAX_LAYERS:
        raise _malformed(subject, f"it has {len(layers)} layers and {len(history)} entries")
    digests = [_blob_sum(layer, subject) for layer in layers]
    entries = [_entry(item, subject) for item in history]
    kept = _check_chain(list(zip(digests, entries, strict=True)), subject)
    lowest_first = tuple(digest for digest, entry in kept[::-1] if not entry.get("throwaway"))
    return OldImage(lowest_first, _make_config(document, entries[0], lowest_first))


def _check_chain(
    pairs: list[tuple[Digest, dict[str, Any]]], subject: str
) -> list[tuple[Digest, dict[str, Any]]]:
    """Return the entries without those that old Docker repeated; the newest comes first."""
    kept: list[tuple[Digest, dict[str, Any]]] = []
    for pair in pairs:
        identity = pair[1].get("id")
        if not isinstance(identity, str) or _ID.fullmatch(identity) is None:
            raise _malformed(subject, "an entry of its history has no id")
        if kept and identity == kept[-1][1]["id"]:
            continue
        if any(identity == entry["id"] for _, entry in kept):
            raise _malformed(subject, f"the entry {identity[:12]} is its own ancestor")
        if kept and kept[-1][1].get("parent") != identity:
            raise _malformed(subject, f"the parent of {kept[-1][1]['id'][:12]} is another")
        kept.append(pair)
    if kept[-1][1].get("parent"):
        raise _malformed(subject, "the lowest entry of its history has a parent")
    return kept


def _make_config(
    document: dict[str, Any], newest: dict[str, Any], layers: tuple[Digest, ...]
) -> bytes:
    config = {key: value for key, value in newest.items() if key not in _OLD_KEYS}
    config.setdefault("os", "linux")
    if isinstance(document.get("architecture"), str):
        config.setdefault("architecture", document["architecture"])
    config["rootfs"] = {"type": "layers", "diff_ids": []}
    config["layers"] = [str(digest) for digest in layers]
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def _signed_part(body: bytes, signature: object, subject: str) -> bytes:
    protected = signature.get("protected") if isinstance(signature, dict) else None
    header = parse_object(_decode(protected, subject), subject)
    length = header.get("formatLength")
    if not isinstance(length, int) or isinstance(length, bool) or not 0 < length <= len(body):
        raise _malformed(subject, "a signature is about more than there is")
    return body[:length] + _decode(header.get("formatTail"), subject)


def _decode(text: object, subject: str) -> bytes:
    """JOSE's base64: of URLs, without padding."""
    if not isinstance(text, str) or not text.isascii():
        raise _malformed(subject, "a signature is incomplete")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise _malformed(subject, "a signature is not base64") from exc


def _blob_sum(layer: object, subject: str) -> Digest:
    return parse_digest(layer.get("blobSum") if isinstance(layer, dict) else None, subject)


def _entry(item: object, subject: str) -> dict[str, Any]:
    text = item.get("v1Compatibility") if isinstance(item, dict) else None
    if not isinstance(text, str):
        raise _malformed(subject, "an entry of its history is not a text")
    return parse_object(text.encode("utf-8", "surrogatepass"), subject)


def _malformed(subject: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{subject}: the Docker schema 1 manifest is not one: {what}",
        hint="push the image again with a current tool",
    )
