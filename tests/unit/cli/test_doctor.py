"""`doctor` on hosts that lack one thing each."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.content.holder import Holder
from cvmfs_publish.repository import directory
from cvmfs_publish.repository.native.signing import fingerprint, load_keys
from cvmfs_publish.repository.native.whitelist import make_whitelist
from cvmfs_publish.repository.server_program import Note
from tests.fakes.registry import FakeRegistry, status
from tests.fakes.stock_server import FLAG
from tests.stock_host import StockHost, configure
from tests.support import NAME
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.slow

OWN = "test.example.org"  # of the fixture `home`


def look(shell: Shell, *options: str, code: int | None = None) -> dict[str, list[dict[str, Any]]]:
    """Return what `doctor` finds, by check."""
    ran = shell.run("--json", "doctor", *options)
    document = ran.document
    found: dict[str, list[dict[str, Any]]] = {}
    for each in document["checks"]:
        found.setdefault(each["check"], []).append(each)
        assert each["remedy"] or each["outcome"] in ("ok", "not applicable"), each
    has_all = all(each["outcome"] != "missing" for each in document["checks"])
    assert (document["ok"], ran.code) == (has_all, 0 if has_all else 2)
    assert code is None or ran.code == code, document
    return found


def append(shell: Shell, text: str) -> None:
    """Add sections to the configuration, in place of those that are there."""
    path = shell.cwd / "cvmfs-publish.yaml"
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    kept = path.read_text()
    for key in keys:
        kept = re.sub(rf"^{key}:.*\n(?:[ #].*\n|\n)*", "", kept, flags=re.MULTILINE)
    path.write_text(f"{kept}\n{text}")


def test_a_host_that_has_everything_is_told_so(home: Shell) -> None:
    found = look(home, "--offline", code=0)
    for check in ("configuration", "state", "storage", "lock", "repository", "keys", "whitelist"):
        assert [each["outcome"] for each in found[check]] == ["ok"], check
    text = home.run("doctor", "--offline")
    assert text.code == 0
    assert re.search(r"^ok +keys +in /", text.out, re.MULTILINE)
    assert text.out.splitlines()[-1].startswith("nothing is missing")


def test_without_a_configuration_it_says_how_to_begin(shell: Shell) -> None:
    (found,) = look(shell, code=2)["configuration"]
    assert "cvmfs-publish init NAME" in found["remedy"]


def test_a_configuration_that_is_wrong_is_told_with_its_line(home: Shell) -> None:
    append(home, "nonsense: 1")
    (found,) = look(home, code=2)["configuration"]
    assert "nonsense" in found["message"]


def test_missing_and_open_keys(home: Shell) -> None:
    key = home.cwd / "keys" / f"{OWN}.key"
    key.chmod(0o644)
    (found,) = look(home, code=2)["keys"]
    assert f"chmod 400 {key}" in found["remedy"]
    key.unlink()
    (found,) = look(home, code=2)["keys"]
    assert str(key) in found["message"]


@pytest.mark.parametrize(
    ("left", "outcome"), [(20, "ok"), (3, "warning"), (-3, "missing")], ids=str
)
def test_the_whitelist_is_looked_at_before_it_expires(home: Shell, left: int, outcome: str) -> None:
    keys = load_keys(home.cwd / "keys", OWN)
    assert keys.master_key is not None
    now = datetime.now(UTC)
    (home.cwd / "repository/.cvmfswhitelist").write_bytes(
        make_whitelist(
            OWN,
            [fingerprint(keys.certificate)],
            now + timedelta(days=left),
            keys.master_key,
            now - timedelta(days=30),
        )
    )
    found = look(home)
    (expiry,) = [each for key in ("whitelist", "keys") for each in found.get(key, [])
                 if "expire" in each["message"]]  # fmt: skip
    assert expiry["outcome"] == outcome
    assert outcome == "ok" or "resign" in expiry["remedy"]


def test_keys_of_somebody_else_are_told(home: Shell, tmp_path: Path) -> None:
    other = Shell(tmp_path / "other")
    other.cwd.mkdir()
    assert other.run("init", OWN, "-q").code == 0
    for kind in ("crt", "key"):
        target = home.cwd / "keys" / f"{OWN}.{kind}"
        target.unlink()
        target.write_bytes((other.cwd / "keys" / f"{OWN}.{kind}").read_bytes())
        target.chmod(0o400)
    found = look(home, code=2)["whitelist"]
    assert "does not trust our certificate" in found[0]["message"]


def test_a_storage_that_is_gone(home: Shell) -> None:
    (home.cwd / "repository").rename(home.cwd / "elsewhere")
    (found,) = look(home, code=2)["storage"]
    assert "init" in found["remedy"]


SECRET = "s3cret-that-nobody-may-see"


def test_secrets_are_looked_at_and_never_told(home: Shell) -> None:
    for name, mode in (("hook", 0o600), ("token", 0o644), ("login", 0o644)):
        (home.cwd / name).write_text(f"{SECRET}\n")
        (home.cwd / name).chmod(mode)
    append(
        home,
        "webhooks: {secret_file: hook}\nweb: {token_file: token}\nregistries:\n"
        "  127.0.0.1:9: {username: bot, password_file: login}\n"
        "  127.0.0.2:9: {username: bot, password_env: NOT_SET}\n",
    )
    ran = home.run("--json", "doctor", "--offline")
    assert SECRET not in ran.out + ran.err
    assert SECRET not in home.run("-vv", "doctor").out
    found = look(home, "--offline", code=2)
    assert [each["outcome"] for each in found["webhooks.secret_file"]] == ["ok"]
    assert "chmod" in found["web.token_file"][0]["remedy"]
    assert found["web.token_file"][0]["outcome"] == "missing"  # the service refuses it
    assert found["registries.127.0.0.1:9"][0]["outcome"] == "warning"  # who publishes does not
    assert found["registries.127.0.0.2:9"][0]["outcome"] == "missing"


def test_registries_are_asked_with_their_logins(home: Shell) -> None:
    with FakeRegistry() as good, FakeRegistry() as closed, socket.socket() as unused:
        closed.require_bearer("bot", "right")
        unused.bind(("127.0.0.1", 0))
        down = f"127.0.0.1:{unused.getsockname()[1]}"
        (home.cwd / "login").write_text("right\n")
        append(
            home,
            f"registries:\n  {good.host}: {{}}\n  {down}: {{}}\n"
            f"  {closed.host}: {{username: bot, password_file: login}}\n",
        )
        found = look(home, code=2)
        assert found[f"registry {good.host}"][0]["message"] == "answers without a login"
        assert found[f"registry {closed.host}"][0]["message"] == "answers with user 'bot'"
        assert found[f"registry {down}"][0]["outcome"] == "missing"
        (home.cwd / "login").write_text("wrong\n")
        (denied,) = look(home, code=2)[f"registry {closed.host}"]
        assert "access denied" in denied["message"]
        assert [each["outcome"] for each in look(home, "--offline")["registries"]] == [
            "not applicable"
        ]


def test_a_host_that_is_no_registry_is_told(home: Shell) -> None:
    with FakeRegistry() as registry:
        registry.fault("GET", "/v2/", status(404), times=None)
        append(home, f"registries: {{{registry.host}: {{}}}}")
        (found,) = look(home, code=2)[f"registry {registry.host}"]
        assert "answered 404 for /v2/" in found["message"]


def test_wishlists_sites_trust_and_ports_are_looked_at(home: Shell) -> None:
    (home.cwd / "good.yaml").write_text("version: 1\nimages: [ghcr.io/a/b:1]\n")
    (home.cwd / "bad.yaml").write_text("version: 1\nimages: ['ghcr.io/A B']\n")
    (home.cwd / "site.yaml").write_text("nonsense: 1\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        append(
            home,
            "wishlists: [good.yaml, bad.yaml, absent.yaml, 'https://127.0.0.1:9/list']\n"
            "sandbox: {sites: [generic, ./site.yaml]}\n"
            "trust: [{match: '*', policy: cosign, keys: [absent.pub]}]\n"
            f"watch: {{listen: '127.0.0.1:{port}'}}\n",
        )
        found = look(home, "--offline", code=2)
    assert [each["outcome"] for each in found["wishlist"]] == [
        "ok", "warning", "missing", "not applicable"
    ]  # fmt: skip
    assert [each["outcome"] for each in found["site"]] == ["ok", "missing"]
    assert "absent.pub" in found["trust"][0]["message"]
    assert found["watch.listen"][0]["outcome"] == "warning"


# plain trees


def test_a_plain_tree_tells_what_its_file_system_can_do(shell: Shell) -> None:
    assert shell.run("init", NAME, "--backend", "directory").code == 0
    found = look(shell, code=0)
    assert found["lock"][0]["outcome"] == "ok"
    assert found["sharing"][0]["message"].startswith("by ")
    assert list((shell.cwd / "repository/.cvmfs-publish/txn").iterdir()) == []
    lock = shell.cwd / "repository/.cvmfs-publish/lock"
    assert not lock.exists()
    lock.write_bytes(Holder.this_process(100).dump())
    assert [each["outcome"] for each in look(shell, code=0)["repository"]] == ["ok", "warning"]


@pytest.mark.parametrize(
    ("share", "outcome"), [("reflink", "missing"), ("false", "not applicable")]
)
def test_how_a_plain_tree_is_to_share_is_compared_with_what_it_can(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, share: str, outcome: str
) -> None:
    monkeypatch.setattr(directory, "clone", lambda *_: False)
    assert shell.run("init", NAME, "--backend", "directory").code == 0
    path = shell.cwd / "cvmfs-publish.yaml"
    path.write_text(path.read_text().replace("#share: auto", f"share: {share}"))
    (found,) = look(shell)["sharing"]
    assert found["outcome"] == outcome
    assert "`repository.directory.share` is" in found["message"]


def test_a_storage_that_another_account_made_is_told(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell.run("init", NAME, "--backend", "directory").code == 0
    closed = shell.cwd / "repository/.cvmfs-publish/txn"
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != closed)
    outcomes = [each["outcome"] for each in look(shell, code=2)["storage"]]
    assert outcomes == ["ok", "missing"]


# cvmfs_server


@pytest.fixture
def host(shell: Shell, tmp_path: Path) -> StockHost:
    made = StockHost(tmp_path / "host", int(datetime.now(UTC).timestamp()) - 60)
    configure(shell.cwd, made)
    return made


def test_a_host_of_cvmfs_server_that_has_everything(shell: Shell, host: StockHost) -> None:
    found = look(shell, code=0)
    for check in ("server.conf", "cvmfs_server", "owner", "mount", "repository", "transaction"):
        assert [each["outcome"] for each in found[check]] == ["ok"], check
    assert "version 2.12.0" in found["cvmfs_server"][0]["message"]


def remove_program(host: StockHost) -> None:
    host.program.unlink()


def write_version(text: str) -> Callable[[StockHost], None]:
    def write(host: StockHost) -> None:
        (host.base / "version").write_text(text)

    return write


def set_owner(host: StockHost) -> None:
    conf = host.base / "server.conf"
    conf.write_text(conf.read_text().replace("CVMFS_USER=root", "CVMFS_USER=no-such-account"))


def unmount(host: StockHost) -> None:
    (host.base / "mount").unlink()


def open_transaction(host: StockHost) -> None:
    (host.base / "spool" / FLAG).touch()


def interrupt(host: StockHost) -> None:
    dead = Holder.this_process(60)
    gone = Holder(**{**{name: getattr(dead, name) for name in Holder.__slots__}, "started": "1"})
    state = host.base.parent / "state"
    state.mkdir(exist_ok=True)
    (state / "cvmfs_server.json").write_bytes(Note("publish", gone, 0.0).dump())


@pytest.mark.parametrize(
    ("spoil", "check", "outcome", "words"),
    [
        (remove_program, "cvmfs_server", "missing", "install cvmfs-server"),
        (write_version("2.7.5-1"), "cvmfs_server", "missing", "too old: 2.8.0 or newer"),
        (write_version("2.11.2"), "cvmfs_server", "warning", "does not keep owners before 2.12.0"),
        (write_version("of some kind"), "cvmfs_server", "warning", "does not say its version"),
        (set_owner, "owner", "missing", "no such account"),
        (unmount, "mount", "missing", "cvmfs_server mount"),
        (open_transaction, "spool", "warning", "never aborted from here"),
        (interrupt, "transaction", "warning", "the next publish ends what it left"),
    ],
)
def test_what_a_host_of_cvmfs_server_lacks(
    shell: Shell,
    host: StockHost,
    spoil: Callable[[StockHost], None],
    check: str,
    outcome: str,
    words: str,
) -> None:
    spoil(host)
    (found,) = [each for each in look(shell)[check] if each["outcome"] == outcome]
    assert words in f"{found['message']} {found['remedy']}"


def test_a_server_conf_that_is_missing_is_told(shell: Shell, host: StockHost) -> None:
    (host.base / "server.conf").unlink()
    (found,) = look(shell, code=2)["repository"]
    assert "server.conf" in found["message"]


def write_sudo(folder: Path, code: int) -> None:
    (folder / "sudo").write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$*\" >'{folder}/asked'\n"
        f"[ {code} = 0 ] || echo 'sudo: a password is required' >&2\nexit {code}\n"
    )
    (folder / "sudo").chmod(0o755)


@pytest.mark.parametrize(("code", "outcome"), [(0, "ok"), (1, "missing"), (None, "missing")])
def test_who_is_not_the_owner_is_told_how_to_become_it(
    shell: Shell,
    host: StockHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int | None,
    outcome: str,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "cvmfs-publish").touch(0o755)
    shell = Shell(shell.cwd, {"PATH": str(programs)})
    if code is not None:
        write_sudo(programs, code)
    (found,) = look(shell)["owner"]
    assert found["outcome"] == outcome
    if code is not None:
        asked = (programs / "asked").read_text()
        assert asked == f"-n -u root -- {programs}/cvmfs-publish --version\n"
    if code == 1:
        assert "a password is required" in found["message"]
        rule = f"#4242 ALL=(root) NOPASSWD: {programs}/cvmfs-publish"
        assert rule in found["remedy"]
