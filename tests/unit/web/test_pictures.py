"""Pure parts: pictures, commands, steps, feeds, parameters."""

from __future__ import annotations

import contextlib
import json
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmfs_publish.repository.native.listing import DirectorySize
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.sites.data import list_sites, load_site, templates_dir
from cvmfs_publish.sites.pages import Pages
from cvmfs_publish.sites.schedulers import SCHEDULERS
from cvmfs_publish.state.model import (
    Event,
    Facts,
    Failure,
    Image,
    ImageKey,
    LayerProgress,
    Progress,
    Status,
)
from cvmfs_publish.web.answers import HttpError
from cvmfs_publish.web.chart import draw_sizes
from cvmfs_publish.web.commands import SUBMIT_FILES, TITLES, plan_commands
from cvmfs_publish.web.feeds import ATOM, format_atom, format_json_feed
from cvmfs_publish.web.library import sum_below
from cvmfs_publish.web.parameters import NumberParameter, Parameter, read_query
from cvmfs_publish.web.views import plan_bars, plan_steps, since
from tests.status_site import AMD64, HOSTILE

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)
NAMES = st.sampled_from(["usr", "usr/lib", "usr/lib/x", "usr/bin", "opt", "opt/root/a", "", "a"])
SIZES = st.lists(
    st.builds(DirectorySize, NAMES, st.integers(1, 99), st.integers(0, 10**12)),
    max_size=40,
    unique_by=lambda size: size.path,
)
REPOSITORY = "containers.example.org"


def record(name: str = "ghcr.io/a/b:1", platform: str = AMD64) -> Publication:
    digest = "sha256:" + "1" * 64
    return Publication(
        reference=name,
        digest=digest,
        manifest_digest=digest,
        image_id=digest,
        platform=platform,
        path=f"/{name}",
        sandbox="/.flat/11/11",
        published_at="2026-11-29T12:00:00+00:00",
        revision=7,
        entries=1,
        content_bytes=1,
        stored_bytes=1,
        tree_digest=digest,
        recipe=digest,
        layers=(),
        roots_added=(),
        findings=(),
        publisher="",
    )


# pictures


@given(SIZES)
def test_rectangles_stay_inside_and_apart(sizes: list[DirectorySize]) -> None:
    chart = draw_sizes(sum_below(sizes), 800, 300)
    for box in chart.boxes:
        assert 0 <= box.x <= box.x + box.width <= 800.5
        assert 0 <= box.y <= box.y + box.height <= 300.5
        assert len(box.label) * 8 <= box.width
    for number, one in enumerate(chart.boxes):
        for other in chart.boxes[number + 1 :]:
            if min(one.width, one.height, other.width, other.height) > 1:
                apart_x = one.x + one.width <= other.x + 0.2 or other.x + other.width <= one.x + 0.2
                apart_y = one.y + one.height <= other.y + 0.2 or (
                    other.y + other.height <= one.y + 0.2
                )
                assert apart_x or apart_y


@given(SIZES)
def test_what_is_below_is_counted_where_it_is_shown(sizes: list[DirectorySize]) -> None:
    summed = sum_below(sizes)
    assert sum(size.bytes for size in summed) == sum(size.bytes for size in sizes)
    assert all(size.path.count("/") < 2 for size in summed)
    assert [size.bytes for size in summed] == sorted((s.bytes for s in summed), reverse=True)


def test_areas_are_the_shares() -> None:
    sizes = [DirectorySize("usr/lib", 1, 750), DirectorySize("opt/root", 1, 250)]
    one, other = draw_sizes(sizes, 400, 100).boxes
    assert one.width * one.height == pytest.approx(3 * other.width * other.height, rel=0.05)
    assert (one.label, one.note) == ("usr/lib", "750 B")
    assert one.colour != other.colour


def test_an_empty_image_has_no_picture() -> None:
    assert draw_sizes([], 400, 100).boxes == ()
    assert draw_sizes([DirectorySize("", 3, 0)], 400, 100).boxes == ()


