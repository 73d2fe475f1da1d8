"""Say what the answers of HTTP servers mean: waits, redirects, errors, hosts.  Pure.

Sources: RFC 9110 (HTTP semantics); OCI distribution-spec, "Error Codes".
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import urljoin, urlsplit

from cvmfs_publish.errors import RemoteError
from cvmfs_publish.sources.registry.auth import is_web_address

FIRST_WAIT = 0.5  # seconds before the second attempt; doubles from there
MAX_BACKOFF = 30.0  # seconds


def plan_backoff(failures: int, jitter: float) -> float:
    """Return seconds to wait: doubling, and between half and all of it so that clients spread."""
    return min(MAX_BACKOFF, FIRST_WAIT * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)


def parse_retry_after(header: Callable[[str], str]) -> timedelta | None:
    """Return the wait a server asks for; a date counts from the server's own clock.

    RFC 9110, section 10.2.3: an HTTP-date or a number of seconds.  Docker Hub also has an
    `X-Retry-After` with a Unix time, which has ten digits until the year 2286.
    """
    text = (header("Retry-After") or header("X-Retry-After")).strip()
    is_number = text.isascii() and text.isdigit()
    if is_number and len(text) != 10:
        return timedelta(seconds=min(int(text[:9]), 10**8))
    try:
        until = (
            datetime.fromtimestamp(int(text), UTC)
            if is_number
            else email.utils.parsedate_to_datetime(text)
        )
        wait = until - email.utils.parsedate_to_datetime(header("Date"))
    # TypeError: one of the dates has no time zone
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return max(wait, timedelta())


def parse_redirect(url: str, location: str, subject: str) -> str:
    """Return the absolute target; raise `RemoteError` unless it is as safe as `url` was."""
    shown = ascii(location.partition("?")[0][:200])
    try:
        target = urljoin(url, location) if location else ""
    except ValueError:
        target = ""
    if not is_web_address(target):
        raise RemoteError(
            f"{subject}: {host_of(url)} redirects to {shown}, which is no web address"
        )
    if target.startswith("http:") and url.startswith("https:"):
        raise RemoteError(f"{subject}: {host_of(url)} redirects from TLS to plain HTTP: {shown}")
    return target


def parse_errors(body: bytes) -> tuple[str, str]:
    """Return the first code and all messages of a registry's error document, else two "".

    distribution-spec, "Error Codes": {"errors": [{"code": …, "message": …, "detail": …}]}
    """
    try:
        errors = json.loads(body.decode())["errors"]
        pairs = [(str(error["code"]), str(error.get("message", ""))) for error in errors]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", ""
    said = "; ".join(f"{code}: {message}" for code, message in pairs)
    return (pairs[0][0] if pairs else ""), printable(said)


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port: what must be equal for credentials to be sent again."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    return parts.scheme, parts.hostname or "", port


def is_same_host(url: str, other: str) -> bool:
    """Whether two addresses name one host and port; schemes differ behind a proxy that ends TLS.

    Nothing may be sent to another scheme because of this: it is `origin` that says so.
    """
    return _named_host(url) == _named_host(other)


def _named_host(url: str) -> tuple[str, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.hostname or "", None if parts.port == default else parts.port


def is_loopback(host: str) -> bool:
    """Whether host[:port] cannot leave this machine."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def host_of(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def printable(text: str) -> str:
    """A server's words must not steer the terminal they are shown on."""
    return "".join(c if c.isprintable() else " " for c in text[:500]).strip()
