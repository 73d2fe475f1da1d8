"""Turn what a registry posts after a push into the images to look at, if it knows the secret.

Nothing here speaks HTTP or queues anything.  What a body claims is believed as far as it goes: an
image is looked at sooner than the poller would have.  Its digest is still asked of its registry,
images that no wishlist names are not published, and nothing is ever removed because of a body.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeAlias

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.reference import Reference, parse_registry

MAX_BODY = 1024 * 1024  # bytes; a registry sends at most some hundred events of 1 kB at once
MAX_PUSHES = 1000  # of one body
MIN_SECRET = 16  # characters; what can be guessed is no secret
TIME_WINDOW = timedelta(minutes=5)  # between the clocks of sender and receiver, delivery included
GITHUB_REGISTRY = "ghcr.io"

_MANIFEST_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
    }
)
_HARBOR_PUSHES = frozenset({"PUSH_ARTIFACT", "harbor.artifact.pushed"})
_SECONDS = re.compile(r"[0-9]{1,12}")

_KINDS: dict[type, str] = {str: "text", list: "list", dict: "section"}

Json: TypeAlias = Any


class WebhookRefusedError(InputError):
    """A webhook does not prove that its sender knows the secret, or is too old; it is not read."""

    kind = "webhook-refused"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request as it arrived.  Made by `of`, which bounds it."""

    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @classmethod
    def of(cls, headers: Iterable[tuple[str, str]], body: bytes) -> Delivery:
        """Raise `InputError` for too long a body, or a header that is given twice."""
        if len(body) > MAX_BODY:
            raise InputError(f"the body has more than {MAX_BODY} bytes")
        found: dict[str, str] = {}
        for name, value in headers:
            if found.setdefault(name.lower(), value) != value:
                raise InputError(f"the header {name[:100]} is given twice")
        return cls(found, body)


@dataclass(frozen=True, slots=True)
class HookSettings:
    """What the configuration says of one source of webhooks."""

    registry: str = ""  # whose images are meant where a body names no registry
    # host in a body, in lower case → registry in wishlists
    hosts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Push:
    """Something was pushed to a repository."""

    registry: str
    repository: str
    tag: str  # "": any tag of the repository, and of those below it
    digest: Digest | None  # as the body claims
    delivery_id: str  # the same if the same body is delivered again

    def concerns(self, registry: str, repository: str) -> bool:
        """Tell whether the push may have changed an image of this repository."""
        if registry != self.registry:
            return False
        below = not self.tag and repository.startswith(f"{self.repository}/")
        return repository == self.repository or below


@dataclass(frozen=True, slots=True)
class Contents:
    """What a body says: the pushes, each once, and why something in it is left out."""

    pushes: tuple[Push, ...] = ()
    ignored: tuple[str, ...] = ()


class WebhookSource(Protocol):
    """One product's way of telling what was pushed.  Any thread may call any method."""

    def verify(self, delivery: Delivery, secret: str, now: datetime) -> None:
        """Return if the delivery proves that its sender knows `secret`.

        Compares in constant time and before the body is looked at.  Raises `WebhookRefusedError`
        otherwise, and where a sender that signs the time did so too long ago.
        """

    def parse(self, delivery: Delivery) -> Contents:
        """Return what a verified delivery says; events that are no pushes are ignored.

        Names are those of wishlists: lower-case hosts, `docker.io` for all of Docker Hub's.
        Raises `InputError` if the body is not of this product.
        """


# ---------------------------------------------------------------- the products


@dataclass(frozen=True, slots=True)
class DistributionHook:
    """Docker's registry, and whatever is built on it.

    Source: distribution `docs/content/about/notifications.md`.  The secret is sent as the
    `Authorization` header that its configuration names.
    """

    settings: HookSettings = HookSettings()

    def verify(self, delivery: Delivery, secret: str, now: datetime) -> None:
        _check_token(delivery, "authorization", secret)

    def parse(self, delivery: Delivery) -> Contents:
        events = _get(_parse_json(delivery), list, "events")
        return _collect(self.settings, (_distribution_event(event) for event in events))


