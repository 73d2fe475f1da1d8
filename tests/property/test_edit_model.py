"""Editing a repository against a model, revision by revision, judged by the independent checker."""

from __future__ import annotations

import contextlib
import shutil
import stat
import tempfile
import time
from pathlib import Path

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

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.errors import RepositoryError
from cvmfs_publish.layers.tree import Directory, Node, Tree
from cvmfs_publish.repository.native.catalog import MARKER
from cvmfs_publish.repository.native.repository import NativeOptions, NativeTransaction
from tests.images import fast_directory
from tests.support import JUDGE, Site

NAMES = st.sampled_from(["a", "ab", "b", "\udcff"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
DATA = st.sampled_from([b"", b"1", b"2" * 5000])
Entry = tuple[str, bytes | str]  # directory "", file with data, link with target


class Abandoned(Exception):  # noqa: N818
    """Ends a transaction that must leave nothing."""


class EditModel(RuleBasedStateMachine):
    """Random edits in random transactions; `base` is what is published, `model` what was done."""

    def __init__(self) -> None:
        super().__init__()
        self.base: dict[str, Entry] = {}
        self.model: dict[str, Entry] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="cvmfs-publish-model-", dir=fast_directory()))
        self.site = Site(self.folder)
        self.stack = contextlib.ExitStack()
        self.transaction: NativeTransaction | None = None

    @initialize(algorithm=st.sampled_from(HashAlgorithm), limit=st.sampled_from([5, 200_000]))
    def create(self, algorithm: HashAlgorithm, limit: int) -> None:
        self.site.algorithm = algorithm
        self.site.create()
        self.site.reopen(NativeOptions(max_entries=limit))

    def teardown(self) -> None:
        self.discard()
        self.site.client.close()
        shutil.rmtree(self.folder)

    def discard(self) -> None:
        with contextlib.suppress(Abandoned), self.stack:
            raise Abandoned
        self.stack = contextlib.ExitStack()

    def open(self) -> NativeTransaction:
        if self.transaction is None:
            transaction = self.site.repository.transaction(int(time.time()))
            self.transaction = self.stack.enter_context(transaction)
        return self.transaction

    def is_directory(self, path: str) -> bool:
        return not path or self.model.get(path, ("", ""))[0] == "directory"

    def forget(self, path: str) -> None:
        for gone in [p for p in self.model if p == path or p.startswith(path + "/")]:
            del self.model[gone]

    @rule(path=PATHS, nested=st.lists(PATHS, max_size=3), itself=st.booleans())
    def make_directories(self, path: str, nested: list[str], itself: bool) -> None:
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        wanted = [*nested, path] if itself else nested
        blocked = [p for p in above if p in self.model and not self.is_directory(p)]
        if blocked:
            for p in above[: above.index(blocked[0])]:
                self.model.setdefault(p, ("directory", ""))
            with pytest.raises(RepositoryError, match="in the way"):
                self.open().make_directories(path, wanted)
            return
        self.open().make_directories(path, wanted)
        for p in above:
            self.model.setdefault(p, ("directory", ""))

    @rule(path=PATHS, data=DATA)
    def put_file(self, path: str, data: bytes) -> None:
        if not self.is_directory(path.rpartition("/")[0]):
            return
        if self.is_directory(path):
            with pytest.raises(RepositoryError, match="is a directory"):
                self.open().put_file(path, data)
            return
        self.open().put_file(path, data)
        self.model[path] = ("file", data)

    @rule(path=PATHS, text=PATHS)
    def put_symlink(self, path: str, text: str) -> None:
        if not self.is_directory(path.rpartition("/")[0]) or self.is_directory(path):
            return
        self.open().put_symlink(path, text)
        self.model[path] = ("link", text)

    @rule(path=PATHS, files=st.dictionaries(PATHS, DATA, max_size=8))
    def put_tree(self, path: str, files: dict[str, bytes]) -> None:
        if not self.is_directory(path.rpartition("/")[0]):
            return
        transaction = self.open()
        root = Directory(Node(stat.S_IFDIR | 0o755))
        made: dict[str, Entry] = {path: ("directory", "")}
        for name, data in sorted(files.items()):
            here, place = root, path
            for part in name.split("/"):
                place = f"{place}/{part}"
                below = here.children.setdefault(part, Directory(Node(stat.S_IFDIR | 0o700)))
                assert isinstance(below, Directory)
                here = below
                made[place] = ("directory", "")
            node = Node(stat.S_IFREG | 0o444, size=len(data), content=transaction.store(data))
            here.children["file"] = node
            made[f"{place}/file"] = ("file", data)
        transaction.put_tree(path, Tree(root))
        self.forget(path)
        self.model |= made

    @rule(path=PATHS)
    def remove(self, path: str) -> None:
        self.open().remove(path)
        self.forget(path)

    @rule(data=st.data())
    def remove_something(self, data: st.DataObject) -> None:
        if self.model:
            self.remove(data.draw(st.sampled_from(sorted(self.model))))

    @precondition(lambda self: self.transaction is not None)
    @rule()
    def commit(self) -> None:
        self.stack.close()
        self.transaction = None
        self.base = dict(self.model)
        self.compare_with_published()
        assert self.site.judge() == []

    @precondition(lambda self: self.transaction is not None)
    @rule()
    def abandon(self) -> None:
        before = self.site.repository.revision()
        self.discard()
        self.transaction = None
        self.model = dict(self.base)
        assert self.site.repository.revision() == before

    @invariant()
    def a_transaction_shows_what_was_done(self) -> None:
        if self.transaction is None:
            return
        found: dict[str, Entry] = {}
        stack = [""]
        while stack:
            here = stack.pop()
            for name, is_directory in self.transaction.list_names(here):
                path = f"{here}/{name}" if here else name
                if is_directory:
                    found[path] = ("directory", "")
                    stack.append(path)
                elif (target := self.transaction.read_symlink(path)) is not None:
                    found[path] = ("link", target)
                elif name != MARKER:
                    found[path] = ("file", self.transaction.read_file(path) or b"")
        assert found == self.model

    def compare_with_published(self) -> None:
        found: dict[str, Entry] = {}
        with self.site.repository.snapshot() as snapshot:
            for row in snapshot.walk():
                if row.node.is_dir:
                    found[row.path] = ("directory", "")
                elif row.node.is_symlink:
                    found[row.path] = ("link", row.node.target)
                elif row.path.rpartition("/")[2] != MARKER:
                    found[row.path] = ("file", snapshot.read_file(row.path))
        assert found == self.base


@pytest.mark.slow
def test_edits_agree_with_a_model_and_every_revision_is_sound() -> None:
    if not JUDGE.is_file():
        pytest.skip(f"{JUDGE} is not there")
    run_state_machine_as_test(
        EditModel,
        settings=settings(
            max_examples=8,
            # A failure names its steps; shortening them would take minutes of judging.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
