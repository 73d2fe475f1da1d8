"""The service as one ASGI application: pages, API, feeds, webhooks, figures, repository files.

`serve` puts it together without what changes anything, `watch --listen` with it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.web.answers import HttpError, SecurityHeaders, problem
from cvmfs_publish.web.api import Api
from cvmfs_publish.web.health import check_health
from cvmfs_publish.web.hooks import HookRoutes, Hooks, no_hooks
from cvmfs_publish.web.metrics import Metrics
from cvmfs_publish.web.parameters import read_query
from cvmfs_publish.web.service import Service
from cvmfs_publish.web.site import Site
from cvmfs_publish.web.static import file_routes

# Paths that programs ask for: their errors are JSON, all others' are pages.
_FOR_PROGRAMS = ("/api/", "/hooks/", "/healthz", "/metrics", "/feeds/")

log = logging.getLogger(__name__)


def create_app(
    service: Service, *, storage: Path | None = None, hooks: Hooks | None = None
) -> Starlette:
    """Return the application.

    Args:
        service: what is shown, and what may be done.
        storage: the folder of the repository, whose files are then served at /cvmfs/NAME.
        hooks: takes webhooks in; without it they are refused.
    """
    site = Site(service)
    routes: list[BaseRoute] = [*Api(service).routes(), *site.routes(), *_operator_routes(service)]
    routes += HookRoutes(hooks, service.clock).routes() if hooks is not None else no_hooks()
    if storage is not None:
        routes += file_routes(service.library.name, storage)
    app = Starlette(
        routes=routes,
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={
            HTTPException: _Handler(site).handle_http,
            PublishError: _Handler(site).handle_own,
            Exception: _Handler(site).handle_bug,
        },
    )
    app.router.redirect_slashes = False  # clients follow no redirects; absent is absent
    return app


def _operator_routes(service: Service) -> Sequence[BaseRoute]:
    metrics = Metrics(service)

    def show_metrics(request: Request) -> Response:
        read_query(request.url.query, ())
        headers = {"Cache-Control": "no-store"}
        return Response(metrics.text(), headers=headers, media_type=CONTENT_TYPE_LATEST)

    def show_health(request: Request) -> Response:
        del request
        checks = check_health(service, service.clock())
        ok = all(check.ok for check in checks)
        document = {"ok": ok, "checks": [asdict(check) for check in checks]}
        return Response(
            json.dumps(document, indent=1) + "\n",
            HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE,
            {"Cache-Control": "no-store"},
            media_type="application/json",
        )

    return [Route("/metrics", show_metrics), Route("/healthz", show_health)]


class _Handler:
    """Turns errors into answers: for programs as JSON, for people as a page."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def handle_http(self, request: Request, error: Exception) -> Response:
        """What starlette itself refuses: no such path, no such method."""
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        what = HTTPStatus(status).phrase
        if status == HTTPStatus.NOT_FOUND:
            what = "There is no such page."
        return self._answer(request, HttpError(status, what, headers=headers))

    def handle_own(self, request: Request, error: Exception) -> Response:
        if isinstance(error, HttpError):
            return self._answer(request, error)
        if isinstance(error, InputError):
            status = HTTPStatus.UNPROCESSABLE_ENTITY
        else:
            status = HTTPStatus.SERVICE_UNAVAILABLE
            log.error("%s: %s", request.url.path, error)
        hint = error.hint if isinstance(error, PublishError) else ""
        kind = error.kind if isinstance(error, PublishError) else "bug"
        return self._answer(request, HttpError(status, str(error), hint=hint), kind)

    def handle_bug(self, request: Request, error: Exception) -> Response:
        """Starlette logs it, with its trace; nobody outside needs to know more."""
        del error
        text = "This cannot be shown, because of a mistake in the program; its log says more."
        return self._answer(request, HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, text))

    def _answer(self, request: Request, error: HttpError, kind: str = "") -> Response:
        path = request.url.path
        if path.startswith(_FOR_PROGRAMS):
            answer = problem(error.status, str(error), error.hint, kind or error.kind)
            answer.headers.update(error.headers)
            return answer
        return self._site.render_error(request, error)
