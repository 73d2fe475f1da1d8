"""Turn `oci-archive:FILE:TAG` or `https://…/image.sif` into a typed place to fetch an image from.

An image in a registry is a `Reference` alone: its name says where it is.  Every other image has an
origin besides the name it is published under.  Texts are those of skopeo and Apptainer, whose users
know them; `tar:FILE` is ours.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, urlsplit

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError

MAX_LENGTH = 8192  # characters of an origin; a path has up to 4095 bytes, temporary URLs some more

# Transports of local files; those in TAGGED hold several images, told apart by a tag
TAGGED = frozenset({"oci", "oci-archive", "docker-archive"})
FILES = TAGGED | {"sif", "tar"}
# Transports of URLs that say host and path alone: the query may be a signature, and is no name
WEB = frozenset({"https", "http"})
NAMED = frozenset({"oras", "library", "shub"})  # what follows is a name, as in a registry
OBJECTS = frozenset({"s3", "swift"})  # BUCKET/KEY
TRANSPORTS = FILES | WEB | NAMED | OBJECTS

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PIN = re.compile(r"(?:@sha256:|#sha256=)([0-9a-f]{64})\Z")
_OBJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[^/]+)+")
_PORTS = {"https": 443, "http": 80}
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")  # RFC 3986, section 2.3: the same with and without %


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an image comes from.  Made by `parse`, which guarantees the form of every part."""

    transport: str
    place: str  # the path of a file, or what follows `://`
    tag: str = ""  # of one image of several in an archive
    digest: Digest | None = None  # if given, the file must have it
    query: str = field(default="", repr=False, compare=False)  # may be secret: kept nowhere

    @classmethod
    def parse(cls, text: str) -> Origin | None:
        """Return None for an image in a registry; raise `InputError` for what is malformed."""
        match = _URL.match(text)
        head, colon, _ = text.partition(":")
        transport = match[1].lower() if match else head
        if not colon or transport not in (FILES if match is None else TRANSPORTS - FILES):
            return None
        rest = text[match.end() :] if match else text.partition(":")[2]
        _check(text, rest)
        rest, digest = _split_pin(rest)
        if transport in FILES:
            return cls(transport, *_split_tag(transport, rest), digest)
        if transport in WEB:
            parts = _split_url(transport, rest)
            path = _one_spelling(parts.path, f"{transport}://{parts.netloc}{parts.path}")
            return cls(transport, f"{_host(transport, parts)}{path}", "", digest, parts.query)
        if transport in OBJECTS:
            if not _OBJECT.fullmatch(rest):
                raise InputError(
                    f"{text[:200]!r} is not {transport}://BUCKET/KEY", hint="name one object"
                )
            _refuse_dots(rest.split("/"), f"{transport}://{rest}")
            return cls(transport, rest, "", digest)
        return cls(transport, lower_host(transport, rest), "", digest)

    def below(self, folder: str) -> Origin:
        """Return the same with the path of a file made absolute, as seen from `folder`."""
        if self.transport not in FILES:
            return self
        path = posixpath.normpath(posixpath.join(folder, self.place))
        # POSIX lets two leading slashes mean something else; here they would begin a URL
        return replace(self, place="/" + path.lstrip("/"))

    @property
    def url(self) -> str:
        """The URL to fetch, with what may be secret in it."""
        return f"{self.transport}://{self.place}{'?' if self.query else ''}{self.query}"

    def __str__(self) -> str:
        colon = ":" if self.transport in FILES else "://"
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.transport}{colon}{self.place}{tag}{digest}"


def _check(text: str, rest: str) -> None:
    if len(text) > MAX_LENGTH:
        raise InputError(f"{text[:100]!r}… is too long to say where an image is")
    if not rest:
        raise InputError(f"{text!r} names no image", hint="name a file or a URL behind it")
    if not text.isprintable():
        raise InputError(f"{text!r} holds characters that cannot be shown")


def _split_pin(rest: str) -> tuple[str, Digest | None]:
    match = _PIN.search(rest)
    if match is None:
        return rest, None
    return rest[: match.start()], Digest("sha256", match[1])


def _split_tag(transport: str, rest: str) -> tuple[str, str]:
    """Split as skopeo does, at the first colon: what follows may be a whole image name."""
    if transport not in TAGGED:
        return rest, ""
    path, _, tag = rest.partition(":")
    return path, tag


def _split_url(transport: str, rest: str) -> SplitResult:
    try:
        parts = urlsplit(f"{transport}://{rest}")
        valid = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or any(character.isspace() for character in rest):
        raise InputError(f"{transport}://{rest[:200]} is not a URL")
    if "@" in parts.netloc:
        raise InputError(
            f"{transport}://…@{parts.hostname} holds a login",
            hint="a URL is published with the image; use a temporary URL or a header of the site's",
        )
    if parts.fragment:
        raise InputError(
            f"{transport}://{parts.netloc}{parts.path} is followed by #{parts.fragment[:80]}",
            hint="only #sha256= and 64 hexadecimal digits may follow, or @sha256:…",
        )
    return parts


# A place has one spelling, so that no rule of `trust` is got round by another


def _host(transport: str, parts: SplitResult) -> str:
    host = (parts.hostname or "").rstrip(".")
    if not host.isascii():
        raise InputError(
            f"{transport}://{parts.netloc[:200]} has a host with other letters than ASCII",
            hint="write it as DNS has it, xn--…",
        )
    port = "" if parts.port in {None, _PORTS[transport]} else f":{parts.port}"
    return (f"[{host}]" if ":" in host else host) + port


def _one_spelling(path: str, subject: str) -> str:
    """Return a path of a URL with no more `%` than it needs; clients would do the same."""

    def spell(match: re.Match[str]) -> str:
        letter = chr(int(match[1], 16))
        return letter if _UNRESERVED.fullmatch(letter) else match[0].upper()

    spelt = _ESCAPED.sub(spell, path)
    _refuse_dots(spelt.split("/"), subject)
    return spelt


def _refuse_dots(segments: list[str], subject: str) -> None:
    if not {".", ".."}.isdisjoint(segments):
        raise InputError(
            f"{subject[:200]} has `.` or `..` in its path",
            hint="write where that leads; rules of `trust` compare what is written",
        )


def lower_host(transport: str, rest: str) -> str:
    """Return what follows `TRANSPORT://` with the host in lower case, if it begins with one."""
    host, slash, path = rest.partition("/")
    # Without a dot, the first part of a name in a library or a hub is somebody's name there
    has_host = slash and (transport in WEB | {"oras"} or "." in host or ":" in host)
    return f"{host.lower()}{slash}{path}" if has_host else rest
