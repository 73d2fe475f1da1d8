"""Put together what most tests of publishing need: a repository, a publisher, the judge."""

from __future__ import annotations

import atexit
import functools
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import Publisher, PublishResult, PublishSettings, Reporter
from cvmfs_publish.repository.native.check import check_repository
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from cvmfs_publish.repository.native.signing import create_keys
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource

NAME = "test.example.org"
SHARED = Path(__file__).resolve().parents[2] / "shared"
JUDGE = SHARED / "tools" / "cvmfs_check.py"


@functools.cache
def keys_of_this_run() -> Path:
    """Make one set of keys: each takes a second, and no test depends on them being new."""
    directory = Path(tempfile.mkdtemp(prefix="cvmfs-publish-keys-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    create_keys(directory, NAME, now=datetime.now(UTC))
    return directory


def remove_empty_folders(repository: Path) -> None:
    """Let copies take less time; a publisher makes again what it needs."""
    for folder in (repository / "data").iterdir():
        with suppress(OSError):  # not empty
            folder.rmdir()


@functools.cache
def _judge_module() -> ModuleType:
    spec = spec_from_file_location("judge", JUDGE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # its data classes look for it there
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the folder is not ours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def judged(place: Path | str, public_key: Path, *options: str) -> str:
    """Return what the independent checker says; in this process, since each start takes long."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        _judge_module().main([str(place), "--public-key", str(public_key), *options])
    return out.getvalue().strip()


class Site:
    """A repository of a test and what publishes into it."""

    def __init__(self, base: Path, algorithm: HashAlgorithm = HashAlgorithm.SHA1) -> None:
        self.storage = base / "repository"
        self.keys = base / "keys"
        self.state = base / "state"
        self.reopen(NativeOptions())
        self.algorithm = algorithm
        self.client = RegistryClient(attempts=2, sleep=lambda _: None)

    def reopen(self, options: NativeOptions) -> None:
        """Use the repository from now on as a publisher with these options does."""
        self.repository = NativeRepository(NAME, LocalStore(self.storage), self.keys, options)

    def create(self) -> Site:
        shutil.copytree(keys_of_this_run(), self.keys)
        self.repository.create(self.algorithm, datetime.now(UTC))
        return self

    def publish(
        self,
        *references: str,
        settings: PublishSettings | None = None,
        reporter: Reporter | None = None,
        **options: Any,  # noqa: ANN401
    ) -> PublishResult:
        """Publish now; `options` as of `Publisher.publish`."""
        publisher = Publisher(
            self.repository,
            RegistrySource(self.client),
            RecordStore(self.state / "layers", self.algorithm),
            settings or PublishSettings(),
            reporter,
        )
        return publisher.publish(references, **{"now": datetime.now(UTC), **options})

    def judge(self, *options: str) -> list[str]:
        """Return the errors the independent checker finds, every object included."""
        text = judged(self.storage, self.keys / f"{NAME}.pub", "--scrub", *options)
        lines = text.splitlines()
        assert lines
        assert " errors, " in lines[-1], text
        return [line for line in lines if line.startswith("ERROR")]

    def published_tree(self, sandbox: str, scratch: Path) -> dict[bytes, dict[str, Any]]:
        """Return what the judge reads below a sandbox, by relative path; its root is `b""`."""
        listing = scratch / "tree.json"
        assert self.judge("--dump-tree", str(listing)) == []
        entries = json.loads(listing.read_text())
        prefix = sandbox.strip("/")
        tree = {}
        for entry in entries:
            path = entry["path"].strip("/")
            if path == prefix or path.startswith(prefix + "/"):
                tree[path[len(prefix) + 1 :].encode("utf-8", "surrogateescape")] = entry
        return tree


@contextmanager
def site(base: Path, algorithm: HashAlgorithm = HashAlgorithm.SHA1) -> Iterator[Site]:
    """Create a repository below `base` for the length of a test."""
    created = Site(base, algorithm).create()
    with created.client:
        yield created


def assert_sound(target: Site) -> None:
    """Both judges agree that nothing is wrong, object by object."""
    assert target.judge() == []
    report = check_repository(
        target.storage,
        [target.keys / f"{NAME}.pub"],
        name=NAME,
        now=datetime.now(UTC),
        scrub=True,
    )
    assert report.errors == []
