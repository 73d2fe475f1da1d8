"""What Debian's docker-registry really posts after a push is understood, and nothing else is."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.watch.webhooks import (
    Delivery,
    DistributionHook,
    GenericHook,
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


def test_the_commands_of_the_documentation_send_what_is_understood() -> None:
    page = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text("utf-8")
    blocks = [block for block in page.split("\n\n") if block.startswith("    ") and "curl" in block]
    assert len(blocks) == 2
    with web_server() as server:
        for block in blocks:
            script = block.replace("https://publisher.example.org", server.url)
            parts.run(["bash", "-euc", script], env={"SECRET": SECRET, "PATH": os.environ["PATH"]})
        for asked in server.asked:
            delivery = Delivery.of(asked.headers.items(), asked.body)
            GenericHook().verify(delivery, SECRET, datetime.now(UTC))
            (told,) = GenericHook().parse(delivery).pushes
            assert (told.registry, told.repository, told.tag) == ("ghcr.io", "a/b", "1")
        assert ["x-signature-256" in asked.headers for asked in server.asked] == [False, True]
