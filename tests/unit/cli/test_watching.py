"""`watch --once`, `watch --retry`, and what is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cvmfs_publish.cli.registries import SHARE_EVERY, Registries
from cvmfs_publish.config import complete, load_config
from cvmfs_publish.reference import Reference
from cvmfs_publish.state.state import WatchLock
from tests.fakes.registry import FakeRegistry, tar_of
from tests.support import NAME, keys_of_this_run
from tests.unit.cli.support import Shell


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as found:
        found.add_image("a/one", [tar_of({"file": b"1"})], tag="1")
        yield found


@pytest.fixture
def home(tmp_path: Path, registry: FakeRegistry) -> Shell:
    shutil.copytree(keys_of_this_run(), tmp_path / "keys")
    shell = Shell(tmp_path)
    assert shell.run("init", NAME).code == 0
    wish(shell, registry.name("a/one", "1"))
    with (tmp_path / "cvmfs-publish.yaml").open("a") as file:
        file.write("\nwishlists: [images.yaml]\n")
    return shell


def wish(home: Shell, *names: str) -> None:
    lines = "".join(f"  - {name}\n" for name in names)
    (home.cwd / "images.yaml").write_text(f"version: 1\nimages:\n{lines}")


@pytest.mark.slow
def test_once_publishes_what_is_wished_and_then_asks_one_question(
    home: Shell, registry: FakeRegistry
) -> None:
    ran = home.run("watch", "--once")
    assert (ran.code, ran.out) == (0, "1 published\n"), ran.err
    assert registry.name("a/one", "1") in home.run("list").out
    before = len(registry.requests)
    ran = home.run("--json", "watch", "--once")
    assert (ran.code, ran.document) == (0, {"images": {"published": 1}})
    assert [request.method for request in registry.requests[before:]] == ["HEAD"]


@pytest.mark.slow
def test_once_says_what_could_not_be_published(home: Shell, registry: FakeRegistry) -> None:
    wish(home, registry.name("a/one", "1"), registry.name("a/none", "1"))
    ran = home.run("watch", "--once")
    assert ran.code == 6
    assert ran.out == "1 gone, 1 published\n"
    assert f"{registry.name('a/none', '1')} is not in the registry" in ran.err


def test_once_tells_a_list_that_cannot_be_read_and_a_line_that_cannot_be_used(home: Shell) -> None:
    (home.cwd / "images.yaml").unlink()
    ran = home.run("watch", "--once")
    assert ran.code == 6
    assert "images.yaml: cannot be read" in ran.err
    (home.cwd / "images.yaml").write_text("version: 1\nimages:\n  - no image!\n")
    ran = home.run("watch", "--once")
    assert ran.code == 6
    assert "images.yaml:3: 'no image!'" in ran.err
    (home.cwd / "images.yaml").write_text("version: 1\nimages: []\n")
    assert home.run("watch", "--once").code == 0


def test_once_without_wishes_does_nothing(home: Shell) -> None:
    (home.cwd / "images.yaml").write_text("version: 1\nimages: []\n")
    ran = home.run("watch", "--once")
    assert (ran.code, ran.out) == (0, "no wishlist wishes anything\n")


def test_a_second_watcher_is_refused_with_the_process_of_the_first(home: Shell) -> None:
    with WatchLock(home.cwd / "state"):
        ran = home.run("watch", "--once")
    assert ran.code == 5
    assert f"another watcher, process {os.getpid()}, works with" in ran.err
    assert "hint: stop it first" in ran.err


@pytest.mark.slow
def test_what_nobody_wishes_cannot_be_tried_again(home: Shell) -> None:
    home.run("watch", "--once")
    ran = home.run("watch", "--retry", "ghcr.io/no/wish:1")
    assert ran.code == 2
    assert "nobody wishes ghcr.io/no/wish:1" in ran.err


def test_an_address_that_is_none_is_refused(home: Shell) -> None:
    ran = home.run("watch", "--listen", "nonsense")
    assert (ran.code, ran.out) == (2, "")
    assert "'nonsense' is not an address to listen on" in ran.err


def test_a_folder_that_cannot_be_made_is_named(home: Shell) -> None:
    (home.cwd / "drop").write_text("a file")
    config = home.cwd / "cvmfs-publish.yaml"
    config.write_text(config.read_text().replace("#drop: drop", "drop: drop"))
    ran = home.run("watch", "--once")
    assert ran.code == 2
    assert "watch.drop" in ran.err


def test_what_a_publish_asks_counts_for_the_watcher_while_both_run(
    home: Shell, registry: FakeRegistry
) -> None:
    path = home.cwd / "cvmfs-publish.yaml"
    text = path.read_text().replace(
        "\nregistries:\n", f"\nregistries:\n  '{registry.host}': {{requests_per_hour: 50}}\n"
    )
    path.write_text(text)
    config = complete(load_config(path), {})
    now = datetime.now(UTC)
    with Registries(config, {}) as watcher, Registries(config, {}) as publish:
        assert watcher.budget(registry.host, now).remaining == 50
        for each in (publish, publish, watcher):
            each.source(registry.host).head(Reference.parse(registry.name("a/one", "1")))
        assert publish.budget(registry.host, now).remaining == 48
        for seconds in (1, 2):
            later = now + seconds * SHARE_EVERY
            assert watcher.budget(registry.host, later).remaining == 47
        assert publish.budget(registry.host, now + 3 * SHARE_EVERY).remaining == 47
