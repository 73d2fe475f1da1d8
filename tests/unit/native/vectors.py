"""Copies of repositories made by the real programs, to be damaged in one place and signed again."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native.check import Report, check_repository
from cvmfs_publish.repository.native.signing import (
    Keys,
    join_signed,
    load_keys,
    raw_sign,
    sign_text,
    split_signed,
)

FOLDER = Path(__file__).parents[4] / "shared" / "vectors"
SHA1 = "vectors.example.org"
SHAKE = "vectors-shake.example.org"
NAMES = (SHA1, SHAKE)
NOW = datetime(2026, 11, 20, 20, 30, tzinfo=UTC)  # after the vectors were made

Edit = str | Callable[[sqlite3.Connection], object]


def vector(name: str = SHA1) -> Path:
    """The folder of a repository, only to be read."""
    if not FOLDER.is_dir():
        pytest.skip(f"{FOLDER} is not there")
    return FOLDER / name


def public_key(name: str = SHA1) -> Path:
    return vector(name) / "keys" / f"{name}.pub"


def key(path: str | bytes) -> tuple[int, int]:
    raw = os.fsencode(path)
    first, second = struct.unpack("<qq", hashlib.md5(raw).digest())
    return first, second


def at(path: str) -> str:
    """An SQL condition that selects the row of a path."""
    return "md5path_1 = {} AND md5path_2 = {}".format(*key(path))


def edit_database(data: bytes, *edits: Edit) -> bytes:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.deserialize(data)
        for edit in edits:
            if isinstance(edit, str):
                database.executescript(edit)
            else:
                edit(database)
        return bytes(database.serialize())


class Damaged:
    """A copy of a vector repository.  Every method leaves it signed and consistent again,
    except for the damage that was asked for."""

    def __init__(self, directory: Path, name: str = SHA1) -> None:
        source = vector(name)
        self.name = name
        self.root = directory / "repo"
        shutil.copytree(source / "repo", self.root, copy_function=_copy)
        for path in [self.root, *self.root.rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        self.keys = vector_keys(name)
        self.public_key = public_key(name)

    # reading

    @property
    def manifest_file(self) -> Path:
        return self.root / manifests.FILE_NAME

    @property
    def whitelist_file(self) -> Path:
        return self.root / ".cvmfswhitelist"

    @property
    def reflog_file(self) -> Path:
        return self.root / ".cvmfsreflog"

    def manifest(self) -> manifests.Manifest:
        return manifests.parse_manifest(self.manifest_file.read_bytes())[0]

    def object_file(self, value: ContentHash, kind: Suffix) -> Path:
        return self.root / value.path(kind)

    def get(self, value: ContentHash, kind: Suffix) -> bytes:
        return zlib.decompress(self.object_file(value, kind).read_bytes())

    def row_hash(self, path: str, prefix: str = "") -> ContentHash:
        """The content hash in the row of a path."""
        data = self.get(self.catalog_hash(prefix), Suffix.CATALOG)
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(data)
            sql = f"SELECT hash FROM catalog WHERE {at(path)}"
            digest = database.execute(sql).fetchone()[0]
        return ContentHash(digest, self.manifest().root_hash.algorithm)

    def catalog_hash(self, prefix: str) -> ContentHash:
        value = self.manifest().root_hash
        for parent, path in _chain(prefix):
            data = self.get(value, Suffix.CATALOG)
            with closing(sqlite3.connect(":memory:")) as database:
                database.deserialize(data)
                found = database.execute(
                    "SELECT sha1 FROM nested_catalogs WHERE path = ?", (path,)
                ).fetchone()
            assert found, (parent, path)
            value = ContentHash.parse(found[0])
        return value

    # writing

    def put(self, stored: bytes, kind: Suffix) -> ContentHash:
        value = ContentHash.of(stored, self.manifest().root_hash.algorithm)
        path = self.object_file(value, kind)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(stored)
        return value

    def edit_catalog(self, prefix: str, *edits: Edit) -> None:
        """Change a catalog; its parents, history, reflog and manifest follow."""
        data = edit_database(self.get(self.catalog_hash(prefix), Suffix.CATALOG), *edits)
        self.replace_catalog(prefix, data)

    def replace_catalog(self, prefix: str, data: bytes) -> None:
        value = self.put(zlib.compress(data), Suffix.CATALOG)
        for parent, path in reversed(_chain(prefix)):
            above = self.get(self.catalog_hash(parent), Suffix.CATALOG)
            data = edit_database(
                above,
                f"UPDATE nested_catalogs SET sha1 = '{value}', size = {len(data)} "
                f"WHERE path = '{path}'",
            )
            value = self.put(zlib.compress(data), Suffix.CATALOG)
        self.set_root(value, len(data))

    def set_root(self, value: ContentHash, size: int) -> None:
        before = self.manifest()
        self.sign(root_hash=value, root_size=size)
        self.edit_history(
            f"UPDATE tags SET hash = '{value}', size = {size} WHERE hash = '{before.root_hash}'"
        )

    def edit_history(self, *edits: Edit) -> None:
        history = self.manifest().history
        assert history is not None
        self.replace_history(edit_database(self.get(history, Suffix.HISTORY), *edits))

    def replace_history(self, data: bytes) -> None:
        self.sign(history=self.put(zlib.compress(data), Suffix.HISTORY))
        self.list_current()

    def list_current(self) -> None:
        """Put what the manifest names into the reflog."""
        manifest = self.manifest()
        values = [
            (manifest.root_hash, 0),
            (manifest.certificate, 1),
            (manifest.history, 2),
            (manifest.metainfo, 3),
        ]
        self.edit_reflog(
            *(
                f"INSERT OR REPLACE INTO refs VALUES ('{value}', {kind}, 1795170600)"
                for value, kind in values
                if value is not None
            )
        )

    def edit_reflog(self, *edits: Edit) -> None:
        self.replace_reflog(edit_database(self.reflog_file.read_bytes(), *edits))

    def replace_reflog(self, data: bytes) -> None:
        self.reflog_file.write_bytes(data)
        self.sign(reflog=ContentHash.of(data, self.manifest().root_hash.algorithm))

    def sign(self, **fields: object) -> None:
        """Sign the manifest again with some fields changed."""
        manifest = replace(self.manifest(), **fields)  # type: ignore[arg-type]
        self.manifest_file.write_bytes(manifests.sign_manifest(manifest, self.keys.private_key))

    def rewrite_manifest(self, change: Callable[[bytes], bytes]) -> None:
        """Sign a changed text of the manifest."""
        payload = change(split_signed(self.manifest_file.read_bytes(), "manifest").payload)
        hash_text = str(ContentHash.of(payload, self.manifest().root_hash.algorithm)).encode()
        signature = sign_text(hash_text, self.keys.private_key)
        self.manifest_file.write_bytes(join_signed(payload, hash_text, signature))

    def rewrite_whitelist(self, change: Callable[[bytes], bytes]) -> None:
        """Sign a changed text of the whitelist."""
        payload = change(split_signed(self.whitelist_file.read_bytes(), "whitelist").payload)
        hash_text = str(ContentHash.of(payload, self.manifest().root_hash.algorithm)).encode()
        assert self.keys.master_key is not None
        signature = raw_sign(hash_text, self.keys.master_key)
        self.whitelist_file.write_bytes(join_signed(payload, hash_text, signature))

    def check(self, **options: object) -> Report:
        # The two large files are only looked for: reading them takes longer than all the rest.
        options = {"now": NOW, "name": self.name, "budget": 2 * 1024 * 1024, **options}
        return check_repository(self.root, [self.public_key], **options)  # type: ignore[arg-type]


def copy_keys(directory: Path, name: str = SHA1) -> Path:
    """Copy the keys of a repository, private ones as private as they have to be."""
    directory.mkdir(exist_ok=True)
    for path in (vector(name) / "keys").iterdir():
        copy = directory / path.name
        shutil.copyfile(path, copy)
        copy.chmod(0o400)
    return directory


@cache
def vector_keys(name: str = SHA1) -> Keys:
    with TemporaryDirectory() as directory:
        return load_keys(copy_keys(Path(directory), name), name)


def _copy(source: str, target: str) -> None:
    # No test changes the contents of the large files, so one copy of them is enough.
    if os.stat(source).st_size > 256 * 1024:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _chain(prefix: str) -> list[tuple[str, str]]:
    """Pairs (parent catalog, path of the nested one) from the root down to `prefix`.

    All vector repositories have the catalogs "", "/nested" and "/nested/inner".
    """
    return {
        "": [],
        "/nested": [("", "/nested")],
        "/nested/inner": [("", "/nested"), ("/nested", "/nested/inner")],
    }[prefix]
