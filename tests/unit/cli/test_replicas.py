"""`replicas` and `publish --wait-replicas`, with replicas that are served over HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cvmfs_publish.state.state import State
from tests.fakes.registry import FakeRegistry, tar_of
from tests.unit.cli.support import Shell
from tests.unit.cli.test_repository import NAME
from tests.unit.native.test_reader import served
from tests.unit.test_geo import geo_server

pytestmark = pytest.mark.slow


class Sites:
    """Two replicas of the repository in a folder, and how they are configured."""

    def __init__(self, home: Shell, stack: ExitStack) -> None:
        self.home = home
        self.folders = [home.cwd / "one", home.cwd / "two"]
        for folder in self.folders:
            self.fetch(folder)
        self.urls = [stack.enter_context(served(folder)) for folder in self.folders]
        with (home.cwd / "cvmfs-publish.yaml").open("a") as file:
            file.write(f"\nreplicas: [{', '.join(self.urls)}]\n")

    def fetch(self, folder: Path) -> None:
        shutil.copytree(self.home.cwd / "repository", folder, dirs_exist_ok=True)


@pytest.fixture
def sites(home: Shell) -> Iterator[Sites]:
    with ExitStack() as stack:
        yield Sites(home, stack)


@pytest.fixture
def image() -> Iterator[str]:
    with FakeRegistry() as found:
        found.add_image("a/one", [tar_of({"file": b"1"})], tag="1")
        yield found.name("a/one", "1")


def test_the_table_shows_each_replica(sites: Sites) -> None:
    ran = sites.home.run("replicas")
    assert ran.code == 0, ran
    lines = ran.out.splitlines()
    assert lines[0].split() == ["replica", "revision", "published", "behind", "late", "health"]
    for line, url in zip(lines[1:3], sites.urls, strict=True):
        assert line.split()[:2] == [url, "1"]
        assert line.split()[-4:] == ["0", "0", "s", "ok"]
    assert lines[3] == "1 is the newest revision"


def test_a_publish_ends_when_as_many_replicas_as_asked_for_have_it(
    sites: Sites, image: str
) -> None:
    ran = sites.home.run("publish", image, "--wait-replicas", "1", "--wait-timeout", "0s")
    assert ran.code == 3
    assert ran.out.startswith(f"published  {image}")
    assert "0 of 2 replicas have revision 2 after 0 seconds, 1 are wanted" in ran.err
    for url in sites.urls:
        assert f"{url}: has revision 1" in ran.err
    assert sites.home.json("info")["revision"] == 2  # published all the same
    sites.fetch(sites.folders[0])
    # once more, with nothing new: the waiting goes on
    document = sites.home.json("publish", image, "--wait-replicas", "1")
    assert document["revision"] == 2
    found = document["replicas"]
    assert (found["wanted_revision"], found["having"], found["error"]) == (2, 1, None)
    assert [each["health"] for each in found["replicas"]] == ["ok", "behind"]
    document = sites.home.json(
        *("publish", image, "--wait-replicas", "2", "--wait-timeout", "0s"), code=3
    )
    assert document["replicas"]["error"]["kind"] == "lagging"
    assert document["images"][0]["status"] == "unchanged"


def test_replicas_exits_with_3_unless_enough_have_it(sites: Sites, image: str) -> None:
    assert sites.home.run("publish", image).code == 0
    sites.fetch(sites.folders[0])
    assert sites.home.run("replicas").code == 0  # shown, nothing asked for
    assert sites.home.run("replicas", "--count", "1").code == 0
    ran = sites.home.run("replicas", "--count", "2")
    assert ran.code == 3
    assert f"1 of 2 replicas have revision 2, 2 are wanted; missing: {sites.urls[1]}: " in ran.err
    assert sites.home.run("replicas", "--wait", "1").code == 0
    assert sites.home.run("replicas", "--wait", "2", "--count", "1").code == 0
    document = sites.home.json("replicas", "--wait", "2", "--timeout", "0s", code=3)
    assert document["error"]["kind"] == "lagging"
    assert [each["behind"] for each in document["replicas"]] == [0, 1]
    assert document["repository"] == NAME


def test_an_image_that_fails_is_told_and_nothing_is_waited_for(sites: Sites, image: str) -> None:
    absent = image.replace("a/one", "a/none")
    ran = sites.home.run("publish", absent, "--wait-replicas", "2", "--wait-timeout", "0s")
    assert ran.code == 3
    assert "waited for" not in ran.err
    ran = sites.home.run("publish", image, absent, "--wait-replicas", "2", "--wait-timeout", "0s")
    assert ran.code == 6  # what failed is more than what is late
    assert "0 of 2 replicas have revision 2" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["replicas", "--timeout", "1m"], "--timeout without --wait"),
        (["replicas", "--count", "3"], "names only 2 of them"),
        (["publish", "IMAGE", "--wait-replicas", "3"], "names only 2 of them"),
        (["publish", "IMAGE", "--wait-timeout", "1m"], "without --wait-replicas"),
        (["publish", "IMAGE", "--wait-replicas", "1", "--dry-run"], "nothing is published"),
        (["replicas", "--wait", "2", "--timeout", "soon"], "a duration such as"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_happens(
    sites: Sites, image: str, words: list[str], said: str
) -> None:
    ran = sites.home.run(*(image if word == "IMAGE" else word for word in words))
    assert ran.code == 2, ran
    assert said in ran.err
    assert sites.home.json("info")["revision"] == 1


def test_without_replicas_there_is_nothing_to_wait_for(home: Shell) -> None:
    ran = home.run("replicas")
    assert ran.code == 2
    assert "names no replicas" in ran.err


def test_the_watcher_writes_down_how_far_replicas_are(sites: Sites, image: str) -> None:
    (sites.home.cwd / "images.yaml").write_text(f"version: 1\nimages:\n  - {image}\n")
    with (sites.home.cwd / "cvmfs-publish.yaml").open("a") as file:
        file.write("\nwishlists: [images.yaml]\n")
    assert sites.home.run("watch", "--once").code == 0
    with State.open(sites.home.cwd / "state") as state:
        assert [replica.revision for replica in state.replicas()] == [1, 1]
        assert [found.replicated_at for found in state.published()] == [None]
    for folder in sites.folders:
        sites.fetch(folder)
    assert sites.home.run("watch", "--once").code == 0
    with State.open(sites.home.cwd / "state") as state:
        assert [replica.revision for replica in state.replicas()] == [2, 2]
        assert [found.replicated_at is None for found in state.published()] == [False]


def test_the_order_in_which_clients_use_replicas_is_shown(home: Shell) -> None:
    with geo_server(home.cwd / "one") as first, geo_server(home.cwd / "two") as second:
        for server in (first, second):
            shutil.copytree(home.cwd / "repository", server.folder)
            server.answer = lambda _, __: (200, b"2,1\n")
        with (home.cwd / "cvmfs-publish.yaml").open("a") as file:
            file.write(f"\nreplicas: [{first.url}, {second.url}]\n")
        lines = home.run("replicas").out.splitlines()
        assert lines[0].split()[0] == "near"
        assert [line.split()[0] for line in lines[1:3]] == ["2", "1"]
        document = home.json("replicas")
        assert [each["geo_order"] for each in document["replicas"]] == [2, 1]
        assert (document["sorted_by"], document["not_sorted"]) == (first.url, None)
        first.answer = second.answer = lambda _, __: (200, json.dumps({}).encode())
        document = home.json("replicas")
        assert [each["geo_order"] for each in document["replicas"]] == [None, None]
        assert document["sorted_by"] is None
        assert "instead of an order of 2 replicas" in document["not_sorted"]