@dataclass(frozen=True, slots=True)
class HarborHook:
    """Harbor, in its default format or as CloudEvents.

    Source: goharbor.io, "Configure Webhook Notifications".  The secret is the "Auth Header".
    """

    settings: HookSettings = HookSettings()

    def verify(self, delivery: Delivery, secret: str, now: datetime) -> None:
        _check_token(delivery, "authorization", secret)

    def parse(self, delivery: Delivery) -> Contents:
        body = _parse_json(delivery)
        kind = _get(body, str, "type")
        if kind not in _HARBOR_PUSHES:
            return Contents(ignored=(f"an event of the type {kind[:100]!r}",))
        data = _get(body, dict, "data" if "specversion" in body else "event_data")
        delivery_id = f"harbor:{_hash(delivery)}"
        return _collect(
            self.settings,
            (_harbor_resource(resource, delivery_id) for resource in _get(data, list, "resources")),
        )


@dataclass(frozen=True, slots=True)
class GitLabHook:
    """GitLab: its registry's own notifications, or the success of a project's pipeline.

    Projects have no webhook for pushes to the registry; a pipeline that ends well may have pushed
    any image of its project.  Source: docs.gitlab.com, "Webhook events" and "Container registry
    administration".  The secret is the webhook's token, or the `Authorization` of the registry.
    """

    settings: HookSettings = HookSettings()

    def verify(self, delivery: Delivery, secret: str, now: datetime) -> None:
        name = "x-gitlab-token" if "x-gitlab-token" in delivery.headers else "authorization"
        _check_token(delivery, name, secret)

    def parse(self, delivery: Delivery) -> Contents:
        body = _parse_json(delivery)
        if "events" in body:
            return DistributionHook(self.settings).parse(delivery)
        kind = _get(body, str, "object_kind")
        if kind != "pipeline":
            return Contents(ignored=(f"an event of the kind {kind[:100]!r}",))
        status = _get(body, str, "object_attributes", "status")
        if status != "success":
            return Contents(ignored=(f"a pipeline with the status {status[:100]!r}",))
        project = _get(body, str, "project", "path_with_namespace").lower()
        return _collect(
            self.settings, [_Claim("", project, "", "", f"gitlab:{_hash(delivery)}", False)]
        )


@dataclass(frozen=True, slots=True)
class GitHubHook:
    """GitHub's container registry, by the events `package` and `registry_package`.

    Source: docs.github.com, "Webhook events and payloads" and "Validating webhook deliveries".
    The header with the delivery's number is not signed, so a body is its own number.
    """

    settings: HookSettings = HookSettings()

    def verify(self, delivery: Delivery, secret: str, now: datetime) -> None:
        _check_signature(delivery, "x-hub-signature-256", secret, delivery.body)

    def parse(self, delivery: Delivery) -> Contents:
        event = delivery.headers.get("x-github-event", "")
        if event not in ("package", "registry_package"):
            return Contents(ignored=(f"an event of the kind {event[:100]!r}",))
        package = _get(_parse_json(delivery), dict, event)
        kind = _get(package, str, "package_type").lower()
        if kind != "container":
            return Contents(ignored=(f"a package of the type {kind[:100]!r}",))
        return _collect(self.settings, [_github_package(package, f"github:{_hash(delivery)}")])


@dataclass(frozen=True, slots=True)
class GenericHook:
    """What a line of `curl` in any pipeline can send: `{"image": "ghcr.io/a/b:1"}`.

    The secret is sent as a bearer token; or, better, it signs time and body:
    `X-Signature-256: sha256=` HMAC-SHA-256 of `X-Timestamp`, a dot and the body.
    """

    settings: HookSettings = HookSettings()

    def verify(self, delivery: Delivery, secret: str, now: datetime) -> None:
        if "x-signature-256" not in delivery.headers:
            _check_token(delivery, "authorization", secret)
            return
        timestamp = delivery.headers.get("x-timestamp", "")
        signed = timestamp.encode("utf-8", "surrogateescape") + b"." + delivery.body
        _check_signature(delivery, "x-signature-256", secret, signed)
        _check_time(timestamp, now)

    def parse(self, delivery: Delivery) -> Contents:
        body = _parse_json(delivery)
        unknown = body.keys() - {"image", "images", "digest"}
        if unknown:
            raise InputError(
                f"the body has the key {sorted(unknown)[0][:100]!r}",
                hint="possible are `image` with `digest`, or `images` with a list",
            )
        given = body.get("images", [body.get("image")])
        if not isinstance(given, list) or not all(isinstance(each, str) for each in given):
            raise InputError(
                "the body names no image", hint='write {"image": "REGISTRY/REPOSITORY:TAG"}'
            )
        digest = body.get("digest", "")
        if not isinstance(digest, str) or (digest and len(given) != 1):
            raise InputError("`digest` is a text, and for one image only")
        number = f"generic:{_hash(delivery, delivery.headers.get('x-timestamp', ''))}"
        return _collect(self.settings, (_generic_image(text, digest, number) for text in given))