# commands


def test_every_batch_system_has_its_submit_file() -> None:
    assert SUBMIT_FILES.keys() == TITLES.keys() == SCHEDULERS.keys()


def test_every_site_has_lines_with_the_image_in_them() -> None:
    pages = Pages(templates_dir())
    for name in list_sites():
        (found,) = plan_commands(record(), REPOSITORY, [load_site(name)], pages)
        site = load_site(name)
        assert len(found.commands) >= 1 + len(site.batch.systems)
        for command in found.commands:
            assert "ghcr.io/a/b:1" in command.text, (name, command.title)
            if command.text.startswith("#!/bin/sh"):
                subprocess.run(["sh", "-n"], input=command.text.encode(), check=True)


def test_a_site_that_looks_into_the_repository_is_told_a_name() -> None:
    site = load_site("generic")
    entry = type("Entry", (), {"name": REPOSITORY, "layout": "unpacked"})()
    there = replace(site, repositories=(entry,))
    pages = Pages(templates_dir())
    first = plan_commands(record(), REPOSITORY, [there], pages)[0].commands[0].text
    assert " ghcr.io/a/b:1 -- " in first
    elsewhere = plan_commands(record(), REPOSITORY, [site], pages)[0].commands[0].text
    assert f" /cvmfs/{REPOSITORY}/ghcr.io/a/b:1 -- " in elsewhere


def test_another_platform_is_named_by_its_own_link() -> None:
    pages = Pages(templates_dir())
    arm = record(platform="linux/arm64")
    for command in plan_commands(arm, REPOSITORY, [load_site("in2p3")], pages)[0].commands:
        assert f"/cvmfs/{REPOSITORY}/.multiarch/arm64/ghcr.io/a/b:1" in command.text


# steps


def image(status: Status = "unchanged", **fields: object) -> Image:
    known: dict[str, object] = {
        "key": ImageKey("ghcr.io/a/b:1", AMD64),
        "reference": "ghcr.io/a/b:1",
        "status": status,
        "is_wished": True,
        "list": "list.yaml",
        "line": 3,
        "owner": "anna",
        "priority": 0,
        "requested_at": NOW,
        "changed_at": NOW,
        "digest_seen": "",
        "digest_published": "",
        "attempts": 0,
    }
    for name in Image.__dataclass_fields__:
        known.setdefault(name, None)
    return Image(**{**known, **fields})  # type: ignore[arg-type]


def states(found: Image, published: Publication | None, *, replicas: bool = True) -> list[str]:
    return [step.state for step in plan_steps(found, published, has_replicas=replicas)]


SEEN = {"seen_at": NOW, "digest_seen": "sha256:2"}
FAILURE = Failure("remote", "no answer")


@pytest.mark.parametrize(
    ("found", "published", "expected"),
    [
        (image("waiting"), None, ["done", "now", "todo", "todo", "todo"]),
        (image("failed", failure=FAILURE), None, ["done", "failed", "todo", "todo", "todo"]),
        (image("queued", **SEEN), None, ["done", "done", "now", "todo", "todo"]),
        (image("publishing", **SEEN), None, ["done", "done", "now", "todo", "todo"]),
        (
            image("failed", attempts=2, failure=FAILURE, **SEEN),
            None,
            ["done", "done", "failed", "todo", "todo"],
        ),
        (
            image("published", digest_published="sha256:2", **SEEN),
            record(),
            ["done", "done", "done", "done", "now"],
        ),
        (
            image("published", digest_published="sha256:2", replicated_at=NOW, **SEEN),
            record(),
            ["done"] * 5,
        ),
        (  # pushed again: what is published is an earlier version
            image("queued", digest_published="sha256:1", replicated_at=NOW, **SEEN),
            record(),
            ["done", "done", "now", "todo", "todo"],
        ),
    ],
)
def test_steps_say_what_is_done_and_what_is_to_come(
    found: Image, published: Publication | None, expected: list[str]
) -> None:
    assert states(found, published) == expected
    assert states(found, published, replicas=False) == expected[:4]


