"""A rendered set on disk is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites import writing
from cvmfs_publish.sites.changes import compare_site
from cvmfs_publish.sites.pages import RenderedFile
from cvmfs_publish.sites.render import MANIFEST
from cvmfs_publish.sites.writing import write_site

FORK = multiprocessing.get_context("fork")


def file_set(mark: str, *extra: str) -> dict[str, RenderedFile]:
    """A small set of files that says in every file which set it is."""
    paths = ("bin/run", "etc/site.conf", *extra)
    files = {path: RenderedFile(mark.encode(), 0o755 if "bin" in path else 0o644) for path in paths}
    names = ", ".join(f'"{path}": {{}}' for path in paths)
    files[MANIFEST] = RenderedFile(f'{{"mark": "{mark}", "files": {{{names}}}}}'.encode())
    return files


OLD, NEW = file_set("old", "conf/only-old"), file_set("new", "client/only/new")


def contents(folder: Path) -> dict[str, RenderedFile]:
    return {
        path.relative_to(folder).as_posix(): RenderedFile(
            path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
        )
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system whose folders cannot change places in one step, as NFS."""
    monkeypatch.setattr(writing, "_RENAME_EXCHANGE", 1 << 31)  # no flag of renameat2: EINVAL


# ---------------------------------------------------------------- what is written


