"""One publisher, several repositories: filters, roots of sites, layers that are fetched once."""

from __future__ import annotations

import json
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.registry import FakeRegistry
from tests.images import Tar
from tests.regions import AMERICA, EUROPE, LAB, make_regions
from tests.unit.cli.support import Shell

SECRET = "a-secret-of-the-tests-long-enough"


def layer(name: str, data: bytes = b"content") -> bytes:
    tar = Tar()
    tar.file(name, data)
    return tar.done()


@pytest.fixture(scope="session")
def _new_regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_regions(tmp_path_factory.mktemp("regions")).cwd


@pytest.fixture
def regions(tmp_path: Path, _new_regions: Path) -> Shell:
    shutil.copytree(_new_regions, tmp_path, dirs_exist_ok=True, symlinks=True)
    return Shell(tmp_path)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        base = layer("base", b"in all images")
        registry.add_image("a/one", [base, layer("one", b"1" * 70_000)], tag="1")
        registry.add_image("a/two", [base, layer("two", b"2")], tag="1")
        registry.add_image("b/cuda", [base, layer("cuda", b"3")], tag="1")
        labels = {"Labels": {"org.opencontainers.image.licenses": "Vendor-NonFree"}}
        registry.add_image("a/bought", [base], {"config": labels}, tag="1")
        yield registry


def fetched(registry: FakeRegistry) -> Counter[str]:
    """Return how often each layer was fetched, by its digest."""
    paths = [request.path for request in registry.find("GET", "/blobs/")]
    return Counter(
        digest
        for path in paths
        if registry.blobs[digest := path.rpartition("/")[2]].startswith(b"\x1f\x8b")
    )


def names_in(shell: Shell, repository: str) -> set[str]:
    """Return repository and tag of what is published, without the registry."""
    document = shell.json("--repository", repository, "list")
    assert document["repository"] == repository
    return {image["reference"].partition("/")[2] for image in document["images"]}


def test_an_image_gets_into_every_repository_whose_rules_let_it_and_its_layers_come_once(
    regions: Shell, registry: FakeRegistry
) -> None:
    images = [registry.name(each, "1") for each in ("a/one", "a/two", "b/cuda", "a/bought")]
    document = regions.json("publish", *images)
    europe, america, lab = document["repositories"]
    assert [each["repository"] for each in document["repositories"]] == [EUROPE, AMERICA, LAB]
    assert names_in(regions, EUROPE) == {"a/one:1", "a/two:1", "a/bought:1"}
    assert names_in(regions, AMERICA) == {"a/one:1", "a/two:1", "b/cuda:1"}
    assert names_in(regions, LAB) == {"a/one:1", "a/two:1", "a/bought:1"}
    statuses = [image["status"] for image in europe["images"]]
    assert statuses == ["published", "published", "refused", "published"]
    error = europe["images"][2]["error"]
    assert error["kind"] == "compliance"
    assert EUROPE in error["message"]
    assert "because: the licence covers America only" in error["message"]
    assert "change `repositories.eu.example.org.refuse`" in error["hint"]
    assert "(here 'Vendor-NonFree'), because: no export" in america["images"][3]["error"]["message"]
    assert "`accept` is for */a/*" in lab["images"][2]["error"]["message"]
    # each layer, each image's configuration, manifest and digest are asked for once
    assert sorted(fetched(registry).values()) == [1, 1, 1, 1]
    assert registry.count("GET", "/blobs/") == 4 + 4
    assert registry.count("GET", "/manifests/") == 4
    assert registry.count("HEAD", "/manifests/") == 4
    assert list((regions.cwd / "state" / "blobs").iterdir()) == []
    for image in [*europe["images"], *america["images"], *lab["images"]]:
        if image["status"] == "published":
            assert regions.run("-r", EUROPE, "check").code == 0
    tree = regions.cwd / "repositories" / LAB / images[0]
    assert (tree / "one").read_bytes() == b"1" * 70_000


