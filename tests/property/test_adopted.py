"""Repositories of the real programs, taken over: whatever is done, in any order, all stays sound.

After every step the independent checker finds no error, every entry that came with the repository
is what a real client saw, and images lead where a model says.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cvmfs_publish.content.hashes import ContentHash
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import Compression
from cvmfs_publish.errors import InputError, LockedError
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import Publisher, PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import rollback, unpublish
from cvmfs_publish.repository.native.adopt import examine_contents, examine_for_adoption
from cvmfs_publish.repository.native.gc import Collector, Retention
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from cvmfs_publish.repository.native.resigning import resign
from cvmfs_publish.repository.native.server_conf import read_server_conf
from cvmfs_publish.repository.native.spool import Spool
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.source import RegistrySource
from tests.fakes.registry import FakeRegistry, tar_of
from tests.images import fast_directory
from tests.stock import Stock
from tests.support import JUDGE
from tests.unit.native.vectors import NAMES, edit_database, vector

IMAGES: dict[str, dict[str, bytes]] = {  # two share a layer, all share a content
    "A": {"etc/common": b"common", "only-A": b"A" * 5000},
    "B": {"etc/common": b"common", "only-B": b"", "deep/er/file": b"B"},
    "C": {"only-C": b"common", "big": bytes(range(256)) * 40},
}
TAGS = [("a/one", "1"), ("a/one", "2"), ("b", "1")]
IMAGE, TAG = st.sampled_from(sorted(IMAGES)), st.sampled_from(TAGS)
Tag = tuple[str, str]


@functools.cache
def judge_module() -> ModuleType:
    """The checker, in this process: starting it takes as long as all it does."""
    spec = importlib.util.spec_from_file_location("cvmfs_check", JUDGE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Name:
    """What the model knows of a name."""

    current: str | None = None
    past: list[str] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)  # what it can go back to


class AdoptedModel(RuleBasedStateMachine):
    """Random work on an adopted repository, some of it by stock tools."""

    registry: ClassVar[FakeRegistry]
    vector_name: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="cvmfs-publish-adopted-", dir=fast_directory()))
        self.stock = Stock(self.folder, self.vector_name)
        self.now = datetime.fromtimestamp(self.stock.manifest().timestamp, UTC)
        self.client = RegistryClient(attempts=2, sleep=lambda _: None)
        self.names = {tag: Name() for tag in TAGS}
        self.sandboxes: set[str] = set()  # images whose files are there
        self.tags: set[str] = set()
        expected = json.loads((vector(self.vector_name) / "expected-tree.json").read_text())
        self.expected = {entry["path"]: entry for entry in expected}
        self.came_with: Mapping[str, Any] = {}

    @initialize(tagged=st.booleans())
    def adopt(self, tagged: bool) -> None:
        server = read_server_conf(self.stock.server_conf)
        spool = Spool(server.spool, server.name)
        self.repository = NativeRepository(
            server.name,
            LocalStore(self.stock.root),
            server.keys,
            NativeOptions(
                max_entries=5,
                compression=Compression(server.compression),
                automatic_tags=server.auto_tag_timespan if tagged else None,
                bookkeeping=spool,
            ),
        )
        examine_for_adoption(self.repository, self.at(), spool, server)
        self.came_with = {p: e for p, e in self.judged().items() if p != "/"}

    def teardown(self) -> None:
        try:
            if self.came_with:
                examine_contents(self.repository, self.at(), self.spool())
        finally:
            self.client.close()
            shutil.rmtree(self.folder)

    def spool(self) -> Spool:
        return Spool(self.stock.spool, self.stock.name)

    def at(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now

    def seconds(self) -> int:
        return int(self.at().timestamp())

    def reference(self, tag: Tag) -> Reference:
        return Reference.parse(self.registry.name(*tag))

    def go(self, tag: Tag, image: str | None) -> None:
        """The name leads to another image, or, with None, nowhere."""
        name = self.names[tag]
        if name.current is not None:
            name.kept.add(name.current)
        name.current = image
        if image is not None:
            name.kept.discard(image)
            name.past.append(image)
            self.sandboxes.add(image)

    # what we do

    @rule(wishes=st.dictionaries(TAG, IMAGE, min_size=1, max_size=2))
    def publish(self, wishes: dict[Tag, str]) -> None:
        for tag, image in wishes.items():
            self.registry.add_image(tag[0], [tar_of(IMAGES[image])], tag=tag[1])
        publisher = Publisher(
            self.repository,
            RegistrySource(self.client),
            RecordStore(self.folder / "layers", self.stock.manifest().root_hash.algorithm),
            PublishSettings(),
            None,
        )
        before = self.repository.revision().number
        result = publisher.publish([self.registry.name(*tag) for tag in wishes], now=self.at())
        changed = [self.names[tag].current != image for tag, image in wishes.items()]
        told = [image.status == "published" for image in result.images]
        assert told == changed, [image.error for image in result.images]
        assert self.repository.revision().number == before + any(changed)
        for (tag, image), new in zip(wishes.items(), changed, strict=True):
            if new:
                self.go(tag, image)

    @rule(tag=TAG)
    def unpublish(self, tag: Tag) -> None:
        with self.repository.transaction(self.seconds()) as transaction:
            if self.names[tag].current is None:
                with pytest.raises(InputError):
                    unpublish(transaction, self.reference(tag), DEFAULT_PLATFORM, self.now)
                return
            unpublish(transaction, self.reference(tag), DEFAULT_PLATFORM, self.now)
        self.go(tag, None)

    @precondition(lambda self: any(name.past for name in self.names.values()))
    @rule(tag=TAG)
    def rollback(self, tag: Tag) -> None:
        name = self.names[tag]
        past = [image for image in reversed(name.past) if image != name.current]
        expected = next((image for image in past if image in name.kept), None)
        with self.repository.transaction(self.seconds()) as transaction:
            if expected is None:
                with pytest.raises(InputError):
                    rollback(transaction, self.reference(tag), DEFAULT_PLATFORM, self.now)
                return
            done = rollback(transaction, self.reference(tag), DEFAULT_PLATFORM, self.now)
        assert done.is_changed
        self.go(tag, expected)

    @rule(days=st.sampled_from([0, 0, 1]), revisions=st.integers(0, 2))
    def gc(self, days: int, revisions: int) -> None:
        now, retention = self.seconds(), Retention(timedelta(days=days), revisions)
        collector = Collector(self.repository, self.folder / "scratch")
        foreseen: list[str] = []
        executed: list[str] = []
        collector.plan(now, retention, lambda plan: foreseen.extend(plan.all_names()))
        collector.collect(now, retention, lambda plan: executed.extend(plan.all_names()))
        assert foreseen == executed
        assert not [name for name in executed if (self.stock.root / name).exists()]
        if days == 0:
            used = {name.current for name in self.names.values() if name.current is not None}
            self.sandboxes &= used
            for name in self.names.values():
                name.kept &= used

    @rule()
    def resign(self) -> None:
        done = resign(self.repository, self.at(), 30)
        assert done.whitelist.expires_at > self.now + timedelta(days=29)

    @rule(number=st.integers(1, 3))
    def tag(self, number: int) -> None:
        name, manifest = f"ours-{number}", self.repository.manifest()
        with self.repository.maintenance(self.seconds()) as work:
            if name in self.tags:
                work.history.remove_tag(name)
            else:
                work.history.add_tag(
                    name,
                    manifest.root_hash,
                    manifest.revision,
                    self.last_modified(),
                    manifest.root_size,
                )
        self.tags ^= {name}

    def last_modified(self) -> int:
        with self.repository.snapshot() as snapshot:
            return snapshot.catalog("").last_modified

    # what stock tools do in between, as far as they leave other traces than we

    @rule()
    def stock_gc(self) -> None:
        """It rewrites the reflog and its checksum, and leaves field Y behind."""
        data = edit_database(
            self.stock.reflog_file.read_bytes(),
            "UPDATE refs SET timestamp = timestamp + 1 WHERE rowid = 1; VACUUM",
        )
        self.stock.reflog_file.write_bytes(data)
        self.stock.settle()

    @rule()
    def stock_tag(self) -> None:
        name = f"stock-{self.at():%H-%M}"
        self.stock.edit_history(
            f"INSERT INTO tags SELECT '{name}', hash, revision, timestamp, 0, 'by stock', size, '' "
            "FROM tags WHERE name = 'trunk'"
        )
        self.stock.settle()
        self.tags.add(name)

    @rule()
    def stock_transaction(self) -> None:
        """While one is open, nothing of ours happens."""
        flag = self.stock.spool / "in_transaction.lock"
        flag.touch()
        before = self.stock.everything()
        foreign = "in a transaction of cvmfs_server"
        with pytest.raises(LockedError, match=foreign), self.repository.transaction(self.seconds()):
            pass
        with pytest.raises(LockedError, match=foreign), self.repository.maintenance(self.seconds()):
            pass
        with pytest.raises(LockedError, match=foreign):
            resign(self.repository, self.at(), 30)
        with pytest.raises(LockedError, match=foreign):
            Collector(self.repository, self.folder / "scratch").collect(
                self.seconds(), Retention(timedelta(0), 0)
            )
        assert self.stock.everything() == before
        flag.unlink()

    # what is always true

    def judged(self) -> dict[str, Any]:
        """Return all entries, having seen that the checker finds no error."""
        out, listing = io.StringIO(), self.folder / "tree.json"
        arguments = [str(self.stock.root), "--scrub", "--json", "--dump-tree", str(listing)]
        arguments += ["--name", self.stock.name, "--public-key", str(self.stock.public_key)]
        arguments += ["--reflog-checksum", str(self.stock.spool / "reflog.chksum")]
        arguments += ["--now", str(int(self.now.timestamp()) + 60)]
        with contextlib.redirect_stdout(out):
            judge_module().main(arguments)
        assert json.loads(out.getvalue())["errors"] == 0, out.getvalue()
        return {entry["path"]: entry for entry in json.loads(listing.read_text())}

    @invariant()
    def all_is_sound_and_as_the_model_says(self) -> None:
        if not self.came_with:
            return
        entries = self.judged()
        self.check_what_came_with_it(entries)
        self.check_names(entries)
        self.check_spool()

    def check_what_came_with_it(self, entries: Mapping[str, Any]) -> None:
        assert {path: entries.get(path) for path in self.came_with} == self.came_with
        for path, wanted in self.expected.items():
            found = entries[path]
            for key in wanted.keys() - {"cvmfs_hash", "xattrs_hex", "nlink", "chunks", "size"}:
                assert found[key] == wanted[key], (path, key)
            if "cvmfs_hash" in wanted:
                assert found["hash"] == wanted["cvmfs_hash"], path
            if "sha256" in wanted:
                assert (found["size"], found["chunks"]) == (wanted["size"], wanted["chunks"]) or (
                    found["chunks"] is None and wanted["chunks"] <= 1
                ), path
            found_xattrs = {k: v for k, v in found["xattrs"].items() if k.startswith("user.")}
            assert found_xattrs == wanted.get("xattrs_hex", {}), path

    def check_names(self, entries: Mapping[str, Any]) -> None:
        present: dict[str, str] = {}  # image → its sandbox
        for image in IMAGES:
            found = [p for p in entries if p.startswith("/.flat/") and p.endswith(f"/only-{image}")]
            assert bool(found) == (image in self.sandboxes), (image, found)
            if found:
                present[image] = found[0].rpartition("/")[0]
        for image, sandbox in present.items():
            for path, data in IMAGES[image].items():
                wanted = hashlib.sha256(data).hexdigest()
                assert entries[f"{sandbox}/{path}"]["sha256"] == wanted
            others = [p for other in IMAGES if other != image for p in IMAGES[other]]
            foreign = {p for p in others if p.startswith("only-")}
            assert not [p for p in foreign if f"{sandbox}/{p}" in entries]
        for (repository, tag), name in self.names.items():
            link = entries.get(f"/{self.registry.host}/{repository}:{tag}")
            assert (link is None) == (name.current is None)
            if link is not None and name.current is not None:
                assert present[name.current].endswith(link["target"].lstrip("./"))

    def check_spool(self) -> None:
        manifest = self.stock.manifest()
        reflog = ContentHash.of(self.stock.reflog_file.read_bytes(), manifest.root_hash.algorithm)
        assert self.spool().read_reflog_checksum() == reflog
        assert (self.stock.spool / "client.local").read_text() == (
            f"CVMFS_ROOT_HASH={manifest.root_hash}\n"
        )
        left = {path.name for path in self.stock.spool.iterdir()}
        assert left == {"client.local", "reflog.chksum"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_adopted_repository_stays_sound_whatever_is_done(name: str) -> None:
    if not JUDGE.is_file():
        pytest.skip(f"{JUDGE} is not there")
    with FakeRegistry() as registry:
        machine = type("Adopted", (AdoptedModel,), {"registry": registry, "vector_name": name})
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=3,
                # A failure names its steps; shortening them would take minutes of publishing.
                phases=[Phase.explicit, Phase.reuse, Phase.generate],
                stateful_step_count=12,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
