"""Images as single files: made by `publish`, listed in the repository, run without CernVM-FS."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.content.artefacts import LIST_FILE
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.repository.fallback import LIST_PATH, format_list, parse_list
from cvmfs_publish.repository.native.reader import browse_snapshot
from tests import parts
from tests.fakes.registry import FakeRegistry
from tests.images import find_static_shell, small_root, tree_of
from tests.layouts import Tar
from tests.s3 import S3Bucket
from tests.support import NAME, judged, keys_of_this_run
from tests.unit.cli.support import Ran, Shell


@dataclass
class Site:
    """A release manager's folder with a store for files beside it."""

    folder: Path
    registry: FakeRegistry
    path: str = os.environ.get("PATH", os.defpath)

    @property
    def store(self) -> Path:
        return self.folder / "fallback"

    def run(self, *words: str, code: int = 0) -> Ran:
        ran = Shell(self.folder, {"PATH": self.path}).run(*words)
        assert ran.code == code, ran.out + ran.err
        return ran

    def configure(self, text: str) -> None:
        """Say what `fallback:` says."""
        file = self.folder / "cvmfs-publish.yaml"
        before, _, _ = file.read_text().partition("\nfallback:")
        file.write_text(f"{before}\nfallback: {text}\n")

    def push(self, name: str = "a/one", text: str = "one", tag: str = "1") -> str:
        layer = Tar()
        layer.file("content", text.encode() * 100)
        self.registry.add_image(name, [layer.done()], tag=tag)
        return self.registry.name(name, tag)

    def publish(self, *words: str, code: int = 0) -> list[dict[str, Any]]:
        images: list[dict[str, Any]] = self.run("publish", "--json", *words, code=code).document[
            "images"
        ]
        return images

    def listed(self) -> dict[str, str]:
        """Return the file of each name: the list, its copy and the store say the same."""
        with browse_snapshot(LocalStore(self.folder / "repository")) as snapshot:
            row = snapshot.lookup(LIST_PATH)
            data = snapshot.read_file(LIST_PATH) if row is not None else format_list({})
        lines = parse_list(data)
        if (self.store / LIST_FILE).exists():
            copy = (self.store / LIST_FILE).read_bytes()
            assert copy == f"# Fallback images of {NAME}\n".encode() + data
        for line in lines.values():
            file = self.store / line.artefact.file
            assert file.stat().st_size == line.artefact.size
            assert hashlib.sha256(file.read_bytes()).hexdigest() == line.artefact.sha256
        return {name: line.artefact.file for name, line in lines.items()}

    def stored(self) -> set[str]:
        return {path.name for path in self.store.iterdir()} - {LIST_FILE}

    def judge(self) -> None:
        text = judged(self.folder / "repository", self.folder / "keys" / f"{NAME}.pub", "--scrub")
        assert text.splitlines()[-1].startswith("0 errors, "), text
        assert " 0 errors, " in self.run("check", "--scrub").out


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Site]:
    """A repository without images; `tar.gz` files are configured, which need no program."""
    shutil.copytree(keys_of_this_run(), tmp_path / "keys")
    with FakeRegistry() as registry:
        site = Site(tmp_path, registry)
        site.run("init", NAME)
        site.configure("{store: fallback, format: tar.gz}")
        yield site


def strange_layer() -> bytes:
    """One of everything that a tar may get wrong."""
    tar = Tar()
    tar.directory("d" * 120, 0o555, mtime=1_500_000_000.25)
    tar.file(f"{'d' * 120}/{'f' * 200}", b"x" * 513, 0o4711, mtime=1_400_000_000.125)
    tar.link("same", f"{'d' * 120}/{'f' * 200}")
    tar.symlink("link", "t" * 300, mtime=-5)
    tar.symlink("caf\udce9".encode("utf-8", "surrogateescape"), b"\xff")
    tar.file(b"\xff\xfe latin", b"1", mtime=-100)
    tar.file("größe", os.urandom(3_000_000))
    tar.file("chunked", os.urandom(5_000_000))
    tar.file("empty")
    tar.add("fifo", b"6", 0o620)
    tar.file("attributes", b"1", xattrs={"user.name": b"\x01\xff"})
    return tar.done()


@pytest.mark.parts
def test_what_is_unpacked_is_what_export_writes(made: Site, tmp_path: Path) -> None:
    made.registry.add_image("a/one", [strange_layer()], tag="1")
    name = made.registry.name("a/one", "1")
    (image,) = made.publish(name)
    file = made.store / image["fallback"]["file"]
    made.run("export", name, str(tmp_path / "exported"))
    (tmp_path / "unpacked").mkdir()
    parts.run(["tar", "--xattrs", "-xpzf", file, "-C", tmp_path / "unpacked"])
    assert tree_of(tmp_path / "unpacked") == tree_of(tmp_path / "exported")
    assert file.read_bytes()[4:8] == bytes(4)  # no time
    # Made from what is published instead of from its layers, it is the same file.
    (tmp_path / "fallback").rename(tmp_path / "before")
    (again,) = made.publish(name)
    assert (again["status"], again["fallback"]) == ("unchanged", image["fallback"])
    assert made.listed()[name] == file.name


