"""Docker's config.json: exact hosts, base64, helpers, and secrets that stay secret."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.sources.registry.auth import Credential
from cvmfs_publish.sources.registry.credentials import read_docker_credentials

HUB = "https://index.docker.io/v1/"


def auth(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def read(directory: Path, document: object, *registries: str) -> dict[str, Credential]:
    path = directory / "config.json"
    path.write_text(json.dumps(document), "utf-8")
    return read_docker_credentials(path, registries, timeout=timedelta(seconds=5))


def helper(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Install `docker-credential-test`, a shell script."""
    program = directory / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(directory), prepend=":")
    return program


def test_a_missing_file_knows_nobody(tmp_path: Path) -> None:
    assert read_docker_credentials(tmp_path / "absent", ["ghcr.io"]) == {}


def test_user_and_password_are_found_by_exact_host_and_port(tmp_path: Path) -> None:
    document = {
        "auths": {
            "registry.example/team": auth("wrong:wrong"),
            "example": auth("wrong:wrong"),
            "registry.example": auth("a:1"),
            "registry.example:5000": auth("b:2:3"),
        }
    }
    wanted = ("registry.example", "registry.example:5000", "my.registry.example", "other.example")
    assert read(tmp_path, document, *wanted) == {
        "registry.example": Credential("a", "1"),
        "registry.example:5000": Credential("b", "2:3"),
    }


@pytest.mark.parametrize(
    "key", ["https://ghcr.io", "https://ghcr.io/", "https://ghcr.io/v2/", "http://ghcr.io/v1"]
)
def test_keys_may_be_addresses(tmp_path: Path, key: str) -> None:
    found = read(tmp_path, {"auths": {key: auth("a:1")}}, "ghcr.io")
    assert found == {"ghcr.io": Credential("a", "1")}


@pytest.mark.parametrize("key", [HUB, "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub_has_a_key_of_its_own(tmp_path: Path, key: str) -> None:
    assert read(tmp_path, {"auths": {key: auth("a:1")}}, "docker.io", "ghcr.io") == {
        "docker.io": Credential("a", "1")
    }


def test_identity_tokens_are_understood(tmp_path: Path) -> None:
    document = {"auths": {"a.example": {**auth("x:y"), "identitytoken": "t0k"}}}
    assert read(tmp_path, document, "a.example") == {"a.example": Credential(identity_token="t0k")}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"auths": [1]},
        {"auths": {"a.example": {"auth": "%%s3cret"}}},
        {"auths": {"a.example": auth("no-colon-s3cret")}},
        {"auths": {"a.example": {"auth": base64.b64encode(b"\xff:s3cret").decode()}}},
        {"auths": {"a.example": {"username": "s3cret"}}},
        {"credHelpers": {"a.example": "../../bin/sh"}},
        {"credsStore": "no-such-helper-anywhere"},
    ],
)
def test_a_broken_file_is_an_error_that_shows_no_secret(tmp_path: Path, document: object) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, document, "a.example")
    assert "s3cret" not in str(caught.value) + caught.value.hint


def test_a_file_that_is_not_json_is_an_error_without_its_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b'{"auths": s3cret')
    with pytest.raises(InputError, match=r"config\.json: not valid JSON") as caught:
        read_docker_credentials(path, ["a.example"])
    assert "s3cret" not in str(caught.value)


def test_a_directory_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        read_docker_credentials(tmp_path, ["a.example"])


def test_a_helper_is_asked_for_its_registry_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"""
        read server
        echo "$1 $server" >> {tmp_path}/asked
        echo '{{"ServerURL": "x", "Username": "u", "Secret": "s"}}'
    """
    helper(tmp_path, monkeypatch, script)
    document = {
        "credHelpers": {"a.example": "test"},
        "auths": {"a.example": auth("not:used"), "b.example": auth("b:1")},
    }
    assert read(tmp_path, document, "a.example", "b.example") == {
        "a.example": Credential("u", "s"),
        "b.example": Credential("b", "1"),
    }
    assert (tmp_path / "asked").read_text("utf-8") == "get a.example\n"


def test_the_store_is_asked_by_the_key_of_docker_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = """
        read server
        echo '{"Username": "<token>", "Secret": "'$server'"}'
    """
    helper(tmp_path, monkeypatch, script)
    assert read(tmp_path, {"credsStore": "test"}, "docker.io") == {
        "docker.io": Credential(identity_token=HUB)
    }


def test_a_helper_that_knows_nothing_leaves_the_file_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "echo 'credentials not found in native keychain'; exit 1"
    helper(tmp_path, monkeypatch, script)
    document = {"credsStore": "test", "auths": {"a.example": auth("a:1"), "b.example": {}}}
    assert read(tmp_path, document, "a.example", "b.example") == {"a.example": Credential("a", "1")}


@pytest.mark.parametrize(
    "script",
    ["echo broken; exit 2", "echo not-json", "echo '{}'", "echo '{\"Username\": 5}'"],
)
def test_a_helper_that_fails_does_not_mean_going_on_as_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    helper(tmp_path, monkeypatch, script)
    with pytest.raises(InputError, match="docker-credential-test"):
        read(tmp_path, {"credsStore": "test"}, "a.example")


def test_a_helper_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper(tmp_path, monkeypatch, "exec sleep 60")
    path = tmp_path / "config.json"
    path.write_text('{"credsStore": "test"}', "utf-8")
    with pytest.raises(InputError, match="no answer within"):
        read_docker_credentials(path, ["a.example"], timeout=timedelta(seconds=0.2))
