"""Every web service that images come from beside registries, on one loopback port.

/files/NAME            a file, with ETag, parts of it and If-Range
/v1/images|imagefile/  a library of Sylabs' kind; the file is elsewhere, as there (303)
/api/container/        a Singularity Hub
/auth/v1.0             a Swift's login of version 1, /v3/auth/tokens of version 3
/storage/              its objects, for those with a token that is still good

Sources: the clients of Apptainer (library, shub); OpenStack's API references.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.fakes.registry import FakeRegistry, Recorded, Reply

USER, KEY = "account:user", "key of the account"
PROJECT = "images"


class FakePlaces(FakeRegistry):
    """Use with `with`, as a `FakeRegistry`; faults and counts are the same."""

    def __init__(self) -> None:
        super().__init__()
        self.images: dict[str, bytes] = {}  # NAME below /files/
        self.library: dict[tuple[str, str], str] = {}  # path:tag, architecture → NAME
        self.hub: dict[str, str] = {}  # user/container:tag → NAME
        self.objects: dict[str, bytes] = {}  # container/object
        self.with_validators = True
        self.hash_form = "sha256"  # of a library's hashes: sha256 or sif
        self.library_token = ""
        self.public = False  # whether objects may be read without a token
        self._tokens = 0
        self.swift_tokens: set[str] = set()

    def url_of(self, name: str) -> str:
        return f"{self.url}/files/{name}"

    def _answer_honestly(self, request: Recorded) -> Reply:
        path = unquote(urlsplit(request.path).path)
        for prefix, answer in {
            "/files/": self._answer_file,
            "/v1/": self._answer_library,
            "/api/container/": self._answer_hub,
            "/auth/v1.0": self._answer_login_1,
            "/v3/auth/tokens": self._answer_login_3,
            "/storage/": self._answer_object,
        }.items():
            if path.startswith(prefix):
                return answer(path.removeprefix(prefix), request)
        return super()._answer_honestly(request)

    def _answer_file(self, name: str, request: Recorded) -> Reply:
        return self._file(self.images.get(name), request)

    def _file(self, data: bytes | None, request: Recorded) -> Reply:
        if data is None:
            return Reply(404, {"Content-Type": "text/plain"}, b"no such file")
        tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        if request.headers.get("if-range", tag) != tag:
            request = replace(request, headers={})
        reply = self._ranged(request, Reply(body=data))
        if not self.with_validators:
            return reply
        return replace(reply, headers={**reply.headers, "ETag": tag})

    def _answer_library(self, path: str, request: Recorded) -> Reply:
        if self.library_token and request.headers.get("authorization") != (
            f"Bearer {self.library_token}"
        ):
            return _json(401, {"error": {"code": 401, "message": "unauthorized"}})
        kind, _, name = path.partition("/")
        architecture = parse_qs(urlsplit(request.path).query).get("arch", [""])[0]
        file = self.library.get((name, architecture))
        if file is None:
            return _json(404, {"error": {"code": 404, "message": "not found"}})
        data = self.images[file]
        if kind == "imagefile":
            return Reply(303, {"Location": self.url_of(file)})
        found = hashlib.sha256(data).hexdigest()
        hash_ = f"sha256.{found}" if self.hash_form == "sha256" else f"sif.{found[:32]}"
        return _json(200, {"data": {"hash": hash_, "size": len(data), "uploaded": True}})

    def _answer_hub(self, path: str, request: Recorded) -> Reply:
        file = self.hub.get(path)
        if file is None:
            return _json(404, {"detail": "Not found."})
        version = hashlib.md5(self.images[file], usedforsecurity=False).hexdigest()
        name, _, tag = path.partition(":")
        return _json(
            200, {"image": self.url_of(file), "name": name, "tag": tag, "version": version}
        )

    def _new_token(self) -> str:
        self._tokens += 1
        token = f"swift-token-{self._tokens}"
        self.swift_tokens.add(token)
        return token

    def _answer_login_1(self, path: str, request: Recorded) -> Reply:
        given = (request.headers.get("x-auth-user"), request.headers.get("x-auth-key"))
        if given != (USER, KEY):
            return Reply(401)
        storage = {"X-Storage-Url": f"{self.url}/storage", "X-Auth-Token": self._new_token()}
        return Reply(200, storage)

    def _answer_login_3(self, path: str, request: Recorded) -> Reply:
        auth = json.loads(request.body)["auth"]
        user = auth["identity"]["password"]["user"]
        project = auth.get("scope", {}).get("project", {}).get("name")
        if (user["name"], user["password"], project) != (USER, KEY, PROJECT):
            return _json(401, {"error": {"code": 401, "title": "Unauthorized"}})
        endpoints = [
            {"interface": "internal", "region": "one", "url": "http://internal.invalid"},
            {"interface": "public", "region": "two", "url": "http://two.invalid"},
            {"interface": "public", "region": "one", "url": f"{self.url}/storage"},
        ]
        catalog = [
            {"type": "identity", "endpoints": []},
            {"type": "object-store", "endpoints": endpoints},
        ]
        reply = _json(201, {"token": {"catalog": catalog}})
        return replace(reply, headers={**reply.headers, "X-Subject-Token": self._new_token()})

    def _answer_object(self, path: str, request: Recorded) -> Reply:
        if not self.public and request.headers.get("x-auth-token") not in self.swift_tokens:
            return Reply(401)
        return self._file(self.objects.get(path), request)


def _json(status: int, document: Mapping[str, Any]) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(document).encode())
