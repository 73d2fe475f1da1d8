"""Every command tells that the whitelist expires soon; none fails because of it."""

from __future__ import annotations

import re
import signal
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from cvmfs_publish.cli.app import Commands
from cvmfs_publish.cli.expiry import expiry_warning
from cvmfs_publish.repository.native.signing import fingerprint, load_keys
from cvmfs_publish.repository.native.whitelist import Whitelist, sign_whitelist
from tests.fakes.registry import FakeRegistry
from tests.unit.cli.support import Ran, Shell

pytestmark = pytest.mark.slow

NAME = "test.example.org"
IMAGE = "127.0.0.1:9/a/b:1"  # nobody answers there

# What to run for each command; None for those that have nothing to do with the repository.
COMMANDS: dict[str, list[str] | None] = {
    "init": None,
    "publish": [IMAGE],
    "unpublish": [IMAGE],
    "rollback": [IMAGE],
    "pin": [IMAGE],
    "unpin": [IMAGE],
    "list": [],
    "show": [IMAGE],
    "history": [IMAGE],
    "export": [IMAGE, "folder"],
    "verify": [IMAGE],
    "check": [],
    "gc": ["--dry-run"],
    "info": [],
    "tag": ["a-tag"],
    "resign": ["--request", "file"],
    "serve": ["--listen", "127.0.0.1:0"],
    "watch": ["--once"],
    "replicas": ["--count", "1"],
    "switch": [],
    "wishlist": None,
    "doctor": ["--offline"],
    "bench": None,
    "site": None,
}
USING = [name for name, arguments in COMMANDS.items() if arguments is not None]
# Those that fail on an expired whitelist, which is what they say then.
STOPPED = {"unpublish", "rollback", "pin", "unpin", "gc", "tag"}


def write_whitelist(home: Shell, left: timedelta) -> Whitelist:
    """Put a whitelist in place that has so much time left."""
    keys = load_keys(home.cwd / "keys", NAME)
    assert keys.master_key is not None
    ends = datetime.now(UTC) + left + timedelta(hours=1)  # the hour it ends in does not count
    made = Whitelist(NAME, ends - timedelta(days=30), ends, (fingerprint(keys.certificate),))
    path = home.cwd / "repository" / ".cvmfswhitelist"
    path.write_bytes(sign_whitelist(made, keys.master_key))
    return made


def run(home: Shell, command: str, *options: str) -> Ran:
    """Run a command in this process, or one that stays until it is told to go in another."""
    arguments = [*options, command, *(COMMANDS[command] or [])]
    if command == "publish":  # a registry that has no such image: nobody at all is tried for long
        with FakeRegistry() as registry:
            return home.run(*options, command, registry.name("a/b", "1"))
    if command != "serve":
        return home.run(*arguments)
    with home.spawn(*arguments) as process:
        assert process.stdout is not None
        first = ""
        while (found := re.search(r"http://[^\s\"]+", first)) is None:
            first += process.stdout.readline()
        with urllib.request.urlopen(f"{found[0]}/.cvmfspublished") as answer:
            answer.read()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    return Ran(process.returncode, first + out, err)


def test_this_test_knows_every_command() -> None:
    assert COMMANDS.keys() == Commands.table.keys(), "say what to run for a new command"


@pytest.mark.parametrize("command", USING)
def test_every_command_tells_once_that_the_whitelist_expires(home: Shell, command: str) -> None:
    quiet = run(home, command)
    assert "warning: the whitelist" not in quiet.err
    (home.cwd / "file").unlink(missing_ok=True)
    write_whitelist(home, timedelta(days=3))
    warned = run(home, command)
    assert warned.code == quiet.code
    assert warned.err.count(f"warning: the whitelist of {NAME} expires in ") == 1
    assert warned.err.count("hint: `cvmfs-publish resign`, where the master key is") == 1
    (home.cwd / "file").unlink(missing_ok=True)
    as_json = run(home, command, "--json")
    assert as_json.code == quiet.code
    assert "whitelist of" not in as_json.out
    assert as_json.err.count(f"warning: the whitelist of {NAME} expires in ") == 1
    (home.cwd / "file").unlink(missing_ok=True)
    assert "expires in" not in run(home, command, "--quiet").err


@pytest.mark.parametrize("command", USING)
def test_an_expired_whitelist_is_told_once(home: Shell, command: str) -> None:
    write_whitelist(home, timedelta(days=-3))
    for options in ([], ["--json"]):
        (home.cwd / "file").unlink(missing_ok=True)
        ran = run(home, command, *options)
        told = ran.err + (ran.out if command != "info" else "")
        warning = f"warning: the whitelist of {NAME} expired "
        assert told.count(warning) == (0 if command in STOPPED else 1), ran
        if command in STOPPED:
            assert ran.code == 5
            assert told.count(f"whitelist of {NAME} expired at ") == 1
            assert "cvmfs-publish resign" in told


@pytest.mark.parametrize("damage", ["missing", "empty", "nonsense", "a folder"])
def test_what_else_is_wrong_with_the_whitelist_is_for_those_to_tell_who_need_it(
    home: Shell, damage: str
) -> None:
    tags = home.run("tag")
    assert tags.code == 0
    path = home.cwd / "repository" / ".cvmfswhitelist"
    path.unlink()
    makers: dict[str, Callable[[], object]] = {
        "missing": lambda: None,
        "empty": path.touch,
        "nonsense": lambda: path.write_bytes(b"\xff" * 1000),
        "a folder": path.mkdir,
    }
    makers[damage]()
    assert home.run("tag") == tags
    ran = home.run("list")
    assert (ran.code, "warning" in ran.err) == (5, False)
    assert ".cvmfswhitelist" in ran.err or "whitelist " in ran.err


def test_renewing_it_ends_the_warning(home: Shell) -> None:
    write_whitelist(home, timedelta(hours=5))
    assert "expires in 5 hours" in home.run("list").err
    assert "warning" not in home.run("resign").err
    assert "warning" not in home.run("list").err
    assert "warning" not in home.run("resign", "--days", "2").err  # who asks for it knows it


def test_serve_tells_at_its_start(home: Shell) -> None:
    write_whitelist(home, timedelta(days=3))
    with home.spawn("serve", "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        lines = [process.stderr.readline() for _ in range(2)]
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate()
    assert "whitelist" in "".join(lines)
    assert "whitelist of" not in rest


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (timedelta(days=7, seconds=1), ""),
        (timedelta(days=7), "expires in 7 days, 2026-11-20 10:00 UTC: "),
        (timedelta(days=2), "expires in 2 days, "),
        (timedelta(hours=47, minutes=59), "expires in 47 hours, "),
        (timedelta(minutes=61), "expires in 1 hour, "),
        (timedelta(minutes=59), "expires in less than an hour, "),
        (timedelta(), "expired less than an hour ago, 2026-11-20 10:00 UTC: "),
        (timedelta(days=-40), "expired 40 days ago, "),
    ],
)
def test_the_warning_says_how_much_time_is_left_until_clients_refuse_it(
    left: timedelta, text: str
) -> None:
    """That is the beginning of the hour in which it expires."""
    ends = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)
    whitelist = Whitelist("a", ends, ends + timedelta(minutes=59), ())
    assert expiry_warning(whitelist, ends - left).startswith(
        f"the whitelist of a {text}" if text else ""
    )
    assert bool(expiry_warning(whitelist, ends - left)) == bool(text)
