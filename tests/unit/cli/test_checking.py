"""`check` of any repository, and how it tells how far it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from cvmfs_publish.cli.checking import CheckProgress
from cvmfs_publish.cli.output import Output
from cvmfs_publish.repository.native.check import Advance
from tests.unit.cli.support import Shell
from tests.unit.native.test_reader import served

NAME = "test.example.org"


@pytest.fixture
def elsewhere(home: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder without configuration, and the environment of who has one."""
    return Shell(tmp_path_factory.mktemp("elsewhere"))


def key(home: Shell) -> str:
    return str(home.cwd / "keys" / f"{NAME}.pub")


@pytest.mark.parametrize("over_http", [False, True])
def test_any_repository_is_checked_without_a_configuration(
    home: Shell, elsewhere: Shell, over_http: bool
) -> None:
    directory = home.cwd / "repository"
    with served(directory) as url:
        location = url if over_http else str(directory)
        document = elsewhere.json("check", "--scrub", "--from", location, "--key", key(home))
        ran = elsewhere.run("check", "--from", location, "--key", key(home))
    assert (document["ok"], document["repository"], document["errors"]) == (True, NAME, 0)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{NAME} revision 1: 0 errors, 0 warnings; ")


def test_paths_of_options_are_relative_to_the_current_folder(home: Shell) -> None:
    (home.cwd / "cvmfs-publish.yaml").unlink()
    ran = home.run("check", "--from", "repository", "--key", f"keys/{NAME}.pub")
    assert ran.code == 0, ran.err


def test_several_keys_may_be_trusted(home: Shell, elsewhere: Shell, tmp_path: Path) -> None:
    assert Shell(elsewhere.cwd).run("init", "other.example.org").code == 0
    other = elsewhere.cwd / "keys" / "other.example.org.pub"
    at = str(home.cwd / "repository")
    both = elsewhere.run("check", "--from", at, "--key", str(other), "--key", key(home))
    assert both.code == 0, both
    wrong = elsewhere.run("check", "--from", at, "--key", str(other))
    assert wrong.code == 5
    assert "error: .cvmfswhitelist: signature was made with none of the given" in wrong.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--from", "x"], 2, "--from x needs --key FILE"),
        (["--key", "x.pub"], 2, "--key without --from"),
        (["--from", "s3://bucket/x", "--key", "x.pub"], 2, "folders and http(s) URLs"),
        (["--from", "nowhere", "--key", "KEY"], 5, "nowhere holds no repository"),
        (["--from", "HERE", "--key", "nowhere.pub"], 5, "nowhere.pub cannot be read"),
        (["--from", "HERE", "--key", "HERE/.cvmfspublished"], 5, "not a public key"),
        (["--from", "http://127.0.0.1:9/x", "--key", "KEY"], 3, "http://127.0.0.1:9/x"),
    ],
)
def test_what_is_wrong_with_the_options_is_said(
    home: Shell, elsewhere: Shell, arguments: list[str], code: int, message: str
) -> None:
    here = str(home.cwd / "repository")
    given = [text.replace("HERE", here).replace("KEY", key(home)) for text in arguments]
    ran = elsewhere.run("check", *given)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err


def test_warnings_fail_only_a_strict_check(home: Shell) -> None:
    (home.cwd / "repository" / ".cvmfs_master_replica").unlink()
    assert home.run("check").code == 0
    ran = home.run("check", "--strict")
    assert ran.code == 5
    assert ran.out.startswith("warning: .cvmfs_master_replica: ")
    assert home.json("check", "--strict", code=5)["ok"] is True


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ADVANCES = [
    Advance("entries", 12_345),
    Advance("objects", 64, 200, 1_000_000, 4_000_000),
    Advance("entries", 20_000),
    Advance("objects", 200, 200, 4_000_000, 4_000_000),
]


def test_a_terminal_shows_a_share_of_what_is_known_and_is_left_clean() -> None:
    stderr = Terminal()
    output = Output(io.StringIO(), stderr, {"TERM": "xterm", "COLUMNS": "120"})
    with CheckProgress(output) as progress:
        for advance in ADVANCES:
            progress(advance)
            progress._bars.refresh()
    shown = stderr.getvalue()
    assert "checked 12,345 entries" in shown
    assert "checked 64 of 200 objects, 1.00 MB of 4.00 MB" in shown
    assert "28%" in shown  # opening an object counts as well
    assert "100%" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased
    assert output.stdout.getvalue() == ""  # type: ignore[attr-defined]


def test_totals_that_nobody_knows_are_not_made_up() -> None:
    stderr = Terminal()
    output = Output(io.StringIO(), stderr, {"TERM": "xterm"})
    with CheckProgress(output) as progress:
        progress(Advance("entries", 10))
        progress(Advance("objects", 7))
        progress._bars.refresh()
    assert "checked 10 entries, 7 objects" in stderr.getvalue()
    assert "%" not in stderr.getvalue()


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"verbosity": 1}, 4),
        ({}, 0),
        ({"verbosity": 1, "quiet": True}, 0),
        ({"verbosity": 1, "as_json": True}, 0),
    ],
)
def test_without_a_terminal_lines_are_told_to_who_asks(options: dict[str, int], lines: int) -> None:
    output = Output(io.StringIO(), io.StringIO(), **options)  # type: ignore[arg-type]
    with CheckProgress(output, line_seconds=0) as progress:
        for advance in ADVANCES:
            progress(advance)
    text = output.stderr.getvalue()  # type: ignore[attr-defined]
    assert text.count("\n") == lines
    assert "\x1b" not in text
    if lines:
        assert text.splitlines()[1] == "checked 64 of 200 objects, 1.00 MB of 4.00 MB"


def test_lines_come_now_and_then() -> None:
    output = Output(io.StringIO(), io.StringIO(), verbosity=1)
    with CheckProgress(output) as progress:
        for advance in ADVANCES:
            progress(advance)
    assert output.stderr.getvalue() == ""  # type: ignore[attr-defined]