@pytest.mark.parts
def test_apptainer_runs_the_sif_as_it_is(made: Site, shared_tmp: Path) -> None:
    apptainer, busybox = parts.require("apptainer"), find_static_shell()
    parts.require("sqfstar")
    if busybox is None:
        parts.missing("busybox")
    layer = small_root(busybox.read_bytes())
    layer.file(b"etc/\xff", b"bytes\n", mtime=-1)
    config = {"Env": ["PATH=/bin", "FROM_IMAGE=yes it's"], "Labels": {"who": "tests"}}
    made.registry.add_image("a/one", [layer.done()], tag="1", config={"config": config})
    name = made.registry.name("a/one", "1")
    made.configure(f"{{store: {shared_tmp}/store}}")
    (image,) = made.publish(name)
    assert image["fallback"]["format"] == "sif"
    sif = shared_tmp / "store" / image["fallback"]["file"]
    assert image["fallback"]["size"] == sif.stat().st_size
    listing = parts.run_as_test_user([apptainer, "sif", "list", sif], check=True).stdout.decode()
    assert "FS (Squashfs/*System/amd64)" in listing
    has_fuse = parts.run_as_test_user(["test", "-w", "/dev/fuse"]).returncode == 0
    mount = [] if has_fuse else ["--unsquash"]  # where users cannot mount: unpacked by Apptainer
    script = 'echo "$FROM_IMAGE"; cat /etc/?; ls -d /nfs'
    ran = parts.run_as_test_user(
        [apptainer, "-q", "exec", *mount, sif, "sh", "-c", script], check=True
    )
    assert ran.stdout == b"yes it's\nbytes\n/nfs\n"
    if has_fuse:
        shown = parts.run_as_test_user([apptainer, "inspect", "--labels", sif], check=True).stdout
        assert b"who: tests" in shown
    made.publish("--force", name)  # and the same bytes again
    assert {path.name for path in sif.parent.iterdir()} == {sif.name, LIST_FILE}


def test_the_list_follows_the_names(made: Site) -> None:
    name = made.push(text="old")
    made.run("publish", "--no-fallback", name)
    assert made.listed() == {}
    asked = len(made.registry.requests)
    (old,) = made.publish("--fallback", name)
    assert old["status"] == "unchanged"
    assert [r.method for r in made.registry.requests[asked:]] == ["HEAD"]
    revision = made.run("info", "--json").document["revision"]
    (again,) = made.publish(name)
    assert made.run("info", "--json").document["revision"] == revision
    assert (
        again["fallback"]
        == old["fallback"]
        == made.run("show", "--json", name).document["fallback"]
    )
    assert old["fallback"]["file"] in made.run("show", name).out
    by_digest = f"{name[:-2]}@{old['digest']}"
    assert made.listed() == dict.fromkeys([name, by_digest], old["fallback"]["file"])

    made.push(text="new")
    other = made.push("b/two", "new")
    new, same = made.publish(name, other)
    assert new["fallback"] == same["fallback"] != old["fallback"]
    expected = {
        name: new["fallback"]["file"],
        by_digest: old["fallback"]["file"],
        f"{name[:-2]}@{new['digest']}": new["fallback"]["file"],
        other: new["fallback"]["file"],
        f"{other[:-2]}@{new['digest']}": new["fallback"]["file"],
    }
    assert made.listed() == expected
    made.run("rollback", name)
    assert made.listed() == expected | {name: old["fallback"]["file"]}
    made.run("unpublish", name)
    del expected[name]
    assert made.listed() == expected
    images = made.run("list", "--json").document["images"]
    assert [image["reference"] for image in images] == [other]
    made.judge()


