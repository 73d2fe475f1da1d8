"""What must not be signed is refused before anything is written, with words that help."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import decompress
from cvmfs_publish.repository.native.build import store_catalog
from cvmfs_publish.repository.native.catalog import Catalog
from cvmfs_publish.repository.native.manifest import Manifest, parse_manifest, sign_manifest
from cvmfs_publish.repository.native.signing import (
    create_keys,
    load_keys,
    self_signed_certificate,
)
from cvmfs_publish.repository.native.whitelist import make_whitelist
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.unit.cli.support import Shell
from tests.unit.cli.test_repository import NAME

pytestmark = pytest.mark.slow

STRANGER = ContentHash.parse("ab" * 20)
STRANGER_TEXT = ":".join(["AB"] * 20)
FINGERPRINT = "([0-9A-F]{2}:){19}[0-9A-F]{2}"
TIME = r"20\d\d-\d\d-\d\d \d\d:\d\d"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and what is to be said about it."""

    make: Callable[[Place], object]
    message: str  # a pattern: subject and both values
    remedy: str
    kind: str = "trust"


@dataclass(frozen=True)
class Place:
    """A publisher's folder."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "repository" / ".cvmfspublished"

    @property
    def whitelist(self) -> Path:
        return self.folder / "repository" / ".cvmfswhitelist"

    def key(self, kind: str) -> Path:
        return self.folder / "keys" / f"{NAME}.{kind}"

    def write_whitelist(self, *fingerprints: ContentHash, made: datetime | None = None) -> None:
        keys = load_keys(self.folder / "keys", NAME)
        assert keys.master_key is not None
        made = made or datetime.now(UTC)
        expires = made + timedelta(days=30)
        data = make_whitelist(NAME, fingerprints, expires, keys.master_key, made)
        self.whitelist.write_bytes(data)

    def others(self) -> Path:
        """The folder of keys of the same name that belong to somebody else."""
        folder = self.folder / "others"
        if not folder.exists():
            create_keys(folder, NAME, now=datetime.now(UTC))
        return folder

    def borrow(self, *kinds: str) -> None:
        """Put somebody else's files where ours are."""
        for kind in kinds:
            self.key(kind).unlink()
            shutil.copy(self.others() / f"{NAME}.{kind}", self.key(kind))

    def published(self) -> Manifest:
        return parse_manifest(self.manifest.read_bytes())[0]

    def sign(self, changed: Manifest) -> None:
        keys = load_keys(self.folder / "keys", NAME)
        self.manifest.write_bytes(sign_manifest(changed, keys.private_key))

    def sign_as_of(self, timestamp: int) -> None:
        self.sign(replace(self.published(), timestamp=timestamp))

    def object(self, kind: Suffix) -> Path:
        """The file of what the manifest names."""
        found = {
            Suffix.CATALOG: self.published().root_hash,
            Suffix.HISTORY: self.published().history,
            Suffix.METAINFO: self.published().metainfo,
        }[kind]
        assert found is not None
        return self.folder / "repository" / found.path(kind)

    def newer_catalog(self) -> None:
        stored = self.object(Suffix.CATALOG).read_bytes()
        with Catalog.open(decompress(stored, 2**20)) as catalog:
            catalog.set_property("schema_revision", 8)
            store = LocalStore(self.folder / "repository")
            algorithm = self.published().root_hash.algorithm
            root = store_catalog(catalog, store, algorithm)
        self.sign(replace(self.published(), root_hash=root.hash, root_size=root.size))

    def shorten(self, kind: str) -> None:
        """Put a key of 1024 bits in place."""
        key = rsa.generate_private_key(65537, 1024)
        data = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        if kind == "pub":
            data = key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        if kind == "crt":
            made = self_signed_certificate(key, NAME, datetime.now(UTC))
            data = made.public_bytes(serialization.Encoding.PEM)
        self.key(kind).unlink()
        self.key(kind).write_bytes(data)
        self.key(kind).chmod(0o400)

    def flip(self, path: Path, position: int) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 1
        path.write_bytes(data)

    def newer_reflog(self) -> None:
        path = self.folder / "repository" / ".cvmfsreflog"
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE properties SET value = '1' WHERE key = 'schema_revision'")


def hours(count: float) -> int:
    return int(time.time() + 3600 * count)