WEBHOOK_SOURCES: dict[str, Callable[[HookSettings], WebhookSource]] = {
    "distribution": DistributionHook,
    "harbor": HarborHook,
    "gitlab": GitLabHook,
    "github": GitHubHook,
    "generic": GenericHook,
}


# ---------------------------------------------------------------- verification


def _check_token(delivery: Delivery, name: str, secret: str) -> None:
    """The header is the secret, or `Bearer` and the secret; what is missing is compared too."""
    _check_secret(secret)
    given = delivery.headers.get(name, "")
    scheme, _, token = given.partition(" ")
    token = token.strip() if scheme.lower() == "bearer" else given.strip()
    if not _is_same(token, secret):
        raise WebhookRefusedError(
            f"the header {name.title()} does not hold the secret",
            hint="the sender must send what `webhooks.secret_file` holds",
        )


def _check_signature(delivery: Delivery, name: str, secret: str, signed: bytes) -> None:
    _check_secret(secret)
    wanted = "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    if not _is_same(delivery.headers.get(name, ""), wanted):
        raise WebhookRefusedError(
            f"the signature in the header {name.title()} is not that of the body",
            hint="the sender must sign with what `webhooks.secret_file` holds",
        )


def _check_secret(secret: str) -> None:
    if len(secret) < MIN_SECRET:
        raise WebhookRefusedError(
            "the secret is too short to prove anything", hint=f"use {MIN_SECRET} characters or more"
        )


def _is_same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), wanted.encode())


def _check_time(timestamp: str, now: datetime) -> None:
    if not _SECONDS.fullmatch(timestamp):
        raise WebhookRefusedError("X-Timestamp is not a number of seconds since 1970")
    at = datetime.fromtimestamp(int(timestamp), UTC)
    if abs(now - at) > TIME_WINDOW:
        raise WebhookRefusedError(
            f"signed at {at:%Y-%m-%d %H:%M:%S} UTC, and it is {now:%Y-%m-%d %H:%M:%S} UTC",
            hint="set the clocks, or send the webhook when it is signed",
        )


# ---------------------------------------------------------------- bodies


@dataclass(frozen=True, slots=True)
class _Claim:
    """A push as a body has it, nothing of it checked."""

    host: str  # "": the body says none
    repository: str
    tag: str
    digest: str
    delivery_id: str
    has_tag: bool = True  # False: the whole project is meant


def _collect(settings: HookSettings, claims: Iterable[_Claim | str]) -> Contents:
    """Check every claim; what cannot be an image here is ignored, as no retry would mend it."""
    pushes: dict[Push, None] = {}
    ignored: list[str] = []
    for number, claim in enumerate(claims):
        if number >= MAX_PUSHES:
            raise InputError(f"the body has more than {MAX_PUSHES} events")
        try:
            if isinstance(claim, str):
                ignored.append(claim)
            else:
                pushes[_push(settings, claim)] = None
        except (InputError, IntegrityError) as exc:
            ignored.append(str(exc))
    return Contents(tuple(pushes), tuple(ignored))


