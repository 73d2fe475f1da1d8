"""Change what is published behind the publisher's back, signed as if it were right."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from cvmfs_publish.layers.tree import Node
from cvmfs_publish.repository.native.catalog import kind_flags
from cvmfs_publish.repository.native.edit import TreeEditor
from cvmfs_publish.repository.native.repository import NativeTransaction
from tests.support import Site


def edit(target: Site, change: Callable[[NativeTransaction, TreeEditor], object]) -> None:
    """Publish a revision with this change."""
    with target.repository.transaction(int(datetime.now(UTC).timestamp())) as transaction:
        change(transaction, transaction._editor)


def tamper(target: Site, path: str, change: Callable[[Node], Node]) -> None:
    """Publish a revision in which one entry is different, and nothing beside it."""

    def apply(_: NativeTransaction, editor: TreeEditor) -> None:
        row = editor.get(path)
        assert row is not None, path
        node = change(row.node)
        mount = editor._locate(path.rpartition("/")[0])
        mount.catalog.put([row._replace(node=node, flags=kind_flags(node))])
        mount.changed = True

    edit(target, apply)
