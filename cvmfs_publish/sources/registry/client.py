"""Turn requests about an image into HTTP answers: the one door to `requests` and the network.

Everything a registry needs between a URL and a usable answer is here once: retries with back-off,
redirects, authentication, counting.  No exception of `requests` or `urllib3` gets out.
One client serves any number of threads.
"""

from __future__ import annotations

import http.client
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from cvmfs_publish import __version__
from cvmfs_publish.errors import IntegrityError, RemoteError
from cvmfs_publish.reference import Reference, parse_registry
from cvmfs_publish.sources.base import ImageNotFoundError, RateLimitedError
from cvmfs_publish.sources.registry.answers import (
    host_of,
    is_loopback,
    origin,
    parse_errors,
    parse_redirect,
    parse_retry_after,
    plan_backoff,
    printable,
)
from cvmfs_publish.sources.registry.auth import (
    Credential,
    Request,
    Response,
    authorise,
    denied,
)

CONNECT_TIMEOUT = timedelta(seconds=10)
READ_TIMEOUT = timedelta(seconds=60)  # without a single byte, not for the whole answer
ATTEMPTS = 5
MAX_RETRY_AFTER = timedelta(seconds=60)  # a longer wait is the caller's to plan
MAX_REDIRECTS = 5
MAX_PARALLEL = 32  # connections kept open per host
TOKEN_LIMIT = 1 << 20  # bytes of a token server's answer; real ones have a few thousand
ERROR_BODY_LIMIT = 64 << 10  # bytes read of an answer that is not an image
RETRIED = frozenset({429, 500, 502, 503, 504})
REDIRECTS = frozenset({301, 302, 303, 307, 308})

# What can come out of `requests`, `urllib3` and http.client.  OSError: an unreadable CA bundle;
# UnicodeError: host names and header values no codec accepts.
FOREIGN = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    UnicodeError,
    urllib3.exceptions.ProxySchemeUnsupported,  # their one error outside their own tree
)
_PASSING = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.TimeoutError,
    urllib3.exceptions.ProtocolError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)
_T = TypeVar("_T")