def test_sites_make_the_roots_of_their_own_repository(
    regions: Shell, registry: FakeRegistry
) -> None:
    document = regions.json("publish", registry.name("a/one", "1"))
    europe, america, lab = (
        set(each["images"][0]["roots_added"]) for each in document["repositories"]
    )
    assert europe - lab == {"/fs/europe"}
    assert america - lab == {"/fs/america"}


def test_one_repository_has_the_document_that_it_always_had(
    regions: Shell, registry: FakeRegistry
) -> None:
    document = regions.json("publish", "-r", AMERICA, registry.name("a/one", "1"))
    assert (document["repository"], document["revision"]) == (AMERICA, 2)
    assert "repositories" not in document
    assert names_in(regions, EUROPE) == set()


def test_an_image_that_no_repository_accepts_fails_and_asks_nobody(
    regions: Shell, registry: FakeRegistry
) -> None:
    ran = regions.run("publish", "-r", EUROPE, "-r", LAB, registry.name("b/cuda", "1"))
    assert ran.code == 2
    assert ran.out == ""
    assert ran.err.count("may not get into") == 2
    assert registry.requests == []
    chosen = regions.run("publish", "-r", EUROPE, registry.name("b/cuda", "1"))
    assert chosen.code == 2
    assert "because: the licence covers America only" in chosen.err


def test_a_repository_that_cannot_be_written_holds_nobody_else_back(
    regions: Shell, registry: FakeRegistry
) -> None:
    storage = regions.cwd / "repositories" / AMERICA
    storage.rename(storage.with_name("away"))
    ran = regions.run("--json", "publish", registry.name("a/one", "1"))
    assert ran.code == 6
    assert ran.document["repositories"][1]["error"]["kind"] == "repository"
    assert names_in(regions, EUROPE) == names_in(regions, LAB) == {"a/one:1"}
    storage.with_name("away").rename(storage)
    assert regions.run("publish", registry.name("a/one", "1")).code == 0
    assert names_in(regions, AMERICA) == {"a/one:1"}


def test_a_command_for_one_repository_says_which_there_are(regions: Shell) -> None:
    ran = regions.run("history", "ghcr.io/a/one:1")
    assert ran.code == 2
    assert f"3 repositories, and this is done in one: {EUROPE}, {AMERICA}, {LAB}" in ran.err
    assert "hint: say which: --repository NAME" in ran.err
    wrong = regions.run("-r", "eu.exampel.org", "list")
    assert wrong.code == 2
    assert f"did you mean '{EUROPE}'?" in wrong.err


def test_list_check_info_gc_and_replicas_are_about_all(
    regions: Shell, registry: FakeRegistry
) -> None:
    image = registry.name("a/one", "1")
    regions.json("publish", image)
    listed = regions.run("list")
    assert [line for line in listed.out.splitlines() if line.endswith(":")] == [
        *(f"{EUROPE}:", f"{AMERICA}:", f"{LAB}:")
    ]
    assert listed.out.count(f"\n{image}  ") == 3
    for command in (["check"], ["info"], ["gc", "--dry-run"]):
        document = regions.json(*command)
        assert [each["repository"] for each in document["repositories"]] == [EUROPE, AMERICA, LAB]
    ran = regions.run("replicas")
    assert ran.code == 2
    assert ran.err.count("names no replicas of") == 2


def test_what_is_published_and_no_longer_allowed_is_reported_and_stays(
    regions: Shell, registry: FakeRegistry
) -> None:
    regions.json("publish", registry.name("a/bought", "1"))
    path = regions.cwd / "cvmfs-publish.yaml"
    rule = '      - labels: {org.opencontainers.image.licenses: ["Vendor*"]}\n'
    path.write_text(path.read_text().replace("    refuse:\n", f"    refuse:\n{rule}", 1))
    checked = regions.run("--json", "check")
    assert checked.code == 6
    (problem,) = checked.document["repositories"][0]["problems"]
    assert "may not get into eu.example.org" in problem["text"]
    assert "cvmfs-publish unpublish" in problem["text"]
    assert names_in(regions, EUROPE) == {"a/bought:1"}
    again = regions.json("publish", "-r", EUROPE, registry.name("a/bought", "1"), code=2)
    assert again["images"][0]["status"] == "refused"


