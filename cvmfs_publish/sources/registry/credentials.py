"""Turn Docker's config.json and its credential helpers into credentials.

Sources: Docker CLI documentation, `docker login`, "Credential stores" and "Credential helpers";
containers-auth.json(5), whose files have the same form.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import DOCKER_HUB, parse_registry
from cvmfs_publish.sources.registry.auth import Credential

HUB_KEY = "https://index.docker.io/v1/"  # how Docker has always named its Hub in this file
HELPER_TIMEOUT = timedelta(seconds=30)  # a helper may ask a cloud service
IDENTITY_USER = "<token>"  # the user name that says the secret is an identity token
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ENTRY_KEY = re.compile(r"(?:https?://)?([^/]+)(?:/(?:v[12]/?)?)?")


def read_docker_credentials(
    path: Path, registries: Iterable[str], timeout: timedelta = HELPER_TIMEOUT
) -> dict[str, Credential]:
    """Return what the file, or the helpers it names, know about exactly these registries.

    A registry it does not know is left out; so are all if there is no file.  Helpers are run once
    per registry.  Raises `InputError` for a malformed file and for a helper that fails: going on
    without credentials would only fail later, and less clearly.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror}") from exc
    document = _parse_object(text, str(path))
    found: dict[str, Credential] = {}
    for registry in sorted({parse_registry(registry) for registry in registries}):
        credential = _find_credential(document, registry, path, timeout)
        if credential is not None:
            found[registry] = credential
    return found


def _find_credential(
    document: dict[str, Any], registry: str, path: Path, timeout: timedelta
) -> Credential | None:
    helpers = _get_section(document, "credHelpers", path)
    for key, helper in helpers.items():
        if _registry_of(key) == registry:
            return run_helper(str(helper), _server_name(registry), timeout)
    store = document.get("credsStore")
    if store:
        credential = run_helper(str(store), _server_name(registry), timeout)
        if credential is not None:
            return credential
    for key, entry in _get_section(document, "auths", path).items():
        if _registry_of(key) == registry and isinstance(entry, dict):
            credential = _parse_entry(entry, f"{path}: auths: {key}")
            if credential is not None:
                return credential
    return None


def run_helper(name: str, server: str, timeout: timedelta) -> Credential | None:
    """Return what `docker-credential-NAME get` says about `server`, None if it knows nothing."""
    if _HELPER.fullmatch(name) is None:
        raise InputError(f"{name!r} is not the name of a credential helper")
    program = f"docker-credential-{name}"
    try:
        process = subprocess.run(  # noqa: S603 - the owner of the file chose the program
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=timeout.total_seconds(),
            check=False,
        )
    except OSError as exc:
        raise InputError(
            f"the credential helper {program} cannot be run: {exc.strerror}",
            hint="install it, or take it out of Docker's config.json",
        ) from exc
    except subprocess.TimeoutExpired as exc:
        raise InputError(f"{program} gave no answer within {timeout} for {server}") from exc
    if process.returncode != 0:
        said = process.stdout.decode(errors="replace").strip()
        # The helpers' protocol: this sentence, on stdout, is how they say "nothing"
        if "credentials not found" in said.lower():
            return None
        raise InputError(
            f"{program} failed with exit code {process.returncode} for {server}: {said[:200]!a}"
        )
    answer = _parse_object(process.stdout, program)
    return _make_credential(answer.get("Username"), answer.get("Secret"), program)


def _parse_entry(entry: Mapping[str, Any], subject: str) -> Credential | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credential(identity_token=token)
    encoded = entry.get("auth")
    if isinstance(encoded, str) and encoded:
        try:
            pair = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError) as exc:
            raise InputError(f"{subject}: auth is not base64 of USER:PASSWORD") from exc
        username, colon, password = pair.partition(":")
        if not colon:
            raise InputError(f"{subject}: auth is not base64 of USER:PASSWORD")
        return _make_credential(username, password.rstrip("\0"), subject)
    if entry.get("username"):
        return _make_credential(entry.get("username"), entry.get("password"), subject)
    return None  # Docker leaves {} behind where a helper keeps the secret


def _make_credential(username: object, secret: object, subject: str) -> Credential | None:
    if not isinstance(username, str) or not isinstance(secret, str):
        raise InputError(f"{subject}: user name or password is missing")
    if username == IDENTITY_USER:
        return Credential(identity_token=secret)
    return Credential(username, secret) if username else None


def _registry_of(key: str) -> str | None:
    """Return the registry a key stands for; None for keys of single repositories and nonsense."""
    match = _ENTRY_KEY.fullmatch(key)
    try:
        return parse_registry(match[1]) if match else None
    except InputError:
        return None


def _server_name(registry: str) -> str:
    return HUB_KEY if registry == DOCKER_HUB else registry


def _get_section(document: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = document.get(name) or {}
    if not isinstance(section, dict):
        raise InputError(f"{path}: {name} is not an object")
    return section


def _parse_object(text: bytes, subject: str) -> dict[str, Any]:
    try:
        value = json.loads(text.decode())
    except (ValueError, RecursionError) as exc:
        # The text itself may hold passwords, so it is not shown
        raise InputError(f"{subject}: not valid JSON ({type(exc).__name__})") from exc
    if not isinstance(value, dict):
        raise InputError(f"{subject}: the JSON is not an object")
    return value
