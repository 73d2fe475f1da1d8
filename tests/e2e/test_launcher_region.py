"""Jobs that need an image of now, behind twelve Stratum 1s: in the right one or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from cvmfs_publish.naming import Wanted, switch_ready
from cvmfs_publish.repository.native.reader import open_snapshot
from cvmfs_publish.repository.native.repository import SnapshotView
from cvmfs_publish.repository.records import iter_publications
from tests.e2e.test_launcher import Node, failure, generic_node
from tests.parts import require
from tests.region import NATURES, Member, Region
from tests.support import NAME
from tests.versions import put, stage

pytestmark = pytest.mark.parts

IMAGE = "ghcr.io/a/b:1"
STALE = (75, "tempfail", "probe", "stale-revision")


def show(node: Node, region: Region, member: Member, where: Path) -> Mapping[str, str]:
    """Let a node show what a client shows of a Stratum 1: names, their records and the revision."""
    mount = where / NAME
    (mount / ".flat").mkdir(parents=True)  # an empty folder is taken for one that is not mounted
    keys = [region.site.keys / f"{NAME}.pub"]
    origin = member.reach(member.target_folder())
    with open_snapshot(origin, keys, now=region.now, name=NAME) as snapshot:
        view = SnapshotView(snapshot)
        for record in iter_publications(view):
            link = mount / record.path.lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(node.image)
            folder = mount / ".metadata" / record.path.lstrip("/")
            folder.mkdir(parents=True)
            (folder / "publication.json").write_bytes(record.to_json())
        os.setxattr(mount, "user.revision", str(snapshot.manifest.revision).encode())
    return node.configure(f"cvmfs: {where}\nrepositories: [{{name: {NAME}}}]\n")


@pytest.mark.slow
def test_a_job_starts_only_where_its_revision_has_arrived(tmp_path: Path) -> None:
    region = Region(tmp_path)
    region.admit(list(NATURES[:12]))
    repository = region.site.repository
    with repository.transaction(int(region.now.timestamp())) as transaction:
        stage(transaction, IMAGE, "A", region.now, 1)
    region.step()
    switch_ready(repository, region.look(), Wanted(), region.now)
    wanted = region.revision  # as `publish` tells
    started: list[int] = []
    with generic_node(str(require("ch-run"))) as node:
        for moment in range(5):
            region.step()
            started.append(0)
            for number, member in enumerate(region.members):
                if not member.served:
                    continue  # a node that can mount nothing there
                where = node.root / f"{moment}-{number}"
                env = show(node, region, member, where)
                result = node.run("--min-revision", str(wanted), IMAGE, "cat", "/marker", env=env)
                if member.served >= wanted:
                    assert (result.returncode, result.stdout) == (0, b"inside\n"), result
                    started[-1] += 1
                else:
                    assert failure(result) == STALE, member.nature
                shutil.rmtree(where)
            with repository.transaction(int(region.now.timestamp())) as transaction:
                put(transaction, "ghcr.io/a/other:1", "ABCDE"[moment], region.now)
    # the fast one; then those that are one and three revisions behind
    assert started == [1, 2, 2, 3, 3]
