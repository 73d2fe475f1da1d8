"""`init`, `check`, `info`, `serve`: a repository from its first revision on."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from itertools import takewhile
from pathlib import Path

import pytest

from cvmfs_publish.config import load_config
from cvmfs_publish.errors import InputError
from cvmfs_publish.web.server import bind
from tests.unit.cli.support import Shell, repository

CHECKER = Path(__file__).parents[4] / "shared" / "tools" / "cvmfs_check.py"
NAME = "test.example.org"


def checker(location: str, key: Path) -> str:
    """Return the independent judge's last line; it must find no error."""
    ran = subprocess.run(
        [sys.executable, str(CHECKER), "--public-key", str(key), location],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout.splitlines()[-1]


def test_init_makes_a_repository_that_others_accept(shell: Shell) -> None:
    ran = shell.run("init", NAME)
    assert ran.code == 0
    assert ran.out.startswith(f"created {NAME}, revision 1\n")
    assert "next: cvmfs-publish publish" in ran.err
    config = load_config(shell.cwd / "cvmfs-publish.yaml")
    assert config.repository.storage == shell.cwd / "repository"
    key = shell.cwd / "keys" / f"{NAME}.pub"
    assert checker(str(shell.cwd / "repository"), key).startswith("0 errors, ")


def test_init_tells_a_program_where_everything_is(shell: Shell) -> None:
    document = shell.json("init", NAME, "--storage", "srv/repo", "--keys", "etc/keys")
    assert document == {
        "repository": NAME,
        "created": True,
        "revision": 1,
        "root_hash": shell.json("info")["root_hash"],
        "storage": str(shell.cwd / "srv/repo"),
        "keys": str(shell.cwd / "etc/keys"),
        "config": str(shell.cwd / "cvmfs-publish.yaml"),
    }
    assert "  storage: srv/repo\n  " in (shell.cwd / "cvmfs-publish.yaml").read_text()


def test_init_never_replaces_a_configuration(shell: Shell) -> None:
    path = shell.cwd / "cvmfs-publish.yaml"
    path.write_text("mine")
    ran = shell.run("init", NAME)
    assert (ran.code, path.read_text()) == (2, "mine")
    assert f"{path} already exists" in ran.err
    assert [entry.name for entry in shell.cwd.iterdir()] == [path.name]
    path.unlink()
    path.symlink_to("nowhere")
    assert shell.run("init", NAME).code == 2


def test_init_adopts_a_repository_that_is_there(shell: Shell) -> None:
    shell.run("init", NAME, "--hash", "shake128")
    root = shell.json("info")["root_hash"]
    config = shell.cwd / "cvmfs-publish.yaml"
    config.unlink()
    document = shell.json("init", NAME)
    assert (document["created"], document["root_hash"]) == (False, root)
    assert "hash: shake128" in config.read_text()
    config.unlink()
    assert shell.run("init", "other.example.org").code == 5
    assert shell.run("init", NAME, "--keys", "elsewhere").code == 5
    assert not config.exists()


def test_init_for_a_configuration_elsewhere_names_folders_that_are_right(shell: Shell) -> None:
    (shell.cwd / "etc").mkdir()
    path = shell.cwd / "etc" / "mine.yaml"
    assert shell.run("init", NAME, "--config", str(path)).code == 0
    assert load_config(path).repository.storage == shell.cwd / "repository"
    assert shell.run("check", "--config", str(path)).code == 0
    assert not (shell.cwd / "cvmfs-publish.yaml").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a/b"], "'a/b' is not a repository name"),
        (
            [NAME, "--backend", "directory", "--storage", "s3://bucket/x"],
            "a plain tree is a folder",
        ),
        ([NAME, "--backend", "directory", "--keys", "k"], "belong to --backend native"),
        ([NAME, "--backend", "cvmfs_server"], "server.conf"),
        ([NAME, "--backend", "cvmfs_server", "--keys", "k"], "belong to --backend native"),
        ([NAME, "--storage", "s3://bucket/x"], "no keys for the object store"),
        ([NAME, "--storage", "s3:/bucket/x"], "is no place in an object store"),
    ],
)
def test_init_refuses_what_it_cannot_do_before_doing_anything(
    shell: Shell, arguments: list[str], message: str
) -> None:
    ran = shell.run("init", *arguments)
    assert ran.code == 2
    assert message in ran.err
    assert list(shell.cwd.iterdir()) == []


