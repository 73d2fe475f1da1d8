"""`cvmfs-publish bench` on a node of our own: a tree for a mount, a mirror, real ch-run."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_fetch import archive, line
from tests.fakes.mirror import Mirror, running_mirror
from tests.parts import require
from tests.unit.cli.support import Ran, Shell
from tests.worker_node import build_image

pytestmark = pytest.mark.parts

REPOSITORY = "images.example.org"
NAME = "docker.io/library/small:1"
CASES = [
    "bare process",
    "runtime, local sandbox",
    "cvmfs-run, local sandbox",
    "cvmfs-run, CVMFS warm",
    "cvmfs-run, CVMFS cold",
    "fallback, download and run",
    "fallback, downloaded before",
]
TALK = """#!/bin/sh
printf '%s\\n' "$*" >>"$TALKED"
[ -z "$REFUSE" ] || { printf '\\033[31mSeems like CernVM-FS is not running\\n\\033[0m\\n'; exit 1; }
"""


@dataclass(frozen=True)
class Node:
    """A folder with a tree where CernVM-FS would be mounted, and a site file."""

    root: Path
    mirror: Mirror
    listed: str

    @property
    def tree(self) -> Path:
        return self.root / "cvmfs" / REPOSITORY

    @property
    def image(self) -> Path:
        return self.tree / ".flat" / "ab" / "abcd"

    @property
    def talked(self) -> list[str]:
        """What the client was asked, in order."""
        with suppress(FileNotFoundError):
            return (self.root / "talked").read_text().splitlines()
        return []

    def configure(self, text: str = "") -> None:
        """Write the site file, with further lines."""
        (self.root / "lab.yaml").write_text(
            f"name: lab\ncvmfs: {self.root}/cvmfs\nrepositories: [{{name: {REPOSITORY}}}]\n"
            f"runtimes: [ch-run]\nroots: []\n{text}"
        )

    def fall_back(self, manner: str = "good") -> None:
        self.configure(
            f"fallback: {{chain: [mirror], mirrors: ['{self.mirror.url(manner)}'],"
            f" cache_dir: {self.root}/cache}}\n"
        )
        share = self.tree / "share" / "cvmfs-publish"
        share.mkdir(parents=True)
        (share / "fallback.txt").write_text(self.listed)

    def bench(
        self, *words: str, code: int = 0, env: Mapping[str, str] | None = None, runs: int = 3
    ) -> Ran:
        path = f"{self.root}/bin:{require('ch-run').parent}:/usr/bin:/bin"
        environ = {"PATH": path, "USER": "tests", "TMPDIR": str(self.root), **(env or {})}
        command = [
            "bench",
            "--site",
            f"{self.root}/lab.yaml",
            f"--runs={runs}",
            "--cold-runs=2",
            *words,
        ]
        ran = Shell(self.root, {**environ, "TALKED": f"{self.root}/talked"}).run(*command)
        assert ran.code == code, ran.out + ran.err
        return ran

    def rows(self, *words: str, **options: Any) -> dict[str, dict[str, Any]]:  # noqa: ANN401
        """Return the rows of an image by their names."""
        document = self.bench("--json", "--image", NAME, *words, **options).document
        assert list(document) == ["site", "image", "rows"]
        assert (document["site"], document["image"]) == ("lab", NAME)
        assert [row["case"] for row in document["rows"]] == CASES
        return {row["case"]: row for row in document["rows"]}


def measured(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the number of runs of the rows that have one; their times must be possible."""
    for row in rows.values():
        assert list(row) == ["case", "runs", "median_ms", "quartiles_ms", "note"]
        if row["runs"]:
            low, high = row["quartiles_ms"]
            assert 0 < low <= row["median_ms"] <= high
        else:
            assert (row["median_ms"], row["quartiles_ms"]) == (None, None)
            assert row["note"]
    return {name: row["runs"] for name, row in rows.items() if row["runs"]}


@pytest.fixture(scope="module")
def mirrored() -> Iterator[tuple[Mirror, str]]:
    """A mirror with the image as one file, and the list that names it."""
    busybox = require("busybox").read_bytes()
    image = {f"bin/{name}": busybox for name in ("busybox", "sh", "true")}
    image |= {f"{root}/.keep": b"" for root in ("proc", "sys", "dev", "tmp", "home", "cvmfs")}
    image |= {f"etc/{name}": b"" for name in ("passwd", "group", "hosts", "resolv.conf")}
    data = archive(image)
    with running_mirror({f"{sha256(data).hexdigest()}.tar.gz": data}) as mirror:
        yield mirror, line(data, NAME)


@pytest.fixture
def node(mirrored: tuple[Mirror, str]) -> Iterator[Node]:
    require("ch-run")
    mirror, listed = mirrored
    mirror.reset()
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as folder:
        node = Node(Path(folder), mirror, listed)
        build_image(node.image)
        names = node.tree / "docker.io" / "library"
        names.mkdir(parents=True)
        (names / "small:1").symlink_to("../../.flat/ab/abcd")
        node.configure()
        yield node


