"""`resign`: here, elsewhere, and with another key."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from cvmfs_publish.repository.native.signing import (
    create_keys,
    load_keys,
    self_signed_certificate,
)
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.slow

NAME = "test.example.org"


def whitelist(home: Shell) -> bytes:
    return (home.cwd / "repository" / ".cvmfswhitelist").read_bytes()


@pytest.fixture
def offline(home: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Another machine: the master key, and nothing else."""
    away = tmp_path_factory.mktemp("offline")
    key = home.cwd / "keys" / f"{NAME}.masterkey"
    shutil.copy(key, away / "my.masterkey")
    key.unlink()
    return Shell(away)


def test_resign_renews_and_says_what_is_trusted(home: Shell) -> None:
    before = home.json("info")
    document = home.json("resign", "--days", "90")
    assert document["whitelist_expires_at"] > before["whitelist_expires_at"]
    assert document["trusted_certificates"] == [before["certificate"]]
    assert (document["dropped_certificates"], document["key_exchanged"]) == ([], False)
    assert home.json("info")["trusted_certificates"] == [before["certificate"]]
    ran = home.run("resign")
    assert re.match(
        rf"whitelist of {NAME} expires 20..-..-.. ..:00 UTC\ntrusts +{before['certificate']}\n$",
        ran.out,
    )
    assert home.run("check").code == 0


def test_the_master_key_stays_where_it_is(home: Shell, offline: Shell) -> None:
    before = whitelist(home)
    ran = home.run("resign")
    assert ran.code == 5
    assert f"the master key of {NAME} is not in" in ran.err
    assert "--request FILE" in ran.err
    ran = home.run("resign", "--request", "please")
    assert ran.code == 0
    assert f"--master-key {NAME}.masterkey --out {NAME}.whitelist" in ran.err
    assert whitelist(home) == before
    shutil.move(home.cwd / "please", offline.cwd / "please")

    ran = offline.run(
        *("resign", "--sign", "please", "--master-key", "my.masterkey", "--out", "signed"),
        *("--days", "60"),  # another time than before, also within one second
    )
    assert ran.code == 0, ran
    assert re.search(rf"repository +{NAME}\n", ran.out)
    assert re.search(r"trusts +([0-9A-F]{2}:){19}[0-9A-F]{2}  of this publisher, in use", ran.out)
    assert "resign --install signed" in ran.err
    assert sorted(path.name for path in offline.cwd.iterdir()) == [
        "my.masterkey",
        "please",
        "signed",
    ]
    document = offline.json(
        "resign", "--sign", "please", "--master-key", "my.masterkey", "--out", "two", "--days", "9"
    )
    assert document["whitelist"] == str(offline.cwd / "two")

    shutil.move(offline.cwd / "signed", home.cwd / "signed")
    assert home.run("resign", "--install", "signed").code == 0
    assert whitelist(home) == (home.cwd / "signed").read_bytes() != before
    assert home.run("check").code == 0