class TransferError(RemoteError):
    """A connection could not be made or broke; trying again may help.

    `passing` is false where it will not: a refused certificate, an impossible URL.
    """

    def __init__(self, message: str, *, hint: str = "", passing: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.passing = passing


class Reply:
    """An HTTP answer whose body is still to be read.  One thread; close it, or use `with`."""

    def __init__(
        self, response: requests.Response, subject: str, count: Callable[[int], None]
    ) -> None:
        self._response = response
        self._subject = subject
        self._count = count
        self.status = response.status_code
        self.url = response.url

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()

    def header(self, name: str) -> str:
        """Return the value of a header, "" if it is absent."""
        return self._response.headers.get(name, "")

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes of the body, b"" at its end; raise `TransferError`."""
        try:
            data: bytes = self._response.raw.read(size, decode_content=False)
        except FOREIGN as exc:
            raise translate(exc, self._subject) from exc
        self._count(len(data))
        return data

    def read_all(self, limit: int) -> bytes:
        """Return the whole body; raise `IntegrityError` if it exceeds `limit` bytes."""
        body = self.read_up_to(limit + 1)
        if len(body) > limit:
            raise IntegrityError(f"{self._subject}: the answer is larger than {limit} bytes")
        return body

    def drain(self) -> None:
        """Pass over a short body that nobody needs, so that the connection can be used again."""
        with suppress(TransferError):
            self.read_up_to(ERROR_BODY_LIMIT)

    def read_up_to(self, size: int) -> bytes:
        pieces: list[bytes] = []
        while size > 0 and (piece := self.read(min(size, 1 << 20))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


@dataclass(slots=True)
class _Access:
    """The Authorization header for one repository; the lock makes threads share one renewal."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    authorization: str = ""


class RegistryClient:
    """Sends requests about images to their registries.  Close it, or use `with`.

    `credentials` are used for exactly the host[:port] they are listed under.  `plain_http` lists
    registries spoken to without TLS; loopback addresses always are (as Docker treats them).
    `requests_made` (by method) and `bytes_received` (of bodies) count what went over the wire,
    repeated attempts, redirects and token requests included.
    """

    def __init__(
        self,
        *,
        credentials: Mapping[str, Credential] | None = None,
        plain_http: Collection[str] = (),
        connect_timeout: timedelta = CONNECT_TIMEOUT,
        read_timeout: timedelta = READ_TIMEOUT,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._credentials = {
            parse_registry(host): credential for host, credential in (credentials or {}).items()
        }
        self._plain_http = frozenset(parse_registry(host) for host in plain_http)
        self._timeout = (connect_timeout.total_seconds(), read_timeout.total_seconds())
        self.attempts = attempts
        self._sleep = sleep
        self._jitter = jitter
        self._counts = threading.Lock()  # guards the two counters
        self.requests_made: Counter[str] = Counter()
        self.bytes_received = 0
        self._accesses: dict[tuple[str, str], _Access] = {}
        self._session = _new_session()

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    def open(
        self,
        method: str,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        allowed: Collection[int] = (),
    ) -> Reply:
        """Send a request below `/v2/<repository>/`; return the reply if 2xx or `allowed`.

        Raises `ImageNotFoundError`, `AccessDeniedError`, `RateLimitedError` or another
        `RemoteError`.
        """
        url = self.url(reference, path)
        request = Request(method, url, headers)
        subject = str(reference)
        # One dict operation, atomic under the interpreter lock: two threads get the same object
        key = (reference.registry, reference.repository)
        access = self._accesses.setdefault(key, _Access())
        authorization = access.authorization
        reply = self._follow(_with_authorization(request, authorization), subject)
        if reply.status == 401 and origin(reply.url) == origin(url):
            with reply:
                challenge = reply.header("WWW-Authenticate")
                reply.drain()
            authorization = self._renew(access, authorization, challenge, reference)
            reply = self._follow(_with_authorization(request, authorization), subject)
        if reply.status not in allowed and not 200 <= reply.status < 300:
            with reply:
                raise self._refusal(reply, reference, path)
        return reply

    def url(self, reference: Reference, path: str) -> str:
        """Return the address that `open` asks first."""
        scheme = "http" if self._is_plain(reference.api_host) else "https"
        return f"{scheme}://{reference.api_host}/v2/{reference.repository}/{path}"

    def fetch(
        self, reference: Reference, path: str, headers: Mapping[str, str], limit: int
    ) -> tuple[bytes, Callable[[str], str]]:
        """GET a small document; return its body and a function that gives its headers.

        Repeats when the connection breaks.  Raises like `open`, and `IntegrityError` for a body
        of more than `limit` bytes.
        """

        def attempt() -> tuple[bytes, Callable[[str], str]]:
            with self.open("GET", reference, path, headers) as reply:
                return reply.read_all(limit), reply.header

        return self._persist(attempt)

    def wait(self, failures: int, asked: timedelta | None = None) -> None:
        """Sleep after the given number of failures, but not less than the server asked for."""
        seconds = plan_backoff(failures, self._jitter())
        self._sleep(max(seconds, asked.total_seconds() if asked else 0.0))

    def _follow(self, request: Request, subject: str) -> Reply:
        """Send `request` and follow redirects, without credentials as soon as the host changes."""
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._persist(partial(self._send, request, subject))
            if reply.status not in REDIRECTS:
                return reply
            with reply:
                target = parse_redirect(request.url, reply.header("Location"), subject)
                reply.drain()
            if request.body:
                raise RemoteError(f"{subject}: {host_of(request.url)} redirects a login")
            if origin(target) != origin(request.url):
                request = _with_authorization(request, "")
            request = replace(request, url=target)
        raise RemoteError(
            f"{subject}: more than {MAX_REDIRECTS} redirects from one URL to the next"
        )

    def _persist(self, attempt: Callable[[], _T]) -> _T:
        """Return what `attempt` returns; repeat it after passing failures, with growing waits."""
        for failures in range(1, self.attempts):
            asked: timedelta | None = None
            try:
                result = attempt()
            except TransferError as exc:
                if not exc.passing:
                    raise
            else:
                if not isinstance(result, Reply) or result.status not in RETRIED:
                    return result
                asked = parse_retry_after(result.header)
                if asked is not None and asked > MAX_RETRY_AFTER:
                    return result
                result.close()
            self.wait(failures, asked)
        try:
            return attempt()
        except TransferError as exc:
            # No longer a `TransferError`: whoever repeats those must not repeat this again
            raise RemoteError(
                f"{exc} (attempt {self.attempts} of {self.attempts})",
                hint=exc.hint or "is the host name right and the server up?  Try again later",
            ) from exc

    def _send(self, request: Request, subject: str) -> Reply:
        with self._counts:
            self.requests_made[request.method] += 1
        try:
            response = self._session.request(
                request.method,
                request.url,
                headers=dict(request.headers),
                data=request.body or None,
                auth=_keep_headers,
                allow_redirects=False,
                stream=True,
                timeout=self._timeout,
            )
        except FOREIGN as exc:
            raise translate(exc, f"{subject}: {host_of(request.url)}") from exc
        return Reply(response, subject, self._count)

    def _count(self, received: int) -> None:
        with self._counts:
            self.bytes_received += received

    def _renew(self, access: _Access, refused: str, challenge: str, reference: Reference) -> str:
        """Return an Authorization header other than `refused`, made by this or another thread."""
        with access.lock:
            if access.authorization == refused:
                credential = self._credentials.get(reference.registry)
                scope = f"repository:{reference.repository}:pull"
                flow = authorise(challenge, scope, credential, str(reference))
                access.authorization = self._play(flow, str(reference))
            return access.authorization

    def _play(self, flow: Generator[Request, Response, str], subject: str) -> str:
        """Send what the flow wants sent, until it returns."""
        with closing(flow):
            try:
                request = next(flow)
                while True:
                    request = flow.send(self._ask_token_server(request, subject))
            except StopIteration as stop:
                return str(stop.value)

    def _ask_token_server(self, request: Request, subject: str) -> Response:
        parts = urlsplit(request.url)
        if parts.scheme == "http" and not self._is_plain(parts.netloc):
            raise RemoteError(
                f"{subject}: the token server {host_of(request.url)} is to be asked without TLS",
                hint="a registry that really works so has to be configured for plain HTTP, "
                "and its token server as well",
            )

        def attempt() -> Response:
            with self._follow(request, subject) as reply:
                if reply.status in RETRIED:
                    raise self._busy(reply, subject, "")
                return Response(reply.status, reply.read_all(TOKEN_LIMIT))

        return self._persist(attempt)

    def _refusal(self, reply: Reply, reference: Reference, path: str) -> RemoteError:
        subject, status = str(reference), reply.status
        try:
            code, said = parse_errors(reply.read_up_to(ERROR_BODY_LIMIT))
        except TransferError:  # the status alone says enough
            code, said = "", ""
        if status in {401, 403}:
            return denied(subject, status, self._credentials.get(reference.registry), said)
        # A missing blob is a damaged registry, and no reason to call the image gone
        if status == 404 and path.startswith(("manifests/", "tags/")):
            return ImageNotFoundError(
                f"{subject} is not in the registry{': ' if said else ''}{said}",
                hint="check the spelling of repository and tag",
                code=code,
            )
        if status in RETRIED:
            return self._busy(reply, subject, said)
        host = host_of(reply.url)
        detail = f"{': ' if said else ''}{said}"
        return RemoteError(f"{subject}: {host} answered {status} for {path}{detail}")

    def _busy(self, reply: Reply, subject: str, said: str) -> RemoteError:
        detail = f"{': ' if said else ''}{said}"
        message = f"{subject}: {host_of(reply.url)} answered {reply.status}{detail}"
        if reply.status != 429:
            return RemoteError(message, hint="the server is in trouble; try again later")
        asked = parse_retry_after(reply.header)
        when = f"after {asked}" if asked else "later"
        return RateLimitedError(
            f"{message} (too many requests)",
            hint=f"try again {when}; with credentials the limit is usually higher",
            retry_after=asked,
        )

    def _is_plain(self, host: str) -> bool:
        return host.lower() in self._plain_http or is_loopback(host)


def translate(error: Exception, subject: str) -> TransferError:
    """Return our error for one out of `FOREIGN`; without the query of URLs, which may be secret."""
    root = _root(error)
    reason = str(root).partition("?")[0] or type(error).__name__
    message = f"{subject}: {printable(reason)}"
    hint = ""
    if isinstance(root, ssl.SSLCertVerificationError):
        hint = "if the registry has a private certificate authority, set REQUESTS_CA_BUNDLE"
    elif "WRONG_VERSION_NUMBER" in str(root):
        hint = "if the registry speaks plain HTTP, it has to be configured so"
    return TransferError(message, hint=hint, passing=isinstance(error, _PASSING) and not hint)


class _Session(requests.Session):
    """Without a look ahead: even if told not to follow a redirect, `requests` would parse its
    target and read its whole body, however long, into memory."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


def _new_session() -> requests.Session:
    session = _Session()
    session.headers["User-Agent"] = f"cvmfs-publish/{__version__}"
    # Digests are of bytes as stored; a transport encoding would only be undone again
    session.headers["Accept-Encoding"] = "identity"
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = HTTPAdapter(pool_connections=MAX_PARALLEL, pool_maxsize=MAX_PARALLEL, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authentication that adds nothing: without one, `requests` would look into ~/.netrc."""
    return request


def _with_authorization(request: Request, authorization: str) -> Request:
    headers = {name: value for name, value in request.headers.items() if name != "Authorization"}
    if authorization:
        headers["Authorization"] = authorization
    return replace(request, headers=headers)


def _root(error: BaseException) -> BaseException:
    """`requests` wraps `urllib3`, which wraps what happened; the wrappings repeat whole URLs."""
    for _ in range(5):
        inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error
