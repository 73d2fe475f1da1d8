"""Decide whose signatures clients of a repository accept, and whether ours is one of them.

Source: facts/cvmfs-format.md sections 2.3 and 2.4.  The master key says so on the whitelist, for a
month; the key of a certificate on it signs what is published.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.content.objects import decompress
from cvmfs_publish.content.store import ContentStore
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native import whitelist as whitelists
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.rotation import KeyFiles
from cvmfs_publish.repository.native.signing import (
    Keys,
    PublicKeys,
    fingerprint,
    is_trusted,
    load_keys,
    parse_certificate,
)
from cvmfs_publish.repository.native.whitelist import Whitelist, format_fingerprint

MAX_CERTIFICATE_BYTES = 1024 * 1024  # decompressed; the usual ones have 1,200
# How long a certificate that was replaced stays trusted: a replica may be some days behind.
RETIRED_FOR = timedelta(days=7)
_RESIGN = "`cvmfs-publish resign`, where the master key is, makes a new one"


class TrustError(RepositoryError):
    """Whitelist, keys and published revision do not belong together; nothing is signed."""

    kind = "trust"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a new whitelist says."""

    fingerprints: tuple[ContentHash, ...]  # this publisher's first
    dropped: tuple[ContentHash, ...] = ()  # on the present one, and not on the new one
    unread: str = ""  # why nothing of the present one could be taken over


