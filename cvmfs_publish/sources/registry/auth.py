"""Turn a registry's 401 into the Authorization header it wants to see.  No I/O in here.

The exchange with the token server is a generator: it yields requests, is sent responses and
returns the header, so that tests are lists and the HTTP door stays the only door.

Sources: RFC 9110 section 11 (challenges), RFC 6750 (Bearer), RFC 7617 (Basic); Docker registry
"Token Authentication Specification" and "OAuth2 token specification" (identity tokens).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from cvmfs_publish.errors import InputError, RemoteError
from cvmfs_publish.sources.base import AccessDeniedError

CLIENT_ID = "cvmfs-publish"
MIN_LIFE = 10  # seconds; a token that is dead on arrival would be fetched for every request
MAX_LIFE = 24 * 3600  # seconds; longer, the 401 comes first
# What servers may send us to.  Deliberately narrower than RFC 3986: with a user part or a backslash
# in it, one URL parser sees another host than the next, and credentials go to the wrong one.
_WEB_ADDRESS = re.compile(
    r"https?://(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?(?:[/?#][^\\]*)?"
)
# A token goes into a header line: visible ASCII only; http servers limit lines to 8 to 64 KiB
_TOKEN_VALUE = re.compile(r"[\x21-\x7e]{1,32768}")
_SEPARATORS = re.compile(r"[ \t,]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_VALUE = re.compile(r'[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^",\s]*))')


@dataclass(frozen=True, slots=True)
class Credential:
    """What opens a registry.  Secrets never appear in its text form."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)  # exchanged for tokens, in place of both

    def __post_init__(self) -> None:
        # RFC 7617: the first colon ends the user name, so one inside would change both
        if ":" in self.username or not self.username.isprintable():
            raise InputError(f"{self.username!r} cannot be the user name of a registry")

    def __str__(self) -> str:
        return f"user {self.username!r}" if self.username else "an identity token"

    @property
    def basic(self) -> str:
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way the server offers to prove who asks; scheme and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grant:
    """What opened the registry: the value of an Authorization header, and how long it will do."""

    authorization: str = field(repr=False)
    life: timedelta | None = None  # None: until it is refused


