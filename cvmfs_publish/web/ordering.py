"""Have something done: what the API and the forms have in common."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal, TypeAlias

from starlette.concurrency import run_in_threadpool

from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.state.model import ImageKey
from cvmfs_publish.web.answers import HttpError, absent
from cvmfs_publish.web.service import Service

Order: TypeAlias = Literal["publish", "look"]


def parse_key(name: str, platform: str) -> ImageKey:
    """Return which image is meant; `HttpError` (404) for what cannot be the name of one.

    Raises:
        InputError: `platform` is none.
    """
    try:
        reference = Reference.parse(name)
    except InputError as exc:
        raise absent(str(exc), exc.hint) from exc
    return ImageKey(reference.name, str(Platform.parse(platform)))


async def place_order(service: Service, what: Order, key: ImageKey) -> None:
    """Put it into the watcher's queue, whose caller was found to be permitted.

    Raises:
        HttpError: no watcher works here, or nobody wishes the image.
    """
    if service.control is None:
        raise HttpError(
            HTTPStatus.FORBIDDEN,
            "nothing can be ordered here: this service only shows",
            hint="`cvmfs-publish watch --listen` takes orders",
        )
    action = service.control.publish if what == "publish" else service.control.look
    if not await run_in_threadpool(action, key):
        raise absent(
            f"nobody wishes {key}", "only images of a wishlist are published by the watcher"
        )
