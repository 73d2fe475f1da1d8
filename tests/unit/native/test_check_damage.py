"""Damage at random: `check --scrub` finds it wherever it means anything, and never breaks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cvmfs_publish.content.hashes import Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.native.catalog import CatalogRef
from cvmfs_publish.repository.native.check import Report, check_repository
from cvmfs_publish.repository.native.reader import Snapshot
from cvmfs_publish.repository.native.repository import NativeRepository
from tests.fixed import NAME, NOW, make_local

# Whose existence is all that counts; nobody reads it (section 2.6).
MEANINGLESS = {".cvmfs_master_replica"}


@dataclass(frozen=True)
class Made:
    """A sound repository that is damaged and repaired again and again."""

    root: Path
    public_key: Path
    files: list[str]
    needed: set[str]  # files that the current or a tagged revision leads to

    def check(self) -> Report:
        return check_repository(self.root, [self.public_key], now=NOW, name=NAME, scrub=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    base = tmp_path_factory.mktemp("damage")
    repository = make_local(base)
    root = base / "repo"
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())
    made = Made(root, base / "keys" / f"{NAME}.pub", files, _needed(repository, root))
    assert made.check().problems == []
    assert made.needed < set(files)
    assert len(files) > 30
    return made


def _needed(repository: NativeRepository, root: Path) -> set[str]:
    manifest = repository.manifest()
    needed = {str(path.relative_to(root)) for path in root.iterdir() if path.is_file()}
    assert manifest.certificate is not None
    assert manifest.history is not None
    assert manifest.metainfo is not None
    needed.add(manifest.certificate.path(Suffix.CERTIFICATE))
    needed.add(manifest.history.path(Suffix.HISTORY))
    needed.add(manifest.metainfo.path(Suffix.METAINFO))
    with repository.maintenance(int(NOW.timestamp())) as work:
        roots = {CatalogRef(tag.hash, tag.size) for tag in work.history.tags()}
        # What the reflog lists is looked for, though a collection may have removed it.
        needed |= {ref.hash.path(ref.type.suffix) for ref in work.reflog.entries()}
    for ref in roots:
        with Snapshot(LocalStore(root), manifest, ref) as snapshot:
            needed |= {catalog.hash.path(Suffix.CATALOG) for _, catalog in snapshot.catalogs()}
            for row in snapshot.walk():
                content = row.node.content
                if content is not None:
                    needed |= {chunk.hash.path(Suffix.CHUNK) for chunk in content.chunks}
                    if content.hash is not None:
                        needed.add(content.hash.path(Suffix.DATA))
    return needed


@contextmanager
def replaced(path: Path, change: Callable[[Path], object]) -> Iterator[None]:
    """Change a file, and put it back whatever became of it."""
    data = path.read_bytes()
    try:
        change(path)
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        path.write_bytes(data)


FLIPS = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.floats(0, 1, exclude_max=True), flips=FLIPS)
def test_bytes_that_changed_are_found(
    made: Made, which: float, flips: list[tuple[float, int]]
) -> None:
    name = made.files[int(which * len(made.files))]
    before = (made.root / name).read_bytes()
    data = bytearray(before)
    for where, change in flips:
        data[int(where * len(data))] ^= change
    assume(data != before)
    _expect(made, name, lambda path: path.write_bytes(data))


@pytest.mark.slow
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.floats(0, 1, exclude_max=True), length=st.floats(0, 1, exclude_max=True))
@example(which=0.0, length=0.0)
def test_a_file_that_was_cut_is_found(made: Made, which: float, length: float) -> None:
    name = made.files[int(which * len(made.files))]
    data = (made.root / name).read_bytes()
    _expect(made, name, lambda path: path.write_bytes(data[: int(length * len(data))]))


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(which=st.floats(0, 1, exclude_max=True), more=st.binary(min_size=1, max_size=40))
def test_bytes_behind_a_file_are_found(made: Made, which: float, more: bytes) -> None:
    name = made.files[int(which * len(made.files))]
    data = (made.root / name).read_bytes()
    _expect(made, name, lambda path: path.write_bytes(data + more))


@pytest.mark.slow
def test_every_file_that_is_gone_or_of_another_kind_is_found(made: Made) -> None:
    for name in made.files:
        path = made.root / name
        with replaced(path, lambda path: path.unlink()):
            problems = made.check().problems
        assert bool(problems) == (name in made.needed), name
        with replaced(path, _to_directory):
            problems = made.check().problems
        assert problems, name


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    which=st.floats(0, 1, exclude_max=True),
    other=st.floats(0, 1, exclude_max=True),
)
def test_a_file_in_place_of_another_is_found(made: Made, which: float, other: float) -> None:
    name = made.files[int(which * len(made.files))]
    data = (made.root / made.files[int(other * len(made.files))]).read_bytes()
    assume(data != (made.root / name).read_bytes())
    _expect(made, name, lambda path: path.write_bytes(data))


def _to_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _expect(made: Made, name: str, change: Callable[[Path], object]) -> None:
    with replaced(made.root / name, change):
        report = made.check()
    assert report.ok == (name in MEANINGLESS), (name, report.problems)