def test_no_name_goes_back_to_what_is_not_allowed(regions: Shell, registry: FakeRegistry) -> None:
    image = registry.name("a/one", "1")
    regions.json("publish", "-r", EUROPE, image)
    registry.add_image("a/one", [layer("new")], tag="1")
    regions.json("publish", "-r", EUROPE, image)
    path = regions.cwd / "cvmfs-publish.yaml"
    path.write_text(path.read_text().replace('"*/*cuda*"', '"*/*one*"', 1))
    ran = regions.run("-r", EUROPE, "rollback", image)
    assert ran.code == 2
    assert "may not get into" in ran.err
    events = regions.json("-r", EUROPE, "history", image)["events"]
    assert [event["what"] for event in events] == ["published", "published"]


def test_another_name_does_not_get_an_image_past_the_rules(
    regions: Shell, registry: FakeRegistry
) -> None:
    for name in ("registry.example.org/a/harmless:1", registry.name("a/harmless", "1")):
        ran = regions.run(
            *("publish", "-r", EUROPE, f"docker://{registry.name('b/cuda', '1')}", "--as", name)
        )
        assert ran.code == 2, ran
        assert "may not get into" in ran.err


def test_init_adds_a_repository_and_leaves_the_others_as_they_are(
    regions: Shell, registry: FakeRegistry
) -> None:
    path = regions.cwd / "cvmfs-publish.yaml"
    before = path.read_text()
    regions.json("init", "asia.example.org", "--hash", "rmd160")
    text = path.read_text()
    assert [line for line in text.splitlines() if line not in before.splitlines()] == [
        *("  asia.example.org:", "    storage: repositories/asia.example.org"),
        *("    keys: keys", "    hash: rmd160"),
    ]
    assert "# what comes first is published first" in text
    document = regions.json("publish", registry.name("a/one", "1"))
    assert len(document["repositories"]) == 4
    ran = regions.run("init", "asia.example.org")
    assert ran.code == 2
    assert "has the repository asia.example.org already" in ran.err


# ---------------------------------------------------------------- watch


