"""Take in what registries post after a push: proven, bounded, stored, answered at once.

The answer is given when the push is written down for good (202), not when it has been looked at: a
registry that waits too long would send it again.  Who does not know the secret learns only that.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Literal, TypeAlias

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.state import figures
from cvmfs_publish.state.model import Push
from cvmfs_publish.watch.webhooks import (
    MAX_BODY,
    MIN_SECRET,
    WEBHOOK_SOURCES,
    Contents,
    Delivery,
    HookSettings,
    WebhookRefusedError,
    WebhookSource,
)
from cvmfs_publish.watch.webhooks import Push as HookPush
from cvmfs_publish.web.answers import HttpError, absent, problem
from cvmfs_publish.web.bodies import read_body

Outcome: TypeAlias = Literal["accepted", "repeated", "ignored", "refused", "malformed", "failed"]
RETRY_SECONDS = 30  # after which a sender may try again while the state cannot be written

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Hooks:
    """Where pushes come from and where they go."""

    sources: Mapping[str, WebhookSource]  # by the last part of the path
    secret: str
    submit: Callable[[Sequence[Push]], int]  # stores pushes for good; returns how many are new
    count: Callable[[str, Outcome], None]  # what became of a delivery, by source


def open_hooks(
    secret: str,
    settings: Mapping[str, HookSettings],
    submit: Callable[[Sequence[Push]], int],
    count: Callable[[str, Outcome], None],
) -> Hooks:
    """Return what takes webhooks in.

    Args:
        secret: of all who send them.
        settings: what is known of each source; where it names none, all may send.
        submit: stores pushes so that nothing loses them; returns how many are new.
        count: told what became of each delivery.

    Raises:
        InputError: the secret could be guessed, or there is no such source.
    """
    if len(secret) < MIN_SECRET:
        raise InputError(
            f"the secret of webhooks has {len(secret)} characters, wanted are {MIN_SECRET} or more",
            hint="`openssl rand -hex 32` makes a good one",
        )
    chosen = settings or {name: HookSettings() for name in WEBHOOK_SOURCES}
    unknown = sorted(chosen.keys() - WEBHOOK_SOURCES.keys())
    if unknown:
        raise InputError(
            f"{unknown[0]!r} is no source of webhooks", hint=f"known: {', '.join(WEBHOOK_SOURCES)}"
        )
    sources = {name: WEBHOOK_SOURCES[name](each) for name, each in chosen.items()}
    return Hooks(sources, secret, submit, count)


def count_label(source: str, outcome: Outcome) -> tuple[str, str]:
    """Return the counter of the state for one result of one source."""
    return figures.WEBHOOKS, f"{source} {outcome}"


class HookRoutes:
    """The route of all sources."""

    def __init__(self, hooks: Hooks, clock: Callable[[], datetime]) -> None:
        self._hooks = hooks
        self._clock = clock

    def routes(self) -> list[BaseRoute]:
        return [Route("/hooks/{source}", self.receive, methods=["POST"], name="receiveHook")]

    async def receive(self, request: Request) -> Response:
        name = request.path_params["source"]
        source = self._hooks.sources.get(name)
        if source is None:
            known = ", ".join(sorted(self._hooks.sources))
            raise absent(f"there is no source {name[:100]!r} of webhooks", f"known: {known}")
        body = await read_body(request, MAX_BODY)
        return await run_in_threadpool(self._take, name, source, request.headers.items(), body)

    def _take(
        self, name: str, source: WebhookSource, headers: Sequence[tuple[str, str]], body: bytes
    ) -> Response:
        outcome, answer = self._judge(name, source, headers, body)
        try:
            self._hooks.count(name, outcome)
        except PublishError as error:  # a figure less; the answer stands
            log.warning("webhooks of %s cannot be counted: %s", name, error)
        return answer

    def _judge(
        self, name: str, source: WebhookSource, headers: Sequence[tuple[str, str]], body: bytes
    ) -> tuple[Outcome, Response]:
        try:
            delivery = Delivery.of(headers, body)
            source.verify(delivery, self._hooks.secret, self._clock())
            contents = source.parse(delivery)
        except WebhookRefusedError as error:
            return "refused", problem(HTTPStatus.FORBIDDEN, str(error), error.hint, error.kind)
        except InputError as error:
            return "malformed", problem(
                HTTPStatus.UNPROCESSABLE_ENTITY, str(error), error.hint, error.kind
            )
        try:
            new = self._hooks.submit([stored_push(name, push) for push in contents.pushes])
        except PublishError as error:
            log.error("a push told by %s cannot be stored: %s", name, error)
            answer = problem(
                HTTPStatus.SERVICE_UNAVAILABLE, "the push cannot be stored now; send it again"
            )
            answer.headers["Retry-After"] = str(RETRY_SECONDS)
            return "failed", answer
        outcome: Outcome = "accepted" if new else "repeated" if contents.pushes else "ignored"
        return outcome, _accepted(contents, new)


def stored_push(source: str, push: HookPush) -> Push:
    """Return a push as the state keeps it."""
    return Push(
        push.registry,
        push.repository,
        push.tag,
        str(push.digest) if push.digest is not None else "",
        source,
        push.delivery_id,
    )


def _accepted(contents: Contents, new: int) -> Response:
    document = {
        "accepted": new,
        "repeated": len(contents.pushes) - new,
        "ignored": list(contents.ignored),
    }
    return Response(
        json.dumps(document),
        HTTPStatus.ACCEPTED,
        {"Cache-Control": "no-store"},
        media_type="application/json",
    )


def no_hooks() -> list[BaseRoute]:
    """Return the route that says why webhooks are refused here."""

    async def refuse(request: Request) -> Response:
        del request
        raise HttpError(
            HTTPStatus.NOT_FOUND,
            "no webhooks are taken here",
            hint="`cvmfs-publish watch --listen` takes them, with `webhooks.secret_file`",
        )

    return [Route("/hooks/{source}", refuse, methods=["POST"], name="refuseHook")]
