"""Exchange the key that signs manifests, and its certificate, file by file.

The files of a key that is to come are `NAME.key.next` and `NAME.crt.next`.  They stay until its
certificate has signed the published manifest, so that an exchange that was killed is known as one
and goes on where it was.  Files of a key that went are kept as `NAME.key.<time>` and
`NAME.crt.<time>`.
"""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from cvmfs_publish.content.local import storage_errors
from cvmfs_publish.errors import IntegrityError, RepositoryError
from cvmfs_publish.repository.native.signing import (
    NEXT,
    create_pair,
    parse_certificate,
    read_certificate,
    read_private_key,
    sync_folder,
)

_STAMP = "%Y%m%dT%H%M%SZ"
_RETIRED = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class Retired(NamedTuple):
    """A certificate that has been replaced by another."""

    certificate: x509.Certificate
    retired_at: datetime


def _free_name(path: Path, now: datetime) -> Path:
    """The file's name with the time; a second later if another exchange was so quick."""
    while True:
        name = path.with_name(f"{path.name}.{now.astimezone(UTC).strftime(_STAMP)}")
        if not name.exists():
            return name
        now += timedelta(seconds=1)


class KeyFiles:
    """The files of one repository's key and certificate, in a folder."""

    def __init__(self, directory: Path, name: str) -> None:
        """Nothing is read before it is asked for."""
        self._directory = directory
        self._name = name
        self._key, self._certificate = directory / f"{name}.key", directory / f"{name}.crt"
        self._next_key = self._key.with_name(self._key.name + NEXT)
        self._next_certificate = self._certificate.with_name(self._certificate.name + NEXT)

    def following(self) -> x509.Certificate | None:
        """Return the certificate that is to come; None if no exchange is under way.

        Raises:
            RepositoryError: its files cannot be read, or do not belong together.
        """
        if not self._next_certificate.exists():
            return None
        certificate = read_certificate(self._next_certificate)
        if read_private_key(self._next_key).public_key() != certificate.public_key():
            raise RepositoryError(
                f"{self._next_key} is not the key of {self._next_certificate.name}",
                hint="remove both; the next `resign --rotate` makes new ones",
            )
        return certificate

    def prepare(self, now: datetime, bits: int) -> x509.Certificate:
        """Make the key that is to come, or take the one that was made."""
        with storage_errors(f"making a new key of {self._name}"):
            create_pair(self._next_key, self._next_certificate, self._name, now, bits)
            if os.geteuid() == 0:  # stock tools sign as the user whose the present key is
                owner = self._key.stat()
                os.chown(self._next_key, owner.st_uid, owner.st_gid)
                os.chown(self._next_certificate, owner.st_uid, owner.st_gid)
        following = self.following()
        if following is None:
            raise RepositoryError(f"{self._next_certificate} was removed meanwhile")
        return following

    def retire(self, now: datetime) -> None:
        """Keep the present files under a name with the time, unless they were exchanged already."""
        with storage_errors(f"keeping the present key of {self._name}"):
            for path, following in self._pairs():
                data = path.read_bytes()
                if data != following.read_bytes() and data not in self._kept(path):
                    os.link(path, _free_name(path, now))
            sync_folder(self._directory)

    def install_key(self) -> None:
        """Put the next key in place.  Until the certificate is too, `load_keys` finds it aside."""
        self._install(self._next_key, self._key)

    def install_certificate(self) -> None:
        self._install(self._next_certificate, self._certificate)

    def finish(self) -> None:
        """Forget that there was an exchange."""
        with storage_errors(f"finishing the exchange of the key of {self._name}"):
            self._next_certificate.unlink(missing_ok=True)
            self._next_key.unlink(missing_ok=True)
            sync_folder(self._directory)

    def retired(self) -> list[Retired]:
        """Return the certificates that were replaced, as far as their files can be read."""
        found = []
        for path in sorted(self._directory.glob(f"{self._certificate.name}.*")):
            stamp = path.name.removeprefix(f"{self._certificate.name}.")
            if _RETIRED.fullmatch(stamp):
                with suppress(OSError, IntegrityError, ValueError):
                    at = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
                    found.append(Retired(parse_certificate(path.read_bytes()), at))
        return found

    def _pairs(self) -> list[tuple[Path, Path]]:
        return [(self._certificate, self._next_certificate), (self._key, self._next_key)]

    @staticmethod
    def _kept(path: Path) -> list[bytes]:
        """The contents of the files that are kept of earlier ones."""
        siblings = path.parent.glob(f"{path.name}.*")
        return [
            sibling.read_bytes()
            for sibling in siblings
            if _RETIRED.fullmatch(sibling.name.removeprefix(f"{path.name}."))
        ]

    def _install(self, following: Path, path: Path) -> None:
        with storage_errors(f"putting the new key of {self._name} in place"):
            if following.read_bytes() == path.read_bytes():
                return
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            os.link(following, temporary)
            try:
                temporary.replace(path)
            except OSError:
                temporary.unlink()
                raise
            sync_folder(self._directory)
