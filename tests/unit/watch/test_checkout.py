"""Wishlists in git: with the real git, from repositories that are what they should not be."""

from __future__ import annotations

import os
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.watch import checkout
from cvmfs_publish.watch.checkout import Checkout, GitAddress
from cvmfs_publish.watch.lists import Loaded, Place, WishlistLoader
from cvmfs_publish.watch.outbound import Outbound

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
git = pytest.mark.slow


class Repository:
    """Somebody's repository of wishlists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> None:
        environ = {
            "PATH": os.defpath,
            "HOME": str(self.folder.parent),
            "GIT_CONFIG_NOSYSTEM": "1",
            **{
                f"GIT_{who}_{what}": "x@y"
                for who in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }
        subprocess.run(["git", *arguments], cwd=self.folder, env=environ, check=True)

    def commit(self, files: dict[str, str]) -> Repository:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x")
        return self

    def url(self, path: str = "", ref: str = "") -> str:
        return f"git+file://{self.folder}{'//' + path if path else ''}{'@' + ref if ref else ''}"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "lists.git")


def load(where: str, tmp_path: Path) -> list[Loaded]:
    with Outbound() as outbound:
        return WishlistLoader([Place(where)], tmp_path / "state", outbound).load(NOW)


def tags(loaded: list[Loaded]) -> list[list[str]]:
    return [[wish.tag for wish in each.wishlist.wishes] for each in loaded if each.wishlist]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("git+https://h.org/b.git//l/x.yaml@main", ("https://h.org/b.git", "l/x.yaml", "main")),
        ("git+https://h.org/a/b.git", ("https://h.org/a/b.git", "", "HEAD")),
        ("git+https://h.org/a/b@release/1.0", ("https://h.org/a/b", "", "release/1.0")),
        ("git+file:///srv/lists.git//a.txt", ("file:///srv/lists.git", "a.txt", "HEAD")),
        ("git+https://h.org:8443/b//a//c/", ("https://h.org:8443/b", "a/c", "HEAD")),
    ],
)  # fmt: skip
def test_an_address_names_repository_path_and_branch(text: str, parts: tuple[str, ...]) -> None:
    assert tuple(GitAddress.parse(text))[:3] == parts


@pytest.mark.parametrize(
    "text",
    [
        "git+ssh://h.org/a", "git+ext::sh -c id", "git+https://user:pw@h.org/a.git//x@main",
        "git+https://h.org/a//../x", "git+https://h.org/a//x@-upload-pack", "git+https://h.org",
        "git+https://h.org/a//x@a..b", "git+https://h.org/a b", "git+https://h.org/a\n",
        "git+file://", "https://h.org/a", "git+https://h.org/a//-x@m", "git+https://h.org/a?x=1",
    ],
)  # fmt: skip
def test_an_address_that_could_be_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        GitAddress.parse(text)


@git
def test_a_file_of_a_branch_is_read(repository: Repository, tmp_path: Path) -> None:
    repository.commit({"a/list.txt": "debian:11\n"})
    repository.git("checkout", "--quiet", "-b", "next")
    repository.commit({"a/list.txt": "debian:12\n"})
    repository.git("checkout", "--quiet", "main")
    main = load(repository.url("a/list.txt"), tmp_path)
    assert tags(main) == [["11"]]
    assert main[0].name == repository.url("a/list.txt")
    assert tags(load(repository.url("a/list.txt", "next"), tmp_path)) == [["12"]]


@git
def test_a_folder_gives_all_its_lists(repository: Repository, tmp_path: Path) -> None:
    repository.commit({"l/b.txt": "debian:12\n", "l/a.txt": "debian:11\n", "l/README.md": "A\n"})
    loaded = load(repository.url("l", "main"), tmp_path)
    assert tags(loaded) == [["11"], ["12"]]
    assert loaded[0].name == repository.url("l/a.txt", "main")
    repository.commit({"top.txt": "debian:13\n"})
    assert tags(load(repository.url(), tmp_path)) == [["13"]]


@git
def test_a_commit_is_noticed_and_none_costs_nothing(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit({"list.txt": "debian:11\n"})
    where = repository.url("list.txt")
    assert tags(load(where, tmp_path)) == [["11"]]
    with monkeypatch.context() as patch:
        patch.setattr(Checkout, "read", None)  # it would be called for nothing
        again = load(where, tmp_path)
    assert (tags(again), again[0].error) == ([["11"]], None)
    repository.commit({"list.txt": "debian:12\n"})
    assert tags(load(where, tmp_path)) == [["12"]]
    repository.git("commit", "--quiet", "--amend", "--message=rewritten")
    assert load(where, tmp_path)[0].error is None


@git
def test_a_repository_that_is_gone_takes_no_wish_away_and_may_come_back(
    repository: Repository, tmp_path: Path
) -> None:
    repository.commit({"list.txt": "debian:11\n"})
    where = repository.url("list.txt")
    load(where, tmp_path)
    away = repository.folder.rename(tmp_path / "away")
    loaded = load(where, tmp_path)
    assert tags(loaded) == [["11"]]
    assert isinstance(loaded[0].error, RemoteError)
    away.rename(repository.folder)
    assert load(where, tmp_path)[0].error is None


@git
@pytest.mark.parametrize(
    ("path", "ref", "message"),
    [
        ("no.txt", "", "has no no.txt in HEAD"),
        ("list.txt", "nosuch", "git failed: fatal"),
        ("empty", "", "there is no wishlist in this folder"),
        ("link.txt", "", "is no plain file"),
        ("large.txt", "", "larger than"),
    ],
)
def test_what_cannot_be_read_is_told(
    repository: Repository, tmp_path: Path, path: str, ref: str, message: str
) -> None:
    (repository.folder / "link.txt").symlink_to("/etc/passwd")
    large = "x" * (4 * 1024 * 1024 + 1)
    repository.commit({"list.txt": "debian:11\n", "empty/x": "", "large.txt": large})
    (loaded,) = load(repository.url(path, ref), tmp_path)
    assert loaded.wishlist is None
    assert message in str(loaded.error)


@git
def test_nothing_that_a_repository_brings_along_is_run_or_followed(
    repository: Repository, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    script = f"#!/bin/sh\ntouch {trace}\n"
    repository.commit(
        {
            "lists/a.txt": "debian:11\n",
            "lists/.gitattributes": "*.txt filter=evil\n",
            ".gitmodules": f'[submodule "s"]\n\tpath = s\n\turl = file://{tmp_path}/other\n',
        }
    )
    (repository.folder / "lists/b.txt").symlink_to("/etc/passwd")
    repository.git("add", "--all")
    repository.git("commit", "--quiet", "--message=link")
    for name in ("post-checkout", "post-merge", "reference-transaction", "post-index-change"):
        hook = repository.folder / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(script)
        hook.chmod(0o755)
    assert tags(load(repository.url("lists"), tmp_path)) == [["11"]]
    assert not trace.exists()
    own = [path for path in (tmp_path / "state").rglob("*") if path.name in ("a.txt", "b.txt")]
    assert own == []


@git
def test_no_configuration_or_login_of_the_user_is_used(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "trace"
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f"[core]\n\tsshCommand = touch {trace}\n[url \"file:///evil\"]\n"
                                     f"\tinsteadOf = file://{repository.folder}\n")  # fmt: skip
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(home / ".gitconfig"))
    repository.commit({"list.txt": "debian:11\n"})
    assert tags(load(repository.url("list.txt"), tmp_path)) == [["11"]]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only its parent has yet to notice does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@git
def test_a_git_that_hangs_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / "git"
    fake.write_text(f"#!/bin/sh\nsleep 1000 & echo $! > {tmp_path}/pid; wait\n")
    fake.chmod(0o755)
    monkeypatch.setattr(os, "defpath", f"{programs}:{os.defpath}")
    address = GitAddress.parse("git+file:///srv/lists.git")
    slow = Checkout(address, tmp_path / "mirror", timeout=timedelta(seconds=0.5))
    with pytest.raises(RemoteError, match="took longer than"):
        slow.fetch()
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10  # a signal takes a moment to arrive
    while is_alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@git
def test_a_repository_that_is_too_large_for_a_list_is_not_fetched(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit({"list.txt": "debian:11\n", "data": os.urandom(200_000).hex()})
    monkeypatch.setattr(checkout, "MAX_PACK_BLOCKS", 100)
    (loaded,) = load(repository.url("list.txt"), tmp_path)
    assert loaded.wishlist is None
    assert isinstance(loaded.error, RemoteError)
    assert list((tmp_path / "state").iterdir()) == []


@git
def test_a_machine_without_git_is_told_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    monkeypatch.setattr(os, "defpath", str(programs))
    (loaded,) = load("git+file:///srv/lists.git", tmp_path)
    assert loaded.error is not None
    assert loaded.error.hint == "install git"


@git
def test_a_fetch_that_was_killed_is_repaired_by_the_next(
    repository: Repository, tmp_path: Path
) -> None:
    repository.commit({"list.txt": "debian:11\n"})
    where = repository.url("list.txt")
    load(where, tmp_path)
    (mirror,) = (tmp_path / "state").glob("*.git")
    (mirror / "shallow.lock").write_text("")
    repository.commit({"list.txt": "debian:12\n"})
    load(where, tmp_path)
    assert tags(load(where, tmp_path)) == [["12"]]