def test_a_key_is_exchanged_here_and_elsewhere(home: Shell, offline: Shell) -> None:
    first = home.json("info")["certificate"]
    for tool, arguments in (
        (home, ["--rotate", "--key-bits", "3072", "--request", "please"]),
        (offline, ["--sign", "please", "--master-key", "my.masterkey", "--out", "signed"]),
        (home, ["--install", "signed"]),
    ):
        for other in (home, offline):
            for name in ("please", "signed"):
                if (other.cwd / name).exists() and other is not tool:
                    shutil.move(other.cwd / name, tool.cwd / name)
        ran = tool.run("resign", *arguments)
        assert ran.code == 0, ran
    assert "the key is exchanged" in ran.out
    info = home.json("info")
    assert (info["key_bits"], info["revision"]) == (3072, 1)
    assert set(info["trusted_certificates"]) == {first, info["certificate"]}
    shutil.copy(offline.cwd / "my.masterkey", home.cwd / "keys" / f"{NAME}.masterkey")
    document = home.json("resign", "--rotate")
    assert document["key_exchanged"] is True
    assert len(document["trusted_certificates"]) == 3
    document = home.json("resign", "--only")
    assert len(document["dropped_certificates"]) == 2
    assert home.run("check").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sign", "a", "--install", "b"], "--sign and --install exclude each other"),
        (["--request", "a", "--install", "b"], "exclude each other"),
        (["--sign", "a"], "--sign needs --master-key and --out"),
        (["--master-key", "a"], "--master-key without --sign"),
        (["--out", "a"], "--out without --sign"),
        (["--force"], "--force without --install"),
        (["--key-bits", "2048"], "--key-bits without --rotate"),
        (["--rotate", "--only"], "exclude each other"),
        (["--rotate", "--key-bits", "1024"], "2048 to 4096 are possible"),
        (["--install", "a", "--rotate"], "leave --rotate and --only out"),
        (["--install", "none"], "none cannot be read: No such file"),
        (["--sign", "none", "--master-key", "a", "--out", "b"], "none cannot be read"),
        (["--request", "cvmfs-publish.yaml"], "already exists"),
        (["--request", "none/of/that"], "cannot be written: No such file"),
        (["--days", "0"], "--days"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_done(
    home: Shell, arguments: list[str], message: str
) -> None:
    before = {path: path.read_bytes() for path in home.cwd.rglob("*") if path.is_file()}
    ran = home.run("resign", *arguments)
    assert ran.code == 2, ran
    assert message in ran.err
    assert {path: path.read_bytes() for path in home.cwd.rglob("*") if path.is_file()} == before


def test_no_file_is_ever_written_over(home: Shell, offline: Shell) -> None:
    home.run("resign", "--request", "please")
    shutil.move(home.cwd / "please", offline.cwd / "please")
    key = offline.cwd / "my.masterkey"
    secret = key.read_bytes()
    ran = offline.run(
        "resign", "--sign", "please", "--master-key", "my.masterkey", "--out", "my.masterkey"
    )
    assert (ran.code, key.read_bytes()) == (2, secret)
    assert "already exists" in ran.err


def test_what_is_no_request_and_no_whitelist_is_refused(home: Shell, offline: Shell) -> None:
    before = whitelist(home)
    for data in (b"", b"\xff\xfe", b"x" * 2_000_000):
        (home.cwd / "bad").write_bytes(data)
        (offline.cwd / "bad").write_bytes(data)
        ran = home.run("resign", "--install", "bad")
        assert ran.code in (2, 5), ran
        ran = offline.run(
            "resign", "--sign", "bad", "--master-key", "my.masterkey", "--out", "signed"
        )
        assert ran.code == 2, ran
        assert not (offline.cwd / "signed").exists()
    assert whitelist(home) == before


def test_a_master_key_that_others_can_read_does_not_sign(home: Shell, offline: Shell) -> None:
    home.run("resign", "--request", "please")
    shutil.move(home.cwd / "please", offline.cwd / "please")
    (offline.cwd / "my.masterkey").chmod(0o440)
    ran = offline.run(
        "resign", "--sign", "please", "--master-key", "my.masterkey", "--out", "signed"
    )
    assert ran.code == 5
    assert "open to others (mode 0440)" in ran.err
    assert not (offline.cwd / "signed").exists()


def test_init_makes_keys_of_any_possible_size(shell: Shell) -> None:
    ran = shell.run("init", NAME, "--key-bits", "4097")
    assert (ran.code, list(shell.cwd.iterdir())) == (2, [])
    assert "4097 bits: 2048 to 4096 are possible" in ran.err
    assert shell.run("init", NAME, "--key-bits", "2560").code == 0
    keys = load_keys(shell.cwd / "keys", NAME)
    assert keys.master_key is not None
    assert {keys.master_key.key_size, keys.private_key.key_size} == {2560}
    assert shell.json("info")["key_bits"] == 2560


def test_a_certificate_whose_time_is_over_is_no_problem(home: Shell) -> None:
    """No client looks at these dates (section 2.2)."""
    expire_certificate(home)
    assert home.run("tag", "still").code == 0
    ran = home.run("info")
    assert re.search(r"certificate +expired 2025-..-.. ..:.. UTC, which no client looks", ran.out)
    assert home.run("resign", "--only").code == 0  # signs with it
    document = home.json("check")
    assert (document["ok"], document["warnings"]) == (True, 1)
    assert "dates ended at 2025-" in document["problems"][0]["text"]


def test_the_master_key_is_changed_while_everything_goes_on(home: Shell, tmp_path: Path) -> None:
    """As docs/keys.md tells; clients have both public keys by then."""
    keys = home.cwd / "keys"
    create_keys(tmp_path / "new", NAME, now=datetime.now(UTC))
    (keys / f"{NAME}.pub").rename(keys / f"{NAME}.pub.former")
    for kind in ("pub", "masterkey"):
        (tmp_path / "new" / f"{NAME}.{kind}").replace(keys / f"{NAME}.{kind}")
    for command in ("list", "check", "info"):
        assert home.run(command).code == 0, command
    assert home.run("tag", "before").code == 0
    before = home.json("info")["trusted_certificates"]
    assert home.json("resign")["trusted_certificates"] == before
    (keys / f"{NAME}.pub.former").unlink()
    for command in ("list", "check", "info"):
        assert home.run(command).code == 0, command
    assert home.run("tag", "after").code == 0


def expire_certificate(home: Shell) -> None:
    path = home.cwd / "keys" / f"{NAME}.crt"
    keys = load_keys(path.parent, NAME)
    made = self_signed_certificate(keys.private_key, NAME, datetime(2024, 11, 1, tzinfo=UTC))
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    assert home.run("resign").code == 0
