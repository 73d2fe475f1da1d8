"""The status site in a real browser: Debian's Chromium, driven by Playwright, judged by axe-core.

Screenshots of every page at each width are left in the folder `.screenshots` of the checkout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from cvmfs_publish.state.model import Facts, ImageKey, Result
from cvmfs_publish.state.state import State
from tests import parts
from tests.served import serving
from tests.status_site import (
    AMD64,
    ANALYSIS,
    BROKEN,
    DEBIAN,
    FAILED,
    LIST,
    ROOT,
    TOKEN,
    TRAIN,
    Orders,
    StatusSite,
    fill_state,
    make_repository,
    set_progress,
)

pytestmark = pytest.mark.parts

SCREENSHOTS = parts.CHECKOUT / ".screenshots"
PAGES = {
    "overview": "/",
    "images": "/images",
    "image": f"/images/{ROOT}",
    "progress": f"/images/{ANALYSIS}",
    "quarantined": f"/images/{BROKEN}",
    "wishlists": "/wishlists",
    "wishlist": f"/wishlists/lines?list={quote(LIST)}",
    "events": "/events",
    "api": "/api",
    "login": "/login",
    "absent": "/images/ghcr.io/no/such:1",
}
PHONE = {"width": 390, "height": 844}
SCREEN = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> StatusSite:
    base = make_repository(tmp_path_factory.mktemp("status"))
    site = StatusSite(base)
    fill_state(site.state_folder, site.now)
    return site


@pytest.fixture(scope="module")
def orders() -> Orders:
    return Orders()


@pytest.fixture(scope="module")
def url(site: StatusSite, orders: Orders) -> Iterator[str]:
    service = site.service(
        control=orders, token=TOKEN, clock=lambda: datetime.now(UTC), sites=("in2p3", "osg")
    )
    with serving(site.app(service)) as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = parts.require("chromium")
    with sync_playwright() as playwright:
        # as root, as in containers, its sandbox cannot be made
        browser = playwright.chromium.launch(
            executable_path=str(program), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser, url: str) -> Iterator[BrowserContext]:
    context = chromium.new_context(base_url=url, viewport=SCREEN)  # type: ignore[arg-type]
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "console",
        lambda said: (
            troubles.append(said.text)
            if said.type == "error" and "status of 4" not in said.text
            else None
        ),
    )
    yield page
    assert troubles == []  # refused by our own Content-Security-Policy, for example


LOOKS = [(SCREEN, "light"), (PHONE, "dark")]  # each width and each set of colours once


@pytest.mark.parametrize(("size", "colours"), LOOKS, ids=["screen-light", "phone-dark"])
def test_every_page_is_accessible_and_fits(
    chromium: Browser, url: str, size: dict[str, int], colours: str
) -> None:
    SCREENSHOTS.mkdir(exist_ok=True)
    context = chromium.new_context(
        base_url=url,
        viewport=size,  # type: ignore[arg-type]
        color_scheme=colours,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    page = context.new_page()
    found: list[str] = []
    for name, path in PAGES.items():
        page.goto(path)
        width = "phone" if size is PHONE else "screen"
        page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{colours}.png", full_page=True)
        results = Axe().run(page)
        found += [
            f"{name}: {violation['impact']}: {violation['id']}: {violation['nodes'][0]['html']}"
            for violation in results.response["violations"]
        ]
        wide = page.evaluate("document.documentElement.scrollWidth")
        if wide > size["width"]:
            found.append(f"{name} is {wide} wide")
    context.close()
    assert found == []


def test_typing_searches_and_the_address_follows(page: Page) -> None:
    page.goto("/images")
    expect(page.locator("tbody tr")).to_have_count(7)
    page.get_by_label("Search", exact=True).press_sequentially("physics ro", delay=20)
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("link", name=ROOT)).to_be_visible()
    expect(page).to_have_url(re.compile(r"/images\?q=physics\+ro$"))
    expect(page.get_by_role("status")).to_have_text("1 of 7 images")
    assert page.evaluate("document.activeElement.id") == "q"
    page.reload()
    expect(page.locator("tbody tr")).to_have_count(1)


def test_filters_can_be_combined_and_taken_back(page: Page) -> None:
    page.goto("/images")
    page.get_by_label("Registry").select_option("ghcr.io")
    expect(page.locator("tbody tr")).to_have_count(2)
    page.get_by_label("Status").select_option("publishing")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.get_by_role("link", name=ANALYSIS)).to_be_visible()
    page.get_by_label("Status").select_option("failed")
    expect(page.get_by_text("No image fits.")).to_be_visible()
    page.get_by_role("link", name="Show all").click()
    expect(page.locator("tbody tr")).to_have_count(7)


def test_sorting_by_size_puts_the_largest_first(page: Page) -> None:
    page.goto("/images")
    page.get_by_label("Sort").select_option("size")
    expect(page).to_have_url(re.compile("sort=size"))
    expect(page.locator("tbody tr").first).to_contain_text(re.compile(f"{ROOT}|{TRAIN}"))


def test_progress_moves_while_somebody_looks(page: Page, site: StatusSite) -> None:
    with State.open(site.state_folder) as state:
        set_progress(state, 310_000_000)
        page.goto(f"/images/{ANALYSIS}")
        progress = page.get_by_role("region", name="Progress")
        expect(progress).to_contain_text("362 MB of 815 MB")
        step = page.locator("[aria-current=step]")
        expect(step).to_contain_text("Fetching")
        set_progress(state, 700_000_000)
        expect(progress).to_contain_text("752 MB of 815 MB")
        bar = page.get_by_role("progressbar", name="All layers")
        assert bar.evaluate("bar => bar.value") == 752_000_000


def test_the_overview_shows_how_far_images_are(page: Page, site: StatusSite) -> None:
    with State.open(site.state_folder) as state:
        set_progress(state, 100_000_000)
        page.goto("/")
        region = page.get_by_role("region", name="Being published")
        expect(region).to_contain_text("152 MB of 815 MB")
        set_progress(state, 500_000_000)
        expect(region).to_contain_text("552 MB of 815 MB", timeout=12_000)
        set_progress(state, 310_000_000)


def test_copy_buttons_copy_exactly_what_is_shown(context: BrowserContext, page: Page) -> None:
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/images/{ROOT}")
    page.get_by_role("button", name="Copy cvmfs-run").first.click()
    expect(page.get_by_role("button", name="Copy cvmfs-run").first).to_have_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("#in2p3-1").text_content()
    assert copied.startswith("/opt/cvmfs-run/bin/cvmfs-run ")
    page.get_by_role("button", name="Copy Slurm: submit.sbatch").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("#!/bin/sh\n#SBATCH ")
    assert ROOT in copied


def test_an_image_shows_sizes_as_a_picture_with_words(page: Page) -> None:
    page.goto(f"/images/{ROOT}")
    picture = page.get_by_role("img", name=re.compile("Share of .* by directory: "))
    expect(picture).to_be_visible()
    page.get_by_text("As a table").click()
    expect(page.get_by_role("rowheader", name="/opt/root")).to_be_visible()
    expect(page.get_by_text("cvmfs-publish rollback")).to_be_visible()


def test_everything_works_without_a_mouse(page: Page) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.goto("/images")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "q":
            break
    page.keyboard.type("debian")
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == DEBIAN:
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(DEBIAN)
    page.get_by_text("osg").first.focus()
    page.locator("summary", has_text="osg").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="HTCondor: submit.sub")).to_be_visible()


def test_everything_works_without_javascript(chromium: Browser, url: str) -> None:
    context = chromium.new_context(base_url=url, java_script_enabled=False)
    page = context.new_page()
    page.goto("/images")
    page.get_by_label("Search", exact=True).fill("physics")
    page.get_by_label("Status").select_option("published")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name=ROOT).click()
    expect(page.get_by_role("heading", level=1)).to_have_text(ROOT)
    expect(page.locator("#in2p3-1")).to_contain_text("cvmfs-run")
    expect(page.get_by_role("button", name="Copy")).to_have_count(0)
    page.get_by_role("link", name="Wishlists").click()
    expect(page.get_by_text("'Physics/Analysis' is not a repository")).to_be_visible()
    page.goto(f"/images/{ANALYSIS}")
    expect(page.get_by_role("progressbar", name="All layers")).to_be_visible()
    context.close()


def test_who_has_the_token_orders_and_nobody_else(page: Page, orders: Orders) -> None:
    page.goto(f"/images/{BROKEN}")
    expect(page.get_by_role("button", name="Release and try again")).to_have_count(0)
    page.get_by_role("link", name="Log in").click()
    page.get_by_label("Token").fill("wrong token, of some length")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_have_text("that is not the token.")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.goto(f"/images/{BROKEN}")
    page.get_by_role("button", name="Release and try again").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(BROKEN)
    assert orders.given == [("publish", ImageKey(BROKEN, AMD64))]
    page.get_by_role("button", name="Log out").click()
    page.goto(f"/images/{FAILED}")
    expect(page.get_by_role("button", name="Release and try again")).to_have_count(0)


def test_hostile_text_stays_text(page: Page) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    for path in ("/", "/events", "/wishlists", f"/images/{BROKEN}"):
        page.goto(path)
        expect(page.get_by_text("<script>alert(1)</script>").first).to_be_visible()
    assert asked == []


def test_the_end_of_a_publish_is_shown_and_told(page: Page, site: StatusSite) -> None:
    """The last test: afterwards nothing is being published."""
    page.goto(f"/images/{ANALYSIS}")
    expect(page.locator("[aria-current=step]")).to_contain_text("Fetching")
    now = datetime.now(UTC)
    with State.open(site.state_folder) as state:
        key = ImageKey(ANALYSIS, AMD64)
        (run,) = state.open_runs()
        image = state.image(key)
        assert image is not None
        state.finish_run(run, [Result(key, "published", Facts(image.digest_seen))], now)
    expect(page.locator("#progress")).not_to_contain_text("Fetching")
    expect(page.get_by_role("status")).to_have_text("Done")


def test_screenshots_of_every_page_are_left_behind() -> None:
    names = {path.stem for path in Path(SCREENSHOTS).glob("*.png")}
    looks = ("screen-light", "phone-dark")
    assert {f"{name}-{look}" for name in PAGES for look in looks} <= names
