"""Nobody changes anything without the token or a secret, on any route there is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from cvmfs_publish.errors import InputError
from cvmfs_publish.state.model import ImageKey
from cvmfs_publish.web.access import COOKIE, SESSION_SPAN, Access, check_token
from cvmfs_publish.web.hooks import Hooks
from tests.asgi import HOST, Answer, Browser
from tests.status_site import AMD64, BROKEN, QUEUED, TOKEN, Orders, StatusSite
from tests.unit.web.test_hooks import Pushes, hooks

BEARER = f"Bearer {TOKEN}"
FORM_FIELDS = {"name": BROKEN, "platform": AMD64}
# Every route that takes something else than GET, and what a stranger may send there at most.
# Logging in changes nothing but the browser's own cookie, and needs the token as well.
CHANGING = {
    "/api/v1/publish",
    "/api/v1/look",
    "/actions/publish",
    "/actions/look",
    "/login",
    "/logout",
    "/hooks/{source}",
}


class Everything:
    """A service that may change things, and what was done."""

    def __init__(self, site: StatusSite, token: str | None = TOKEN) -> None:
        self.orders = Orders()
        self.pushes = Pushes()
        self.hooks: Hooks = hooks(self.pushes)
        self.app: Starlette = site.app(site.service(control=self.orders, token=token), self.hooks)

    def browser(self) -> Browser:
        return Browser(self.app)

    @property
    def was_changed(self) -> bool:
        return bool(self.orders.given or self.pushes.taken)


@pytest.fixture
def everything(status_site: StatusSite) -> Everything:
    return Everything(status_site)


def changing_routes(app: Starlette) -> Iterator[tuple[str, str]]:
    """Yield path and method of every route that does not only read."""
    for route in app.routes:
        assert isinstance(route, Route), f"{route}: say here how it is protected"
        for method in sorted((route.methods or set()) - {"GET", "HEAD"}):
            yield route.path, method


def test_the_routes_that_change_something_are_these(everything: Everything) -> None:
    assert {path for path, _ in changing_routes(everything.app)} == CHANGING


def strangers(path: str, method: str, browser: Browser) -> Iterator[tuple[str, Answer]]:
    """Ask as somebody without token or secret would, in every way that might be forgotten."""
    json_body = b'{"name": "docker.io/library/broken:1"}'
    form_body = b"name=docker.io%2Flibrary%2Fbroken%3A1&form_token=0&token=wrong"
    own = {"origin": f"http://{HOST}"}
    for title, headers in {
        "plain": {},
        "from our own page": own,
        "with a wrong token": {**own, "authorization": "Bearer wrong"},
        "with an empty token": {**own, "authorization": "Bearer "},
        "with a token of another kind": {**own, "authorization": f"Basic {TOKEN}"},
        "with an invented session": {**own, "cookie": f"{COOKIE}=a.99999999999.0"},
        "with an empty session": {**own, "cookie": f"{COOKIE}=.."},
    }.items():
        for kind, body in (
            ("application/json", json_body),
            ("application/x-www-form-urlencoded", form_body),
            ("text/plain", form_body),
        ):
            yield (
                f"{title}, {kind}",
                browser.ask(method, path, {**headers, "content-type": kind}, body),
            )


def test_every_route_that_changes_something_refuses_strangers(everything: Everything) -> None:
    for path, method in changing_routes(everything.app):
        for source in ("distribution", "generic", "github") if "{source}" in path else ("",):
            asked = path.replace("{source}", source)
            for title, answer in strangers(asked, method, everything.browser()):
                assert answer.status in (401, 403, 415, 422), (asked, title, answer.status)
                assert "set-cookie" not in answer.headers, (asked, title)
    assert not everything.was_changed


def test_reading_changes_nothing(everything: Everything) -> None:
    browser = everything.browser()
    for route in everything.app.routes:
        assert isinstance(route, Route)
        if "GET" in (route.methods or ()):
            path = route.path.replace("{name:path}", BROKEN).replace("{path:path}", "x")
            for method in ("GET", "HEAD"):
                browser.get(path, method, authorization=BEARER)
    assert not everything.was_changed


def test_get_is_no_way_to_order(everything: Everything) -> None:
    for path, _ in changing_routes(everything.app):
        answer = everything.browser().get(path.replace("{source}", "generic") + "?name=x")
        if path != "/login":
            assert answer.status == 405, path
    assert not everything.was_changed


def test_a_program_with_the_token_orders(everything: Everything) -> None:
    browser = everything.browser()
    for what in ("publish", "look"):
        answer = browser.post_json(f"/api/v1/{what}", {"name": BROKEN}, authorization=BEARER)
        assert answer.status == 202
        assert answer.json() == {"name": BROKEN, "platform": AMD64}
    key = ImageKey(BROKEN, AMD64)
    assert everything.orders.given == [("publish", key), ("look", key)]


@pytest.mark.parametrize(
    ("document", "status"),
    [
        ({}, 422),
        ({"name": 5}, 422),
        ({"name": ""}, 404),
        ({"name": "UPPER/CASE"}, 404),
        ({"name": BROKEN, "platform": "x"}, 422),
        ({"name": BROKEN, "force": True}, 422),
        ([], 422),
        ({"name": "x" * 20_000}, 413),
    ],
)
def test_odd_orders_are_refused(everything: Everything, document: object, status: int) -> None:
    answer = everything.browser().post_json("/api/v1/publish", document, authorization=BEARER)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert not everything.was_changed


def test_what_nobody_wishes_cannot_be_ordered(everything: Everything) -> None:
    everything.orders.wished = False
    answer = everything.browser().post_json(
        "/api/v1/publish", {"name": "ghcr.io/no/body:1"}, authorization=BEARER
    )
    assert answer.status == 404


def log_in(everything: Everything) -> Browser:
    browser = everything.browser()
    answer = browser.post_form("/login", {"token": TOKEN})
    assert answer.status == 303
    text = answer.headers["set-cookie"].lower()
    assert "httponly" in text
    assert "samesite=strict" in text
    return browser


def form_token(browser: Browser) -> str:
    text = browser.get(f"/images/{BROKEN}").text
    mark = 'name="form_token" value="'
    start = text.index(mark) + len(mark)
    return text[start : text.index('"', start)]


def test_a_person_with_the_token_orders_from_our_page(everything: Everything) -> None:
    browser = log_in(everything)
    text = browser.get(f"/images/{BROKEN}").text
    assert "Release and try again" in text
    answer = browser.post_form(
        "/actions/publish", {**FORM_FIELDS, "form_token": form_token(browser)}
    )
    assert (answer.status, answer.headers["location"]) == (303, f"/images/{BROKEN}")
    assert everything.orders.given == [("publish", ImageKey(BROKEN, AMD64))]


def test_another_sites_page_cannot_use_a_session(everything: Everything) -> None:
    browser = log_in(everything)
    token = form_token(browser)
    fields = {**FORM_FIELDS, "form_token": token}
    for origin in ("http://evil.example.org", "null", "", f"https://{HOST}", f"http://{HOST}.evil"):
        assert browser.post_form("/actions/publish", fields, origin=origin).status == 403
    for wrong in ("", "0" * 64, form_token(log_in(everything))):
        fields = {**FORM_FIELDS, "form_token": wrong}
        assert browser.post_form("/actions/publish", fields).status == 403
    assert not everything.was_changed


def test_a_page_shows_its_forms_only_to_whoever_may_send_them(everything: Everything) -> None:
    assert "form_token" not in everything.browser().get(f"/images/{BROKEN}").text
    assert "Log in" in everything.browser().get("/").text
    assert "Publish now" not in log_in(everything).get(f"/images/{QUEUED}").text  # it is queued


def test_a_session_ends(everything: Everything, status_site: StatusSite) -> None:
    browser = log_in(everything)
    token = form_token(browser)
    assert browser.post_form("/logout", {"form_token": token}).status == 303
    assert "form_token" not in browser.get("/").text
    times = [status_site.now]
    service = status_site.service(control=Orders(), token=TOKEN, clock=lambda: times[0])
    browser = status_site.browser(service)
    browser.post_form("/login", {"token": TOKEN})
    assert "form_token" in browser.get("/").text
    times[0] += SESSION_SPAN
    assert "form_token" not in browser.get("/").text


def test_a_changed_session_is_none(everything: Everything) -> None:
    browser = log_in(everything)
    good = browser.cookies[COOKIE]
    nonce, expires, signature = good.split(".")
    for wrong in (
        f"{nonce}.{int(expires) + 1}.{signature}",
        f"{nonce}.{expires}.{signature[:-1]}",
        f"{nonce}.{expires}",
        signature,
        "ä",
    ):
        browser.cookies[COOKIE] = wrong
        assert "form_token" not in browser.get("/").text


def test_a_wrong_token_is_told_on_the_page(everything: Everything) -> None:
    browser = everything.browser()
    answer = browser.post_form("/login", {"token": "wrong"})
    assert answer.status == 403
    assert "that is not the token" in answer.text
    assert not browser.cookies


def test_without_a_token_nothing_can_be_changed(status_site: StatusSite) -> None:
    closed = Everything(status_site, token=None)
    browser = closed.browser()
    for authorization in ("Bearer ", "Bearer None", BEARER):
        answer = browser.post_json("/api/v1/publish", {"name": BROKEN}, authorization=authorization)
        assert answer.status == 403
    assert browser.post_form("/login", {"token": ""}).status == 403
    assert browser.get("/login").status == 404
    assert not closed.was_changed


def test_without_a_watcher_nothing_can_be_ordered(status_site: StatusSite) -> None:
    browser = status_site.browser(status_site.service(token=TOKEN))
    answer = browser.post_json("/api/v1/publish", {"name": BROKEN}, authorization=BEARER)
    assert answer.status == 403
    assert "watch --listen" in answer.json()["hint"]
    assert browser.ask("POST", "/hooks/generic", {}, b"{}").status == 404


def test_behind_a_proxy_the_configured_address_counts(status_site: StatusSite) -> None:
    service = status_site.service(control=Orders(), token=TOKEN, url="https://images.example.org")
    browser = status_site.browser(service)
    assert browser.post_form("/login", {"token": TOKEN}).status == 403
    answer = browser.post_form("/login", {"token": TOKEN}, origin="https://images.example.org")
    assert answer.status == 303
    assert "secure" in answer.headers["set-cookie"].lower()


def test_a_token_that_can_be_guessed_is_refused() -> None:
    with pytest.raises(InputError, match="has 5 characters"):
        check_token("short")
    assert check_token(TOKEN) == TOKEN


def test_sessions_of_another_process_are_none(status_site: StatusSite) -> None:
    browser = log_in(Everything(status_site))
    browser.app = Everything(status_site).app
    assert "form_token" not in browser.get("/").text


def test_access_without_a_token_knows_no_session() -> None:
    def clock() -> datetime:
        raise AssertionError("nothing is signed, so nothing expires")

    assert not Access(None, clock).is_possible
    assert timedelta(hours=1) < SESSION_SPAN < timedelta(days=1)
