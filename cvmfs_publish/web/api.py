"""The API: everything the pages show, as JSON; and the two things that may be ordered."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.state.model import Image, ImageKey
from cvmfs_publish.web import documents
from cvmfs_publish.web.answers import HttpError, absent, as_json
from cvmfs_publish.web.bodies import read_body
from cvmfs_publish.web.catalogue import CONDITIONS, ORDERS, Choice, Item
from cvmfs_publish.web.commands import SiteCommands, plan_commands
from cvmfs_publish.web.library import Details
from cvmfs_publish.web.openapi import Endpoint, describe_api
from cvmfs_publish.web.ordering import Order, parse_key, place_order
from cvmfs_publish.web.parameters import (
    PLATFORM_PATTERN,
    NumberParameter,
    Parameter,
    Values,
    read_query,
    unprocessable,
)
from cvmfs_publish.web.rollback import plan_rollbacks
from cvmfs_publish.web.service import Service
from cvmfs_publish.web.views import plan_lags

MAX_ORDER = 16 * 1024  # bytes of a request's body; a name has a few hundred
MAX_PAGE = 1_000_000
_PLATFORM = Parameter(
    "platform",
    "platform of the image, OS/ARCH[/VARIANT]",
    PLATFORM_PATTERN,
    max_length=100,
    default=str(DEFAULT_PLATFORM),
)
_SEARCH = (
    Parameter("q", "words that all occur in name, owner, wishlist or a digest"),
    Parameter("status", "what became of the image", choices=("", *CONDITIONS)),
    Parameter("registry", "host of the registry"),
    Parameter("platform", "platform of the image"),
    Parameter("owner", "who wishes it"),
    Parameter("sort", "order of the images", choices=ORDERS, default="name"),
    NumberParameter("page", "which page, from 1", 1, MAX_PAGE, 1),
    NumberParameter("per_page", "images of a page", 1, 1000, 100),
)
_EVENTS = (
    NumberParameter("before", "only events with a smaller id; 0: the newest", 0, 2**53, 0),
    NumberParameter("limit", "how many", 1, 1000, 100),
    Parameter("name", "only events of this image", max_length=600),
)

ENDPOINTS = (
    Endpoint("GET", "/api/v1/repository", "getRepository", "The published revision", "Repository"),
    Endpoint("GET", "/api/v1/images", "listImages", "Images, searched", "Images", _SEARCH),
    Endpoint(
        "GET", "/api/v1/images/{name}", "getImage", "One image in full", "Image", (_PLATFORM,)
    ),
    Endpoint(
        "GET",
        "/api/v1/sizes/{name}",
        "getSizes",
        "Sizes of a published image by directory",
        "Sizes",
        (_PLATFORM,),
    ),
    Endpoint(
        "GET",
        "/api/v1/queue",
        "getQueue",
        "What is to be published, in its order",
        "Queue",
        (NumberParameter("limit", "how many jobs", 1, 1000, 100),),
    ),
    Endpoint(
        "GET", "/api/v1/wishlists", "listWishlists", "Wishlists and their problems", "Wishlists"
    ),
    Endpoint("GET", "/api/v1/events", "listEvents", "Events, newest first", "Events", _EVENTS),
    Endpoint(
        "GET",
        "/api/v1/registries",
        "listRegistries",
        "What may still be asked of registries",
        "Registries",
    ),
    Endpoint("GET", "/api/v1/replicas", "listReplicas", "How far replicas are", "Replicas"),
    Endpoint(
        "POST",
        "/api/v1/publish",
        "publishImage",
        "Publish a wished image now; one in quarantine is released",
        "Accepted",
    ),
    Endpoint(
        "POST",
        "/api/v1/look",
        "lookAtImage",
        "Ask the registry now what the name of a wished image means",
        "Accepted",
    ),
)
DOCUMENT_PATH = "/api/openapi.json"


class Api:
    """The handlers.  Those that only read are plain functions: starlette runs them in threads."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routes(self) -> list[BaseRoute]:
        handlers: dict[str, Callable[[Request], Any]] = {
            "getRepository": self.get_repository,
            "listImages": self.list_images,
            "getImage": self.get_image,
            "getSizes": self.get_sizes,
            "getQueue": self.get_queue,
            "listWishlists": self.list_wishlists,
            "listEvents": self.list_events,
            "listRegistries": self.list_registries,
            "listReplicas": self.list_replicas,
            "publishImage": self.publish_image,
            "lookAtImage": self.look_at_image,
        }
        routes: list[BaseRoute] = [
            Route(
                endpoint.path.replace("{name}", "{name:path}"),
                handlers[endpoint.operation],
                methods=[endpoint.method],
                name=endpoint.operation,
            )
            for endpoint in ENDPOINTS
        ]
        return [*routes, Route(DOCUMENT_PATH, self.get_document, name="getDocument")]

    # reading

    def get_document(self, request: Request) -> Response:
        read_query(request.url.query, ())
        return as_json(request, describe_api(ENDPOINTS, self._service.access.origin(request)))

    def get_repository(self, request: Request) -> Response:
        _query(request, "getRepository")
        service = self._service
        shelf = service.library.shelf()
        info = service.library.info(service.clock())
        counts = service.catalogue().facets.conditions
        document = documents.describe_repository(shelf, info, counts, service.last_alive())
        return as_json(request, document)

    def list_images(self, request: Request) -> Response:
        values = _query(request, "listImages")
        found = self._service.catalogue().choose(choice_of(values))
        page, size = values.number("page"), values.number("per_page")
        shown = found[(page - 1) * size : page * size]
        images = self._service.images_of(shown)
        return as_json(
            request,
            {
                "total": len(found),
                "page": page,
                "per_page": size,
                "pages": -(-len(found) // size),
                "images": [documents.describe_item(item, images.get(item.key)) for item in shown],
            },
        )

    def get_image(self, request: Request) -> Response:
        item, image = self._find(request, _query(request, "getImage"))
        details = self._details(item)
        rollbacks = plan_rollbacks(details.history) if details is not None else {}
        document = documents.describe_image(item, image, details, self._commands(item), rollbacks)
        return as_json(request, document)

    def get_sizes(self, request: Request) -> Response:
        item, _ = self._find(request, _query(request, "getSizes"))
        details = self._details(item)
        if details is None:
            raise absent(f"{item.key} is not published")
        return as_json(
            request,
            {
                **documents.describe_key(item.key),
                "directories": [size._asdict() for size in details.sizes],
            },
        )

    def get_queue(self, request: Request) -> Response:
        limit = _query(request, "getQueue").number("limit")
        reader = self._service.watch.reader()
        return as_json(
            request,
            {
                "total": reader.queue_length() if reader is not None else 0,
                "oldest_wish_at": documents.time(
                    reader.oldest_wish() if reader is not None else None
                ),
                "jobs": [documents.describe_job(job) for job in reader.queue(limit)]
                if reader is not None
                else [],
            },
        )

    def list_wishlists(self, request: Request) -> Response:
        _query(request, "listWishlists")
        reader = self._service.watch.reader()
        lists = reader.lists() if reader is not None else ()
        problems = reader.problems() if reader is not None else ()
        described = [
            documents.describe_list(each, [p for p in problems if p.list == each.name])
            for each in lists
        ]
        return as_json(request, {"wishlists": described})

    def list_events(self, request: Request) -> Response:
        values = _query(request, "listEvents")
        reader = self._service.watch.reader()
        events = (
            reader.latest_events(
                values.number("limit"),
                before=values.number("before") or None,
                name=values.text("name"),
            )
            if reader is not None
            else ()
        )
        return as_json(request, {"events": list(map(documents.describe_event, events))})

    def list_registries(self, request: Request) -> Response:
        _query(request, "listRegistries")
        reader = self._service.watch.reader()
        budgets = reader.budgets() if reader is not None else ()
        return as_json(request, {"registries": list(map(documents.describe_budget, budgets))})

    def list_replicas(self, request: Request) -> Response:
        _query(request, "listReplicas")
        reader = self._service.watch.reader()
        revision = self._service.library.shelf().manifest.revision
        lags = plan_lags(reader.replicas() if reader is not None else (), revision)
        return as_json(
            request,
            {"revision": revision, "replicas": list(map(documents.describe_lag, lags))},
        )

    # ordering

    async def publish_image(self, request: Request) -> Response:
        return await self._order(request, "publish")

    async def look_at_image(self, request: Request) -> Response:
        return await self._order(request, "look")

    async def _order(self, request: Request, what: Order) -> Response:
        self._service.access.check_bearer(request)
        read_query(request.url.query, ())
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HttpError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"the body is {kind[:100] or 'of no type'!r}, wanted is application/json",
            )
        key = _parse_order(await read_body(request, MAX_ORDER))
        await place_order(self._service, what, key)
        return Response(
            json.dumps(documents.describe_key(key)),
            HTTPStatus.ACCEPTED,
            {"Cache-Control": "no-store"},
            media_type="application/json",
        )

    # parts

    def _find(self, request: Request, values: Values) -> tuple[Item, Image | None]:
        name, platform = request.path_params["name"], values.text("platform")
        _, item, image = self._service.find(parse_key(name, platform))
        if item is None:
            raise absent(f"there is no image {name} for {platform}")
        return item, image

    def _details(self, item: Item) -> Details | None:
        return self._service.library.details(item.record) if item.record is not None else None

    def _commands(self, item: Item) -> list[SiteCommands]:
        service = self._service
        if item.record is None or service.site_pages is None:
            return []
        return plan_commands(item.record, service.library.name, service.sites, service.site_pages)


def choice_of(values: Values) -> Choice:
    """Return what the parameters of a search say."""
    sort = next(each for each in ORDERS if each == values.text("sort"))
    return Choice(
        values.text("q"),
        values.text("status"),
        values.text("registry"),
        values.text("platform"),
        values.text("owner"),
        sort,
    )


def _query(request: Request, operation: str) -> Values:
    endpoint = next(each for each in ENDPOINTS if each.operation == operation)
    return read_query(request.url.query, endpoint.parameters)


def _parse_order(body: bytes) -> ImageKey:
    try:
        document = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {exc}") from exc
    if not isinstance(document, dict) or not document.keys() <= {"name", "platform"}:
        raise unprocessable("wanted is an object with `name` and, if need be, `platform`")
    name, platform = document.get("name"), document.get("platform", str(DEFAULT_PLATFORM))
    if not isinstance(name, str) or not isinstance(platform, str):
        raise unprocessable("`name` and `platform` are texts")
    return parse_key(name, _PLATFORM.read(platform))