def test_gc_removes_the_files_that_nothing_may_need_any_more(made: Site) -> None:
    name = made.push(text="old")
    (old,) = made.publish(name)
    made.push(text="new")
    (new,) = made.publish(name)
    files = {image["fallback"]["file"] for image in (old, new)}
    orphan = made.store / ("f" * 64 + ".sif")
    for stranger in (orphan, made.store / "notes.sif", made.store / ("e" * 64 + ".txt")):
        stranger.write_bytes(b"1")
    made.run("gc")  # everything is younger than the grace
    assert made.stored() >= {*files, orphan.name}
    collect = ["gc", "--json", "--grace", "0", "--keep-revisions", "0"]
    plan = made.run(*collect, "--dry-run").document
    assert plan["fallback_removed"] == [{"file": orphan.name, "size": 1}]
    assert orphan.exists()
    made.run(*collect)  # the old sandbox goes; the revision before is kept and lists its file
    assert not orphan.exists()
    assert made.stored() >= files
    made.push(text="newer")
    (newer,) = made.publish(name)
    gone = made.run(*collect).document["fallback_removed"]
    assert [file["file"] for file in gone] == [old["fallback"]["file"]]
    assert made.stored() == {
        new["fallback"]["file"], newer["fallback"]["file"], "notes.sif", "e" * 64 + ".txt",
    }  # fmt: skip
    made.listed()
    made.judge()


def test_each_platform_has_a_line_of_its_own(made: Site) -> None:
    for architecture in ("amd64", "arm64"):
        layer = Tar()
        layer.file("content", architecture.encode())
        made.registry.add_image(
            "a/one", [layer.done()], tag=architecture, platform=f"linux/{architecture}"
        )
    amd64, arm64 = (made.registry.name("a/one", tag) for tag in ("amd64", "arm64"))
    made.publish(amd64)
    (image,) = made.publish(arm64, "--platform", "linux/arm64")
    public = f".multiarch/arm64/{arm64}"
    assert image["fallback"]["file"] == made.listed()[public]
    assert made.listed()[amd64] != made.listed()[public]
    assert len(made.listed()) == 4  # and two by digest
    made.run("unpublish", arm64, "--platform", "linux/arm64")
    assert public not in made.listed()
    assert len(made.listed()) == 3


# what goes wrong


def fails(site: Site, name: str, *words: str, others: str = "") -> str:
    """The image is not published, for these reasons; others of the call are."""
    before = set(site.store.glob("*.tar.gz"))
    ran = site.run(
        "publish", "--json", name, *([others] if others else []), code=6 if others else 5
    )
    error = ran.document.get("error") or ran.document["images"][0]["error"]
    assert error["kind"] == "fallback", error
    for word in words:
        assert word in f"{error['message']} {error['hint']}"
    assert list(site.store.glob(".*")) == []
    if not others:
        assert set(site.store.glob("*.tar.gz")) == before
    return str(error["message"])


def test_an_image_without_its_promised_file_is_not_published(made: Site) -> None:
    first, big = made.push(), made.registry.name("b/big", "1")
    made.registry.add_image("b/big", [strange_layer()], tag="1")
    made.configure("{store: fallback, format: tar.gz, max_bytes: 1MB}")
    fails(made, big, "b/big:1", "1000000 bytes", "max_bytes", "--no-fallback", others=first)
    assert list(made.listed()) == [first, next(n for n in made.listed() if "@" in n)]
    assert [i["reference"] for i in made.run("list", "--json").document["images"]] == [first]
    made.configure("{store: fallback, format: tar.gz}")
    assert made.publish(big)[0]["status"] == "published"
    made.judge()


def test_a_dry_run_says_which_files_are_to_be_made(made: Site) -> None:
    first = made.push()
    made.publish("--no-fallback", first)
    due = "; its fallback file is to be made"
    assert due in made.run("publish", "--dry-run", first).out
    assert due not in made.run("publish", "--dry-run", "--no-fallback", first).out
    assert due not in made.run("publish", first).out
    assert due not in made.run("publish", "--dry-run", first).out


def test_check_tells_of_files_that_are_not_as_listed_and_publish_makes_them_again(
    made: Site,
) -> None:
    first, second = made.push(), made.push("a/two", "two")
    made.publish(first, second)
    listed = made.listed()
    (made.store / listed[first]).unlink()
    with (made.store / listed[second]).open("ab") as file:
        file.write(b"x")
    said = made.run("check", code=5).out
    assert f"error: /{first}" in said
    assert f"its fallback file {listed[first]} is missing in {made.store}" in said
    assert f"{listed[second]} in {made.store} has" in said
    assert " 2 errors, " in said
    made.publish(first, second)
    assert made.listed() == listed
    made.judge()


def test_a_store_that_cannot_be_written(made: Site) -> None:
    name = made.push()
    made.store.write_text("a file")
    fails(made, name, str(made.store), "has to be a folder")
    made.configure("{store: not/there, format: tar.gz}")
    fails(made, name, "not/there", "make the folder above it")
    made.configure("{store: fallback, format: tar.gz}")
    made.store.unlink()
    assert made.publish(name)[0]["status"] == "published"


