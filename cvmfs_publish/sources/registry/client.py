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
from datetime import UTC, datetime, timedelta
from functools import partial
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter

from cvmfs_publish import __version__
from cvmfs_publish.errors import InputError, IntegrityError, RemoteError
from cvmfs_publish.reference import Reference, parse_registry
from cvmfs_publish.sources.base import ImageNotFoundError, RateLimitedError
from cvmfs_publish.sources.registry.answers import (
    host_of,
    is_loopback,
    origin,
    parse_errors,
    parse_redirect,
    plan_backoff,
    printable,
)
from cvmfs_publish.sources.registry.auth import (
    Credential,
    Grant,
    Request,
    Response,
    authorise,
    denied,
    is_web_address,
)
from cvmfs_publish.sources.registry.budget import Budgets, Kind
from cvmfs_publish.sources.registry.rate_limit import format_wait, parse_wait

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
# Headers that belong to one host; the others are OpenStack's
SECRETS = frozenset({"Authorization", "X-Auth-Token", "X-Auth-User", "X-Auth-Key"})

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
_OTHER_NAME = "the certificate is for another name: write the registry's name as it stands in there"
# OpenSSL's x509_vfy.h, X509_V_ERR_…: the dates and the names in a certificate
_CERTIFICATE_HINTS = {
    9: "the certificate is not valid yet: is the clock of this host right?",
    10: "the registry's certificate has expired: its administrator has to renew it, or the clock"
    " of this host is wrong",
    62: _OTHER_NAME,
    64: _OTHER_NAME,  # of addresses
}
_PRIVATE_CA = (
    "if the registry has a private certificate authority, set `ca_file` under its name in"
    " `registries`, or REQUESTS_CA_BUNDLE for all"
)
_POOLS: dict[str, Any] = {
    "pool_connections": MAX_PARALLEL,
    "pool_maxsize": MAX_PARALLEL,
    "max_retries": 0,
}
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
    challenge: str = ""  # what it answered
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Errand:
    """On whose behalf requests are sent."""

    subject: str  # what errors are about
    registry: str  # whose budget and certificate authority count
    attempts: int