def test_a_name_that_waits_for_replicas_is_a_step_of_its_own() -> None:
    facts = Facts("sha256:2", revision=12)
    found = image("staged", digest_published="sha256:2", facts=facts, **SEEN)
    for published in (None, record()):  # the first image of the name, or a newer one
        steps = plan_steps(found, published, has_replicas=True)
        assert [step.state for step in steps] == ["done", "done", "done", "now", "todo", "todo"]
        assert steps[3].title == "Waiting for replicas"
        assert steps[3].note == "they are to have revision 12"
    assert steps[4].note == "an earlier version is, since revision 7"


def test_an_earlier_version_is_told() -> None:
    found = image("queued", digest_published="sha256:1", **SEEN)
    last = plan_steps(found, record(), has_replicas=False)[-1]
    assert last.note == "an earlier version is, since revision 7"


def test_an_image_nobody_wished_has_one_step() -> None:
    (step,) = plan_steps(None, record(), has_replicas=True)
    assert step.state == "done"
    assert plan_steps(None, None, has_replicas=True) == ()


def test_bars_add_up() -> None:
    layers = (LayerProgress("sha256:a", 5, 10), LayerProgress("sha256:b", 0, 30))
    whole, *each = plan_bars(Progress("fetching", layers))
    assert (whole.done, whole.total, whole.percent) == (5, 40, 12)
    assert [bar.percent for bar in each] == [50, 0]
    assert plan_bars(Progress("asking")) == ()
    assert plan_bars(None) == ()


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(seconds=1), "1 second"),
        (timedelta(seconds=119), "119 seconds"),
        (timedelta(minutes=2), "2 minutes"),
        (timedelta(hours=47), "47 hours"),
        (timedelta(days=2), "2 days"),
        (timedelta(seconds=-5), "0 seconds"),
    ],
)
def test_time_that_has_passed_is_told_in_one_unit(span: timedelta, text: str) -> None:
    assert since(NOW - span, NOW) == text


# feeds


def event(message: str = "it was published", name: str = "ghcr.io/a/b:1") -> Event:
    return Event(4, NOW, "image-published", message, name, AMD64 if name else "", "l", "anna")


@given(st.text(max_size=60))
def test_every_message_can_be_told_in_a_feed(message: str) -> None:
    data = format_atom([event(message)], REPOSITORY, "https://x.example.org")
    feed = ET.fromstring(data)
    entry = feed.find(f"{{{ATOM}}}entry")
    assert entry is not None
    assert entry.findtext(f"{{{ATOM}}}updated") == "2026-11-29T12:00:00Z"
    json.dumps(format_json_feed([event(message)], REPOSITORY, "https://x.example.org"))


def test_feeds_escape_what_strangers_wrote_and_keep_their_identities() -> None:
    one = format_atom([event(HOSTILE)], REPOSITORY, "https://a.example.org")
    other = format_atom([event(HOSTILE)], REPOSITORY, "https://b.example.org")
    assert b"<script" not in one
    for data in (one, other):
        assert f"tag:{REPOSITORY},2026:event-4".encode() in data
    document = format_json_feed([event(name="")], REPOSITORY, "https://a.example.org")
    assert document["items"][0]["url"] == "https://a.example.org/events?before=5"


# parameters


NUMBER = NumberParameter("page", "", 1, 100, 1)
WORDS = Parameter("q", "")


@given(st.text(max_size=40))
def test_a_query_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(HttpError):
        values = read_query(text, (NUMBER, WORDS))
        assert 1 <= values.number("page") <= 100
        assert not set(values.text("q")) & set(map(chr, range(32)))


@pytest.mark.parametrize("text", ["page=1e1", "page=+1", "page= 1", "page=1_0", "page=101"])
def test_odd_numbers_are_refused(text: str) -> None:
    with pytest.raises(HttpError):
        read_query(text, (NUMBER,))
