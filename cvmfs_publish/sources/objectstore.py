"""Images that are objects: `s3://BUCKET/KEY` and `swift://CONTAINER/OBJECT`.

Requests to S3 carry their signature in the URL, made anew for each; the one door to `obstore` here,
which knows how to make it.  Sources: AWS "Signature Version 4"; OpenStack "Object Storage API",
TempAuth (version 1) and "Identity API" (version 3).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import quote

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.origin import Origin
from cvmfs_publish.sources.base import AccessDeniedError, Platform
from cvmfs_publish.sources.downloads import Downloads, MakeRequest, check_status
from cvmfs_publish.sources.held import HeldFile
from cvmfs_publish.sources.registry.auth import Request, is_web_address
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.web import WebFiles

VALID = timedelta(hours=1)  # how long a signed URL may be used; each request has one of its own
_T = TypeVar("_T")
AUTH_LIMIT = 1 << 20  # bytes of an answer about a login; a catalog of services has kilobytes


@dataclass(frozen=True, slots=True)
class S3Access:
    """How a store is reached.  Without keys, only what everybody may read is found."""

    endpoint: str = ""  # "": Amazon's of the region
    region: str = "us-east-1"
    virtual_host: bool = False  # the bucket is part of the host's name
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class SwiftAccess:
    """How a cluster is reached: by a login, or at a URL that everybody may read."""

    auth_url: str = ""  # of version 3 if its path has /v3, else of version 1
    user: str = ""
    key: str = field(default="", repr=False)
    project: str = ""
    user_domain: str = "Default"
    project_domain: str = "Default"
    region: str = ""
    storage_url: str = ""  # "": as the login says


class S3Files(WebFiles):
    """A `FileHolder` for objects of an S3-compatible store."""

    def __init__(self, downloads: Downloads, access: S3Access) -> None:
        super().__init__(downloads, {})
        self._access = access

    def request(self, origin: Origin, platform: Platform) -> MakeRequest:
        """Return what makes requests for the object."""
        bucket, _, key = origin.place.partition("/")
        if not self._access.access_key:
            url = f"{self._base(bucket)}/{quote(key)}"
            return lambda method: Request(method, url)
        return lambda method: Request(method, self._sign(bucket, key, method, str(origin)))

    @property
    def _endpoint(self) -> str:
        return self._access.endpoint or f"https://s3.{self._access.region}.amazonaws.com"

    def _base(self, bucket: str) -> str:
        if not self._access.virtual_host:
            return f"{self._endpoint}/{bucket}"
        scheme, _, host = self._endpoint.partition("://")
        return f"{scheme}://{bucket}.{host}"

    def _sign(self, bucket: str, key: str, method: str, subject: str) -> str:
        """Return a URL; the library looks into the environment for whatever is not set here."""
        access = self._access
        credential = {
            "access_key_id": access.access_key,
            "secret_access_key": access.secret_key,
            "token": access.token or None,
            "expires_at": None,
        }
        try:
            store = S3Store(
                bucket,
                config={
                    "region": access.region,
                    "endpoint": self._base(bucket) if access.virtual_host else self._endpoint,
                    "virtual_hosted_style_request": access.virtual_host,
                    "skip_signature": False,
                },
                client_options={"allow_http": True},
                credential_provider=lambda: credential,  # type: ignore[arg-type]
            )
            return obstore.sign(store, "HEAD" if method == "HEAD" else "GET", key, VALID)
        except (BaseError, ValueError) as error:
            raise InputError(
                f"{subject}: no request can be signed: {str(error).splitlines()[0][:200]}",
                hint="correct `sources.s3`, or the variables AWS_…",
            ) from error


class SwiftFiles(WebFiles):
    """A `FileHolder` for objects of OpenStack Swift."""

    def __init__(self, downloads: Downloads, access: SwiftAccess) -> None:
        super().__init__(downloads, {})
        self._client = downloads.client
        self._access = access
        self._lock = threading.Lock()
        self._login: _Login | None = None

    def state(self, origin: Origin, platform: Platform) -> str:
        """As promised by `PlacedSource.state`."""
        return self._once_more(lambda: WebFiles.state(self, origin, platform))

    def hold(self, origin: Origin, platform: Platform, top: Digest | None) -> HeldFile:
        """As promised by `FileHolder.hold`."""
        return self._once_more(lambda: WebFiles.hold(self, origin, platform, top))

    def request(self, origin: Origin, platform: Platform) -> MakeRequest:
        """Return what makes requests for the object."""
        login = self._log_in(str(origin))
        url = f"{login.storage_url}/{quote(origin.place)}"
        headers = {"X-Auth-Token": login.token} if login.token else {}
        return lambda method: Request(method, url, headers)

    def _once_more(self, action: Callable[[], _T]) -> _T:
        """Do something; a login that has expired since is renewed once."""
        before = self._login
        try:
            return action()
        except AccessDeniedError:
            if before is None or not self._access.auth_url:
                raise
            with self._lock:
                if self._login is before:
                    self._login = None
        return action()

    def _log_in(self, subject: str) -> _Login:
        access = self._access
        with self._lock:
            if self._login is None:
                self._login = self._ask(access, subject)
            return self._login

    def _ask(self, access: SwiftAccess, subject: str) -> _Login:
        if not access.auth_url:
            if not access.storage_url:
                raise InputError(
                    f"{subject}: nothing says where this Swift is",
                    hint="set `sources.swift.auth_url` with `user` and `key_file`, or"
                    " `storage_url` for public containers; or the variables OS_… or ST_…",
                )
            return _Login(access.storage_url.rstrip("/"), "")
        ask = _ask_version_3 if "/v3" in access.auth_url else _ask_version_1
        login = ask(self._client, access, subject)
        if not is_web_address(login.storage_url):
            raise RemoteError(f"{subject}: the login names no storage: {login.storage_url[:200]!a}")
        return _Login((access.storage_url or login.storage_url).rstrip("/"), login.token)


@dataclass(frozen=True, slots=True)
class _Login:
    storage_url: str
    token: str = field(repr=False)


def _ask_version_1(client: RegistryClient, access: SwiftAccess, subject: str) -> _Login:
    headers = {"X-Auth-User": access.user, "X-Auth-Key": access.key}
    with client.request(Request("GET", access.auth_url, headers), subject) as reply:
        check_status(reply, f"{subject}: the login at {access.auth_url}")
        return _Login(reply.header("X-Storage-Url"), reply.header("X-Auth-Token"))


def _ask_version_3(client: RegistryClient, access: SwiftAccess, subject: str) -> _Login:
    user = {"name": access.user, "domain": {"name": access.user_domain}, "password": access.key}
    auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    if access.project:
        project = {"name": access.project, "domain": {"name": access.project_domain}}
        auth["scope"] = {"project": project}
    base = access.auth_url.rstrip("/").removesuffix("/auth/tokens")
    body = json.dumps({"auth": auth}).encode()
    request = Request("POST", f"{base}/auth/tokens", {"Content-Type": "application/json"}, body)
    with client.request(request, subject) as reply:
        check_status(reply, f"{subject}: the login at {access.auth_url}")
        token = reply.header("X-Subject-Token")
        document = parse_answer(reply.read_all(AUTH_LIMIT), subject)
    return _Login(_storage_url(document, access.region), token)


def _storage_url(document: dict[str, Any], region: str) -> str:
    """Return the public endpoint of the object store in a catalog of services; "" if none."""
    found = document.get("token")
    catalog = found.get("catalog") if isinstance(found, dict) else None
    for service in catalog if isinstance(catalog, list) else ():
        if not isinstance(service, dict) or service.get("type") != "object-store":
            continue
        endpoints = service.get("endpoints")
        for endpoint in endpoints if isinstance(endpoints, list) else ():
            if not isinstance(endpoint, dict) or endpoint.get("interface") != "public":
                continue
            if region in {"", endpoint.get("region"), endpoint.get("region_id")}:
                return str(endpoint.get("url") or "")
    return ""


def parse_answer(body: bytes, subject: str) -> dict[str, Any]:
    """Return a server's JSON object; raise `RemoteError` if it is none."""
    try:
        document = json.loads(body.decode())
    # RecursionError: a megabyte of "[" is valid UTF-8 and exhausts the parser's stack
    except (ValueError, RecursionError) as error:
        raise RemoteError(f"{subject}: the answer is not JSON") from error
    if not isinstance(document, dict):
        raise RemoteError(f"{subject}: the answer is not an object")
    return document