class RegistryClient:
    """Sends requests about images to their registries.  Close it, or use `with`.

    `credentials` are used for exactly the host[:port] they are listed under.  `plain_http` lists
    registries spoken to without TLS; loopback addresses always are (as Docker treats them), but for
    those of `ca_files`.
    `ca_files` are certificate authorities trusted beside the usual ones, each for its registry, the
    token server and the content servers this sends to.  `budgets` say when a registry may be asked.
    `requests_made` (by method) and `bytes_received` (of bodies) count what went over the wire,
    repeated attempts, redirects and token requests included.
    """

    def __init__(
        self,
        *,
        credentials: Mapping[str, Credential] | None = None,
        plain_http: Collection[str] = (),
        ca_files: Mapping[str, Path] | None = None,
        budgets: Budgets | None = None,
        connect_timeout: timedelta = CONNECT_TIMEOUT,
        read_timeout: timedelta = READ_TIMEOUT,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raise `InputError` for a `ca_files` entry that holds no certificates."""
        self._credentials = {
            parse_registry(host): credential for host, credential in (credentials or {}).items()
        }
        self._plain_http = frozenset(parse_registry(host) for host in plain_http)
        self.budgets = budgets or Budgets()
        self._timeout = (connect_timeout.total_seconds(), read_timeout.total_seconds())
        self.attempts = attempts
        self._sleep = sleep
        self._jitter = jitter
        self.clock = clock
        self._counts = threading.Lock()  # guards the two counters
        self.requests_made: Counter[str] = Counter()
        self.bytes_received = 0
        self._accesses: dict[tuple[str, str], _Access] = {}
        self._session = _new_session()
        self._own_sessions = {
            parse_registry(host): _new_session(path) for host, path in (ca_files or {}).items()
        }

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
        for session in (self._session, *self._own_sessions.values()):
            session.close()

    def open(
        self,
        method: str,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        allowed: Collection[int] = (),
        attempts: int = 0,
    ) -> Reply:
        """Send a request below `/v2/<repository>/`; return the reply if 2xx or `allowed`.

        `attempts`: how often, where it is not to be as often as usual.

        Raises `ImageNotFoundError`, `AccessDeniedError`, `RateLimitedError` or another
        `RemoteError`.
        """
        url = self.url(reference, path)
        request = Request(method, url, headers)
        errand = self._errand(reference, attempts)
        # One dict operation, atomic under the interpreter lock: two threads get the same object
        key = (reference.registry, reference.repository)
        access = self._accesses.setdefault(key, _Access())
        authorization = self._current(access, reference, errand)
        reply = self._follow(_with_authorization(request, authorization), errand)
        if reply.status == 401 and origin(reply.url) == origin(url):
            with reply:
                challenge = reply.header("WWW-Authenticate")
                reply.drain()
            authorization = self._renew(access, authorization, challenge, reference, errand)
            reply = self._follow(_with_authorization(request, authorization), errand)
        if reply.status not in allowed and not 200 <= reply.status < 300:
            with reply:
                raise self._refusal(reply, reference, path, errand)
        return reply

    def greet(self, registry: str) -> str:
        """Ask whether a host is a registry that lets us in; return how, without any secret.

        Raises:
            RemoteError: it is none, is not reached, or refuses the login.
        """
        host = _api_host(registry)
        credential = self._credentials.get(registry)
        errand = _Errand(registry, registry, self.attempts)
        request = Request("GET", f"{self.scheme_of(host)}://{host}/v2/", {})
        with self._follow(request, errand) as reply:
            status, challenge = reply.status, reply.header("WWW-Authenticate")
            reply.drain()
        how = "without a login"
        if status == 401:
            # without a login some give out tokens, others let nobody see even this page
            if credential is None:
                return "and wants a login, or tokens, for images"
            grant = self._play(authorise(challenge, "", credential, registry), errand)
            with self._follow(_with_authorization(request, grant.authorization), errand) as reply:
                status = reply.status
                reply.drain()
            how = f"with {credential}"
        if status in {401, 403}:
            raise denied(registry, status, credential)
        if not 200 <= status < 300:
            raise RemoteError(
                f"{registry}: {host} answered {status} for /v2/",
                hint="is this the host of a registry?",
            )
        return how

    def request(self, request: Request, subject: str) -> Reply:
        """Send a request to any address; return the reply after redirects, whatever its status.

        Raises `RemoteError` if it cannot be sent, or not without TLS.
        """
        parts = urlsplit(request.url)
        if parts.scheme != "https" and not self._is_plain(parts.netloc):
            raise RemoteError(
                f"{subject}: {host_of(request.url)} is to be asked without TLS",
                hint="write https://, or `registries: {HOST: {plain_http: true}}` for a trusted"
                " network",
            )
        return self._follow(request, _Errand(subject, parts.netloc.lower(), self.attempts))

    def scheme_of(self, host: str) -> str:
        """Return how a host is spoken to: `http` or `https`."""
        return "http" if self._is_plain(host) else "https"

    def open_address(self, url: str, reference: Reference, headers: Mapping[str, str]) -> Reply:
        """GET an address outside the registry on behalf of an image, without any credentials.

        Raises `RemoteError` unless the answer is 2xx or 416.
        """
        errand = self._errand(reference)
        if not is_web_address(url):
            raise RemoteError(f"{reference}: {url[:200]!a} is not the address of a layer")
        reply = self._follow(Request("GET", url, headers), errand)
        if reply.status != 416 and not 200 <= reply.status < 300:
            with reply:
                raise RemoteError(f"{reference}: {host_of(url)} answered {reply.status}")
        return reply

    def url(self, reference: Reference, path: str) -> str:
        """Return the address that `open` asks first."""
        scheme = "http" if self._is_plain(reference.api_host) else "https"
        return f"{scheme}://{reference.api_host}/v2/{reference.repository}/{path}"

    def fetch(
        self,
        reference: Reference,
        path: str,
        headers: Mapping[str, str],
        limit: int,
        attempts: int = 0,
    ) -> tuple[bytes, Callable[[str], str]]:
        """GET a small document; return its body and a function that gives its headers.

        Repeats when the connection breaks.  Raises like `open`, and `IntegrityError` for a body
        of more than `limit` bytes.
        """

        def attempt() -> tuple[bytes, Callable[[str], str]]:
            with self.open("GET", reference, path, headers, attempts=attempts) as reply:
                return reply.read_all(limit), reply.header

        return self._persist(attempt, attempts or self.attempts)

    def fetch_changed(
        self, reference: Reference, path: str, etag: str, limit: int
    ) -> tuple[bytes, Callable[[str], str]] | None:
        """As `fetch`; None if the document is still the one that was given this `ETag`."""

        def attempt() -> tuple[bytes, Callable[[str], str]] | None:
            headers = {"If-None-Match": etag}
            with self.open("GET", reference, path, headers, allowed=(304,)) as reply:
                if reply.status == 304:
                    reply.drain()
                    return None
                return reply.read_all(limit), reply.header

        return self._persist(attempt, self.attempts)

    def wait(self, failures: int, asked: timedelta | None = None) -> None:
        """Sleep after the given number of failures, but not less than the server asked for."""
        seconds = plan_backoff(failures, self._jitter())
        self._sleep(max(seconds, asked.total_seconds() if asked else 0.0))

    def _follow(self, request: Request, errand: _Errand) -> Reply:
        """Send `request` and follow redirects, without credentials as soon as the host changes."""
        subject = errand.subject
        for _ in range(MAX_REDIRECTS + 1):
            reply = self._persist(partial(self._send, request, errand), errand.attempts)
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

    def _errand(self, reference: Reference, attempts: int = 0) -> _Errand:
        return _Errand(str(reference), reference.registry, attempts or self.attempts)

    def _persist(self, attempt: Callable[[], _T], attempts: int) -> _T:
        """Return what `attempt` returns; repeat it after passing failures, with growing waits."""
        for failures in range(1, attempts):
            asked: timedelta | None = None
            try:
                result = attempt()
            except TransferError as exc:
                if not exc.passing:
                    raise
            else:
                if not isinstance(result, Reply) or result.status not in RETRIED:
                    return result
                asked = parse_wait(result.header, self.clock())
                if asked is not None and asked > MAX_RETRY_AFTER:
                    return result
                result.close()
            self.wait(failures, asked)
        try:
            return attempt()
        except TransferError as exc:
            # No longer a `TransferError`: whoever repeats those must not repeat this again
            raise RemoteError(
                f"{exc} (attempt {attempts} of {attempts})",
                hint=exc.hint or "is the host name right and the server up?  Try again later",
            ) from exc

    def _spend(self, request: Request, errand: _Errand) -> None:
        """Wait until the budget of the registry allows a request, if that is soon.

        Raises `RateLimitedError` if it is not.
        """
        budget = self.budgets.of(errand.registry)
        kind: Kind = "pull" if request.method == "GET" and _is_manifest(request.url) else "request"
        while wait := budget.take(kind, self.clock()):
            if wait > MAX_RETRY_AFTER:
                raise RateLimitedError(
                    f"{errand.subject}: {errand.registry} is not asked now:"
                    f" {budget.snapshot(self.clock())}",
                    hint=f"try again in {format_wait(wait)}; a login usually allows more pulls, a"
                    f" mirror saves them, and `registries.{errand.registry}.pulls_per_hour` is"
                    " what is allowed here",
                    retry_after=wait,
                )
            self._sleep(wait.total_seconds())

    def _send(self, request: Request, errand: _Errand) -> Reply:
        is_registry = host_of(request.url) == _api_host(errand.registry)
        if is_registry:
            self._spend(request, errand)
        with self._counts:
            self.requests_made[request.method] += 1
        try:
            response = self._own_sessions.get(errand.registry, self._session).request(
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
            raise translate(exc, f"{errand.subject}: {host_of(request.url)}") from exc
        reply = Reply(response, errand.subject, self._count)
        if is_registry:
            self.budgets.of(errand.registry).learn(reply.header, self.clock())
        return reply

    def _count(self, received: int) -> None:
        with self._counts:
            self.bytes_received += received

    def _current(self, access: _Access, reference: Reference, errand: _Errand) -> str:
        """Return the Authorization header to try; one that is about to expire is renewed first.

        Not every registry answers 401 to an expired token.
        """
        authorization, expires_at = access.authorization, access.expires_at
        if expires_at is None or self.clock() < expires_at:
            return authorization
        return self._renew(access, authorization, access.challenge, reference, errand)

    def _renew(
        self,
        access: _Access,
        refused: str,
        challenge: str,
        reference: Reference,
        errand: _Errand,
    ) -> str:
        """Return an Authorization header other than `refused`, made by this or another thread."""
        with access.lock:
            if access.authorization == refused:
                credential = self._credentials.get(reference.registry)
                scope = f"repository:{reference.repository}:pull"
                flow = authorise(challenge, scope, credential, errand.subject)
                asked_at = self.clock()
                grant = self._play(flow, errand)
                access.expires_at = None  # first: whoever reads both must not renew the new one
                access.authorization, access.challenge = grant.authorization, challenge
                access.expires_at = asked_at + grant.life if grant.life is not None else None
            return access.authorization

    def _play(self, flow: Generator[Request, Response, Grant], errand: _Errand) -> Grant:
        """Send what the flow wants sent, until it returns."""
        with closing(flow):
            try:
                request = next(flow)
                while True:
                    request = flow.send(self._ask_token_server(request, errand))
            except StopIteration as stop:
                grant: Grant = stop.value
                return grant

    def _ask_token_server(self, request: Request, errand: _Errand) -> Response:
        parts, subject = urlsplit(request.url), errand.subject
        if parts.scheme == "http" and not self._is_plain(parts.netloc):
            raise RemoteError(
                f"{subject}: the token server {host_of(request.url)} is to be asked without TLS",
                hint="a registry that really works so has to be configured for plain HTTP, "
                "and its token server as well",
            )

        def attempt() -> Response:
            with self._follow(request, errand) as reply:
                if reply.status in RETRIED:
                    raise self._busy(reply, errand, "")
                return Response(reply.status, reply.read_all(TOKEN_LIMIT))

        return self._persist(attempt, errand.attempts)

    def _refusal(
        self, reply: Reply, reference: Reference, path: str, errand: _Errand
    ) -> RemoteError:
        subject, status = errand.subject, reply.status
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
            return self._busy(reply, errand, said)
        host = host_of(reply.url)
        detail = f"{': ' if said else ''}{said}"
        return RemoteError(f"{subject}: {host} answered {status} for {path}{detail}")

    def _busy(self, reply: Reply, errand: _Errand, said: str) -> RemoteError:
        detail = f"{': ' if said else ''}{said}"
        message = f"{errand.subject}: {host_of(reply.url)} answered {reply.status}{detail}"
        if reply.status != 429:
            return RemoteError(message, hint="the server is in trouble; try again later")
        asked = parse_wait(reply.header, self.clock())
        self.budgets.of(errand.registry).pause(asked, self.clock())
        when = f"after {asked}" if asked else "later"
        return RateLimitedError(
            f"{message} (too many requests)",
            hint=f"try again {when}; with credentials the limit is usually higher",
            retry_after=asked,
        )

    def _is_plain(self, host: str) -> bool:
        return host.lower() in self._plain_http or (
            is_loopback(host) and host.lower() not in self._own_sessions
        )


def translate(error: Exception, subject: str) -> TransferError:
    """Return our error for one out of `FOREIGN`; without the query of URLs, which may be secret."""
    root = _root(error)
    reason = str(root).partition("?")[0] or type(error).__name__
    message = f"{subject}: {printable(reason)}"
    hint = ""
    if isinstance(root, ssl.SSLCertVerificationError):
        hint = _CERTIFICATE_HINTS.get(getattr(root, "verify_code", 0), _PRIVATE_CA)
    elif "WRONG_VERSION_NUMBER" in str(root):
        hint = "if the registry speaks plain HTTP, it has to be configured so"
    return TransferError(message, hint=hint, passing=isinstance(error, _PASSING) and not hint)


class _Session(requests.Session):
    """Without a look ahead: even if told not to follow a redirect, `requests` would parse its
    target and read its whole body, however long, into memory."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class _TrustingAdapter(HTTPAdapter):
    """Trusts certificate authorities in a file, beside those `requests` gives every context."""

    def __init__(self, ca_file: Path) -> None:
        self._context = urllib3.util.create_urllib3_context()
        try:
            self._context.load_verify_locations(ca_file)
        except ssl.SSLError as exc:
            raise InputError(f"ca_file {ca_file}: holds no certificates in PEM format") from exc
        except OSError as exc:
            raise InputError(f"ca_file {ca_file}: cannot be read: {exc.strerror}") from exc
        super().__init__(**_POOLS)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        super().init_poolmanager(*arguments, **options, ssl_context=self._context)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        return super().proxy_manager_for(*arguments, **options, ssl_context=self._context)


def _new_session(ca_file: Path | None = None) -> requests.Session:
    session = _Session()
    session.headers["User-Agent"] = f"cvmfs-publish/{__version__}"
    # Digests are of bytes as stored; a transport encoding would only be undone again
    session.headers["Accept-Encoding"] = "identity"
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    adapter = HTTPAdapter(**_POOLS)
    session.mount("https://", adapter if ca_file is None else _TrustingAdapter(ca_file))
    session.mount("http://", adapter)
    return session


def _is_manifest(url: str) -> bool:
    return "/manifests/" in urlsplit(url).path


def _api_host(registry: str) -> str:
    return Reference(registry, "", "").api_host


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authentication that adds nothing: without one, `requests` would look into ~/.netrc."""
    return request


def _with_authorization(request: Request, authorization: str) -> Request:
    headers = {name: value for name, value in request.headers.items() if name not in SECRETS}
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
