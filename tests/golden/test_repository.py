"""What is written into a repository, compared with the files kept here.

`tests/fixed.py` makes it with fixed keys, clock and tree.  Hashes of stored objects depend on the
versions of SQLite and of the compressing libraries; where they stand they are replaced by what
the object contains, so the dumps are the same everywhere.  What is left, to the byte, is compared
with `exact.txt` where the libraries are those of whoever wrote it.

After a wanted change: run with UPDATE_GOLDEN=1 in the environment and read the diff.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import sqlite3
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.s3 import S3Store
from cvmfs_publish.repository.native.manifest import FILE_NAME as MANIFEST
from cvmfs_publish.repository.native.manifest import Manifest, parse_manifest
from cvmfs_publish.repository.native.reflog import FILE_NAME as REFLOG
from cvmfs_publish.repository.native.signing import load_keys, raw_sign, split_signed
from cvmfs_publish.repository.native.whitelist import FILE_NAME as WHITELIST
from tests.fixed import NAME, NOW, copy_keys, make_local, make_repository
from tests.s3 import S3Bucket

GOLDEN = Path(__file__).parent / "repository"
ALGORITHMS = (HashAlgorithm.SHA1, HashAlgorithm.SHAKE128)
_HASH = re.compile(rb"[0-9a-f]{40}(?:-[a-z0-9]+)?")
_DIGEST = re.compile(r"X'([0-9A-F]{40})'")


@dataclass
class Dump:
    """The texts that say what is in a repository, by file name."""

    root: Path
    algorithm: HashAlgorithm
    meaning: dict[str, str] = field(default_factory=dict)  # by hash text
    texts: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, str]:
        manifest = parse_manifest((self.root / MANIFEST).read_bytes())[0]
        self.name_contents()
        reflog = (self.root / REFLOG).read_bytes()
        self.mean(ContentHash.of(reflog, self.algorithm), "the reflog")
        self.mean_signed(manifest)
        roots = self.name_roots(manifest)
        for revision, root in roots.items():
            self.name_catalogs(root, "", revision)
        self.name_histories()
        self.dump_catalogs(roots)
        assert manifest.history is not None
        self.texts["history.txt"] = self.database(self.get(manifest.history, Suffix.HISTORY))
        self.texts["reflog.txt"] = self.database(reflog)
        self.texts["manifest.txt"] = self.signed(MANIFEST)
        self.texts["whitelist.txt"] = self.signed(WHITELIST)
        assert manifest.metainfo is not None
        self.texts["metainfo.json"] = self.get(manifest.metainfo, Suffix.METAINFO).decode()
        self.texts["objects.txt"] = self.objects()
        return self.texts

    # objects

    def get(self, value: ContentHash, kind: Suffix) -> bytes:
        return zlib.decompress((self.root / value.path(kind)).read_bytes())

    def mean(self, value: ContentHash, meaning: str) -> None:
        self.meaning[str(value)] = f"<{meaning}>"

    def name_contents(self) -> None:
        """Name every object of file contents by what it contains."""
        for path, value, kind in self.files():
            if kind in (Suffix.DATA, Suffix.CHUNK):
                stored = path.read_bytes()
                try:
                    form, content = "compressed", zlib.decompress(stored)
                except zlib.error:
                    form, content = "as it is", stored
                digest = hashlib.sha256(content).hexdigest()[:16]
                self.mean(value, f"{len(content)} bytes, sha256 {digest}…, {form}")

    def files(self) -> list[tuple[Path, ContentHash, Suffix]]:
        found = []
        for path in sorted((self.root / "data").rglob("*")):
            if path.is_file():
                text = path.parent.name + path.name
                kind = Suffix(text[-1] if text[-1].isupper() else "")
                found.append((path, ContentHash.parse(text.removesuffix(kind.value)), kind))
        return found

    def mean_signed(self, manifest: Manifest) -> None:
        assert manifest.certificate is not None
        assert manifest.metainfo is not None
        self.mean(manifest.certificate, "the certificate")
        self.mean(manifest.metainfo, "the metainfo")

    def name_roots(self, manifest: Manifest) -> dict[int, ContentHash]:
        """Return the root catalogs by revision, found as replicas find them."""
        roots = {}
        value = manifest.root_hash
        for revision in range(manifest.revision, 0, -1):
            roots[revision] = value
            previous = self.properties(value)["previous_revision"]
            assert int(self.properties(value)["revision"]) == revision
            value = ContentHash.parse(previous)
        assert not any(value.digest)
        self.mean(value, "none")
        return dict(sorted(roots.items()))

    def properties(self, catalog: ContentHash) -> dict[str, str]:
        with closing(_open(self.get(catalog, Suffix.CATALOG))) as database:
            return dict(database.execute("SELECT key, value FROM properties").fetchall())

    def name_catalogs(self, value: ContentHash, path: str, revision: int) -> None:
        """Name catalogs by the first revision that has them."""
        if str(value) in self.meaning:
            return
        self.mean(value, f"catalog of /{path}, revision {revision}")
        with closing(_open(self.get(value, Suffix.CATALOG))) as database:
            rows = database.execute("SELECT path, sha1 FROM nested_catalogs").fetchall()
        for below, text in rows:
            self.name_catalogs(ContentHash.parse(text), below[1:], revision)

    def name_histories(self) -> None:
        for _, value, kind in self.files():
            if kind is Suffix.HISTORY:
                with closing(_open(self.get(value, kind))) as database:
                    tags = database.execute("SELECT COUNT(*), MAX(revision) FROM tags").fetchone()
                self.mean(value, f"history of {tags[0]} tags up to revision {tags[1]}")

    # texts

    def plain(self, text: bytes) -> str:
        """Replace hashes of objects by what the objects are."""
        shown = _HASH.sub(
            lambda found: self.meaning.get(found[0].decode(), found[0].decode()).encode(), text
        )
        return shown.decode("utf-8", "backslashreplace")

    def signed(self, name: str) -> str:
        """Return the text and what is signed; signatures are looked at elsewhere."""
        signed = split_signed((self.root / name).read_bytes(), name)
        assert signed.hash_text.decode() == str(ContentHash.of(signed.payload, self.of(signed)))
        return self.plain(signed.payload)

    def of(self, signed: object) -> HashAlgorithm:
        text = getattr(signed, "hash_text").decode()  # noqa: B009 - a parsed file
        return ContentHash.parse(text).algorithm

    def dump_catalogs(self, roots: dict[int, ContentHash]) -> None:
        """Dump each catalog once, under the revision that brought it."""
        for _, value, kind in self.files():
            if kind is not Suffix.CATALOG:
                continue
            found = re.fullmatch(r"<catalog of /(.*), revision (\d+)>", self.meaning[str(value)])
            assert found, "a catalog that no revision has"
            place = found[1].replace("/", "+") or "root"
            data = self.get(value, Suffix.CATALOG)
            name = f"catalogs/{found[2]}-{place}.txt"
            self.texts[name] = self.database(data)
        assert len(roots) == 4

    def database(self, data: bytes) -> str:
        """Return schema, settings and rows of a database."""
        lines = [f"{len(data)} bytes in pages of {int.from_bytes(data[16:18])}, format {data[18]}"]
        with closing(_open(data)) as database:
            database.text_factory = bytes
            tables = database.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY rowid"
            ).fetchall()
            for (sql,) in database.execute(
                "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            ):
                lines += ["", " ".join(sql.decode().split())]
            for name, sql in tables:
                lines += ["", " ".join(sql.decode().split())]
                lines += self.rows(database, name.decode())
        return "\n".join(lines) + "\n"

    def rows(self, database: sqlite3.Connection, table: str) -> list[str]:
        columns = [
            row[1].decode() for row in database.execute(f"PRAGMA table_info({table})").fetchall()
        ]
        quoted = ", ".join(f"quote({column})" for column in columns)
        rows = database.execute(f"SELECT rowid, {quoted} FROM {table} ORDER BY rowid").fetchall()
        lines = []
        for rowid, *values in rows:
            shown = (self.value(value) for value in values)
            lines.append(f"  {rowid}: " + " | ".join(shown))
        return sorted(lines) if table in ("properties", "statistics") else lines

    def value(self, quoted: bytes) -> str:
        text = self.plain(quoted).replace("\n", "\\n")
        suffix = self.algorithm.suffix
        return _DIGEST.sub(
            lambda found: self.meaning.get(found[1].lower() + suffix, found[0]), text
        )

    def objects(self) -> str:
        """List what is stored, each file of the root included, in an order of meanings."""
        lines = [f"{kind.name} {self.meaning[str(value)]}" for _, value, kind in self.files()]
        others = [path.name for path in self.root.iterdir() if path.is_file()]
        empty = sum(not any(path.iterdir()) for path in (self.root / "data").iterdir())
        folders = len(list((self.root / "data").iterdir()))
        assert empty < folders
        return "\n".join([*sorted(others), *sorted(lines), f"{folders} folders below data"]) + "\n"


def _open(data: bytes) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.deserialize(data)
    return database


def _exact(root: Path) -> str:
    """Everything to the byte, by hashes."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(root)}"
        for path in sorted(root.rglob("*"))
        if path.is_file()
    ]
    return "\n".join([*_libraries(), *lines]) + "\n"


