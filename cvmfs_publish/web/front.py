"""What several repositories of one service have in common: webhooks, health, figures, a list.

Each of them has a status site of its own, at an address of its own.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.state.model import Status
from cvmfs_publish.web.answers import HttpError, SecurityHeaders, as_json, problem
from cvmfs_publish.web.health import Check, check_health
from cvmfs_publish.web.hooks import HookRoutes, Hooks, no_hooks
from cvmfs_publish.web.metrics import collect
from cvmfs_publish.web.parameters import read_query
from cvmfs_publish.web.service import Service, Watching

LABEL = "repository"  # of every figure

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Member:
    """One repository of the service."""

    name: str
    service: Watching  # a `Service` where the repository can be shown
    url: str | None  # of its status site


def create_front(members: Sequence[Member], hooks: Hooks | None) -> Starlette:
    """Return the application; without `hooks`, webhooks are refused."""
    front = _Front(members)
    routes: list[BaseRoute] = [
        Route("/", front.show_list),
        Route("/api/repositories", front.show_list),
        Route("/healthz", front.show_health),
        Route("/metrics", front.show_metrics),
    ]
    clock = members[0].service.clock
    routes += HookRoutes(hooks, clock).routes() if hooks is not None else no_hooks()
    app = Starlette(
        routes=routes,
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={HTTPException: _refuse, PublishError: _refuse, Exception: _fail},
    )
    app.router.redirect_slashes = False
    return app


class _Front:
    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self._registry = CollectorRegistry()
        self._registry.register(_Together(members))

    def show_list(self, request: Request) -> Response:
        read_query(request.url.query, ())
        return as_json(request, {"repositories": [_describe(each) for each in self._members]})

    def show_health(self, request: Request) -> Response:
        del request
        found = [(each.name, self._check(each)) for each in self._members]
        document = {
            "ok": all(check.ok for _, checks in found for check in checks),
            "repositories": [
                {
                    "repository": name,
                    "ok": all(check.ok for check in checks),
                    "checks": [asdict(check) for check in checks],
                }
                for name, checks in found
            ],
        }
        return Response(
            json.dumps(document, indent=1) + "\n",
            HTTPStatus.OK if document["ok"] else HTTPStatus.SERVICE_UNAVAILABLE,
            {"Cache-Control": "no-store"},
            media_type="application/json",
        )

    def _check(self, member: Member) -> list[Check]:
        return check_health(member.service, member.service.clock())

    def show_metrics(self, request: Request) -> Response:
        read_query(request.url.query, ())
        headers = {"Cache-Control": "no-store"}
        data = generate_latest(self._registry)
        return Response(data, headers=headers, media_type=CONTENT_TYPE_LATEST)


def _describe(member: Member) -> dict[str, object]:
    """Return what is known of a repository at once; None for what cannot be read now."""
    images: Mapping[Status, int] | None = None
    revision: int | None = None
    try:
        reader = member.service.watch.reader()
        images = reader.counts() if reader is not None else {}
        if isinstance(member.service, Service):
            revision = member.service.library.shelf().manifest.revision
    except PublishError as error:
        log.error("%s: %s", member.name, error)
    return {
        "repository": member.name,
        "site": member.url,
        "revision": revision,
        "images": images,
    }


class _Together(Collector):
    """The figures of all, each with the name of its repository."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members

    def describe(self) -> list[Metric]:
        return []  # or it would be asked for everything when it is registered

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for member in self._members:
            for metric in collect(member.service, member.name):
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                family.samples += [
                    sample._replace(labels={LABEL: member.name, **sample.labels})
                    for sample in metric.samples
                ]
        yield from families.values()


def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        answer = problem(error.status_code, HTTPStatus(error.status_code).phrase)
        answer.headers.update(error.headers or {})
        return answer
    if isinstance(error, HttpError):
        answer = problem(error.status, str(error), error.hint, error.kind)
        answer.headers.update(error.headers)
        return answer
    kind, hint = (error.kind, error.hint) if isinstance(error, PublishError) else ("bug", "")
    is_asked_wrongly = isinstance(error, InputError)
    if not is_asked_wrongly:
        log.error("%s: %s", request.url.path, error)
    status = HTTPStatus.UNPROCESSABLE_ENTITY if is_asked_wrongly else HTTPStatus.SERVICE_UNAVAILABLE
    return problem(status, str(error), hint, kind)


def _fail(request: Request, error: Exception) -> Response:
    """Starlette logs it, with its trace; nobody outside needs to know more."""
    del request, error
    text = "This cannot be shown, because of a mistake in the program; its log says more."
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, text)