FAULTS = {
    "the whitelist has expired": Fault(
        lambda place: place.write_whitelist(STRANGER, made=datetime.now(UTC) - timedelta(days=31)),
        rf"\.cvmfswhitelist in \S+: whitelist of {NAME} expired at {TIME} UTC; it is {TIME} UTC",
        "`cvmfs-publish resign`",
    ),
    "the whitelist is missing": Fault(
        lambda place: place.whitelist.unlink(),
        rf"\.cvmfswhitelist of {NAME} is missing from /",
        "`cvmfs-publish resign`",
    ),
    "a byte of the whitelist's text is damaged": Fault(
        lambda place: place.flip(place.whitelist, 60),
        r"\.cvmfswhitelist in \S+: whitelist: hash line says [0-9a-f]{40}, its text has",
        "`cvmfs-publish resign`",
    ),
    "a byte of the whitelist's signature is damaged": Fault(
        lambda place: place.flip(place.whitelist, -9),
        r"\.cvmfswhitelist in \S+: signature was made with none of the given master keys",
        "`cvmfs-publish resign`",
    ),
    "our certificate is not on the whitelist": Fault(
        lambda place: place.write_whitelist(STRANGER),
        rf"does not trust the certificate in \S+: that is {FINGERPRINT}, it lists {STRANGER_TEXT}",
        "`cvmfs-publish resign`",
    ),
    "key and certificate are somebody else's": Fault(
        lambda place: place.borrow("key", "crt"),
        rf"does not trust the certificate in \S+: that is {FINGERPRINT}, it lists {FINGERPRINT}",
        "`cvmfs-publish resign`",
    ),
    "the master key's public half is another's": Fault(
        lambda place: place.borrow("pub"),
        r"\.cvmfswhitelist in \S+: signature was made with none of the given master keys",
        "`cvmfs-publish resign`",
    ),
    "the key is not that of the certificate": Fault(
        lambda place: place.borrow("key"),
        rf"{NAME}\.key is not the key of {NAME}\.crt",
        "put the two files there that belong together",
        "repository",
    ),
    "the manifest was signed with another key": Fault(
        lambda place: place.flip(place.manifest, -9),
        r"\.cvmfspublished of \S+ was not signed with the key of the certificate it names",
        "restore it from a backup or a replica",
    ),
    "the manifest was changed": Fault(
        lambda place: place.manifest.write_bytes(
            place.manifest.read_bytes().replace(b"\nD240\n", b"\nD241\n")
        ),
        # told by the first who reads it
        r"(\.cvmfspublished of \S+ was not signed |is damaged: ).*manifest: hash line says",
        "from a backup or a replica",
    ),
    "the revision is from the future": Fault(
        lambda place: place.sign_as_of(hours(5)),
        rf"revision 1 was published at {TIME}:\d\d UTC, but the clock of this host says {TIME}",
        "set the clock of this host (NTP)",
        "repository",
    ),
    "the key can be read by others": Fault(
        lambda place: place.key("key").chmod(0o440),
        r"\.key: private key is open to others \(mode 0440\)",
        "chmod 400 ",
        "repository",
    ),
    "the folder of the keys can be written by everybody": Fault(
        lambda place: place.key("key").parent.chmod(0o777),
        r"keys: everybody may exchange the keys \(mode 0777\)",
        "chmod o-w ",
        "repository",
    ),
    "the reflog is of a newer version": Fault(
        Place.newer_reflog,
        "reflog has schema revision 1, newer than 0, which this version writes",
        "use a newer version of cvmfs-publish",
        "repository",
    ),
    "the root catalog is of a newer version": Fault(
        Place.newer_catalog,
        "root catalog [0-9a-f]{40} has schema revision 8, newer than 7, which this version writes",
        "use a newer version of cvmfs-publish",
        "repository",
    ),
    "the root catalog has another revision than the manifest": Fault(
        lambda place: place.sign(
            replace(place.published(), revision=7)
        ),  # the next one must not have number 2
        rf"root catalog of {NAME} has revision 1, the manifest 7",
        "`cvmfs_server publish -n 8`",
        "repository",
    ),
    "the root catalog has another size than the manifest says": Fault(
        lambda place: place.sign(replace(place.published(), root_size=1024)),
        r"catalog .*has \d+ bytes, (the manifest says|promised) 1024",
        "restore files from a backup or a replica",
        "repository",
    ),
    "the root catalog is missing": Fault(
        lambda place: place.object(Suffix.CATALOG).unlink(),
        r"/data/\S+C is missing",
        "restore files from a backup or a replica",
        "repository",
    ),
    "the metainfo is missing": Fault(
        lambda place: place.object(Suffix.METAINFO).unlink(),
        r"metainfo: \S+M is missing",
        "restore files from a backup or a replica",
        "repository",
    ),
    "the metainfo is damaged": Fault(
        lambda place: place.flip(place.object(Suffix.METAINFO), 20),
        r"metainfo: object data/\S+M in \S+ is damaged: its hash differs",
        "restore files from a backup or a replica",
        "repository",
    ),
    "the manifest demands access control": Fault(
        lambda place: place.sign(replace(place.published(), alternative_paths=True)),
        r"access control \(manifest field A\)",
        "publish into it with cvmfs_server",
        "repository",
    ),
    **{
        f"{kind} is missing": Fault(
            lambda place, kind=kind: place.key(kind).unlink(),  # type: ignore[misc]
            rf"{NAME}\.{kind} cannot be read: No such file",
            "restore them from where they are kept",
            "repository",
        )
        for kind in ("key", "crt", "pub")
    },
    **{
        f"{kind} is too short": Fault(
            lambda place, kind=kind: place.shorten(kind),  # type: ignore[misc]
            rf"{NAME}\.{kind} has an RSA key of 1024 bits; 2048 to 4096 are possible",
            "docs/keys.md",
            "repository",
        )
        for kind in ("key", "crt", "pub")
    },
}


