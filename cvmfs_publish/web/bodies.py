"""Read what is sent to us: never more than a limit, whatever its headers promise."""

from __future__ import annotations

from http import HTTPStatus

from starlette.requests import ClientDisconnect, Request

from cvmfs_publish.web.answers import HttpError
from cvmfs_publish.web.parameters import read_pairs, unprocessable

FORM = "application/x-www-form-urlencoded"
MAX_FORM = 16 * 1024  # bytes; names, a platform and a token


async def read_body(request: Request, limit: int) -> bytes:
    """Return the body; raise `HttpError` (413) as soon as it is larger than `limit` bytes."""
    promised = request.headers.get("content-length", "0")
    if not promised.isdecimal() or int(promised[:18]) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise _too_large(limit)
    except ClientDisconnect as exc:
        raise HttpError(HTTPStatus.BAD_REQUEST, "the body ended early") from exc
    return bytes(body)


async def read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form as browsers send it; `HttpError` for anything else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise HttpError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is {kind[:100]!r}, wanted is {FORM}"
        )
    body = await read_body(request, MAX_FORM)
    pairs = read_pairs(body.decode("utf-8", "replace"))
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise unprocessable("a field of the form is given twice")
    return fields


def _too_large(limit: int) -> HttpError:
    return HttpError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body is larger than {limit} bytes",
        headers={"Connection": "close"},
    )
