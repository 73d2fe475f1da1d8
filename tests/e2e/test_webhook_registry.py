"""What Debian's docker-registry really posts after a push is understood, and nothing else is."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.watch.webhooks import (
    Delivery,
    DistributionHook,
    GitLabHook,
    Push,
    WebhookRefusedError,
)
from tests import parts
from tests.fakes.web_server import Asked, WebServer, web_server
from tests.images import push, tiny_image
from tests.unit.cli.support import Shell

pytestmark = pytest.mark.parts
SECRET = "a secret of many letters"
NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def wait_for(server: WebServer, word: bytes) -> list[Asked]:
    """Return what was posted as soon as a body holds `word`."""
    deadline = time.monotonic() + 20
    while not any(word in asked.body for asked in server.asked):
        assert time.monotonic() < deadline, f"nothing with {word!r} was posted"
        time.sleep(0.02)
    return list(server.asked)


def pushes(asked: list[Asked]) -> list[Push]:
    found: dict[Push, None] = {}
    for each in asked:
        delivery = Delivery.of(each.headers.items(), each.body)
        for source in (DistributionHook(), GitLabHook()):
            source.verify(delivery, SECRET, NOW)
            assert source.parse(delivery) == DistributionHook().parse(delivery)
        found |= dict.fromkeys(DistributionHook().parse(delivery).pushes)
    return list(found)


def test_a_push_to_the_real_registry_is_one_push(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    tiny_image(layout)
    with (
        web_server() as server,
        parts.docker_registry(
            tmp_path, hook=f"{server.url}/hooks/distribution", authorization=f"Bearer {SECRET}"
        ) as registry,
    ):
        digest = push(layout, f"{registry.host}/group/tiny:latest")
        asked = wait_for(server, b'"tag"')
        (told,) = pushes(asked)
        assert (told.registry, told.repository) == (registry.host, "group/tiny")
        assert (told.tag, str(told.digest)) == ("latest", digest)
        stranger = Delivery.of(asked[0].headers.items(), asked[0].body)
        with pytest.raises(WebhookRefusedError):
            DistributionHook().verify(stranger, "another secret of letters", NOW)
        # and the list that wishes for it means that image
        (tmp_path / "list.yaml").write_text(
            f"version: 1\nimages: ['{registry.host}/group/tiny:l*']\n"
        )
        ran = Shell(tmp_path).run("wishlist", "expand", "list.yaml", "--json")
        assert ran.code == 0, ran.err
        (image,) = ran.document["images"]
        assert (image["reference"], image["digest"]) == (
            f"{registry.host}/group/tiny:latest",
            digest,
        )