def talk(node: Node) -> None:
    """Put the client's program into PATH, which notes what it is asked."""
    (node.root / "bin").mkdir()
    program = node.root / "bin" / "cvmfs_talk"
    program.write_text(TALK)
    program.chmod(0o755)


def left(node: Node) -> Sequence[Path]:
    return list(node.root.glob("cvmfs-publish-bench-*"))


def test_the_table_has_a_row_for_every_case_and_a_reason_for_what_cannot_be_measured(
    node: Node,
) -> None:
    os.mkfifo(node.image / "usr" / "pipe")  # the copy goes without
    (node.image / "usr").chmod(0o555)
    lines = node.bench("--image", NAME).out.splitlines()
    assert re.split(r"  +", lines[0]) == ["CASE", "MEDIAN", "QUARTILES", "RUNS", "NOTE"]
    rows = {cells[0]: cells for cells in (re.split(r"  +", line) for line in lines[1:])}
    assert list(rows) == CASES
    for case in CASES[:4]:
        assert re.fullmatch(r"[0-9]+\.[0-9] ms", rows[case][1])
        assert rows[case][3] == "3"
    *cold, why = rows["cvmfs-run, CVMFS cold"][1:]
    assert cold == ["-", "-", "0"]
    missing = "cvmfs_talk: No such file or directory"
    if shutil.which("cvmfs_talk") is not None:
        missing = "Seems like CernVM-FS is not running"
    assert why.startswith(f"the client's cache cannot be emptied: {missing}")
    nothing = ["-", "-", "0", "the site has no fallback that downloads"]
    assert rows["fallback, download and run"][1:] == nothing
    assert rows["fallback, downloaded before"][1:] == nothing
    assert left(node) == []


def test_cold_starts_begin_with_an_emptied_cache_each_and_warm_ones_after_a_start(
    node: Node,
) -> None:
    talk(node)
    rows = node.rows()
    assert measured(rows) == {**dict.fromkeys(CASES[:4], 3), "cvmfs-run, CVMFS cold": 2}
    empty = [f"-i {REPOSITORY} cleanup 0", f"-i {REPOSITORY} drop metadata caches"]
    assert node.talked == [empty[0], *empty, *empty]


def test_a_client_that_refuses_is_quoted(node: Node) -> None:
    talk(node)
    rows = node.rows(env={"REFUSE": "yes"}, runs=1)
    assert measured(rows) == dict.fromkeys(CASES[:4], 1)
    said = "the client's cache cannot be emptied: Seems like CernVM-FS is not running"
    assert rows["cvmfs-run, CVMFS cold"]["note"] == said
    assert len(node.talked) == 1


def test_the_fallback_downloads_each_time_into_an_empty_cache_or_once(node: Node) -> None:
    require("curl")
    node.fall_back()
    rows = node.rows("--local", str(node.image))
    assert measured(rows) == {
        **dict.fromkeys(CASES[:4], 3),
        "fallback, download and run": 2,
        "fallback, downloaded before": 3,
    }
    assert node.mirror.asked == ["good", "good"]
    assert not (node.root / "cache").exists()  # the site's own cache is not touched


def test_a_fallback_that_fails_is_told_and_the_rest_is_measured(node: Node) -> None:
    require("curl")
    node.fall_back("gone")
    rows = node.rows(runs=1)
    assert measured(rows) == dict.fromkeys(CASES[:4], 1)
    note = rows["fallback, download and run"]["note"]
    assert re.match(r"ended with (69|75): cvmfs-run: class=", note), note


def test_without_the_repository_a_local_copy_and_the_fallback_are_measured(node: Node) -> None:
    copy = node.root / "copy"
    shutil.copytree(node.image, copy, symlinks=True)
    shutil.rmtree(node.tree)
    ran = node.bench("--image", NAME, code=3)
    assert "class=noservice code=69" in ran.err
    assert "node-check" in ran.err
    rows = node.rows("--local", "copy", runs=1)
    assert measured(rows) == dict.fromkeys(CASES[:3], 1)
    assert "class=noservice code=69" in rows["cvmfs-run, CVMFS warm"]["note"]


def test_what_cannot_be_measured_at_all_is_refused_with_the_reason(node: Node) -> None:
    ran = node.bench(code=2)
    assert "the site lab has no default image" in ran.err
    ran = node.bench("--image", "nothing:1", code=2)
    assert "class=noimage code=66" in ran.err
    ran = node.bench("--image", NAME, "--local", "nowhere", code=2)
    assert f"{node.root}/nowhere: is no folder" in ran.err
    ran = node.bench("--image", NAME, "--work", "nowhere", code=2)
    assert f"{node.root}/nowhere: No such file or directory" in ran.err
    node.bench("--image", NAME, "--runs", "0", code=2)
    assert left(node) == []


def test_an_image_by_its_path_has_no_fallback(node: Node) -> None:
    node.fall_back()
    document = node.bench("--json", "--image", str(node.image), runs=1).document
    notes = {row["case"]: row["note"] for row in document["rows"]}
    assert notes["fallback, download and run"] == "only an image with a name has a fallback"
    node.configure(f"images: {{cpu: '{node.image}'}}\n")
    assert node.bench("--json", runs=1).document["image"] == str(node.image)
