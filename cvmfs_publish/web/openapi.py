"""Describe the API as an OpenAPI 3.1 document, from the table of its endpoints.  Pure.

Every document of `documents.py` has a schema here; a test compares them, and programs that read
only this must not meet anything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cvmfs_publish import __version__
from cvmfs_publish.state.model import REASONS
from cvmfs_publish.web.catalogue import CONDITIONS
from cvmfs_publish.web.parameters import PLATFORM_PATTERN, AnyParameter

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "integer"}
FLAG: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
TEXTS: Schema = {"type": "array", "items": TEXT}
# names as published, REGISTRY/REPOSITORY:TAG; short ones are completed as Docker does
NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 600}


def maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def many(name: str) -> Schema:
    return {"type": "array", "items": ref(name)}


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def closed(**properties: Schema) -> Schema:
    """Return the schema of a document that has exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_ITEM: dict[str, Schema] = {
    "name": TEXT,
    "platform": TEXT,
    "status": {"type": "string", "enum": list(CONDITIONS)},
    "owner": TEXT,
    "digest": TEXT,
    "image_id": TEXT,
    "revision": maybe(NUMBER),
    "published_at": maybe(TEXT),
    "entries": maybe(NUMBER),
    "bytes": maybe(NUMBER),
    "changed_at": TIME,
    "progress": maybe(ref("Progress")),
    "failure": maybe(ref("Failure")),
}

SCHEMAS: dict[str, Schema] = {
    "Problem": closed(type=TEXT, title=TEXT, status=NUMBER, detail=TEXT, kind=TEXT, hint=TEXT),
    "Failure": closed(kind=TEXT, message=TEXT, hint=TEXT),
    "Repository": closed(
        repository=TEXT,
        revision=NUMBER,
        root_hash=TEXT,
        published_at=TIME,
        images=NUMBER,
        sandboxes=NUMBER,
        bytes=NUMBER,
        reuse={"type": "number"},
        whitelist_ends_at=TIME,
        certificate_expires_at=TIME,
        watcher_alive_at=maybe(TIME),
        statuses={"type": "object", "additionalProperties": NUMBER},
        damaged=TEXTS,
    ),
    "LayerProgress": closed(digest=TEXT, done=NUMBER, total=NUMBER),
    "Progress": closed(phase=TEXT, done=NUMBER, total=NUMBER, layers=many("LayerProgress")),
    "ImageSummary": closed(**_ITEM),
    "Images": closed(
        total=NUMBER, page=NUMBER, per_page=NUMBER, pages=NUMBER, images=many("ImageSummary")
    ),
    "Wish": closed(
        reference=TEXT,
        is_wished=FLAG,
        list=TEXT,
        line=NUMBER,
        owner=TEXT,
        priority=NUMBER,
        requested_at=TIME,
        seen_at=maybe(TIME),
        fetching_at=maybe(TIME),
        published_at=maybe(TIME),
        replicated_at=maybe(TIME),
        polled_at=maybe(TIME),
        next_poll_at=maybe(TIME),
        digest_seen=TEXT,
        digest_published=TEXT,
        attempts=NUMBER,
        next_attempt_at=maybe(TIME),
        layers_total=maybe(NUMBER),
        layers_reused=maybe(NUMBER),
        fetched_bytes=maybe(NUMBER),
        seconds=maybe({"type": "number"}),
    ),
    "Finding": closed(path=TEXT, what=TEXT),
    "Publication": {
        "type": "object",
        "properties": {
            "reference": TEXT,
            "digest": TEXT,
            "manifest_digest": TEXT,
            "image_id": TEXT,
            "platform": TEXT,
            "path": TEXT,
            "sandbox": TEXT,
            "published_at": TEXT,
            "revision": NUMBER,
            "entries": NUMBER,
            "content_bytes": NUMBER,
            "stored_bytes": NUMBER,
            "tree_digest": TEXT,
            "layers": TEXTS,
            "roots_added": TEXTS,
            "findings": many("Finding"),
            "signature": {},
        },
        "required": ["reference", "digest", "platform", "path", "sandbox", "revision"],
    },
    "Layer": closed(digest=TEXT, size=maybe(NUMBER), uses=NUMBER),
    "Version": closed(
        at=TEXT,
        revision=NUMBER,
        digest=TEXT,
        manifest_digest=TEXT,
        image_id=TEXT,
        what=TEXT,
        is_current=FLAG,
        is_kept=FLAG,
        is_pinned=FLAG,
        rollback=TEXT,
    ),
    "Staged": closed(digest=TEXT, staged_at=TEXT, revision=NUMBER, replicas=NUMBER),
    "Command": closed(title=TEXT, text=TEXT),
    "SiteCommands": closed(site=TEXT, description=TEXT, commands=many("Command")),
    "Image": closed(
        **_ITEM,
        wish=maybe(ref("Wish")),
        publication=maybe(ref("Publication")),
        layers=many("Layer"),
        history=many("Version"),
        staged=maybe(ref("Staged")),
        commands=many("SiteCommands"),
    ),
    "DirectorySize": closed(path=TEXT, entries=NUMBER, bytes=NUMBER),
    "Sizes": closed(name=TEXT, platform=TEXT, directories=many("DirectorySize")),
    "Job": closed(
        name=TEXT,
        platform=TEXT,
        reference=TEXT,
        digest=TEXT,
        owner=TEXT,
        priority=NUMBER,
        reason={"type": "string", "enum": list(REASONS)},
        enqueued_at=TIME,
        not_before=TIME,
        attempts=NUMBER,
        is_running=FLAG,
    ),
    "Queue": closed(total=NUMBER, oldest_wish_at=maybe(TIME), jobs=many("Job")),
    "ListProblem": closed(
        line=NUMBER, text=TEXT, failure=ref("Failure"), owner=TEXT, since=maybe(TIME)
    ),
    "Wishlist": closed(
        name=TEXT,
        entries=NUMBER,
        images=NUMBER,
        loaded_at=maybe(TIME),
        checked_at=TIME,
        failure=maybe(ref("Failure")),
        problems=many("ListProblem"),
    ),
    "Wishlists": closed(wishlists=many("Wishlist")),
    "Event": closed(
        id=NUMBER,
        at=TIME,
        kind=TEXT,
        message=TEXT,
        name=TEXT,
        platform=TEXT,
        list=TEXT,
        owner=TEXT,
        details={"type": "object"},
    ),
    "Events": closed(events=many("Event")),
    "Budget": closed(
        registry=TEXT,
        limit=maybe(NUMBER),
        remaining=maybe(NUMBER),
        resets_at=maybe(TIME),
        blocked_until=maybe(TIME),
        requests=NUMBER,
        failures=NUMBER,
        updated_at=maybe(TIME),
    ),
    "Registries": closed(registries=many("Budget")),
    "Replica": closed(
        url=TEXT, revision=NUMBER, behind=NUMBER, checked_at=TIME, failure=maybe(ref("Failure"))
    ),
    "Replicas": closed(revision=NUMBER, replicas=many("Replica")),
    "Order": closed(name=NAME, platform={**TEXT, "maxLength": 100, "pattern": PLATFORM_PATTERN}),
    "Accepted": closed(name=TEXT, platform=TEXT),
}
# The platform of an order may be left out: linux/amd64, as everywhere.
SCHEMAS["Order"]["required"] = ["name"]

