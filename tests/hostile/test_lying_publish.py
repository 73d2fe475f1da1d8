"""Whatever a registry does, readers see the revision they saw, and the next honest try succeeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.sources.registry.budget import Budgets
from tests.fakes.registry import (
    Change,
    FakeRegistry,
    Reply,
    body,
    chunked,
    cut,
    html,
    redirect,
    status,
    tar_of,
    with_header,
    wrong_bytes,
)
from tests.support import assert_sound, site

pytestmark = pytest.mark.slow
CONTENT = bytes(range(256)) * 400


def longer(reply: Reply) -> Reply:
    return replace(reply, body=reply.body + b"x" * 100_000, chunked=True)


def another_size(reply: Reply) -> Reply:
    """The manifest says one byte less of a layer than there is."""
    document = json.loads(reply.body)
    document["layers"][0]["size"] -= 1
    return replace(reply, body=json.dumps(document).encode())


# What is changed, in answers to which path, and whose fault that is
LIES: dict[str, tuple[str, Change, type[PublishError]]] = {
    "a manifest with a bit changed": ("/manifests/", wrong_bytes(), IntegrityError),
    "another size in the manifest": ("/manifests/", another_size, IntegrityError),
    "another type": ("/manifests/", with_header("Content-Type", "image/png"), PublishError),
    "a manifest that is a web page": ("/manifests/", html(), RemoteError),
    "a layer that is a web page": ("/blobs/", html(), RemoteError),
    "a layer with a bit changed": ("/blobs/", wrong_bytes(), IntegrityError),
    "a layer cut short": ("/blobs/", cut(50), RemoteError),
    "a layer that goes on": ("/blobs/", longer, IntegrityError),
    "an empty layer": ("/blobs/", body(b""), PublishError),
    "a layer of unknown length cut short": (
        "/blobs/",
        lambda reply: chunked()(cut(50)(reply)),
        RemoteError,
    ),
    "a redirect to a file": ("/blobs/", redirect("file:///etc/passwd"), RemoteError),
    "a redirect in a circle": ("/blobs/", redirect("?again"), RemoteError),
    "too many requests without a wait": ("/blobs/", status(429), RemoteError),
    "a storm of errors": ("/blobs/", status(503), RemoteError),
    "no such layer": ("/blobs/", status(404), RemoteError),
}


def test_readers_see_the_old_revision_whatever_the_registry_does(tmp_path: Path) -> None:
    passwd = Path("/etc/passwd").read_bytes()
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = f"{registry.host}/a/one:1"
        registry.add_image("a/one", layers=[tar_of({"old": CONTENT})], tag="1")
        old = target.publish(name)
        with target.repository.open() as view:
            link = view.read_symlink(name)
        registry.add_image("a/one", layers=[tar_of({"new": CONTENT[::-1]})], tag="1")
        for what, (path, change, family) in LIES.items():
            registry.be_honest()
            target.client.budgets = Budgets()  # else it would not be asked for some minutes
            registry.fault("GET", path, change, times=None)
            result = target.publish(name)
            (image,) = result.images
            assert (image.status, result.revision) == ("failed", old.revision), what
            assert isinstance(image.error, family), (what, image.error)
            assert registry.host in str(image.error), what
            with target.repository.open() as view:
                assert view.read_symlink(name) == link, what
        assert_sound(target)
        registry.be_honest()
        target.client.budgets = Budgets()
        new = target.publish(name)
        assert (new.images[0].status, new.revision) == ("published", old.revision + 1)
        assert_sound(target)
    assert Path("/etc/passwd").read_bytes() == passwd


def test_a_tag_that_moves_while_it_is_published_gives_one_of_the_two(tmp_path: Path) -> None:
    with FakeRegistry() as registry, site(tmp_path) as target:
        name = f"{registry.host}/a/one:1"
        first = registry.add_image("a/one", layers=[tar_of({"first": b"1"})], tag="1")

        def move() -> None:
            registry.add_image("a/one", layers=[tar_of({"second": b"2"})], tag="1")

        registry.before("GET", "/manifests/", move)
        (image,) = target.publish(name).images
        assert image.publication is not None, image.error
        assert image.publication.digest == str(first)
        with target.repository.open() as view:
            sandbox = image.publication.sandbox.lstrip("/")
            assert view.read_file(f"{sandbox}/first") == b"1"
            assert view.read_file(f"{sandbox}/second") is None
        assert_sound(target)