class Trust:
    """The whitelist of one repository, and the keys of who publishes into it."""

    def __init__(self, name: str, store: ContentStore, directory: Path) -> None:
        """Nothing is read before it is asked for; `directory` is that of the keys."""
        self.name = name
        self.directory = directory
        self.files = KeyFiles(directory, name)
        self._store = store

    def keys(self, *, with_master: bool = True) -> Keys:
        """Read the keys; see `signing.load_keys`."""
        return load_keys(self.directory, self.name, with_master=with_master)

    # what is published

    def whitelist(self) -> Whitelist:
        """Return what the published whitelist says, its signature unverified.

        Raises:
            TrustError: it is missing, or damaged.
        """
        return self._parsed(self._read())

    def signed_whitelist(self, public_keys: PublicKeys) -> Whitelist:
        """Return the published whitelist, expired or not.

        Raises:
            TrustError: it is missing, damaged, or not of the master key.
        """
        try:
            return whitelists.verify_signature(self._read(), public_keys, name=self.name)
        except IntegrityError as error:
            raise self._unusable(error) from error

    def _read(self) -> bytes:
        try:
            found = self._store.fetch(whitelists.FILE_NAME, whitelists.MAX_BYTES)
        except IntegrityError as error:
            raise self._unusable(error) from error
        if found is None:
            raise TrustError(
                f"{whitelists.FILE_NAME} of {self.name} is missing from {self._store.location}",
                hint=_RESIGN,
            )
        return found.data

    def _parsed(self, data: bytes) -> Whitelist:
        try:
            return whitelists.parse_whitelist(data)[0]
        except IntegrityError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: IntegrityError) -> TrustError:
        return TrustError(
            f"{whitelists.FILE_NAME} in {self._store.location}: {error}",
            hint=error.hint or _RESIGN,
        )

    def certificate(self, manifest: Manifest) -> x509.Certificate:
        """Return the certificate whose key signed a manifest; `IntegrityError` if damaged."""
        if manifest.certificate is None:
            raise IntegrityError(f"{manifests.FILE_NAME} of {self.name} names no certificate")
        stored = self._store.read(manifest.certificate, Suffix.CERTIFICATE)
        return parse_certificate(decompress(stored, MAX_CERTIFICATE_BYTES))

    # may we sign

    def valid_whitelist(self, keys: Keys, now: datetime) -> Whitelist:
        """Return the published whitelist if clients accept it now.

        Raises:
            TrustError: they do not.
        """
        try:
            return whitelists.verify_whitelist(
                self._read(), keys.public_keys, name=self.name, now=now
            )
        except IntegrityError as error:
            raise self._unusable(error) from error

    def accepts(self, keys: Keys, wanted: Iterable[x509.Certificate], now: datetime) -> bool:
        """Whether clients accept the published whitelist now, and it trusts these certificates."""
        with suppress(TrustError):
            found = self.valid_whitelist(keys, now)
            return all(found.trusts(certificate) for certificate in wanted)
        return False

    def check(self, manifest: Manifest, data: bytes, keys: Keys, now: datetime) -> None:
        """Refuse to build on, or to sign, what clients would not accept.

        `data` is the file of the manifest.

        Raises:
            TrustError: they accept the whitelist, our certificate or that of the manifest not.
            IntegrityError: the manifest's certificate is not in the store as it should be.
        """
        found = self.valid_whitelist(keys, now)
        if not found.trusts(keys.certificate):
            raise TrustError(
                f"the whitelist of {self.name} does not trust the certificate in {self.directory}: "
                f"that is {_shown(keys.certificate)}, it lists {_listed(found)}",
                hint="`cvmfs-publish resign`, where the master key is, makes it trusted",
            )
        certificate = self.certificate(manifest)
        if not found.trusts(certificate):
            raise TrustError(
                f"revision {manifest.revision} of {self.name} was signed with a certificate that "
                f"its whitelist does not trust: that is {_shown(certificate)}, it lists "
                f"{_listed(found)}",
                hint=f"restore {manifests.FILE_NAME} or the whitelist from a backup or a replica",
            )
        self.check_signature(manifest, data, certificate)

    def check_signature(
        self, manifest: Manifest, data: bytes, certificate: x509.Certificate
    ) -> None:
        """Raise `TrustError` unless the file `data` of a manifest is signed with that key."""
        try:
            manifests.verify_manifest(data, certificate)
        except IntegrityError as error:
            raise TrustError(
                f"{manifests.FILE_NAME} of {self.name} was not signed with the key of the "
                f"certificate it names: {error}",
                hint="restore it from a backup or a replica",
            ) from error

    # a new whitelist

    def plan(
        self,
        keys: Keys,
        manifest: Manifest,
        now: datetime,
        *,
        only: bool = False,
        following: x509.Certificate | None = None,
    ) -> Plan:
        """Return what the next whitelist should say.

        It trusts our certificate, and those of others that the present one trusts; not those we
        replaced more than `RETIRED_FOR` ago, unless one of them signed what is published.

        Args:
            keys: ours.
            manifest: what is published.
            now: the time of the new whitelist.
            only: trust no certificate but ours.
            following: one of ours that is to come.
        """
        ours = [keys.certificate]
        if following is not None and following != keys.certificate:
            ours.append(following)
        retired, signer = self.files.retired(), self._signer(manifest)
        if not only and signer != keys.certificate:
            # Ours too: an exchange of keys has not come to its end.
            ours += [old.certificate for old in retired if old.certificate == signer][:1]
        try:
            present = self.signed_whitelist(keys.public_keys)
        except TrustError as error:
            return Plan(_fingerprints(ours, ()), unread=str(error))
        stale = [
            old.certificate
            for old in retired
            if old.retired_at + RETIRED_FOR <= now and old.certificate not in ours
        ]
        kept = tuple(
            found
            for found in dict.fromkeys(present.fingerprints)
            if not only and not any(is_trusted(certificate, [found]) for certificate in stale)
        )
        wanted = _fingerprints(ours, kept)
        dropped = tuple(
            found
            for found in present.fingerprints
            if found not in wanted and not any(is_trusted(own, [found]) for own in ours)
        )
        return Plan(wanted, dropped)

    def _signer(self, manifest: Manifest) -> x509.Certificate | None:
        with suppress(IntegrityError):  # a damaged one is told by those who need it
            return self.certificate(manifest)
        return None

    def renew(self, keys: Keys, plan: Plan, now: datetime, days: int) -> Whitelist:
        """Publish the whitelist of a plan.  Only with the lock held.

        Raises:
            TrustError: the master key is not here.
            RepositoryError: the store cannot be written.
        """
        if keys.master_key is None:
            raise self.no_master_key()
        expires = now + timedelta(days=days)
        data = whitelists.make_whitelist(
            self.name, plan.fingerprints, expires, keys.master_key, now
        )
        self.write(data)
        return self._parsed(data)

    def write(self, data: bytes) -> None:
        """Put a signed whitelist in place.  Only with the lock held."""
        with storage_errors(f"writing the whitelist of {self.name}"):
            self._store.write(whitelists.FILE_NAME, data)

    def no_master_key(self) -> TrustError:
        """Return the error of those who need the master key and do not have it."""
        return TrustError(
            f"the master key of {self.name} is not in {self.directory}",
            hint=f"bring {self.name}.masterkey from where it is kept, or `cvmfs-publish resign "
            "--request FILE` here and `--sign FILE` there",
        )

    def check_new(
        self, data: bytes, keys: Keys, now: datetime, *, allow_older: bool = False
    ) -> Whitelist:
        """Return a whitelist that was signed elsewhere if it may replace the published one.

        Raises:
            TrustError: clients would not accept it, it does not trust us, or (unless
                `allow_older`) it is older than the published one.
        """
        try:
            new = whitelists.verify_whitelist(data, keys.public_keys, name=self.name, now=now)
        except IntegrityError as error:
            raise TrustError(
                f"the new whitelist cannot be used: {error}",
                hint=error.hint or f"sign it with the master key of {self.name}.pub",
            ) from error
        if new.options:
            raise TrustError(
                f"the new whitelist demands {' and '.join(new.options)}, which is not supported",
                hint="sign it with the master key itself",
            )
        if not new.trusts(keys.certificate):
            raise TrustError(
                f"the new whitelist does not trust the certificate in {self.directory}: that is "
                f"{_shown(keys.certificate)}, it lists {_listed(new)}",
                hint="`cvmfs-publish resign --request FILE` says what has to be signed",
            )
        present: Whitelist | None = None
        with suppress(TrustError):
            present = self.signed_whitelist(keys.public_keys)
        if present is not None and new.created_at < present.created_at and not allow_older:
            raise TrustError(
                f"the new whitelist was made at {_time(new.created_at)}, the published one at "
                f"{_time(present.created_at)}",
                hint="--force puts it in place all the same",
            )
        return new


def _fingerprints(
    certificates: list[x509.Certificate], kept: tuple[ContentHash, ...]
) -> tuple[ContentHash, ...]:
    new = [fingerprint(found) for found in certificates if not is_trusted(found, kept)]
    return (*new, *kept)


def _shown(certificate: x509.Certificate) -> str:
    return format_fingerprint(fingerprint(certificate))


def _listed(whitelist: Whitelist) -> str:
    return ", ".join(map(format_fingerprint, whitelist.fingerprints)) or "none"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