@pytest.fixture(scope="module")
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        tar = Tar()
        tar.file("hello", b"world")
        registry.add_image("a/one", [tar.done()], tag="1")
        yield registry


def state(folder: Path) -> dict[str, bytes]:
    storage = folder / "repository"
    return {
        str(path.relative_to(storage)): path.read_bytes()
        for path in storage.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_written_that_clients_would_not_accept(
    home: Shell, registry: FakeRegistry, name: str
) -> None:
    fault = FAULTS[name]
    fault.make(Place(home.cwd))
    before = state(home.cwd)
    image = registry.name("a/one", "1")
    for arguments in (["publish", image], ["tag", "release"]):
        ran = home.run(*arguments)
        assert (ran.code, ran.out) == (5, ""), ran
        assert re.search(fault.message, ran.err), ran.err
        assert f"hint: {fault.remedy}" in ran.err or fault.remedy in ran.err, ran.err
        assert ran.err.count("error: ") == 1
        assert ran.err.count("hint: ") == 1
    document = home.json("tag", "release", code=5)
    assert document["error"]["kind"] == fault.kind
    assert fault.remedy in document["error"]["hint"]
    assert state(home.cwd) == before
    assert os.listdir(home.cwd / "repository" / "data" / "txn") == []


@pytest.mark.parametrize(
    "make",
    [
        lambda place: place.sign_as_of(hours(5)),
        lambda place: place.sign(replace(place.published(), revision=7)),
        lambda place: place.object(Suffix.HISTORY).unlink(),
        lambda place: place.object(Suffix.METAINFO).unlink(),
        lambda place: place.flip(place.manifest, -9),
        Place.newer_reflog,
        Place.newer_catalog,
    ],
)
def test_keys_are_not_exchanged_where_the_new_one_could_not_sign(
    home: Shell, make: Callable[[Place], object]
) -> None:
    make(Place(home.cwd))
    keys = home.cwd / "keys"
    before = state(home.cwd), {path: path.read_bytes() for path in keys.iterdir()}
    ran = home.run("resign", "--rotate")
    assert ran.code == 5, ran
    assert ran.err.count("hint: ") == 1
    assert (state(home.cwd), {path: path.read_bytes() for path in keys.iterdir()}) == before


def test_a_clock_that_is_behind_is_told_with_both_times(home: Shell) -> None:
    """The same seen from the other side: the last revision is right, this host is not."""
    Place(home.cwd).sign_as_of(hours(0.1))
    ran = home.run("tag", "release")
    assert ran.code == 5
    assert "clients never go back in time" in ran.err
    Place(home.cwd).sign_as_of(int(time.time()) + 30)  # less than what clocks differ by
    assert home.run("tag", "release").code == 0


@pytest.mark.parametrize("arguments", [[], ["--rotate"], ["--only"]])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda place: place.borrow("masterkey"), r"\.pub is not the public half of the master"),
        (lambda place: place.key("masterkey").unlink(), rf"the master key of {NAME} is not in"),
        (lambda place: place.key("masterkey").chmod(0o444), r"masterkey: .* \(mode 0444\)"),
        (lambda place: place.shorten("masterkey"), r"masterkey has an RSA key of 1024 bits"),
        (lambda place: place.key("masterkey").rename(place.folder / "x"), "--request FILE"),
    ],
)
def test_without_the_right_master_key_nothing_is_renewed(
    home: Shell, make: Callable[[Place], object], message: str, arguments: list[str]
) -> None:
    make(Place(home.cwd))
    before = state(home.cwd), sorted(os.listdir(home.cwd / "keys"))
    ran = home.run("resign", *arguments)
    assert ran.code == 5
    assert re.search(message, ran.err), ran.err
    assert "\nhint: " in ran.err
    assert (state(home.cwd), sorted(os.listdir(home.cwd / "keys"))) == before
    ran = home.run("tag", "release")  # which does not need it
    assert ran.code == 0, ran