_PROBLEMS = {
    400: "what was sent cannot be read",
    401: "this needs the token",
    403: "nothing can be changed here",
    404: "there is no such thing",
    413: "what was sent is too large",
    415: "what was sent is not JSON",
    422: "a value is not what is wanted",
    503: "repository or state cannot be read at the moment",
}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route of the API."""

    method: Literal["GET", "POST"]
    path: str  # `{name}` stands for a name of an image, slashes and all
    operation: str
    about: str
    answer: str  # the schema of what is returned
    parameters: Sequence[AnyParameter] = ()

    @property
    def has_name(self) -> bool:
        return "{name}" in self.path

    @property
    def needs_token(self) -> bool:
        return self.method != "GET"

    @property
    def problems(self) -> list[int]:
        found = {422, 503}
        if self.has_name:
            found.add(404)
        if self.needs_token:
            found |= {400, 401, 403, 404, 413, 415}
        return sorted(found)


def describe_api(endpoints: Iterable[Endpoint], url: str) -> Schema:
    """Return the OpenAPI document."""
    paths: dict[str, Schema] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "cvmfs-publish",
            "version": __version__,
            "description": "What is published in a CernVM-FS repository of container images, and"
            " what is on its way.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint) -> Schema:
    parameters: list[Schema] = [
        {
            "name": parameter.name,
            "in": "query",
            "description": parameter.about,
            "schema": parameter.schema(),
        }
        for parameter in endpoint.parameters
    ]
    if endpoint.has_name:
        parameters.insert(
            0,
            {
                "name": "name",
                "in": "path",
                "required": True,
                "description": "name of the image, as ghcr.io/a/b:1; / may be written as %2F",
                "schema": NAME,
            },
        )
    status = "202" if endpoint.needs_token else "200"
    responses: dict[str, Schema] = {
        status: {
            "description": endpoint.about,
            "content": {"application/json": {"schema": ref(endpoint.answer)}},
        }
    }
    for code in endpoint.problems:
        responses[str(code)] = {
            "description": _PROBLEMS[code],
            "content": {"application/problem+json": {"schema": ref("Problem")}},
        }
    operation: Schema = {
        "operationId": endpoint.operation,
        "summary": endpoint.about,
        "parameters": parameters,
        "responses": responses,
    }
    if endpoint.needs_token:
        operation["security"] = [{"token": []}]
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": ref("Order")}},
        }
    return operation