def test_init_makes_what_the_file_describes(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    config = tmp_path / "cvmfs-publish.yaml"
    config.write_text(
        "repositories:\n  a.example.org:\n    storage: here\n    keys: secret\n    hash: shake128\n"
        "  b.example.org: {backend: directory, storage: tree}\n"
    )
    before = config.read_text()
    for name in ("a.example.org", "b.example.org"):
        ran = shell.run("init", name, "--adopt")
        assert ran.code == 2, ran
        assert f"--adopt is for a new repository, and {config} describes {name}" in ran.err
        assert shell.run("init", name).code == 0
        assert "already, and it exists" in shell.run("init", name).err
    assert config.read_text() == before
    assert (tmp_path / "here" / ".cvmfspublished").is_file()
    assert (tmp_path / "secret" / "a.example.org.key").is_file()
    assert shell.json("-r", "a.example.org", "info")["root_hash"].endswith("-shake128")
    assert shell.run("check").code == 0
    (tmp_path / "tree" / ".cvmfs-publish" / "repository.json").unlink()
    ran = shell.run("init", "b.example.org")
    assert (ran.code, "is not empty" in ran.err) == (2, True), ran


def wish(shell: Shell, *images: str) -> None:
    lines = "".join(f"  - {image}\n" for image in images)
    (shell.cwd / "images.yaml").write_text(f"version: 1\nimages:\n{lines}")
    path = shell.cwd / "cvmfs-publish.yaml"
    path.write_text(path.read_text() + "wishlists: [images.yaml]\n")


def test_one_watcher_serves_all_and_asks_about_each_tag_once(
    regions: Shell, registry: FakeRegistry
) -> None:
    wish(regions, *(registry.name(each, "1") for each in ("a/one", "a/two", "b/cuda", "a/bought")))
    document = regions.json("watch", "--once")
    europe, america, lab = document["repositories"]
    assert europe == {"repository": EUROPE, "images": {"published": 3}}
    # what its labels keep out is known when it is to be published, and no failure
    assert america["images"] == {"published": 3, "quarantined": 1}
    assert lab["images"] == {"published": 3}
    assert names_in(regions, EUROPE) == {"a/one:1", "a/two:1", "a/bought:1"}
    assert names_in(regions, AMERICA) == {"a/one:1", "a/two:1", "b/cuda:1"}
    assert names_in(regions, LAB) == {"a/one:1", "a/two:1", "a/bought:1"}
    assert sorted(fetched(registry).values()) == [1, 1, 1, 1]
    asked = registry.count("HEAD", "/manifests/")
    regions.json("watch", "--once")
    assert registry.count("HEAD", "/manifests/") == asked + 4
    assert list((regions.cwd / "state" / "blobs").iterdir()) == []


def test_a_repository_that_is_broken_holds_no_other_back_when_all_are_looked_at_once(
    regions: Shell, registry: FakeRegistry
) -> None:
    image = registry.name("a/one", "1")
    wish(regions, image)
    manifest = regions.cwd / "repository" / ".cvmfspublished"
    manifest.rename(manifest.with_name("away"))
    document = regions.json("watch", "--once", code=6)
    errors = {each["repository"]: "error" in each for each in document["repositories"]}
    assert errors == {EUROPE: True, AMERICA: False, LAB: False}
    assert names_in(regions, AMERICA) == names_in(regions, LAB) == {"a/one:1"}
    ran = regions.run("watch", "--once")
    assert (ran.code, f"{EUROPE}: {manifest.parent} holds no repository" in ran.err) == (6, True), (
        ran
    )
    ran = regions.run("--repository", EUROPE, "watch", "--once")
    assert ran.code == 5, ran
    manifest.with_name("away").rename(manifest)
    assert regions.run("watch", "--once").code == 0
    assert names_in(regions, EUROPE) == {"a/one:1"}


@contextmanager
def watching(regions: Shell) -> Iterator[dict[str, Any]]:
    """Run the service; yield what it says first."""
    with (
        (regions.cwd / "log").open("w") as log,
        regions.spawn(*("--json", "watch", "--listen", "127.0.0.1:0"), stderr=log) as process,
    ):
        assert process.stdout is not None
        text = ""
        while not text.endswith("\n}\n"):
            line = process.stdout.readline()
            assert line, (regions.cwd / "log").read_text()
            text += line
        said = json.loads(text)
        assert "error" not in said, said
        yield said
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (regions.cwd / "log").read_text()


def ask(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data: bytes = answer.read()
            return data
    except urllib.error.HTTPError as error:
        return error.read()


def tell_push(url: str, image: str) -> dict[str, Any]:
    """Tell of a push as a pipeline does."""
    body = json.dumps({"image": image}).encode()
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/hooks/generic", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        document: dict[str, Any] = json.load(answer)
        return document


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_service_publishes_a_push_everywhere_and_tells_of_all(
    regions: Shell, registry: FakeRegistry
) -> None:
    (regions.cwd / "hook").write_text(SECRET)
    (regions.cwd / "hook").chmod(0o400)
    path = regions.cwd / "cvmfs-publish.yaml"
    text = path.read_text().replace(f"  {EUROPE}:\n", f"  {EUROPE}:\n    listen: 127.0.0.1:0\n", 1)
    path.write_text(f"{text}webhooks: {{secret_file: hook}}\nnotify: [{{file: events}}]\n")
    image = registry.name("a/one", "1")
    wish(regions, image)
    with watching(regions) as said:
        assert [each["repository"] for each in said["repositories"]] == [EUROPE, AMERICA, LAB]
        front, site = said["url"], said["repositories"][0]["url"]

        def counts() -> list[dict[str, int]]:
            listed = json.loads(ask(f"{front}/api/repositories"))["repositories"]
            return [each["images"] for each in listed]

        wait_until(lambda: counts() == [{"published": 1}] * 3)
        registry.add_image("a/one", [layer("new", b"9" * 50_000)], tag="1")
        assert tell_push(front, image)["accepted"] == 1
        wait_until(
            lambda: all(
                len(regions.json("-r", name, "history", image)["events"]) == 2
                for name in (EUROPE, AMERICA, LAB)
            )
        )
        wait_until(lambda: counts() == [{"published": 1}] * 3)
        assert set(fetched(registry).values()) == {1}
        health = json.loads(ask(f"{front}/healthz"))
        assert health["ok"], health
        assert [len(each["checks"]) for each in health["repositories"]] == [5, 5, 3]
        figures = ask(f"{front}/metrics").decode()
        for name in (EUROPE, AMERICA, LAB):
            assert f'cvmfs_publish_images{{repository="{name}",status="published"}} 1.0' in figures
        assert figures.count("# HELP cvmfs_publish_images ") == 1
        assert EUROPE.encode() in ask(site)
        assert json.loads(ask(f"{front}/"))["repositories"][0]["site"] == site
        assert json.loads(ask(f"{front}/nowhere"))["status"] == 404
    events = [json.loads(line) for line in (regions.cwd / "events").read_text().splitlines()]
    assert {event["repository"] for event in events} == {EUROPE, AMERICA, LAB}


def test_what_is_wished_is_tried_again_wherever_it_is_wished(
    regions: Shell, registry: FakeRegistry
) -> None:
    image = registry.name("b/cuda", "1")
    wish(regions, image)
    assert regions.run("watch", "--once").code == 0
    document = regions.json("watch", "--retry", image)
    queued = {each["repository"]: len(each["images"]) for each in document["repositories"]}
    assert queued == {EUROPE: 0, AMERICA: 1, LAB: 0}
    assert "nobody wishes" in regions.run("watch", "--retry", "ghcr.io/no/wish:1").err


def test_people_are_told_repository_by_repository(regions: Shell, registry: FakeRegistry) -> None:
    images = [registry.name(each, "1") for each in ("a/one", "b/cuda")]
    ran = regions.run("publish", *images)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert [lines.index(f"{name}:") for name in (EUROPE, AMERICA, LAB)] == [0, 3, 6]
    assert [line.partition("  ")[0] for line in lines if not line.endswith(":")] == [
        *("published", "refused", "published", "published", "published", "refused")
    ]
    assert "error" not in ran.err


def test_resign_and_replicas_are_about_the_repositories_that_have_such_things(
    regions: Shell,
) -> None:
    document = regions.json("resign")
    assert [each["repository"] for each in document["repositories"]] == [EUROPE, AMERICA]
    path = regions.cwd / "cvmfs-publish.yaml"
    replica = f"    replicas: [http://127.0.0.1:9/cvmfs/{EUROPE}]\n"
    path.write_text(path.read_text().replace(f"  {EUROPE}:\n", f"  {EUROPE}:\n{replica}", 1))
    document = regions.json("replicas")
    (only,) = document["repositories"]
    assert only["repository"] == EUROPE
    assert [each["health"] for each in only["replicas"]] != ["ok"]
    ran = regions.run("resign", "--request", "file")
    assert ran.code == 2
    assert "this is done in one" in ran.err


def test_doctor_looks_at_every_repository(regions: Shell) -> None:
    ran = regions.run("--json", "doctor", "--offline")
    assert [each["repository"] for each in ran.document["repositories"]] == [EUROPE, AMERICA, LAB]
    assert all(each["checks"] for each in ran.document["repositories"])
    (regions.cwd / "cvmfs-publish.yaml").write_text("repositories: {}\n")
    wrong = regions.run("--json", "doctor", "--offline")
    assert wrong.code == 2
    assert "names no repository" in json.dumps(wrong.document["checks"])
