"""Turn what a person typed, `debian:12` or `ghcr.io/a/b@sha256:…`, into a typed image reference.

Source: distribution-spec `spec.md`, "Pulling manifests" (names and tags); Docker's rules for short
names (a first component without dot, colon and not "localhost" belongs to Docker Hub's path).
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.origin import TRANSPORTS, Origin

DOCKER_HUB = "docker.io"
DOCKER_HUB_API = "registry-1.docker.io"  # docker.io itself serves web pages, not the registry API
_HUB_ALIASES = frozenset({"registry.hub.docker.com", "index.docker.io", DOCKER_HUB_API})
DEFAULT_TAG = "latest"

MAX_REPOSITORY = 255  # characters; Docker distribution's NameTotalLengthMax
MAX_NAME_BYTES = 255  # NAME_MAX on Linux: the published link must have a name a client can open

# one part, between slashes, of <name> in distribution-spec
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*")
# <reference> as a tag, in the same place
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"  # RFC 1123, section 2.1
_HOST = re.compile(rf"({_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])(?::([0-9]{{1,5}}))?")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Transports written with one colon; as an image name they would be Docker Hub's `library/oci`
_COLON_TRANSPORTS = (
    *("oci", "oci-archive", "docker-archive", "docker-daemon"),
    *("containers-storage", "dir", "sif", "tar", "tarball"),
)
_NAME = "a name is as in a registry: [docker://]REGISTRY/REPOSITORY[:TAG][@DIGEST]"


@dataclass(frozen=True, slots=True)
class Reference:
    """The name of an image, as in a registry, and where it comes from if that is elsewhere.

    Made by `parse`, which guarantees the grammar of every part.
    """

    registry: str  # host or host:port, lower case; Docker Hub is always "docker.io"
    repository: str
    tag: str  # "" only if a digest was given without a tag
    digest: Digest | None = None  # if given, it decides what is fetched; the tag only names it
    origin: Origin | None = None  # None: the registry in the name

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raise `InputError`, with a hint, for everything that is not a name as in a registry."""
        _check_characters(text)
        rest = _without_transport(text)
        rest, at, digest_text = rest.partition("@")
        digest = _parse_digest(text, digest_text) if at else None
        registry, path = _split_registry(rest)
        path, colon, tag = path.partition(":")
        if colon or digest is None:
            tag = tag if colon else DEFAULT_TAG
            _check_tag(text, tag)
        registry = parse_registry(registry)
        if registry == DOCKER_HUB and "/" not in path:
            path = f"library/{path}"
        _check_repository(text, path)
        reference = cls(registry, path, tag, digest)
        if len(reference.name.rpartition("/")[2]) > MAX_NAME_BYTES:
            raise InputError(f"{text!r}: the last part is longer than {MAX_NAME_BYTES} characters")
        return reference

    @property
    def name(self) -> str:
        """The path under which the image is published: by tag, else by digest."""
        suffix = f":{self.tag}" if self.tag else f"@{self.digest}"
        return f"{self.registry}/{self.repository}{suffix}"

    @property
    def api_host(self) -> str:
        """The host, and port, that answers the registry API."""
        return DOCKER_HUB_API if self.registry == DOCKER_HUB else self.registry

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def is_tag(text: str) -> bool:
    """Whether `text` has the form of a tag."""
    return _TAG.fullmatch(text) is not None


def parse_registry(text: str) -> str:
    """Return the one spelling of a registry's host[:port]; raise `InputError` if it is none."""
    host = text.lower()
    if host in _HUB_ALIASES:
        return DOCKER_HUB
    match = _HOST.fullmatch(host)
    valid = match is not None and (match[2] is None or 0 < int(match[2]) < 65536)
    if match is not None and match[1].startswith("["):
        valid = valid and _is_ipv6(match[1][1:-1])
    if not valid:
        raise InputError(
            f"{text[:300]!r} is not a registry: host or host:port is expected",
            hint="for example ghcr.io or registry.example.org:5000",
        )
    return host


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _check_characters(text: str) -> None:
    if not text:
        raise InputError(
            "the image reference is empty", hint="name an image, for example docker.io/debian:12"
        )
    if len(text) > 1000:  # host 255 + repository 255 + tag 128 + digest 136, generously
        raise InputError(f"{text[:100]!r}… is too long for an image reference")
    if any(character.isspace() for character in text):
        raise InputError(
            f"{text!r}: an image reference has no blanks", hint="remove blanks and line ends"
        )
    if not text.isascii() or not text.isprintable():
        raise InputError(f"{text!r}: an image reference consists of plain ASCII characters")


def _without_transport(text: str) -> str:
    match = _SCHEME.match(text)
    if match is not None:
        scheme = match[1].lower()
        if scheme == "docker":
            return text[match.end() :]
        if scheme in {"http", "https"}:
            raise InputError(
                f"{text!r} is a URL, not the name of an image",
                hint=f"an image in a registry is written without {scheme}://: "
                f"{text[match.end() :]!r}",
            )
        raise InputError(_not_a_name(text, scheme, "://"), hint=_NAME)
    head, colon, tail = text.partition(":")
    if colon and head in _COLON_TRANSPORTS:
        raise InputError(
            _not_a_name(text, head, ":"),
            hint=f"{_NAME}; Docker Hub's image of that name is docker.io/library/{head}:{tail}"
            if is_tag(tail)
            else _NAME,
        )
    return text


def _not_a_name(text: str, transport: str, colon: str) -> str:
    if transport in TRANSPORTS:
        return f"{text!r} says where an image comes from; the name it is published under is meant"
    return f"{text!r}: there is no transport {transport}{colon}"


def _split_registry(rest: str) -> tuple[str, str]:
    first, slash, path = rest.partition("/")
    if slash and ("." in first or ":" in first or first.lower() == "localhost"):
        return first, path
    return DOCKER_HUB, rest


def _parse_digest(text: str, digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except IntegrityError as exc:
        raise InputError(
            f"{text!r}: {digest!r} is not a digest",
            hint="write @sha256: and 64 hexadecimal digits, lower case",
        ) from exc


def _check_tag(text: str, tag: str) -> None:
    if is_tag(tag):
        return
    hint = "a tag has up to 128 letters, digits and . _ - and does not start with . or -"
    if "*" in tag or "?" in tag:
        hint = "patterns of tags are for wishlists; name one tag here"
    elif "/" in tag:
        hint = "a registry needs a dot, a port or the name localhost: HOST:PORT/REPOSITORY:TAG"
    raise InputError(f"{text!r}: {tag!r} is not a tag", hint=hint)


def _check_repository(text: str, path: str) -> None:
    hint = "lower-case letters and digits, separated by one of . _ __ - and, between parts, by /"
    for component in path.split("/"):
        if not component:
            hint = "remove the doubled, leading or trailing slash"
        elif component != component.lower():
            hint = f"repositories are lower case: {path.lower()}"
        elif component in {".", ".."}:
            hint = "a repository is not a file path; files are oci-archive:FILE, sif:FILE, …"
        elif _COMPONENT.fullmatch(component):
            continue
        raise InputError(f"{text!r}: {path!r} is not a repository", hint=hint)
    if len(path) > MAX_REPOSITORY:
        raise InputError(f"{text!r}: the repository is longer than {MAX_REPOSITORY} characters")
