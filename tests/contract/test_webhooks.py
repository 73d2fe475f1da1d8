"""What every source of webhooks promises, with bodies as the products send them."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.watch.webhooks import (
    MAX_BODY,
    MAX_PUSHES,
    WEBHOOK_SOURCES,
    Contents,
    Delivery,
    HookSettings,
    Push,
    WebhookRefusedError,
)

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
SECRET = "correct horse battery staple"
HEX = "c3b3692957d439ac1928219a83fac91e7bf96c153725526874673ae1f2023f8d"
DIGEST = Digest("sha256", HEX)
Json = Any
Signer = Callable[[bytes, str], dict[str, str]]


def token(name: str, prefix: str = "") -> Signer:
    return lambda _, secret: {name: prefix + secret}


def hmac_of(name: str) -> Signer:
    def sign(body: bytes, secret: str) -> dict[str, str]:
        return {name: "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}

    return sign


def signed_with_time(at: datetime = NOW) -> Signer:
    def sign(body: bytes, secret: str) -> dict[str, str]:
        timestamp = str(int(at.timestamp()))
        signed = timestamp.encode() + b"." + body
        return {"X-Timestamp": timestamp, **hmac_of("X-Signature-256")(signed, secret)}

    return sign


# ---------------------------------------------------------------- bodies

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

# notifications.md, "Events"; a pushed image is some blobs and a manifest
DISTRIBUTION: Json = {
    "events": [
        {
            "id": "320678d8-ca14-430f-8bb6-4ca139cd83f6",
            "timestamp": "2016-03-09T14:44:26.402973972-08:00",
            "action": "push",
            "target": {
                "mediaType": MANIFEST,
                "size": 708,
                "digest": str(DIGEST),
                "length": 708,
                "repository": "group/hello-world",
                "url": f"http://192.168.100.227:5000/v2/group/hello-world/manifests/{DIGEST}",
                "tag": "latest",
            },
            "request": {
                "id": "6df24a34-0959-4923-81ca-14f09767db19",
                "addr": "192.168.64.11:42961",
                "host": "192.168.100.227:5000",
                "method": "PUT",
                "useragent": "curl/7.38.0",
            },
            "actor": {},
            "source": {
                "addr": "xtal.local:5000",
                "instanceID": "a53db899-3b4b-4a62-a067-8dd013beaca4",
            },
        }
    ]
}
HARBOR: Json = {
    "type": "PUSH_ARTIFACT",
    "occur_at": 1680501893,
    "operator": "harbor-jobservice",
    "event_data": {
        "resources": [
            {
                "digest": str(DIGEST),
                "tag": "latest",
                "resource_url": "harbor.example.org/group/hello-world:latest",
            }
        ],
        "repository": {
            "date_created": 1677053165,
            "name": "hello-world",
            "namespace": "group",
            "repo_full_name": "group/hello-world",
            "repo_type": "private",
        },
    },
}
HARBOR_CLOUD_EVENT: Json = {
    "specversion": "1.0",
    "id": "66e18103-d4a9-4ed5-8d5b-4b3d1f9e8e1e",
    "source": "/projects/1/webhook/policies/15",
    "type": "harbor.artifact.pushed",
    "datacontenttype": "application/json",
    "time": "2023-04-03T06:04:53Z",
    "operator": "harbor-jobservice",
    "data": HARBOR["event_data"],
}
GITLAB: Json = {
    "object_kind": "pipeline",
    "object_attributes": {
        "id": 31,
        "iid": 3,
        "ref": "master",
        "tag": False,
        "sha": "bcbb5ec396a2c0f828686f14fac9b80b780504f2",
        "source": "push",
        "status": "success",
        "detailed_status": "passed",
        "stages": ["build", "test", "deploy"],
        "created_at": "2016-08-12 15:23:28 UTC",
        "finished_at": "2016-08-12 15:26:29 UTC",
        "duration": 63,
    },
    "project": {
        "id": 1,
        "name": "Hello World",
        "web_url": "https://gitlab.example.org/group/hello-world",
        "path_with_namespace": "Group/hello-world",
        "default_branch": "master",
    },
    "builds": [],
}
GITHUB: Json = {
    "action": "published",
    "registry_package": {
        "id": 10696,
        "name": "hello-world",
        "namespace": "Group",
        "ecosystem": "CONTAINER",
        "package_type": "CONTAINER",
        "html_url": "https://github.com/Group/hello-world/packages/10696",
        "owner": {"login": "Group", "id": 21031067, "type": "Organization"},
        "package_version": {
            "id": 430232,
            "version": str(DIGEST),
            "name": str(DIGEST),
            "container_metadata": {
                "tag": {"name": "latest", "digest": str(DIGEST)},
                "labels": {},
                "manifest": {"digest": str(DIGEST), "media_type": MANIFEST, "size": 708},
            },
            "installation_command": "docker pull ghcr.io/group/hello-world:latest",
            "package_url": "ghcr.io/group/hello-world:latest",
        },
        "registry": {"name": "GitHub CONTAINER registry", "type": "CONTAINER"},
    },
    "repository": {"full_name": "Group/hello-world"},
    "sender": {"login": "someone"},
}
GENERIC: Json = {"image": "registry.example.org/group/hello-world:latest", "digest": str(DIGEST)}


@dataclass(frozen=True)
class Expected:
    """How a product sends the push of group/hello-world:latest, and what that means."""

    body: Json
    sign: Signer
    registry: str
    tag: str = "latest"
    digest: Digest | None = DIGEST
    headers: tuple[tuple[str, str], ...] = ()
    no_pushes: tuple[Mapping[str, Json], ...] = ()  # changes that make something else of it
    broken: tuple[str, ...] = ("",)  # keys without which it is not of this product


EXPECTED = {
    "distribution": Expected(
        DISTRIBUTION,
        token("Authorization", "Bearer "),
        "192.168.100.227:5000",
        no_pushes=(
            {"events.0.action": "pull"},
            {"events.0.action": "delete"},
            {"events.0.target.mediaType": "application/octet-stream"},
            {"events.0.target.tag": ""},
        ),
        broken=("events", "events.0.target", "events.0.request", "events.0.id"),
    ),
    "harbor": Expected(
        HARBOR,
        token("Authorization"),
        "harbor.example.org",
        no_pushes=(
            {"type": "PULL_ARTIFACT"},
            {"type": "DELETE_ARTIFACT"},
            {"type": "REPLICATION"},
            {"event_data.resources.0.resource_url": f"harbor.example.org/group/x@{DIGEST}"},
        ),
        broken=("type", "event_data", "event_data.resources.0.resource_url"),
    ),
    "gitlab": Expected(
        GITLAB,
        token("X-Gitlab-Token"),
        "registry.example.org",
        tag="",
        digest=None,
        headers=(("X-Gitlab-Event", "Pipeline Hook"),),
        no_pushes=(
            {"object_attributes.status": "failed"},
            {"object_attributes.status": "running"},
            {"object_kind": "push"},
        ),
        broken=("object_kind", "project", "object_attributes"),
    ),
    "github": Expected(
        GITHUB,
        hmac_of("X-Hub-Signature-256"),
        "ghcr.io",
        headers=(("X-GitHub-Event", "registry_package"), ("X-GitHub-Delivery", "b05b1f90")),
        no_pushes=(
            {"registry_package.package_type": "npm"},
            {
                "registry_package.package_version.container_metadata.tag": {},
                "registry_package.package_version.package_url": "ghcr.io/group/hello-world:",
            },
        ),
        broken=("registry_package", "registry_package.package_version"),
    ),
    "generic": Expected(
        GENERIC,
        signed_with_time(),
        "registry.example.org",
        broken=("image",),
    ),
}
SETTINGS = HookSettings(registry="registry.example.org")
every = pytest.mark.parametrize("name", sorted(WEBHOOK_SOURCES))


def delivery(
    name: str, body: Json = None, secret: str = SECRET, sign: Signer | None = None
) -> Delivery:
    expected = EXPECTED[name]
    data = json.dumps(expected.body if body is None else body).encode()
    headers = {
        "Content-Type": "application/json",
        **dict(expected.headers),
        **(sign or expected.sign)(data, secret),
    }
    return Delivery.of(headers.items(), data)


def parsed(name: str, body: Json = None, settings: HookSettings = SETTINGS) -> Contents:
    return WEBHOOK_SOURCES[name](settings).parse(delivery(name, body))


def changed(body: Json, changes: Mapping[str, Json]) -> Json:
    body = deepcopy(body)
    for path, value in changes.items():
        *way, last = path.split(".")
        place = body
        for step in way:
            place = place[int(step) if step.isdecimal() else step]
        if value is None:
            del place[last]
        else:
            place[int(last) if last.isdecimal() else last] = value
    return body


def test_every_source_has_an_expectation() -> None:
    assert EXPECTED.keys() == WEBHOOK_SOURCES.keys()


# ---------------------------------------------------------------- the contract


@every
def test_a_push_is_understood(name: str) -> None:
    expected = EXPECTED[name]
    contents = parsed(name)
    (push,) = contents.pushes
    assert contents.ignored == ()
    assert (push.registry, push.repository) == (expected.registry, "group/hello-world")
    assert (push.tag, push.digest) == (expected.tag, expected.digest)
    assert push.concerns(expected.registry, "group/hello-world")
    assert not push.concerns(expected.registry, "group/hello-worlds")
    assert not push.concerns("other.example.org", "group/hello-world")


@every
def test_who_knows_the_secret_is_believed(name: str) -> None:
    WEBHOOK_SOURCES[name](SETTINGS).verify(delivery(name), SECRET, NOW)


@every
@pytest.mark.parametrize(
    "secret", ["wrong horse battery staple", SECRET + "!", SECRET[:-1], "", "ü"]
)
def test_who_does_not_know_the_secret_is_refused(name: str, secret: str) -> None:
    with pytest.raises(WebhookRefusedError):
        WEBHOOK_SOURCES[name](SETTINGS).verify(delivery(name, secret=secret), SECRET, NOW)


@every
def test_who_sends_no_secret_is_refused_whatever_the_body_is(name: str) -> None:
    bare = Delivery.of([("Content-Type", "application/json")], b"not json")
    with pytest.raises(WebhookRefusedError) as caught:
        WEBHOOK_SOURCES[name](SETTINGS).verify(bare, SECRET, NOW)
    assert caught.value.hint


@every
@pytest.mark.parametrize("secret", ["", "short"])
def test_a_secret_that_can_be_guessed_lets_nobody_in(name: str, secret: str) -> None:
    with pytest.raises(WebhookRefusedError, match="too short"):
        WEBHOOK_SOURCES[name](SETTINGS).verify(delivery(name, secret=secret), secret, NOW)


@every
def test_a_body_that_is_delivered_again_has_the_same_number(name: str) -> None:
    again = WEBHOOK_SOURCES[name](SETTINGS).parse(delivery(name))
    assert again == parsed(name)
    assert again.pushes[0].delivery_id.startswith(f"{name}:")


@every
def test_what_is_no_push_is_ignored_with_the_reason(name: str) -> None:
    for changes in EXPECTED[name].no_pushes:
        contents = parsed(name, changed(EXPECTED[name].body, changes))
        assert contents.pushes == ()
        assert len(contents.ignored) == 1


@every
def test_a_body_of_something_else_is_refused(name: str) -> None:
    for key in EXPECTED[name].broken:
        with pytest.raises(InputError):
            parsed(name, changed(EXPECTED[name].body, {key: None}) if key else {})


@every
@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"1", b"\xff", b"[" * 100_000, b'{"a": NaN}', b"9" * 10_000,
     b'{"events": {}}', b'{"events": [1]}', b'{"image": ["a"]}', b'{"type": {}}'],
)  # fmt: skip
def test_what_is_no_body_at_all_is_refused(name: str, data: bytes) -> None:
    headers = [("Content-Type", "application/json"), *EXPECTED[name].headers]
    with pytest.raises(InputError):
        WEBHOOK_SOURCES[name](SETTINGS).parse(Delivery.of(headers, data))


@every
def test_a_form_is_refused_with_the_remedy(name: str) -> None:
    headers = [("Content-Type", "application/x-www-form-urlencoded"), *EXPECTED[name].headers]
    with pytest.raises(InputError, match="form") as caught:
        WEBHOOK_SOURCES[name](SETTINGS).parse(Delivery.of(headers, b"payload=%7B%7D"))
    assert "application/json" in caught.value.hint


# Where each body names the repository, and how; where the tag stands, if on its own
NAMES: dict[str, tuple[str, str, str]] = {
    "distribution": ("events.0.target.repository", "{}", "events.0.target.tag"),
    "harbor": ("event_data.resources.0.resource_url", "harbor.example.org/{}:1", ""),
    "gitlab": ("project.path_with_namespace", "{}", ""),
    "github": ("registry_package.package_version.package_url", "ghcr.io/{}:1", ""),
    "generic": ("image", "ghcr.io/{}:1", ""),
}
TRICKS = ["..", "../../etc/passwd", "a/../../b", "/etc", "a//b", "a b", "a|b", "a\nb", "-rf", "",
          "a\x00", "a/b;id", "$(id)", "\ud800", "a" * 2000, "a@b", "ä", f"a@{DIGEST}"]  # fmt: skip


@every
@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_in_a_name_becomes_an_image(name: str, trick: str) -> None:
    repository, form, tag = NAMES[name]
    changes = [{repository: form.format(trick)}] + ([{tag: trick}] if tag else [])
    for change in changes:
        assert pushes_in(name, changed(EXPECTED[name].body, change)) == ()


def pushes_in(name: str, body: Json) -> tuple[Push, ...]:
    """Return the pushes of a body; none if it is refused."""
    try:
        return parsed(name, body).pushes
    except InputError:
        return ()


@every
@given(data=st.data())
def test_any_change_of_a_body_is_refused_ignored_or_a_push(name: str, data: st.DataObject) -> None:
    leaves = list(paths(EXPECTED[name].body))
    path = data.draw(st.sampled_from(leaves))
    value: Json = data.draw(st.text(max_size=9) | st.integers() | st.booleans() | st.just([]))
    for push in pushes_in(name, changed(EXPECTED[name].body, {path: value})):
        assert str(Reference.parse(f"{push.registry}/{push.repository}:{push.tag or 'x'}"))


def paths(value: Json, before: str = "") -> list[str]:
    if isinstance(value, dict) and value:
        return [path for key in value for path in paths(value[key], f"{before}{key}.")]
    if isinstance(value, list) and value:
        return [path for at, each in enumerate(value) for path in paths(each, f"{before}{at}.")]
    return [before.removesuffix(".")]


# ---------------------------------------------------------------- each its own


def test_the_registry_of_a_body_can_be_another_in_wishlists() -> None:
    mapped = HookSettings(hosts={"192.168.100.227:5000": "registry.example.org"})
    assert parsed("distribution", settings=mapped).pushes[0].registry == "registry.example.org"


def test_a_registry_that_a_body_does_not_name_must_be_configured() -> None:
    contents = parsed("gitlab", settings=HookSettings())
    assert contents.pushes == ()
    assert "names no registry" in contents.ignored[0]
    nameless = changed(DISTRIBUTION, {"events.0.request.host": "registry"})
    contents = parsed("distribution", nameless)
    assert "is no registry" in contents.ignored[0]
    named = HookSettings(hosts={"registry": "registry.example.org"})
    assert parsed("distribution", nameless, named).pushes[0].registry == "registry.example.org"


def test_docker_hub_has_one_name() -> None:
    body = {"images": ["registry.hub.docker.com/library/debian:12", "debian:12"]}
    (push,) = parsed("generic", body).pushes
    assert (push.registry, push.repository, push.tag) == ("docker.io", "library/debian", "12")


def test_harbors_cloud_events_say_the_same() -> None:
    (push,) = parsed("harbor", HARBOR_CLOUD_EVENT).pushes
    assert (push.registry, push.repository, push.tag, push.digest) == (
        "harbor.example.org",
        "group/hello-world",
        "latest",
        DIGEST,
    )


def test_harbors_secret_may_be_a_bearer_token() -> None:
    sent = delivery("harbor", sign=token("Authorization", "Bearer "))
    WEBHOOK_SOURCES["harbor"](SETTINGS).verify(sent, SECRET, NOW)


def test_the_pipeline_of_a_project_concerns_all_its_images() -> None:
    (push,) = parsed("gitlab").pushes
    assert push.concerns("registry.example.org", "group/hello-world/sub/image")
    assert not push.concerns("registry.example.org", "group")


def test_the_notifications_of_gitlabs_registry_are_understood() -> None:
    sent = delivery("gitlab", DISTRIBUTION, sign=token("Authorization", "Bearer "))
    source = WEBHOOK_SOURCES["gitlab"](SETTINGS)
    source.verify(sent, SECRET, NOW)
    assert source.parse(sent).pushes == parsed("distribution").pushes


def test_github_says_the_same_in_the_event_package_and_without_a_url() -> None:
    package = deepcopy(GITHUB["registry_package"])
    del package["package_version"]["package_url"]
    body = json.dumps({"action": "published", "package": package}).encode()
    sent = Delivery.of([("x-github-event", "package"), ("content-type", "application/json")], body)
    (push,) = WEBHOOK_SOURCES["github"](SETTINGS).parse(sent).pushes
    assert (push.registry, push.repository, push.tag) == ("ghcr.io", "group/hello-world", "latest")
    assert push.digest == DIGEST


def test_githubs_ping_is_ignored() -> None:
    sent = Delivery.of([("x-github-event", "ping")], b'{"zen": "Keep it logically awesome."}')
    contents = WEBHOOK_SOURCES["github"](SETTINGS).parse(sent)
    assert contents.pushes == ()
    assert contents.ignored == ("an event of the kind 'ping'",)


def test_github_never_speaks_for_another_registry() -> None:
    change = {"registry_package.package_version.package_url": "evil.example.org/a/b:1"}
    (push,) = parsed("github", changed(GITHUB, change)).pushes
    assert (push.registry, push.repository) == ("ghcr.io", "group/hello-world")


@pytest.mark.parametrize("minutes", [-6, 6, 10**6])
def test_what_was_signed_long_ago_is_refused(minutes: int) -> None:
    sent = delivery("generic", sign=signed_with_time(NOW - timedelta(minutes=minutes)))
    with pytest.raises(WebhookRefusedError, match="signed at"):
        WEBHOOK_SOURCES["generic"](SETTINGS).verify(sent, SECRET, NOW)


def test_the_time_is_signed_too() -> None:
    sent = delivery("generic", sign=signed_with_time(NOW - timedelta(hours=1)))
    later = Delivery({**sent.headers, "x-timestamp": str(int(NOW.timestamp()))}, sent.body)
    with pytest.raises(WebhookRefusedError, match="signature"):
        WEBHOOK_SOURCES["generic"](SETTINGS).verify(later, SECRET, NOW)


@pytest.mark.parametrize("timestamp", ["", "now", "-1", "1e9", "9" * 13, "²"])
def test_a_time_that_is_none_is_refused(timestamp: str) -> None:
    body = b"{}"
    signed = hmac_of("X-Signature-256")(timestamp.encode() + b"." + body, SECRET)
    sent = Delivery.of({**signed, "X-Timestamp": timestamp}.items(), body)
    with pytest.raises(WebhookRefusedError):
        WEBHOOK_SOURCES["generic"](SETTINGS).verify(sent, SECRET, NOW)


def test_the_generic_body_may_name_several_images_and_be_sent_with_a_token() -> None:
    body = {"images": ["ghcr.io/a/b:1", "ghcr.io/a/b:2", "ghcr.io/a/b:1", "ghcr.io/A/b:1"]}
    sent = delivery("generic", body, sign=token("Authorization", "Bearer "))
    source = WEBHOOK_SOURCES["generic"](SETTINGS)
    source.verify(sent, SECRET, NOW)
    with pytest.raises(InputError, match="is not a repository"):
        source.parse(sent)
    body["images"].pop()
    contents = source.parse(delivery("generic", body))
    assert [push.tag for push in contents.pushes] == ["1", "2"]


@pytest.mark.parametrize(
    "body",
    [{"image": "a/b:1", "colour": "red"}, {"images": ["a/b"], "digest": 1}, {"images": "a/b"},
     {"images": ["a/b:1", "a/b:2"], "digest": str(DIGEST)}, {"images": [1]}],
)  # fmt: skip
def test_a_generic_body_is_read_strictly(body: Json) -> None:
    with pytest.raises(InputError):
        parsed("generic", body)


def test_a_digest_that_is_none_is_ignored() -> None:
    contents = parsed("distribution", changed(DISTRIBUTION, {"events.0.target.digest": "md5:1"}))
    assert contents.pushes == ()
    assert "is not a sha256" in contents.ignored[0]


def test_events_of_one_body_are_bounded() -> None:
    body = {"events": DISTRIBUTION["events"] * (MAX_PUSHES + 1)}
    with pytest.raises(InputError, match="more than 1000 events"):
        parsed("distribution", body)
    body["events"].pop()
    assert len(parsed("distribution", body).pushes) == 1


def test_a_body_is_bounded_and_no_header_is_given_twice() -> None:
    with pytest.raises(InputError, match="bytes"):
        Delivery.of([], b" " * (MAX_BODY + 1))
    with pytest.raises(InputError, match="twice"):
        Delivery.of([("Authorization", "a"), ("authorization", "b")], b"")