@dataclass(frozen=True, slots=True)
class Request:
    """A request the flow wants to have sent."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Response:
    """What came back, after retries and redirects."""

    status: int
    body: bytes = b""


def is_web_address(url: str) -> bool:
    """Whether a URL that a server sent has one obvious host, and may be asked."""
    if _WEB_ADDRESS.fullmatch(url) is None or not url.isascii() or not url.isprintable():
        return False
    try:
        return urlsplit(url).port != 0  # raises for ports above 65535 and broken [addresses]
    except ValueError:
        return False


def parse_challenges(header: str) -> list[Challenge]:
    """Return the challenges of a WWW-Authenticate header; raise `RemoteError` if it is malformed.

    Several headers, joined with commas, are one list (RFC 9110, section 5.3).
    """
    found: list[tuple[str, dict[str, str]]] = []
    position = _skip_separators(header, 0)
    while position < len(header):
        name = _TOKEN.match(header, position)
        if name is None:
            raise _malformed(header)
        value = _VALUE.match(header, name.end())
        if value is None:
            found.append((name[0].lower(), {}))
            token68 = _TOKEN68.match(header, name.end())
            end = token68.end() if token68 else name.end()
        elif found:
            quoted, plain = value.groups()
            text = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            found[-1][1].setdefault(name[0].lower(), text)
            end = value.end()
        else:
            raise _malformed(header)
        position = _skip_separators(header, end)
    return [Challenge(scheme, parameters) for scheme, parameters in found]


def authorise(
    header: str, scope: str, credential: Credential | None, subject: str
) -> Generator[Request, Response, Grant]:
    """Return what answers the challenges in `header`.

    `scope` is what is asked for where the challenge does not say.  Never falls back to being
    nobody when credentials fail.  Raises `AccessDeniedError`, or `RemoteError` for a token server
    that fails or talks nonsense.
    """
    offered = {challenge.scheme: challenge for challenge in reversed(parse_challenges(header))}
    if "bearer" in offered:
        parameters = offered["bearer"].parameters
        response = yield plan_token_request(parameters, scope, credential, subject)
        return _parse_token(response, credential, subject)
    if "basic" in offered and credential is not None and credential.username:
        return Grant(credential.basic)
    if "basic" in offered:
        raise denied(subject, 401, credential)
    raise AccessDeniedError(
        f"{subject}: the registry offers no way of authentication known here "
        f"({', '.join(offered) or 'none'})",
        hint="Bearer tokens and Basic are supported",
    )


def plan_token_request(
    parameters: Mapping[str, str], scope: str, credential: Credential | None, subject: str
) -> Request:
    """Return the request to the token server named in a Bearer challenge."""
    realm = parameters.get("realm", "")
    if not is_web_address(realm):
        raise RemoteError(f"{subject}: the token server's URL {realm[:200]!a} is invalid")
    parts = urlsplit(realm)
    # Several scopes are separated by blanks in the challenge and are repeated in the query
    query = [("scope", one) for one in parameters.get("scope", scope).split()]
    if "service" in parameters:
        query.insert(0, ("service", parameters["service"]))
    if credential is not None and credential.identity_token:
        form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", credential.identity_token),
            ("client_id", CLIENT_ID),
            *query,
        ]
        content_type = {"Content-Type": "application/x-www-form-urlencoded"}
        return Request("POST", realm, content_type, urlencode(form).encode())
    query = parse_qsl(parts.query, keep_blank_values=True) + query
    url = urlunsplit((parts.scheme, parts.netloc, parts.path, urlencode(query), ""))
    return Request("GET", url, {"Authorization": credential.basic} if credential else {})


def denied(
    subject: str, status: int, credential: Credential | None, said: str = ""
) -> AccessDeniedError:
    """Return the error for a 401 or 403.  Names the user, never a password or token."""
    who = f"with {credential}" if credential else "without credentials"
    hint = (
        "check the user name, the password or token and its right to pull"
        if credential
        else "if the image exists and is not public, give a user name and a password_file for "
        "this registry in the configuration, or use `docker login`; some registries also "
        "answer so for images that do not exist"
    )
    return AccessDeniedError(
        f"{subject}: access denied ({status}) {who}{': ' if said else ''}{said}", hint=hint
    )


def _parse_token(response: Response, credential: Credential | None, subject: str) -> Grant:
    # The OAuth2 specification answers bad credentials with 400
    if response.status in {400, 401, 403}:
        raise denied(f"{subject}: token server", response.status, credential)
    if response.status != 200:
        raise RemoteError(f"{subject}: the token server answered {response.status}")
    try:
        document = json.loads(response.body.decode())
    except (ValueError, RecursionError) as exc:
        raise RemoteError(f"{subject}: the token server's answer is not JSON") from exc
    if isinstance(document, dict):
        for name in ("token", "access_token"):
            token = document.get(name)
            if isinstance(token, str) and _TOKEN_VALUE.fullmatch(token):
                return Grant(f"Bearer {token}", _parse_life(document.get("expires_in")))
    raise RemoteError(f"{subject}: the token server's answer holds no usable token")


def _parse_life(seconds: object) -> timedelta:
    """Return how long to use a token: to four fifths, as the last request of a long job counts.

    Token specification, "expires_in": seconds; "defaults to 60 seconds" where it is not said.
    """
    stated = seconds if isinstance(seconds, int | float) and not isinstance(seconds, bool) else 60
    return timedelta(seconds=min(max(MIN_LIFE, stated), MAX_LIFE) * 0.8)


def _skip_separators(header: str, position: int) -> int:
    match = _SEPARATORS.match(header, position)
    return match.end() if match else position


def _malformed(header: str) -> RemoteError:
    return RemoteError(f"the registry's challenge {header[:200]!a} cannot be understood")