def test_check_tells_what_it_looked_at(home: Shell) -> None:
    ran = home.run("check")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{NAME} revision 1: 0 errors, 0 warnings; catalogs 1, ")
    document = home.json("check", "--scrub")
    assert document["ok"] is True
    assert (document["repository"], document["revision"]) == (NAME, 1)
    assert document["counts"]["objects hashed"] >= 3


def test_check_fails_with_every_problem_named(home: Shell) -> None:
    stray = home.cwd / "repository" / "data" / "00" / "stray"
    stray.write_text("stray")
    assert home.run("check").code == 0
    ran = home.run("check", "--scrub")
    assert ran.code == 5
    assert any(line.startswith("error: ") and "stray" in line for line in ran.out.splitlines())
    assert "1 error," in ran.out.splitlines()[-1]
    document = home.json("check", "--scrub", code=5)
    assert (document["ok"], document["errors"]) == (False, 1)
    (problem,) = [p for p in document["problems"] if p["severity"] == "error"]
    assert problem.keys() == {"place", "severity", "text"}


def test_check_notices_a_manifest_somebody_changed(home: Shell) -> None:
    path = home.cwd / "repository" / ".cvmfspublished"
    path.write_bytes(path.read_bytes().replace(b"\nS1\n", b"\nS2\n"))
    assert home.json("check", code=5)["ok"] is False


def test_info_shows_facts_and_expiry(home: Shell) -> None:
    document = home.json("info")
    assert document["repository"] == NAME
    assert (document["revision"], document["hash"], document["entries"]) == (1, "sha1", 1)
    assert document["has_master_key"] is True
    assert document["published_at"] < document["whitelist_expires_at"]
    text = home.run("info").out
    assert f"repository   {NAME}\n" in text
    assert "whitelist    expires 20" in text
    assert "in 29 days" in text
    (home.cwd / "keys" / f"{NAME}.masterkey").unlink()
    assert home.json("info")["has_master_key"] is False


@pytest.mark.parametrize("command", ["check", "info", "list", "serve"])
def test_a_repository_that_is_not_there_is_exit_code_5(home: Shell, command: str) -> None:
    (home.cwd / "repository").rename(home.cwd / "gone")
    error = home.run(command)
    assert error.code == 5, error
    assert "repository" in error.err


def test_serve_answers_until_it_is_stopped(home: Shell) -> None:
    with home.spawn("serve", "--listen", "127.0.0.1:0", "--json") as process:
        assert process.stdout is not None
        lines = takewhile(lambda line: line not in ("}\n", ""), process.stdout)
        document = json.loads("".join(lines) + "}")
        url = document["url"]
        assert (document["repository"], document["revision"]) == (NAME, 1)
        assert url.endswith(f"/cvmfs/{NAME}")
        with urllib.request.urlopen(f"{url}/.cvmfspublished") as answer:
            assert answer.read() == (home.cwd / "repository/.cvmfspublished").read_bytes()
        assert checker(url, home.cwd / f"keys/{NAME}.pub").startswith("0 errors, ")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (0, "", "")


def test_serve_logs_requests_on_demand(home: Shell) -> None:
    with home.spawn("serve", "--listen", "127.0.0.1:0", "-v") as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/.cvmfswhitelist") as answer:
            answer.read()
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
    assert f'"GET /cvmfs/{NAME}/.cvmfswhitelist HTTP/1.1" 200' in err


def test_a_port_that_is_taken_is_named(home: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = home.run("serve", "--listen", address)
    assert ran.code == 2
    assert f"{address} is already in use by another program" in ran.err
    assert "hint: choose another HOST:PORT" in ran.err


@pytest.mark.parametrize(
    "listen", ["8080", "localhost", ":8080", "a:b", "1.2.3.4:65536", "::1:80", ""]
)
def test_an_address_must_be_host_and_port(listen: str) -> None:
    with pytest.raises(InputError, match="is not an address to listen on"):
        bind(listen)


def test_an_address_that_is_not_ours_is_named() -> None:
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1:8080: "):
        bind("192.0.2.1:8080")


def test_ipv6_addresses_stand_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with bind("[::1]:0") as listener:
        assert listener.getsockname()[0] == "::1"


def test_two_repositories_do_not_share_a_folder_by_accident(tmp_path: Path) -> None:
    repository(Shell(tmp_path))
    other = tmp_path / "other"
    other.mkdir()
    ran = Shell(other).run("init", "other.example.org", "--storage", "../repository")
    assert ran.code == 5
    assert f"holds repository '{NAME}', not 'other.example.org'" in ran.err