def _push(settings: HookSettings, claim: _Claim) -> Push:
    host = claim.host or settings.registry
    if not host:
        raise InputError(
            "the body names no registry", hint="say which it is in `webhooks.sources.*.registry`"
        )
    registry = settings.hosts.get(host.lower()) or parse_registry(host)
    if not ("." in registry or ":" in registry or registry == "localhost"):
        raise InputError(
            f"{registry!r} is no registry", hint="say which it is in `webhooks.sources.*.hosts`"
        )
    tag = claim.tag if claim.has_tag else "latest"
    reference = Reference.parse(f"{registry}/{claim.repository}:{tag}")
    if reference.tag != tag:
        raise InputError(f"{tag[:100]!r} is not a tag")
    return Push(
        reference.registry,
        reference.repository,
        reference.tag if claim.has_tag else "",
        Digest.parse(claim.digest) if claim.digest else None,
        claim.delivery_id,
    )


def _distribution_event(event: Json) -> _Claim | str:
    """`request.host` is how the registry was addressed by whoever pushed."""
    action = _get(event, str, "action")
    target = _get(event, dict, "target")
    if action != "push":
        return f"an event with the action {action[:100]!r}"
    if str(target.get("mediaType")) not in _MANIFEST_TYPES:
        return "the push of a part of an image"
    if not target.get("tag"):
        return "a push without a tag"
    return _Claim(
        _get(event, str, "request", "host"),
        _get(target, str, "repository"),
        _get(target, str, "tag"),
        _get(target, str, "digest"),
        f"distribution:{_get(event, str, 'id')[:200]}",
    )


def _harbor_resource(resource: Json, delivery_id: str) -> _Claim | str:
    """`resource_url` is HOST/PROJECT/REPOSITORY:TAG, or @DIGEST for a push without a tag."""
    url, digest = _get(resource, str, "resource_url"), _get(resource, str, "digest")
    if "@" in url:
        return "a push without a tag"
    name, _, tag = url.rpartition(":")
    host, _, repository = name.partition("/")
    return _Claim(host, repository, tag, digest, delivery_id)


def _github_package(package: Json, delivery_id: str) -> _Claim | str:
    """Which of the two places names the tag differs between events."""
    version = _get(package, dict, "package_version")
    container = version.get("container_metadata") or {}
    tag = container.get("tag") or {} if isinstance(container, dict) else {}
    name = tag.get("name") if isinstance(tag, dict) else None
    digest = version.get("version")
    if not isinstance(digest, str) or not digest.startswith("sha256:"):
        digest = ""
    url = version.get("package_url")
    if isinstance(url, str) and ":" in url.rpartition("/")[2]:
        path, _, named = url.rpartition(":")
        host, _, repository = path.partition("/")
        if host == GITHUB_REGISTRY and named:
            return _Claim(host, repository.lower(), named, digest, delivery_id)
    if not isinstance(name, str) or not name:
        return "a push without a tag"
    repository = f"{_get(package, str, 'namespace')}/{_get(package, str, 'name')}"
    return _Claim(GITHUB_REGISTRY, repository.lower(), name, digest, delivery_id)


def _generic_image(text: str, digest: str, delivery_id: str) -> _Claim:
    """Names are as in wishlists; the registry is always said, or it is Docker Hub."""
    reference = Reference.parse(text)
    return _Claim(
        reference.registry,
        reference.repository,
        reference.tag,
        digest or (str(reference.digest) if reference.digest else ""),
        delivery_id,
    )


def _hash(delivery: Delivery, salt: str = "") -> str:
    text = salt.encode("utf-8", "surrogateescape") + b"." + delivery.body
    return hashlib.sha256(text).hexdigest()


def _parse_json(delivery: Delivery) -> dict[str, Json]:
    kind = delivery.headers.get("content-type", "application/json")
    if "json" not in kind.lower():
        raise InputError(
            f"the body is of the type {kind[:100]!r}", hint="choose application/json in the sender"
        )
    try:
        body = json.loads(delivery.body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise InputError("the body is not JSON") from exc
    if not isinstance(body, dict):
        raise InputError("the body is not a JSON object")
    return body


def _refuse_constant(text: str) -> Json:
    raise ValueError(text)  # NaN and Infinity are Python's own


def _get(value: Json, kind: type, *path: str) -> Json:
    """Return what `path` leads to; raise `InputError` unless it is of this kind."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        raise InputError(
            f"the body has no {'.'.join(path)} that is a {_KINDS[kind]}",
            hint="the source in the URL, /hooks/SOURCE, must be the product that sends",
        )
    return value