def _libraries() -> list[str]:
    return [
        f"SQLite {sqlite3.sqlite_version}",
        f"zlib {zlib.ZLIB_RUNTIME_VERSION}",
        f"deflate {importlib.metadata.version('deflate')}",
    ]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.value)
def test_what_is_written_is_what_is_kept(tmp_path: Path, algorithm: HashAlgorithm) -> None:
    make_local(tmp_path, algorithm)
    dumped = Dump(tmp_path / "repo", algorithm).run()
    exact = _exact(tmp_path / "repo")
    folder = GOLDEN / algorithm.value
    if os.environ.get("UPDATE_GOLDEN"):
        for old in folder.rglob("*.*"):
            old.unlink()
        for name, text in {**dumped, "exact.txt": exact}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
    kept = {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }
    kept_exact = kept.pop("exact.txt")
    assert dumped == kept
    if kept_exact.splitlines()[: len(_libraries())] == _libraries():
        assert exact.splitlines() == kept_exact.splitlines()


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.value)
def test_signatures_are_those_the_format_demands(tmp_path: Path, algorithm: HashAlgorithm) -> None:
    """PKCS#1 v1.5 is deterministic, so there is one right signature."""
    make_local(tmp_path, algorithm)
    keys = load_keys(tmp_path / "keys", NAME)
    signed = split_signed((tmp_path / "repo" / MANIFEST).read_bytes(), MANIFEST)
    expected = keys.private_key.sign(signed.hash_text, padding.PKCS1v15(), hashes.SHA1())
    assert signed.signature == expected
    assert signed.hash_text.decode() == str(ContentHash.of(signed.payload, algorithm))
    signed = split_signed((tmp_path / "repo" / WHITELIST).read_bytes(), WHITELIST)
    assert keys.master_key is not None
    assert signed.signature == raw_sign(signed.hash_text, keys.master_key)


def test_two_runs_write_the_same_bytes(tmp_path: Path) -> None:
    make_local(tmp_path / "a")
    make_local(tmp_path / "b")
    assert _exact(tmp_path / "a" / "repo") == _exact(tmp_path / "b" / "repo")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda algorithm: algorithm.value)
def test_an_object_store_gets_the_same_bytes(
    tmp_path: Path, bucket: S3Bucket, algorithm: HashAlgorithm
) -> None:
    make_local(tmp_path / "local", algorithm)
    with closing(S3Store(bucket.settings)) as store:
        make_repository(store, copy_keys(tmp_path / "keys"), algorithm)
    mirror = bucket.mirror(tmp_path / "mirror")
    assert _exact(mirror) == _exact(tmp_path / "local" / "repo")


def test_the_kept_metainfo_is_json_and_the_clock_is_fixed() -> None:
    folder = GOLDEN / "sha1"
    assert json.loads((folder / "metainfo.json").read_text())["email"] == ""
    assert f"T{int(NOW.timestamp()) - 360}\n" in (folder / "manifest.txt").read_text()