def test_files_are_written_with_their_modes_whatever_the_umask(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    old = os.umask(0o077)
    try:
        write_site(NEW, out)
    finally:
        os.umask(old)
    assert contents(out) == NEW
    folders = [out, *(path for path in out.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o755}


def test_writing_again_replaces_the_set_and_leaves_nothing_behind(tmp_path: Path) -> None:
    write_site(OLD, tmp_path / "out")
    write_site(NEW, tmp_path / "out")
    assert contents(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("no_exchange")
def test_writing_again_works_where_folders_cannot_be_exchanged(tmp_path: Path) -> None:
    write_site(OLD, tmp_path / "out")
    write_site(NEW, tmp_path / "out")
    assert contents(tmp_path / "out") == NEW
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_this_machine_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    if getattr(ctypes.CDLL(None), "renameat2", None) is None:
        pytest.skip("the C library has no renameat2")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    inode = (tmp_path / "a").stat().st_ino
    assert writing._exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").stat().st_ino == inode


def test_a_set_can_wait_for_the_disk(tmp_path: Path) -> None:
    write_site(NEW, tmp_path / "out", durable=True)
    assert contents(tmp_path / "out") == NEW


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    write_site(NEW, tmp_path)
    assert contents(tmp_path) == NEW


def test_a_relative_path_and_a_link_above_the_folder_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    write_site(NEW, Path("link/../link/out"))
    assert contents(tmp_path / "real" / "out") == NEW


# ---------------------------------------------------------------- what is refused


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="no earlier rendering"):
        write_site(NEW, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_a_folder_with_an_empty_folder_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out" / "mount-point").mkdir(parents=True)
    with pytest.raises(InputError, match="no earlier rendering"):
        write_site(NEW, tmp_path / "out")


def test_a_file_added_to_a_rendering_is_not_deleted_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_site(OLD, out)
    (out / "etc" / "mine.conf").write_text("x")
    with pytest.raises(InputError, match=r"mine\.conf: was not rendered"):
        write_site(NEW, out)
    assert (out / "etc" / "mine.conf").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}', "\xff"])
def test_a_manifest_that_is_none_is_an_error_and_the_folder_stays(
    tmp_path: Path, text: str
) -> None:
    write_site(OLD, tmp_path / "out")
    (tmp_path / "out" / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"cannot be understood|was not rendered"):
        write_site(NEW, tmp_path / "out")
    assert (tmp_path / "out" / "bin" / "run").exists()


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    with pytest.raises(InputError, match="is not a folder"):
        write_site(NEW, tmp_path / "out")


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("exchange", [True, False])
def test_a_failed_write_leaves_the_earlier_set(
    tmp_path: Path, exchange: bool, request: pytest.FixtureRequest
) -> None:
    if not exchange:
        request.getfixturevalue("no_exchange")
    write_site(OLD, tmp_path / "out")
    broken = {"a": RenderedFile(b""), "a/b": RenderedFile(b"")}  # a file cannot be a folder
    with pytest.raises(InputError, match="cannot be written"):
        write_site(broken, tmp_path / "out")
    assert contents(tmp_path / "out") == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written: (File exists|Not a dir)") as caught:
        write_site(NEW, tmp_path / "file" / "out")
    assert "must be writable" in caught.value.hint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KiB; made by mounting one, which needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    words = [mount or "mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if not mount or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_leaves_the_earlier_set_and_no_rest(small_disk: Path) -> None:
    write_site(OLD, small_disk / "out")
    big = {**NEW, "big": RenderedFile(b"x" * 200_000)}
    with pytest.raises(InputError, match="No space left on device") as caught:
        write_site(big, small_disk / "out")
    assert "needs room" in caught.value.hint
    assert contents(small_disk / "out") == OLD
    assert [path.name for path in small_disk.iterdir()] == ["out"]
    write_site(NEW, small_disk / "out")
    assert contents(small_disk / "out") == NEW


def test_a_read_only_place_is_a_clear_error(small_disk: Path) -> None:
    write_site(OLD, small_disk / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match="Read-only file system"):
        write_site(NEW, small_disk / "out")
    assert contents(small_disk / "out") == OLD


# ---------------------------------------------------------------- killed


def _write_killed_before(step: int, out: Path) -> bool:
    """Write NEW in a process that is killed before its file operation `step`; return whether."""
    child = os.fork()
    if child == 0:
        try:
            _kill_before(step)
            write_site(NEW, out)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _kill_before(step: int) -> None:
    left = step

    def hook(event: str, _: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod"):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [True, False])
def test_killed_at_any_instant_one_whole_set_is_there_and_the_next_run_tidies_up(
    tmp_path: Path, exchange: bool, request: pytest.FixtureRequest
) -> None:
    if not exchange:
        request.getfixturevalue("no_exchange")
    seen, step, killed = set(), 0, True
    while killed:
        out = tmp_path / str(step) / "out"
        write_site(OLD, out)
        killed = _write_killed_before(step, out)
        found = contents(out) if out.exists() else None
        seen.add("old" if found == OLD else "new" if found == NEW else found and "mixed")
        write_site(NEW, out)
        assert contents(out) == NEW
        assert [path.name for path in out.parent.iterdir()] == ["out"], step
        step += 1
    assert step > 20
    assert seen == ({"old", "new"} if exchange else {"old", "new", None})


def test_after_a_kill_between_two_renames_a_failing_run_still_brings_the_old_set_back(
    tmp_path: Path,
) -> None:
    write_site(OLD, tmp_path / "out")
    (tmp_path / ".out.render.abcd1234").mkdir()
    (tmp_path / "out").rename(tmp_path / ".out.render.abcd1234" / "old")
    with pytest.raises(InputError):
        write_site({"a": RenderedFile(b""), "a/b": RenderedFile(b"")}, tmp_path / "out")
    assert contents(tmp_path / "out") == OLD


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    names = [".out.render.mine", ".out.render.ABCD1234", ".other.render.abcd1234", ".out.render."]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / ".out.render.abcd1234").mkdir()
    write_site(NEW, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "out"])


# ---------------------------------------------------------------- several at once


def _write_often(files: Mapping[str, RenderedFile], out: Path, times: int) -> None:
    for _ in range(times):
        write_site(files, out)


@pytest.mark.parametrize("locks", [True, False])
def test_several_writers_at_once_leave_one_whole_set(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not locks:
        monkeypatch.setattr(writing, "_lock", lambda _, __: False)
    out = tmp_path / "out"
    write_site(OLD, out)
    writers = [FORK.Process(target=_write_often, args=(s, out, 8)) for s in (OLD, NEW, OLD)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        descriptor = os.open(out, os.O_RDONLY)  # there is never a moment without it
        os.close(descriptor)
    for writer in writers:
        writer.join()
    if locks:
        assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert contents(out) in (OLD, NEW)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_writer_that_waits_too_long_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "LOCK_SECONDS", 0.05)
    with (
        writing._turn(tmp_path) as alone,
        pytest.raises(InputError, match="locked by another process"),
    ):
        assert alone
        write_site(NEW, tmp_path / "out")


# ---------------------------------------------------------------- what would change


def test_the_same_set_makes_no_difference(tmp_path: Path) -> None:
    write_site(NEW, tmp_path / "out")
    changes = compare_site(NEW, tmp_path / "out")
    assert not changes
    assert changes.text == ""


def test_a_difference_names_what_is_added_changed_and_removed(tmp_path: Path) -> None:
    write_site(OLD, tmp_path / "out")
    changes = compare_site({**NEW, "etc/site.conf": OLD["etc/site.conf"]}, tmp_path / "out")
    assert changes.added == ("client/only/new",)
    assert changes.changed == ("bin/run",)
    assert changes.removed == ("conf/only-old",)
    assert "--- a/conf/only-old\n+++ /dev/null\n" in changes.text
    assert contents(tmp_path / "out") == OLD


def test_a_difference_of_modes_alone_is_one(tmp_path: Path) -> None:
    write_site(OLD, tmp_path / "out")
    (tmp_path / "out" / "bin" / "run").chmod(0o700)
    changes = compare_site(OLD, tmp_path / "out")
    assert (changes.changed, changes.text) == (("bin/run",), "mode 700 -> 755 bin/run\n")


def test_the_difference_is_a_patch_that_makes_the_new_set_but_its_digests(tmp_path: Path) -> None:
    patch = shutil.which("patch")
    if patch is None:
        pytest.skip("patch is not installed")
    out = tmp_path / "out"
    lines = "".join(f"line {number}\x85\n" for number in range(30))  # \x85 ends no line here
    before = {**OLD, "long": RenderedFile(lines.encode()), "emptied": RenderedFile(b"x\n")}
    wanted = {
        **NEW,
        "long": RenderedFile(lines.replace("line 7\x85", "line\x0c seven").encode()),
        "emptied": RenderedFile(b""),
    }
    before[MANIFEST] = RenderedFile(
        b'{"files": ["long", "emptied", "conf/only-old", "bin/run", "etc/site.conf"]}'
    )
    write_site(before, out)
    text = compare_site(wanted, out).text
    subprocess.run([patch, "-s", "-p1", "-d", out], input=text.encode(), check=True)
    assert MANIFEST not in text
    assert {p: f.content for p, f in contents(out).items() if p != MANIFEST} == {
        p: f.content for p, f in wanted.items() if p != MANIFEST
    }


def test_the_difference_with_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="no earlier rendering"):
        compare_site(NEW, tmp_path)


def test_the_difference_with_nothing_is_everything(tmp_path: Path) -> None:
    assert compare_site(NEW, tmp_path / "absent").added == tuple(sorted(NEW.keys() - {MANIFEST}))


def test_a_difference_of_the_digests_alone_is_shown(tmp_path: Path) -> None:
    write_site(OLD, tmp_path / "out")
    changes = compare_site({**OLD, MANIFEST: NEW[MANIFEST]}, tmp_path / "out")
    assert changes.changed == (MANIFEST,)
    assert f"--- a/{MANIFEST}\n" in changes.text
