"""What a client would fetch: traces are understood, paths are walked as the kernel does."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.coldstart import Access, Want, measure_splitting, needed_roots, parse_strace, replay
from benchmarks.publish import plan_job
from benchmarks.report import Report, Splitting, compare, format_report
from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.objects import Compression, encode
from cvmfs_publish.layers.tree import Content, Directory, Node, RepoPath, Tree, node_of
from cvmfs_publish.repository.native.repository import NativeOptions
from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.support import site

TRACE = r"""
7 execve("/usr/sbin/chroot", ["chroot", "/r"], 0x7ff /* 9 vars */) = 0
7 openat(AT_FDCWD</home>, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3</etc/ld.so.cache>
7 chroot("/r")                          = 0
7 chdir("/")                            = 0
7 execve("/usr/bin/python3", ["python3"], 0x7ff) = 0
7 access("/etc/ld.so.preload", R_OK)    = -1 ENOENT (No such file or directory)
7 openat(AT_FDCWD</r>, "/lib/libc.so.6", O_RDONLY|O_CLOEXEC) = 3</r/usr/lib/libc.so.6>
7 newfstatat(3</r/usr/lib/libc.so.6>, "", {st_mode=S_IFREG|0755, st_size=1, ...}, AT_EMPTY_PATH) = 0
7 newfstatat(AT_FDCWD</r/home>, "caf\303\251\"", 0x7ff, 0) = -1 ENOENT (No such file or directory)
7 openat(AT_FDCWD</r>, "/usr/lib", O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY) = 3</r/usr/lib>
7 getdents64(3</r/usr/lib>, 0x7ff /* 4 entries */, 32768) = 100
7 getdents64(3</r/usr/lib>, 0x7ff /* 0 entries */, 32768) = 0
7 read(3</r/usr/lib/x>, "TZif2", 4096)  = 5
7 newfstatat(5</r/usr>, "bin", {st_mode=S_IFDIR|0755}, 0) = 0
7 getcwd("/home", 4096)                 = 6
7 [pid 8] nonsense
7 +++ exited with 0 +++
"""


def test_a_trace_is_what_the_program_did_inside() -> None:
    assert parse_strace(TRACE.splitlines(), "/r") == [
        Access(Want.LOOKUP, "/"),
        Access(Want.READ, "/usr/bin/python3"),
        Access(Want.LOOKUP, "/etc/ld.so.preload"),
        Access(Want.READ, "/lib/libc.so.6"),
        Access(Want.LOOKUP, '/home/café"'),
        Access(Want.LOOKUP, "/usr/lib"),
        Access(Want.LIST, "/usr/lib"),
        Access(Want.LOOKUP, "/usr/bin"),
    ]


def tree_of(**entries: str) -> Tree:
    """Paths with `__` for a slash; a text is a link's target, "" a file, "/" a directory."""
    tree = Tree(Directory(Node(stat.S_IFDIR | 0o755)))
    for path, what in entries.items():
        *above, name = path.split("__")
        here = tree.root
        for part in above:
            child = here.children.setdefault(part, Directory(Node(stat.S_IFDIR | 0o755)))
            assert isinstance(child, Directory)
            here = child
        content = Content(ContentHash.of(path.encode(), ContentHash(b"").algorithm))
        here.children[name] = (
            Node(stat.S_IFLNK | 0o777, target=what) if what else Node(stat.S_IFREG, content=content)
        )
    return tree


@pytest.mark.parametrize(
    ("path", "looked_up", "read"),
    [
        ("/usr/bin/p", {"usr", "usr/bin", "usr/bin/p"}, "usr/bin/p"),
        ("/bin/p", {"bin", "usr", "usr/bin", "usr/bin/p"}, "usr/bin/p"),
        ("/bin/../etc/rel", {"bin", "usr", "usr/bin", "usr/etc"}, None),
        ("/etc/rel", {"etc", "etc/rel", "usr", "usr/bin", "usr/bin/p"}, "usr/bin/p"),
        ("/no/such/thing", {"no"}, None),
        ("/loop/x", {"loop"}, None),
        ("/usr/bin", {"usr", "usr/bin"}, None),
    ],
)
def test_a_path_is_walked_as_the_kernel_does(
    path: str, looked_up: set[str], read: str | None
) -> None:
    tree = tree_of(usr__bin__p="", bin="/usr/bin", etc__rel="../usr/./bin//p", loop="loop")

    def lookup(place: RepoPath) -> Node | None:
        entry = tree.find(place)
        return node_of(entry) if entry is not None else None

    touched = replay([Access(Want.READ, path)], lookup)
    assert touched.names - {""} == looked_up
    assert set(touched.files) == ({read} if read else set())


def test_a_name_needs_every_catalog_above_it_and_its_own() -> None:
    nested = {"", "usr", "usr/lib", "usr/lib/x", "var"}
    assert needed_roots({"usr/lib/x/y/z"}, nested) == {"usr", "usr/lib", "usr/lib/x"}
    assert needed_roots({"usr/lib"}, nested) == {"usr", "usr/lib"}
    assert needed_roots({"etc/passwd", "variable"}, nested) == set()


def test_splitting_is_measured_in_a_published_repository(tmp_path: Path) -> None:
    tar = Tar()
    for number in range(700):
        tar.file(f"usr/share/doc/{number}", b"never read")
        tar.file(f"usr/lib/{number}", b"library")
    tar.file("usr/bin/program", b"\x7fELF")
    with FakeRegistry() as registry, site(tmp_path) as target:
        target.reopen(NativeOptions(max_entries=2000))
        registry.add_image("a/one", layers=[tar.done()], tag="1")
        name = f"{registry.host}/a/one:1"
        publication = target.publish(name).images[0].publication
        assert publication is not None
        job = [Access(Want.READ, "/usr/bin/program"), Access(Want.LIST, "/usr/lib")]
        told = measure_splitting(target.storage, name, lambda _: job)
        with target.repository.snapshot() as snapshot:
            refs = dict(snapshot.catalogs())
        parts = [path for path in refs if path.startswith(publication.sandbox.strip("/"))]
        assert told.catalogs == len(parts) == 2
        unread = f"{publication.sandbox.strip('/')}/usr/share/doc"
        assert unread in parts
        size = (target.storage / refs[unread].hash.path(Suffix.CATALOG)).stat().st_size
        assert told.loaded == told.loaded_whole
        assert told.loaded_bytes_whole - told.loaded_bytes == told.stored_whole - told.stored + size
        assert 0 < told.ratio < 1
        assert told.object_bytes == len(encode(b"\x7fELF", Compression.ADAPTIVE))


def test_the_job_in_the_made_image_is_the_same_every_time() -> None:
    packages = {f"opt__conda__lib__python3.11__site-packages__p{n}__m{n}": "" for n in range(200)}
    tree = tree_of(etc__passwd="", etc__link="passwd", usr__bin__b="", usr__bin__a="", **packages)
    job = plan_job(tree)
    assert job == plan_job(tree)
    read = [access.path for access in job if access.want is Want.READ]
    assert read[1:3] == ["/usr/bin/a", "/etc/passwd"]
    assert len(read) == 1 + 2 + 150


SPLITTING = Splitting(98, 5_600_000, 5_900_000, 1.2, 1.0, 9, 5, 900_000, 5_910_000, 20_000_000)


def test_a_report_tells_what_splitting_costs_and_saves() -> None:
    report = Report([], 0, splitting=SPLITTING)
    text = format_report(report)
    assert "| stored, KB                 |          5,900 |   5,600 |  0.949 |" in text
    assert "| … KB of catalogs and files |         25,910 |  20,900 |  0.807 |" in text
    assert [target.kept for target in compare(report)] == [True, True]
    assert compare(Report([], 0, splitting=replace(SPLITTING, catalogs=1))) == []


@pytest.mark.parametrize(
    ("worse", "promise"),
    [
        (replace(SPLITTING, loaded_bytes=4_000_000), "first bytes"),
        (replace(SPLITTING, loaded=13), "catalogs a job loads"),
    ],
)
def test_splitting_that_does_not_help_is_told(worse: Splitting, promise: str) -> None:
    missed = [
        target.promise for target in compare(Report([], 0, splitting=worse)) if not target.kept
    ]
    assert len(missed) == 1
    assert promise in missed[0]
    assert not worse.is_worth_it
