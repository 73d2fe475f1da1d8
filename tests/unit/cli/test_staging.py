"""`publish --name-after` and `switch`, with replicas that are served over HTTP."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cvmfs_publish.state.model import ImageKey
from cvmfs_publish.state.state import State
from tests.fakes.registry import FakeRegistry, tar_of
from tests.unit.cli.support import Shell
from tests.unit.cli.test_replicas import Sites

pytestmark = pytest.mark.slow

AT_ONCE = ("--wait-timeout", "0s")


class Staging(Sites):
    """Two replicas, and an image whose tag moves."""

    def __init__(self, home: Shell, stack: ExitStack) -> None:
        super().__init__(home, stack)
        self.registry = stack.enter_context(FakeRegistry())
        self.image = self.registry.name("a/one", "1")
        self.push(b"1")

    def push(self, content: bytes, name: str = "a/one") -> str:
        self.registry.add_image(name, [tar_of({"file": content})], tag="1")
        return self.registry.name(name, "1")

    def leads_to(self, image: str = "") -> str | None:
        images = self.home.json("list")["images"]
        return next((e["digest"] for e in images if e["reference"] == (image or self.image)), None)

    def staged(self) -> list[str]:
        return [each["digest"] for each in self.home.json("list")["staged"]]

    def fetch_all(self) -> None:
        for folder in self.folders:
            self.fetch(folder)

    def configure(self, text: str) -> None:
        with (self.home.cwd / "cvmfs-publish.yaml").open("a") as file:
            file.write(f"\n{text}\n")


@pytest.fixture
def sites(home: Shell) -> Iterator[Staging]:
    with ExitStack() as stack:
        yield Staging(home, stack)


def test_a_name_follows_when_enough_replicas_have_the_image(sites: Staging) -> None:
    home = sites.home
    ran = home.run("publish", sites.image, "--name-after", "1", *AT_ONCE)
    assert ran.code == 3, ran
    assert ran.out.startswith(f"staged  {sites.image}  /.flat/")
    assert f"where /{sites.image} will lead" in ran.out
    assert (
        f"{sites.image} waits: 0 of 2 replicas have revision 2, 1 are wanted; missing: "
    ) in ran.err
    assert sites.leads_to() is None
    sites.fetch(sites.folders[0])
    document = home.json("publish", sites.image, "--name-after", "1")
    (image,) = document["images"]
    assert (image["status"], image["staged"]) == ("published", None)
    assert document["revision"] == 3  # in which the name is: what jobs are to ask for
    assert sites.leads_to() == image["digest"]
    assert sites.staged() == []
    (unchanged,) = home.json("publish", sites.image, "--name-after", "1")["images"]
    assert unchanged["status"] == "unchanged"
    assert home.json("info")["revision"] == 3


def test_what_waits_is_told_wherever_the_name_is(sites: Staging) -> None:
    home = sites.home
    home.json("publish", sites.image)
    first = sites.leads_to()
    sites.push(b"2")
    document = home.json("publish", sites.image, "--name-after", "2", *AT_ONCE, code=3)
    (image,) = document["images"]
    assert image["status"] == "staged"
    assert image["staged"] == {"revision": 3, "replicas": 2}
    assert document["replicas"]["error"]["kind"] == "lagging"
    assert document["replicas"]["wanted"] == 2
    (listed,) = home.json("list")["staged"]
    assert (listed["digest"], listed["replicas"], listed["revision"]) == (image["digest"], 2, 3)
    assert home.json("show", sites.image)["staged"] == listed
    assert home.json("history", sites.image)["staged"] == listed
    assert sites.leads_to() == first
    for command in (["list"], ["show", sites.image], ["history", sites.image]):
        ran = home.run(*command)
        assert f"waits to lead to {image['digest']} until 2 of the replicas" in ran.out + ran.err
    # nothing is fetched again, and nothing is published again
    asked = len(sites.registry.requests)
    assert home.run("publish", sites.image, "--name-after", "2", *AT_ONCE).code == 3
    assert len(sites.registry.requests) == asked + 1
    assert home.json("info")["revision"] == 3


def test_every_publish_goes_on_with_what_others_left(sites: Staging) -> None:
    home = sites.home
    home.run("publish", sites.image, "--name-after", "2", *AT_ONCE)
    other = sites.push(b"x", "a/other")
    document = home.json("publish", other)
    assert document["switched"] == []
    sites.fetch_all()
    document = home.json("publish", other)  # unchanged
    assert [each["reference"] for each in document["switched"]] == [sites.image]
    assert document["revision"] == home.json("info")["revision"] == 4
    assert sites.leads_to() is not None


def test_a_newer_image_takes_the_place_of_what_waits(sites: Staging) -> None:
    home = sites.home
    home.run("publish", sites.image, "--name-after", "1", *AT_ONCE)
    sites.push(b"2")
    home.run("publish", sites.image, "--name-after", "1", *AT_ONCE)
    (newest,) = sites.staged()
    sites.fetch_all()
    document = home.json("switch")
    (switched,) = document["switched"]
    assert switched["digest"] == newest == sites.leads_to()
    assert len(home.json("history", sites.image)["events"]) == 1


def test_a_tag_that_is_back_where_it_was_waits_no_more(sites: Staging) -> None:
    home = sites.home
    home.json("publish", sites.image)
    first = sites.leads_to()
    sites.push(b"2")
    home.run("publish", sites.image, "--name-after", "1", *AT_ONCE)
    sites.push(b"1")
    (image,) = home.json("publish", sites.image, "--name-after", "1")["images"]
    assert (image["status"], image["digest"]) == ("unchanged", first)
    assert sites.staged() == []


def test_a_publish_without_replicas_names_at_once(sites: Staging) -> None:
    home = sites.home
    home.run("publish", sites.image, "--name-after", "2", *AT_ONCE)
    asked = len(sites.registry.requests)
    (image,) = home.json("publish", sites.image)["images"]
    assert image["status"] == "published"
    assert len(sites.registry.requests) == asked + 1  # which digest the tag names
    assert sites.leads_to() == image["digest"]


def test_switch_waits_tells_and_is_told_not_to_wait(sites: Staging) -> None:
    home = sites.home
    assert home.run("switch").code == 0
    home.run("publish", sites.image, "--name-after", "2", *AT_ONCE)
    ran = home.run("switch", "--wait", "0s")
    assert (ran.code, ran.out) == (3, "")
    assert "0 of 2 replicas have revision 2, 2 are wanted" in ran.err
    document = home.json("switch", sites.image, code=3)
    assert [each["reference"] for each in document["waiting"]] == [sites.image]
    assert home.run("switch", "ghcr.io/a/none:1").code == 2
    for wrong in (["--now"], ["--now", sites.image, "--wait", "1m"]):
        assert home.run("switch", *wrong).code == 2
    assert home.run("switch", "--platform", "linux/arm64").code == 0  # of that, none waits
    ran = home.run("switch", sites.image, "--now")
    assert ran.code == 0
    assert ran.out.startswith(f"switched  {sites.image}  /{sites.image} leads to sha256:")
    assert sites.staged() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--name-after", "3"], "--name-after 3: the configuration names only 2"),
        (["--name-after", "0", "--wait-timeout", "1m"], "without --wait-replicas or --name-after"),
        (["--name-after", "-1"], "should be greater than or equal to 0"),
    ],
)
def test_what_makes_no_sense_is_refused(sites: Staging, words: list[str], said: str) -> None:
    ran = sites.home.run("publish", sites.image, *words)
    assert ran.code == 2
    assert said in ran.err
    assert sites.home.json("info")["revision"] == 1


def test_the_configuration_can_ask_for_it_and_for_less_later(sites: Staging) -> None:
    home = sites.home
    sites.configure("naming: {after_replicas: 2, timeout: 0s}")
    assert home.run("publish", sites.image).code == 3
    sites.fetch(sites.folders[0])
    assert home.run("switch").code == 3
    path = home.cwd / "cvmfs-publish.yaml"
    path.write_text(path.read_text().replace("after_replicas: 2", "after_replicas: 1"))
    assert home.run("switch").code == 0
    assert sites.leads_to() is not None
    path.write_text(path.read_text().replace("after_replicas: 1", "after_replicas: 3"))
    ran = home.run("list")
    assert ran.code == 2
    assert "naming.after_replicas: is 3, but `replicas` names 2" in ran.err


def test_more_than_the_configuration_asks_for_is_refused(sites: Staging) -> None:
    home = sites.home
    sites.configure("naming: {after_replicas: 1, timeout: 0s}")
    ran = home.run("publish", sites.image, "--name-after", "2")
    assert ran.code == 2
    assert "--name-after 2: `naming.after_replicas` is 1" in ran.err
    assert home.run("publish", sites.image, "--name-after", "1").code == 3


def test_replicas_that_are_given_up_are_not_waited_for(sites: Staging) -> None:
    home = sites.home
    home.run("publish", sites.image, "--name-after", "2", *AT_ONCE)
    sites.fetch(sites.folders[0])
    path = home.cwd / "cvmfs-publish.yaml"
    with_two = path.read_text()
    path.write_text(with_two.replace("replicas:", "#replicas:"))
    ran = home.run("switch")
    assert ran.code == 2
    assert "names no replicas to wait for; waiting: 1 name" in ran.err
    assert "switch --now IMAGE" in ran.err
    path.write_text(with_two.replace(f", {sites.urls[1]}", ""))
    assert home.run("switch").code == 0
    assert sites.leads_to() is not None


def test_a_rollback_of_what_never_led_elsewhere_says_how_to_wait_no_more(sites: Staging) -> None:
    home = sites.home
    home.run("publish", sites.image, "--name-after", "2", *AT_ONCE)
    for to in ((), ("--to", "sha256:123456")):
        ran = home.run("rollback", sites.image, *to)
        assert ran.code == 2
        assert f"`cvmfs-publish unpublish {sites.image}` ends that" in ran.err
    home.json("publish", sites.image, "--name-after", "0")
    sites.push(b"2")
    home.run("publish", sites.image, "--name-after", "2", *AT_ONCE)
    ran = home.run("rollback", sites.image)
    assert ran.code == 2
    hint = f"`cvmfs-publish rollback {sites.image} --to {sites.leads_to()}` ends that"
    assert hint in ran.err
    assert home.run(*hint.split("`")[1].split()[1:]).code == 0
    assert sites.staged() == []


def test_a_dry_run_waits_for_nobody(sites: Staging) -> None:
    ran = sites.home.run("publish", sites.image, "--dry-run", "--name-after", "1")
    assert ran.code == 0
    assert ran.out.startswith("would publish")
    assert sites.home.json("info")["revision"] == 1


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_whoever_is_ended_while_waiting_is_continued_by_the_next(
    sites: Staging, sign: signal.Signals
) -> None:
    home = sites.home
    command = ("publish", sites.image, "--name-after", "2", "--wait-timeout", "1h")
    with home.spawn(*command) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "0 of 2 replicas have revision 2" in line:
                break
        process.send_signal(sign)
        process.communicate()
    assert process.returncode == (130 if sign is signal.SIGINT else -sign)
    assert len(sites.staged()) == 1
    sites.fetch_all()
    (switched,) = home.json("switch")["switched"]
    assert sites.leads_to() == switched["digest"]


def test_what_somebody_decides_meanwhile_is_told(sites: Staging) -> None:
    home = sites.home
    home.json("publish", sites.image)
    first = sites.leads_to()
    sites.push(b"2")
    command = ("--json", "publish", sites.image, "--name-after", "2", "--wait-timeout", "1h")
    with home.spawn(*command) as process:
        while not sites.staged():
            time.sleep(0.1)
        assert home.run("rollback", sites.image, "--to", str(first)).code == 0
        sites.fetch_all()
        out, _ = process.communicate()
    assert process.returncode == 3
    (image,) = json.loads(out)["images"]
    assert image["status"] == "failed"
    assert "waits no longer to lead to" in image["error"]["message"]
    assert sites.leads_to() == first


def test_a_rule_that_came_meanwhile_keeps_out_what_waits(sites: Staging) -> None:
    home = sites.home
    config = home.cwd / "cvmfs-publish.yaml"
    home.json("publish", sites.image, "--name-after", "1", *AT_ONCE, code=3)
    (home.cwd / "images.yaml").write_text(f"version: 1\nimages:\n  - {sites.image}\n")
    sites.configure("wishlists: [images.yaml]\nnaming: {after_replicas: 1}")
    before = config.read_text()
    rule = "repository:\n  refuse: [{match: '*/a/one*', reason: sold}]\n"
    config.write_text(before.replace("repository:\n", rule, 1))
    sites.fetch_all()
    ran = home.run("switch")
    assert (ran.code, "because: sold" in ran.err) == (0, True), ran
    for command in (("switch", "--now", sites.image), ("switch", sites.image)):
        ran = home.run(*command)
        assert (ran.code, "because: sold" in ran.err) == (2, True), ran
        assert "change `repository.refuse`" in ran.err
    assert home.json("publish", sites.push(b"2", "a/two"), "--name-after", "0")["switched"] == []
    assert home.run("watch", "--once").code == 0
    assert sites.leads_to() is None
    assert len(sites.staged()) == 1
    config.write_text(before)
    assert len(home.json("switch")["switched"]) == 1


# the watcher


def test_the_watcher_switches_what_has_arrived(sites: Staging) -> None:
    home = sites.home
    (home.cwd / "images.yaml").write_text(f"version: 1\nimages:\n  - {sites.image}\n")
    sites.configure("wishlists: [images.yaml]\nnaming: {after_replicas: 2}")
    key = ImageKey(sites.image, "linux/amd64")

    def watch() -> tuple[str, bool, list[str]]:
        ran = home.run("watch", "--once")
        assert ran.code == 0, ran
        with State.open(home.cwd / "state") as state:
            image = state.image(key)
            assert image is not None
            kinds = [event.kind for event in state.events_since(0)]
            return image.status, image.published_at is not None, kinds

    assert watch() == ("staged", False, ["image-staged"])
    assert sites.leads_to() is None
    sites.fetch(sites.folders[0])
    assert watch()[:2] == ("staged", False)
    sites.fetch(sites.folders[1])
    status, is_published, kinds = watch()
    assert (status, is_published) == ("published", True)
    assert kinds.count("image-published") == 1
    assert sites.leads_to() is not None
    # a moved tag: readers keep the old image meanwhile
    first = sites.leads_to()
    sites.push(b"2")
    assert watch()[0] == "staged"
    assert sites.leads_to() == first
    assert home.run("rollback", sites.image, "--to", str(first)).code == 0  # rather not
    assert watch()[0] in ("published", "unchanged")
    assert sites.leads_to() == first
