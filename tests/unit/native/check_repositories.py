"""Sound repositories to be damaged, two by the real programs and one by us; and the judge."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import io
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType

import pytest

from cvmfs_publish.content.hashes import ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.native.catalog import Row
from cvmfs_publish.repository.native.reader import browse_snapshot
from cvmfs_publish.repository.native.repository import NativeRepository
from tests.support import remove_empty_folders
from tests.unit.native import vectors
from tests.unit.native.vectors import FOLDER, NOW, SHA1, SHAKE, Damaged, Edit

__all__ = ["NOW", "OURS", "SHA1", "SHAKE", "Subject", "Verdict", "judge"]

OURS = "ours"  # what the SHA-1 vector contains, written by this program
FIRST_AT = 1795170597  # Unix seconds; when the vectors' first revision was made
_JUDGE = FOLDER.parent / "tools" / "cvmfs_check.py"


class Subject(Damaged):
    """A copy of one of the repositories.

    In SQL, `$EMPTY` stands for the hash of an empty file, `$ALG` for what texts of hashes end with
    and `$BITS` for the bits of the hash algorithm in the flags of files.
    """

    def __init__(self, directory: Path, kind: str = SHA1) -> None:
        if kind == OURS:
            self.name = SHA1
            self.root = directory / "repo"
            shutil.copytree(_ours(), self.root, copy_function=vectors._copy)
            self.keys = vectors.vector_keys(SHA1)
            self.public_key = vectors.public_key(SHA1)
        else:
            super().__init__(directory, kind)
        self.algorithm = self.manifest().root_hash.algorithm

    def fill(self, sql: str) -> str:
        empty = ContentHash.of(zlib.compress(b""), self.algorithm)
        bits = 0x200 if self.algorithm is HashAlgorithm.SHAKE128 else 0
        sql = sql.replace("$EMPTY", f"x'{empty.digest.hex()}'")
        return sql.replace("$ALG", self.algorithm.suffix).replace("$BITS", str(bits))

    def _filled(self, edits: Sequence[Edit]) -> list[Edit]:
        return [self.fill(edit) if isinstance(edit, str) else edit for edit in edits]

    def edit_catalog(self, prefix: str, *edits: Edit) -> None:
        super().edit_catalog(prefix, *self._filled(edits))

    def edit_history(self, *edits: Edit) -> None:
        super().edit_history(*self._filled(edits))

    def edit_reflog(self, *edits: Edit) -> None:
        super().edit_reflog(*self._filled(edits))

    def fake(self, digit: str) -> ContentHash:
        """A hash of no object."""
        return ContentHash(bytes.fromhex(digit * 40), self.algorithm)

    def tagged(self, name: str) -> ContentHash:
        """The root catalog that the first tag whose name begins so leads to."""
        history = self.manifest().history
        assert history is not None
        found: list[str] = []
        vectors.edit_database(
            self.get(history, Suffix.HISTORY),
            lambda database: found.extend(
                text
                for text, tag in database.execute("SELECT hash, name FROM tags ORDER BY name")
                if tag.startswith(name)
            ),
        )
        return ContentHash.parse(found[0])

    def set_time(self, change: Callable[[datetime], datetime]) -> None:
        """Set the time until which the whitelist is valid, relative to `NOW`."""
        self.rewrite_whitelist(
            lambda text: b"\n".join(
                b"E" + f"{change(NOW):%Y%m%d%H%M%S}".encode() if line[:1] == b"E" else line
                for line in text.split(b"\n")
            )
        )


@functools.cache
def _ours() -> Path:
    """Publish what the vector contains with this program, in three revisions; made once."""
    base = Path(tempfile.mkdtemp(prefix="cvmfs-publish-ours-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    root = base / "repo"
    keys = vectors.copy_keys(base / "keys")
    repository = NativeRepository(SHA1, LocalStore(root), keys)
    at = datetime.fromtimestamp(FIRST_AT, UTC)
    repository.create(HashAlgorithm.SHA1, at)
    repository.resign(at + timedelta(seconds=1), 20 * 365)  # not what these tests are about
    with browse_snapshot(vectors.vector() / "repo") as snapshot:
        rows = [row for row in snapshot.walk() if not row.path.endswith(".cvmfscatalog")]
    late = [row for row in rows if row.path.startswith("plain/new")]
    for number, some in enumerate(([row for row in rows if row not in late], late), 1):
        with repository.transaction(FIRST_AT + number) as transaction:
            for row in some:
                _put(repository, transaction._editor, row)
    _add_tags(root)
    remove_empty_folders(root)
    return root


def _put(repository: NativeRepository, editor: object, row: Row) -> None:
    """Put one entry, and the objects of its content, into the edited tree."""
    assert hasattr(editor, "make_directories")
    assert hasattr(editor, "_put")
    if row.node.is_dir:
        editor.make_directories(row.path, ["nested", "nested/inner"])
        return
    editor._put(row.node, row.path)
    content = row.node.content
    if content is None:
        return
    for value in content.hashes():
        kind = Suffix.DATA if value == content.hash else Suffix.CHUNK
        stored = (vectors.vector() / "repo" / value.path(kind)).read_bytes()
        repository.store.put(stored, value, kind)


def _add_tags(root: Path) -> None:
    """Add the tags that the vectors have besides `trunk` and `trunk-previous`."""
    ours = Subject.__new__(Subject)
    ours.name, ours.root, ours.keys = SHA1, root, vectors.vector_keys(SHA1)
    manifest = ours.manifest()
    ours.algorithm = manifest.root_hash.algorithm
    size = len(ours.get(_previous(ours, ours.tagged("trunk-previous")), Suffix.CATALOG))
    ours.edit_history(
        "DELETE FROM tags WHERE name NOT LIKE 'trunk%';"
        "INSERT INTO tags SELECT 'second', hash, revision, timestamp, channel, '', size, branch "
        "FROM tags WHERE name = 'trunk';"
        "INSERT INTO tags SELECT 'first', hash, revision, timestamp, channel, 'first', size, "
        "branch FROM tags WHERE name = 'trunk-previous';"
        f"INSERT INTO tags SELECT 'generic-2026-11-20T10:29:57Z', "
        f"'{_previous(ours, ours.tagged('trunk-previous'))}', 1, {FIRST_AT}, channel, '', {size}, "
        "branch FROM tags WHERE name = 'trunk';"
    )


def _previous(repository: Subject, root: ContentHash) -> ContentHash:
    found: list[str] = []
    vectors.edit_database(
        repository.get(root, Suffix.CATALOG),
        lambda database: found.extend(
            text
            for (text,) in database.execute(
                "SELECT value FROM properties WHERE key = 'previous_revision'"
            )
        ),
    )
    return ContentHash.parse(found[0])


# the judge


@dataclass(frozen=True)
class Verdict:
    """What the independent checker said."""

    errors: int
    warnings: int
    output: str


@functools.cache
def _judge_module() -> ModuleType:
    """Load the judge into this process: starting a program takes longer than judging."""
    if not _JUDGE.exists():
        pytest.skip(f"{_JUDGE} is not there")
    spec = importlib.util.spec_from_file_location("cvmfs_check", _JUDGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and tuples look for their module
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the folder is not ours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def judge(repository: Damaged, *options: str, now: datetime = NOW) -> Verdict:
    """Ask the independent checker; with `--no-data` it does not read file contents."""
    out, errors = io.StringIO(), io.StringIO()
    arguments = [
        str(repository.root),
        "--json",
        "--public-key",
        str(repository.public_key),
        "--name",
        repository.name,
        "--now",
        str(int(now.timestamp())),
        *options,
    ]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        _judge_module().main(arguments)
    document = json.loads(out.getvalue())
    return Verdict(document["errors"], document["warnings"], out.getvalue())
