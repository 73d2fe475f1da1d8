"""Carry what a whitelist shall say to where the master key is: a small text that a person reads.

    repository containers.example.org
    master-key 0F:3A:…
    certificate 96:32:…  # in use by this publisher
    certificate AA:07:…  # on the present whitelist

Nothing in it is secret, and nothing in it is believed: whoever has the master key is shown what is
signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cvmfs_publish.config import RepositoryName
from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.repository.native.signing import public_fingerprint, read_private_key
from cvmfs_publish.repository.native.trust import TrustError
from cvmfs_publish.repository.native.whitelist import (
    format_fingerprint,
    make_whitelist,
    parse_fingerprint,
)

MAX_BYTES = 1024 * 1024
_HEADER = """\
# What the whitelist of {name} shall say.  Where the master key is:
#   cvmfs-publish resign --sign FILE --master-key {name}.masterkey --out WHITELIST
# and then on the publisher:
#   cvmfs-publish resign --install WHITELIST
"""


@dataclass(frozen=True, slots=True)
class Request:
    """What has to be signed."""

    name: str  # of the repository
    master_key: ContentHash  # fingerprint of its public half
    certificates: tuple[tuple[ContentHash, str], ...]  # fingerprints, each with a remark


def format_request(request: Request) -> str:
    """Return the text of a request."""
    lines = [
        f"repository {request.name}",
        f"master-key {format_fingerprint(request.master_key)}",
        *(
            f"certificate {format_fingerprint(value)}" + (f"  # {remark}" if remark else "")
            for value, remark in request.certificates
        ),
    ]
    return _HEADER.format(name=request.name) + "".join(line + "\n" for line in lines)


def parse_request(text: str, source: str) -> Request:
    """Undo `format_request`; `source` names the text in errors.

    Raises:
        InputError: it is none.
    """
    names: list[str] = []
    masters: list[ContentHash] = []
    certificates: list[tuple[ContentHash, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        content, _, remark = line.partition("#")
        word, _, value = content.strip().partition(" ")
        if word not in ("", "repository", "master-key", "certificate"):
            raise InputError(
                f"{source}:{number}: {word[:80]!r} is not a word of a request", hint=_HINT
            )
        try:
            if word == "repository":
                names.append(RepositoryName.parse(value.strip()))
            elif word == "master-key":
                masters.append(parse_fingerprint(value.strip()))
            elif word:
                certificates.append((parse_fingerprint(value.strip()), remark.strip()))
        except (InputError, IntegrityError) as error:
            raise InputError(f"{source}:{number}: {error}", hint=_HINT) from error
    if len(names) != 1 or len(masters) != 1 or not certificates:
        raise InputError(
            f"{source} has {len(names)} repositories, {len(masters)} master keys and "
            f"{len(certificates)} certificates; a request has one, one and at least one",
            hint=_HINT,
        )
    return Request(names[0], masters[0], tuple(certificates))


_HINT = "`cvmfs-publish resign --request FILE`, on the publisher, makes a request"


def sign_request(request: Request, master_key: Path, now: datetime, days: int) -> bytes:
    """Return the whitelist a request asks for.

    Raises:
        RepositoryError: the file is no private key that is usable and private.
        TrustError: it is not the master key of the repository.
    """
    key = read_private_key(master_key)
    found = public_fingerprint(key.public_key())
    if found != request.master_key:
        raise TrustError(
            f"{master_key} is not the master key of {request.name}: its public half is "
            f"{format_fingerprint(found)}, the publisher has "
            f"{format_fingerprint(request.master_key)}",
            hint=f"sign with the key that belongs to {request.name}.pub on the publisher",
        )
    fingerprints = dict.fromkeys(value for value, _ in request.certificates)
    return make_whitelist(request.name, fingerprints, now + timedelta(days=days), key, now)
