"""Every page answers, shows what there is, and shows text of strangers as text."""

from __future__ import annotations

import re
import shutil
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

from cvmfs_publish.state.state import State
from tests.asgi import Browser
from tests.status_site import (
    ANALYSIS,
    BROKEN,
    DEBIAN,
    FAILED,
    HOSTILE,
    LIST,
    QUEUED,
    ROOT,
    TRAIN,
    StatusSite,
    stage_newer,
)
from tests.support import NAME

PAGES = [
    "/",
    "/images",
    f"/images/{ROOT}",
    f"/images/{ANALYSIS}",
    f"/images/{BROKEN}",
    "/wishlists",
    f"/wishlists/lines?list={quote(LIST)}",
    "/events",
    "/api",
]


class Reader(HTMLParser):
    """Finds what must not be on a page, and what must."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.outside: list[str] = []
        self.links: list[str] = []
        self.stack: list[str] = []
        self.headings: list[str] = []
        self.ids: list[str] = []
        self.language = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.inline += [name for name in found if name.startswith("on") or name == "style"]
        if tag == "script" and "src" not in found:
            self.inline.append("script")
        if tag == "style":
            self.inline.append("style")
        for name in ("src", "href", "action"):
            target = found.get(name) or ""
            if re.match(r"[a-z]+:|//", target):
                self.outside.append(target)
            if name == "href" and tag == "a":
                self.links.append(target)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "html":
            self.language = found.get("lang") or ""


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


@pytest.mark.parametrize("path", PAGES)
def test_pages_hold_nothing_inline_and_nothing_from_elsewhere(browser: Browser, path: str) -> None:
    answer = browser.get(path)
    assert answer.status == 200
    found = read(answer.text)
    assert (found.inline, found.outside) == ([], [])
    assert found.language == "en"
    assert found.headings[0] == "h1"
    assert found.headings.count("h1") == 1
    assert len(found.ids) == len(set(found.ids))


@pytest.mark.parametrize("path", PAGES)
def test_every_link_leads_somewhere(browser: Browser, path: str) -> None:
    for link in sorted(set(read(browser.get(path).text).links)):
        if link.startswith("/"):
            assert browser.get(link).status == 200, link


@pytest.mark.parametrize("path", PAGES)
def test_what_strangers_wrote_is_text(browser: Browser, path: str) -> None:
    assert HOSTILE not in browser.get(path).text


def test_there_is_text_of_strangers_to_be_shown(browser: Browser) -> None:
    for path in ("/", "/events", "/wishlists", f"/images/{BROKEN}"):
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in browser.get(path).text, path


def test_browsers_are_told_to_be_careful(browser: Browser) -> None:
    for path in ("/", "/api/v1/images", "/nowhere", "/healthz", "/assets/x/site.css"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_repository_files_keep_the_headers_of_a_stock_server(browser: Browser) -> None:
    answer = browser.get(f"/cvmfs/{NAME}/.cvmfspublished")
    assert answer.status == 200
    assert answer.headers.keys() == {
        "content-type",
        "cache-control",
        "accept-ranges",
        "content-length",
    }


def test_what_has_not_changed_is_not_sent_again(browser: Browser) -> None:
    for path in (f"/images/{ROOT}", "/images", "/api/v1/images", "/feeds/events.atom"):
        first = browser.get(path)
        again = browser.get(path, If_None_Match=f'"other", {first.headers["etag"]}')
        assert (again.status, again.body) == (304, b"")
        assert browser.get(path, If_None_Match='"other"').status == 200


def test_the_overview_shows_what_needs_attention(browser: Browser) -> None:
    text = browser.get("/").text
    for expected in (ANALYSIS, QUEUED, BROKEN, FAILED, "The watcher works.", "37 of 100", LIST):
        assert expected in text
    assert "2 revisions behind" in text
    assert "asked again at" in text


def test_a_repository_that_cannot_be_written_is_told(status_site: StatusSite) -> None:
    with State.open(status_site.state_folder) as state:
        state.mark("refused", status_site.now)
    text = status_site.browser(status_site.service()).get("/").text
    assert "Nothing can be published since" in text
    assert "The watcher works." not in text


def test_a_watcher_that_is_silent_is_told(status_site: StatusSite) -> None:
    late = status_site.now + timedelta(hours=5)
    text = status_site.browser(status_site.service(clock=lambda: late)).get("/").text
    assert "The watcher does not work: it was last seen 5 hours ago." in text


def test_a_whitelist_that_expires_is_told(status_site: StatusSite) -> None:
    for days, expected in ((25, "tile warn"), (40, "expired")):
        late = status_site.now + timedelta(days=days)
        text = status_site.browser(status_site.service(clock=lambda late=late: late)).get("/").text  # type: ignore[misc]
        assert expected in text


def test_images_are_found_by_words_owner_digest_and_filters(browser: Browser) -> None:
    digest = browser.get(f"/api/v1/images/{quote(TRAIN, safe='')}").json()["digest"]
    for query, expected in {
        "q=physics+root": {ROOT},
        "q=ROOT": {ROOT},
        "q=anna@example.org": {DEBIAN, ROOT, ANALYSIS, BROKEN, FAILED, QUEUED},
        f"q={digest[:20]}": {TRAIN},
        "q=nothing+like+this": set(),
        "status=failed": {FAILED},
        "status=published": {DEBIAN, ROOT, TRAIN},
        "registry=ghcr.io": {ROOT, ANALYSIS},
        "registry=ghcr.io&status=publishing": {ANALYSIS},
        "platform=linux/arm64": set(),
    }.items():
        text = browser.get(f"/images?{query}").text
        results = text[text.index('id="results"') :]
        assert set(re.findall(r'href="/images/([^"?]+)"', results)) == expected, query


def test_unknown_parameters_are_refused_with_a_guess(browser: Browser) -> None:
    answer = browser.get("/images?sttaus=failed")
    assert answer.status == 422
    assert "did you mean status?" in answer.text


def test_a_page_beyond_the_last_is_the_last(browser: Browser) -> None:
    text = browser.get("/images?page=99&q=root").text
    assert ROOT in text


def test_an_image_is_told_in_full(browser: Browser) -> None:
    text = browser.get(f"/images/{ROOT}").text
    for expected in (
        f"/cvmfs/{NAME}/{ROOT}",
        "apptainer exec /cvmfs/",
        "#SBATCH --job-name",
        "arguments = &#34;",
        "cvmfs-publish rollback",
        "setuid dropped",
        "opt/root",
        "also in other images",
        "3 reused",
        "<svg",
    ):
        assert expected in text, expected


def test_an_image_that_was_published_by_hand_has_a_page(browser: Browser) -> None:
    text = browser.get(f"/images/{TRAIN}").text
    assert "not by the watcher" in text


def test_an_image_that_waits_for_replicas_is_told(status_site: StatusSite, tmp_path: Path) -> None:
    for name in ("repository", "keys", "state"):
        shutil.copytree(status_site.base / name, tmp_path / name)
    stage_newer(tmp_path)
    browser = StatusSite(tmp_path, status_site.now).browser()
    staged = browser.get(f"/api/v1/images/{TRAIN}").json()["staged"]
    assert (staged["revision"], staged["replicas"]) == (4, 2)
    text = browser.get(f"/images/{TRAIN}").text
    assert f"leads to <code>{staged['digest']}</code> when 2 of them have revision 4" in text
    assert browser.get(f"/api/v1/images/{ROOT}").json()["staged"] is None


def test_an_image_on_its_way_shows_how_far_it_is_and_asks_again(browser: Browser) -> None:
    text = browser.get(f"/images/{ANALYSIS}").text
    assert "362 MB of 815 MB" in text
    assert f'data-source="/live/images/{ANALYSIS}"' in text
    part = browser.get(f"/live/images/{ANALYSIS}").text
    assert part.strip() in text
    assert "data-source" not in browser.get(f"/live/images/{DEBIAN}").text


def test_a_failed_image_says_why_and_when_it_is_tried_again(browser: Browser) -> None:
    text = browser.get(f"/images/{FAILED}").text
    assert "quay.io answered 503" in text
    assert "Next attempt" in text


def test_problems_of_a_wishlist_stand_where_they_are(browser: Browser) -> None:
    text = browser.get(f"/wishlists/lines?list={quote(LIST)}").text
    first, problem, second = (text.index(part) for part in (ROOT, "Physics/Analysis", ANALYSIS))
    assert first < problem < second  # lines 5, 6 and 7


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/images/ghcr.io/no/such:1", 404),
        ("/images/..%2f..%2fetc%2fpasswd", 404),
        ("/images/%00", 404),
        ("/images/" + "a" * 2000, 404),
        (f"/images/{ROOT}?platform=nonsense", 422),
        (f"/live/images/{TRAIN}x", 404),
        ("/wishlists/lines?list=absent", 404),
        ("/assets/../site.css", 404),
        ("/assets/0000000000000000/site.css", 404),
        ("/login", 404),
    ],
)
def test_what_is_not_there_is_told_on_a_page(browser: Browser, path: str, status: int) -> None:
    answer = browser.get(path)
    assert answer.status == status
    assert answer.headers["content-type"].startswith("text/html")
    assert read(answer.text).inline == []


def test_assets_may_be_kept_for_ever(browser: Browser) -> None:
    page = browser.get("/").text
    for path in re.findall(r'"(/assets/[^"]+)"', page):
        answer = browser.get(path)
        assert answer.status == 200
        assert "immutable" in answer.headers["cache-control"]


def test_without_a_watcher_everything_published_is_shown(
    status_site: StatusSite, tmp_path: Path
) -> None:
    (tmp_path / "repository").symlink_to(status_site.base / "repository")
    (tmp_path / "keys").symlink_to(status_site.base / "keys")
    alone = StatusSite(tmp_path, status_site.now)
    browser = alone.browser(alone.service(expects_watcher=False))
    for path in ("/", "/images", f"/images/{ROOT}", "/wishlists", "/events", "/metrics"):
        assert browser.get(path).status == 200, path
    assert browser.get("/healthz").status == 200
    assert not (tmp_path / "state").exists()


def test_a_repository_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    lost = StatusSite(tmp_path).browser()
    assert "The repository cannot be read" in lost.get("/").text
    assert lost.get("/images").status == 503
    assert lost.get("/api/v1/images").status == 503
    assert lost.get("/healthz").status == 503