@pytest.mark.parametrize("form", ["sif", "tar.gz"])
def test_a_store_that_is_full(made: Site, form: str) -> None:
    made.registry.add_image("a/one", [strange_layer()], tag="1")
    name = made.registry.name("a/one", "1")
    made.configure(f"{{store: fallback, format: {form}}}")
    with full_disk(made.store):
        fails(made, name, name, "No space left" if form == "tar.gz" else "o space", "space")
        assert made.run("list", "--json").document["images"] == []
    (image,) = made.publish(name)
    assert made.listed()[name] == image["fallback"]["file"]


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_damaged_content_gets_into_no_file(made: Site) -> None:
    name = made.push()
    made.run("publish", "--no-fallback", name)
    (stored,) = [
        path
        for path in (made.folder / "repository" / "data").glob("*/*")
        if zlib.decompress(path.read_bytes()) == b"one" * 100
    ]
    stored.write_bytes(zlib.compress(b"two" * 100))
    fails(made, name, "is damaged", "check --scrub")


def test_settings_that_make_no_sense_are_refused_before_anything_is_done(made: Site) -> None:
    name = made.push()

    def refused(text: str, *words: str) -> None:
        made.configure(text)
        said = made.run("publish", name, code=2).err
        for word in words:
            assert word in said

    refused("{store: repository/files}", "is inside repository.storage", "keep them apart")
    for store in (".", "keys"):
        refused(f"{{store: {store}}}", "repository.keys", "is inside fallback.store", "web servers")
    refused("{store: fallback, format: zip}", "fallback.format", "sif, tar.gz")
    refused("{format: sif}", "'store'")
    refused("{store: s3://bucket/x, s3: {region: eu}}", "no keys", "`fallback.s3`")
    made.path = str(made.folder)
    refused("{store: fallback}", "sqfstar", "squashfs-tools", "tar.gz")
    made.store.mkdir()
    (made.store / LIST_FILE).write_text("# Fallback images of other.example.org\n")
    refused("{store: fallback, format: tar.gz}", "other.example.org", "of its own")
    made.configure("")
    assert "fallback.store" in made.run("publish", "--fallback", name, code=2).err
    assert made.run("info", "--json").document["revision"] == 1


VICTIM = """
import os, signal, sys
from cvmfs_publish.cli import app
from cvmfs_publish.content.artefacts import FolderStore

moment, keep = sys.argv.pop(1), FolderStore.keep

def die(self, partial, name):
    if moment == "after":
        keep(self, partial, name)
    os.kill(os.getpid(), signal.SIGKILL)

FolderStore.keep = die
app.main()
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_around_the_moment_a_file_is_there(made: Site, moment: str) -> None:
    name = made.push()
    command = [sys.executable, "-c", VICTIM, moment, "publish", name]
    killed = subprocess.run(command, cwd=made.folder, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = {path.name for path in made.store.iterdir()}
    assert [file[0] == "." for file in left] == [moment == "before"]
    assert made.run("info", "--json").document["revision"] == 1
    (image,) = made.publish(name)
    assert made.stored() == {image["fallback"]["file"]}
    assert moment == "before" or made.stored() == left
    with gzip.open(made.store / image["fallback"]["file"]) as file:
        assert file.read().endswith(bytes(1024))
    assert made.listed()[name] == image["fallback"]["file"]
    made.judge()


def test_an_object_store_holds_the_files_as_well(made: Site, bucket: S3Bucket) -> None:
    made.registry.add_image("a/one", [strange_layer(), large_layer()], tag="1")
    name = made.registry.name("a/one", "1")
    prefix = f"s3://{bucket.name}/{bucket.prefix}"
    keys = f"access_key: {bucket.server.access_key}, secret_key: {bucket.server.secret_key}"
    made.configure(
        f"{{store: '{prefix}', format: tar.gz, s3: {{endpoint: '{bucket.server.url}', {keys}}}}}"
    )
    (image,) = made.publish(name)
    file = image["fallback"]["file"]
    assert image["fallback"]["size"] > 17_000_000  # in several requests
    assert hashlib.sha256(bucket.get(file)).hexdigest() == image["fallback"]["sha256"]
    assert bucket.names() == {file, LIST_FILE}
    assert list((made.folder / "state" / "fallback").iterdir()) == []
    assert made.publish(name)[0]["status"] == "unchanged"
    bucket.put("f" * 64 + ".sif", b"1")
    made.run("gc", "--grace", "0")
    assert bucket.names() == {file, LIST_FILE}
    bucket.delete(file)
    assert made.publish(name)[0]["fallback"] == image["fallback"]
    assert bucket.names() == {file, LIST_FILE}


def large_layer() -> bytes:
    tar = Tar()
    tar.file("large", os.urandom(10_000_000))
    return tar.done()
