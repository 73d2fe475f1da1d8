"""The API says what the pages say, strictly, and as its description promises."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from starlette.routing import Route

from cvmfs_publish.web.api import DOCUMENT_PATH, ENDPOINTS
from cvmfs_publish.web.openapi import SCHEMAS
from tests.asgi import Browser
from tests.status_site import (
    AMD64,
    ANALYSIS,
    BROKEN,
    DEBIAN,
    LIST,
    QUEUED,
    ROOT,
    TRAIN,
    StatusSite,
)
from tests.support import NAME

EXAMPLES = {
    "/api/v1/images/{name}": [ROOT, ANALYSIS, BROKEN, TRAIN],
    "/api/v1/sizes/{name}": [ROOT, DEBIAN],
}


def schema_of(path: str, document: dict[str, Any]) -> dict[str, Any]:
    content = document["paths"][path]["get"]["responses"]["200"]["content"]
    found: dict[str, Any] = content["application/json"]["schema"]
    return found


def check(value: object, schema: dict[str, Any], place: str = "") -> None:
    """Compare a value with a schema, as far as ours use JSON Schema."""
    if "$ref" in schema:
        check(value, SCHEMAS[schema["$ref"].rpartition("/")[2]], place)
        return
    if "anyOf" in schema:
        if value is not None:
            check(value, schema["anyOf"][0], place)
        return
    if "enum" in schema:
        assert value in schema["enum"], place
    kinds = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "array": list,
        "object": dict,
    }
    if "type" in schema:
        assert isinstance(value, kinds[schema["type"]]), f"{place}: {value!r} is no {schema}"  # type: ignore[arg-type]
    if isinstance(value, list):
        for number, each in enumerate(value):
            check(each, schema["items"], f"{place}[{number}]")
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema.get("required", ())) <= value.keys(), place
        if schema.get("additionalProperties") is False:
            assert value.keys() <= schema["properties"].keys(), place
        for name, below in schema["properties"].items():
            if name in value:
                check(value[name], below, f"{place}.{name}")


def test_every_answer_is_as_the_description_says(browser: Browser) -> None:
    document = browser.get(DOCUMENT_PATH).json()
    for endpoint in ENDPOINTS:
        if endpoint.method != "GET":
            continue
        for name in EXAMPLES.get(endpoint.path, [""]):
            path = endpoint.path.replace("{name}", quote(name, safe=""))
            answer = browser.get(path)
            assert answer.status == 200, path
            check(answer.json(), schema_of(endpoint.path, document), path)


def test_the_description_names_every_route_and_nothing_else(
    browser: Browser, status_site: StatusSite
) -> None:
    document = browser.get(DOCUMENT_PATH).json()
    assert document["openapi"] == "3.1.0"
    routes = {
        (route.path.replace("{name:path}", "{name}"), method.lower())
        for route in status_site.app().routes
        if isinstance(route, Route) and route.path.startswith("/api/v1")
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {(path, method) for path, found in document["paths"].items() for method in found}
    assert described == routes


def test_every_schema_that_is_named_exists_and_is_used() -> None:
    named: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                named.add(value["$ref"].rpartition("/")[2])
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(SCHEMAS)
    named |= {endpoint.answer for endpoint in ENDPOINTS} | {"Problem", "Order"}
    assert named == SCHEMAS.keys()


def test_images_come_page_by_page(browser: Browser) -> None:
    seen: list[str] = []
    for page in (1, 2, 3, 4):
        found = browser.get(f"/api/v1/images?per_page=2&page={page}").json()
        assert (found["total"], found["pages"]) == (7, 4)
        seen += [image["name"] for image in found["images"]]
    assert seen == sorted(seen)
    assert len(set(seen)) == 7
    assert browser.get("/api/v1/images?per_page=2&page=5").json()["images"] == []


def test_images_are_sorted_as_asked(browser: Browser) -> None:
    def first(sort: str) -> str:
        name: str = browser.get(f"/api/v1/images?sort={sort}&per_page=1").json()["images"][0][
            "name"
        ]
        return name

    assert first("name") == QUEUED
    assert first("changed") == TRAIN  # published now; the others some time ago
    assert first("size") in (ROOT, TRAIN)
    assert first("requested") != TRAIN  # nobody did


def test_one_image_tells_its_life(browser: Browser) -> None:
    found = browser.get(f"/api/v1/images/{quote(ROOT, safe='')}").json()
    assert found == browser.get(f"/api/v1/images/{ROOT}").json()
    assert found["status"] == "published"
    assert found["wish"]["list"] == LIST
    assert found["publication"]["path"] == f"/{ROOT}"
    assert [version["is_current"] for version in found["history"]] == [True, False]
    assert found["history"][1]["rollback"].startswith("cvmfs-publish rollback ")
    assert {site["site"] for site in found["commands"]} == {"in2p3", "osg"}
    assert found["layers"][0]["uses"] == 3


def test_progress_is_told_in_bytes(browser: Browser) -> None:
    progress = browser.get(f"/api/v1/images/{ANALYSIS}").json()["progress"]
    assert (progress["phase"], progress["done"], progress["total"]) == (
        "fetching",
        362_000_000,
        815_000_000,
    )


def test_sizes_add_up_to_the_image(browser: Browser) -> None:
    sizes = browser.get(f"/api/v1/sizes/{ROOT}").json()["directories"]
    image = browser.get(f"/api/v1/images/{ROOT}").json()
    assert sum(size["bytes"] for size in sizes) == image["bytes"]
    assert {"path": "opt/root", "entries": 1, "bytes": 30_000} in sizes


def test_the_queue_names_what_runs_first(browser: Browser) -> None:
    jobs = browser.get("/api/v1/queue").json()["jobs"]
    assert [job["name"] for job in jobs if job["is_running"]] == [ANALYSIS]
    assert jobs[0]["name"] == ANALYSIS


def test_events_come_newest_first_and_go_back(browser: Browser) -> None:
    events = browser.get("/api/v1/events").json()["events"]
    assert [event["id"] for event in events] == sorted(
        (event["id"] for event in events), reverse=True
    )
    older = browser.get(f"/api/v1/events?before={events[0]['id']}&limit=1").json()["events"]
    assert older == [events[1]]
    about = browser.get(f"/api/v1/events?name={quote(BROKEN)}").json()["events"]
    assert {event["name"] for event in about} == {BROKEN}


def test_the_repository_is_told(browser: Browser) -> None:
    found = browser.get("/api/v1/repository").json()
    assert (found["repository"], found["images"]) == (NAME, 3)
    assert found["statuses"]["quarantined"] == 1


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/images?page=0", 422),
        ("/api/v1/images?page=1.0", 422),
        ("/api/v1/images?page=", 422),
        ("/api/v1/images?page=%D9%A3", 422),
        ("/api/v1/images?per_page=1001", 422),
        ("/api/v1/images?status=nonsense", 422),
        ("/api/v1/images?sort=", 422),
        ("/api/v1/images?q=%0a", 422),
        ("/api/v1/images?q=%ff", 422),
        ("/api/v1/images?q=" + "x" * 201, 422),
        ("/api/v1/images?q=a&q=b", 422),
        ("/api/v1/images?x=" + "&x=" * 50, 422),
        ("/api/v1/repository?x=1", 422),
        ("/api/openapi.json?x=1", 422),
        ("/api/v1/images/", 404),
        ("/api/v1/images/x%20y", 404),
        (f"/api/v1/images/{ROOT}?platform=windows", 422),
        ("/api/v1/images/ghcr.io/no/such:1", 404),
        (f"/api/v1/sizes/{ANALYSIS}", 404),
        ("/api/v1/nothing", 404),
    ],
)
def test_mistakes_are_told_as_problems(browser: Browser, path: str, status: int) -> None:
    answer = browser.get(path)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    check(answer.json(), SCHEMAS["Problem"], path)


def test_other_methods_are_refused_with_those_that_work(browser: Browser) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "TRACE"):
        answer = browser.get("/api/v1/images", method)
        assert answer.status == 405
        assert "GET" in answer.headers["allow"]
    assert browser.get("/api/v1/publish").headers["allow"] == "POST"


def test_names_may_be_short(browser: Browser) -> None:
    assert browser.get("/api/v1/images/debian:12").json()["name"] == DEBIAN
    assert browser.get("/api/v1/images/debian:12").json()["platform"] == AMD64
