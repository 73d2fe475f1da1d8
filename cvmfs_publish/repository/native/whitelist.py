"""Turn the signed text `.cvmfswhitelist`, the list of trusted certificates, into values and back.

Source: facts/cvmfs-format.md section 2.3 (whitelist.cc, signature.cc).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.repository.native.signing import (
    ForeignError,
    PublicKeys,
    SignatureError,
    is_trusted,
    join_signed,
    raw_sign,
    raw_verify,
    split_signed,
)

FILE_NAME = ".cvmfswhitelist"
DEFAULT_DAYS = 30  # validity mkfs and resign give
MAX_BYTES = 1024 * 1024  # room for 16,000 fingerprints; bounds what is read from a server
_TIME = "%Y%m%d%H%M%S"
_DIGITS = re.compile(r"[0-9]{14}")


@dataclass(frozen=True, slots=True)
class Whitelist:
    """Which certificates may sign manifests of a repository, and until when."""

    name: str
    created_at: datetime  # not evaluated by clients
    expires_at: datetime  # clients look at the hour only: see `is_expired`
    fingerprints: tuple[ContentHash, ...]  # of the DER form of certificates
    options: tuple[str, ...] = ()  # `Vpkcs7`, `Wcachain`
    malformed: tuple[str, ...] = ()  # lines clients skip

    @property
    def ends_at(self) -> datetime:
        """From when on clients reject it: the hour in which it expires is not valid any more."""
        return _hour(self.expires_at)

    def is_expired(self, now: datetime) -> bool:
        """Whether clients reject it: valid while the hour now is before the expiry hour."""
        return _hour(now) >= self.ends_at

    def trusts(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate is on it."""
        return is_trusted(certificate, self.fingerprints)


def _hour(time: datetime) -> datetime:
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def parse_whitelist(data: bytes) -> tuple[Whitelist, bytes, bytes]:
    """Return the whitelist, the hash text that was signed, and the signature, unverified.

    Raises:
        IntegrityError: no signature block, or creation time, expiry or name are malformed.
    """
    signed = split_signed(data, "whitelist")
    lines = signed.payload.decode("utf-8", "surrogateescape").split("\n")[:-1]
    if len(lines) < 3 or not lines[1].startswith("E") or not lines[2].startswith("N"):
        raise IntegrityError("whitelist does not start with creation time, expiry and name")
    fingerprints: list[ContentHash] = []
    options, malformed = [], []
    for line in lines[3:]:
        if line[:1] in ("V", "W"):
            options.append(line)
            continue
        try:
            fingerprints.append(parse_fingerprint(line))
        except IntegrityError:
            malformed.append(line)
    whitelist = Whitelist(
        name=lines[2][1:],
        created_at=_parse_time(lines[0], "creation time"),
        expires_at=_parse_time(lines[1][1:], "expiry"),
        fingerprints=tuple(fingerprints),
        options=tuple(options),
        malformed=tuple(malformed),
    )
    return whitelist, signed.hash_text, signed.signature


def _parse_time(text: str, what: str) -> datetime:
    if _DIGITS.fullmatch(text):
        try:
            return datetime.strptime(text, _TIME).replace(tzinfo=UTC)
        except ValueError:
            pass
    raise IntegrityError(f"whitelist: {what} {text!r} is not a time of 14 digits")


def parse_fingerprint(line: str) -> ContentHash:
    """Read a line of a whitelist; raise `IntegrityError` if clients would skip it."""
    # "everything after a space, tab or # is dropped, colons removed, lower-cased"
    text = re.split(r"[ \t#]", line, maxsplit=1)[0]
    return ContentHash.parse(text.replace(":", "").lower())


def format_fingerprint(value: ContentHash) -> str:
    """Return upper-case pairs with colons and the algorithm's name, as on a whitelist line."""
    return value.digest.hex(":").upper() + value.algorithm.suffix.upper()


def format_whitelist(whitelist: Whitelist) -> bytes:
    """Return the text that is hashed and signed; malformed lines are left out."""
    lines = [
        whitelist.created_at.astimezone(UTC).strftime(_TIME),
        "E" + whitelist.expires_at.astimezone(UTC).strftime(_TIME),
        "N" + whitelist.name,
        *whitelist.options,
        *(format_fingerprint(value) for value in whitelist.fingerprints),
    ]
    return "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")


def sign_whitelist(
    whitelist: Whitelist, key: rsa.RSAPrivateKey, algorithm: HashAlgorithm = HashAlgorithm.SHA1
) -> bytes:
    """Return the file `.cvmfswhitelist`, signed with the master key."""
    payload = format_whitelist(whitelist)
    hash_text = str(ContentHash.of(payload, algorithm)).encode()
    return join_signed(payload, hash_text, raw_sign(hash_text, key))


def make_whitelist(
    name: str,
    fingerprints: Iterable[ContentHash],
    expires: datetime,
    key: rsa.RSAPrivateKey,
    now: datetime,
    algorithm: HashAlgorithm = HashAlgorithm.SHA1,
) -> bytes:
    """Return a signed whitelist trusting `fingerprints` until the hour of `expires` begins.

    Raises:
        InputError: it would be expired from the start, or trust nothing.
    """
    whitelist = Whitelist(
        name, now.replace(microsecond=0), expires.replace(microsecond=0), tuple(fingerprints)
    )
    if whitelist.is_expired(now):
        raise InputError(
            f"whitelist of {name} would be expired from the start: {expires:%Y-%m-%d %H:%M} UTC",
            hint="clients ignore the minutes; choose a time in a later hour",
        )
    if not whitelist.fingerprints:
        raise InputError(f"whitelist of {name} would trust no certificate")
    return sign_whitelist(whitelist, key, algorithm)


def verify_whitelist(
    data: bytes, public_keys: PublicKeys, *, name: str, now: datetime
) -> Whitelist:
    """Return the whitelist if clients would accept it for repository `name` at time `now`.

    Raises:
        IntegrityError: it cannot be parsed or is for another repository.
        SignatureError: its hash line or its signature is wrong.
        ExpiredError: it has expired.
    """
    whitelist = parse_whitelist(data)[0]
    if whitelist.name == name and whitelist.is_expired(now):
        raise ExpiredError(
            f"whitelist of {name} expired at {whitelist.expires_at:%Y-%m-%d %H:%M} UTC; it is "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC, and clients look at the hour only",
            hint="`cvmfs-publish resign`, where the master key is, renews it",
        )
    return verify_signature(data, public_keys, name=name)


def verify_signature(data: bytes, public_keys: PublicKeys, *, name: str) -> Whitelist:
    """Return the whitelist if it is or was good for repository `name`, expired or not.

    Raises:
        IntegrityError: it cannot be parsed or is for another repository.
        SignatureError: its hash line or its signature is wrong.
    """
    whitelist, hash_text, signature = parse_whitelist(data)
    if whitelist.name != name:
        raise ForeignError(f"whitelist is for {whitelist.name!r}, not for {name!r}")
    split_signed(data, "whitelist").check_hash("whitelist")
    raw_verify(hash_text, signature, public_keys)
    return whitelist


class ExpiredError(SignatureError):
    """The whitelist has expired: clients refuse every new mount and revision."""

    kind = "expired"
