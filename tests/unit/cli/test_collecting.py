"""`gc` as a person and a program meet it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.config import load_config
from tests.unit.cli.support import Shell


def put(home: Shell, *texts: str) -> None:
    repository = open_native(load_config(home.cwd / "cvmfs-publish.yaml"))
    for text in texts:
        now = int(datetime.now(UTC).timestamp())
        with repository.transaction(now) as transaction:
            transaction.put_file("f", text.encode())


def objects(home: Shell) -> set[str]:
    storage = home.cwd / "repository"
    return {str(path.relative_to(storage)) for path in storage.glob("data/??/*")}


def age(home: Shell) -> None:
    for name in objects(home):
        os.utime(home.cwd / "repository" / name, (0, 0))


def test_a_dry_run_prints_what_the_run_then_does(home: Shell) -> None:
    put(home, "one", "two", "three")
    before = objects(home)
    planned = home.json("gc", "--dry-run", "--grace", "0", "--keep-revisions", "0")
    assert objects(home) == before
    document = home.json("gc", "--grace", "0", "--keep-revisions", "0")
    assert {**planned, "dry_run": False} == document
    assert before - objects(home) == set(document["objects"])
    assert [each["revision"] for each in document["revisions_dropped"]] == [1, 2]
    kinds = document["removed"]["kinds"]
    assert {kind: total["objects"] for kind, total in kinds.items()} == {
        "files": 1,
        "catalogs": 2,
        "histories": 3,
    }
    assert document["removed"]["objects"] == 6
    assert home.run("check").code == 0


def test_a_person_reads_the_plan_and_the_end(home: Shell) -> None:
    put(home, "one", "two", "three")
    (home.cwd / "repository/data/00/stray").write_bytes(b"")
    ran = home.run("gc", "--grace", "0", "--keep-revisions", "0", "-v")
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0] == "test.example.org revision 4"
    assert lines[1].startswith("revision 1, 20")
    assert sum(line.startswith("object data/") for line in lines) == 6
    assert "revisions to forget     2, 2 stay" in lines
    assert "  histories             3, " in ran.out
    assert "left alone, no object: data/00/stray" in lines
    assert lines[-1].startswith("removed 6 objects, ")
    again = home.run("gc", "--grace", "0", "--keep-revisions", "0")
    assert again.out.splitlines()[-1] == "nothing to remove"


def test_by_default_nothing_young_goes(home: Shell) -> None:
    put(home, "one", "two", "three")
    age(home)
    before = objects(home)
    ran = home.run("gc")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == "nothing to remove"
    assert objects(home) == before


@pytest.mark.parametrize("grace", ["30", "-1d", "soon", "1y", ""])
def test_a_grace_that_is_no_time_is_refused(home: Shell, grace: str) -> None:
    ran = home.run("gc", "--grace", grace)
    assert ran.code == 2
    assert "is not a duration such as" in ran.err


def test_what_cannot_be_read_ends_it_with_the_remedy(home: Shell) -> None:
    put(home, "one", "two")
    root = home.json("info")["root_hash"]
    catalog = Path(home.cwd, "repository", "data", root[:2], root[2:] + "C")
    catalog.rename(home.cwd / "lost")
    before = objects(home)
    ran = home.run("gc", "--grace", "0")
    assert (ran.code, ran.out) == (5, "")
    assert "is missing" in ran.err
    assert "hint: " in ran.err
    assert objects(home) == before
