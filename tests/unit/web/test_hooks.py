"""Webhooks are taken in if they prove themselves, once, and answered when they are stored."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cvmfs_publish.errors import InputError
from cvmfs_publish.state.database import StateError
from cvmfs_publish.state.model import Push
from cvmfs_publish.state.state import State
from cvmfs_publish.watch.webhooks import MAX_BODY, WEBHOOK_SOURCES, HookSettings
from cvmfs_publish.web.hooks import Hooks, Outcome, count_label, open_hooks
from tests.asgi import Answer, Browser
from tests.status_site import StatusSite

SECRET = "a secret of some length"
BEARER = f"Bearer {SECRET}"
IMAGE = "ghcr.io/physics/analysis:24.2.1"


@dataclass
class Pushes:
    """Takes pushes in, and counts."""

    is_full: bool = False
    taken: list[Push] = field(default_factory=list)
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)

    def submit(self, pushes: Sequence[Push]) -> int:
        if self.is_full:
            raise StateError("the disk is full")
        self.taken += pushes
        return len(pushes)

    def count(self, source: str, outcome: Outcome) -> None:
        self.outcomes.append((source, outcome))


def hooks(pushes: Pushes) -> Hooks:
    return open_hooks(SECRET, {}, pushes.submit, pushes.count)


@pytest.fixture
def pushes() -> Pushes:
    return Pushes()


@pytest.fixture
def browser(status_site: StatusSite, pushes: Pushes) -> Browser:
    return status_site.browser(hooks=hooks(pushes))


def tell(browser: Browser, document: object = None, **headers: str) -> Answer:
    told = {"image": IMAGE} if document is None else document
    return browser.post_json("/hooks/generic", told, **headers)


def test_a_push_is_stored_and_then_answered(browser: Browser, pushes: Pushes) -> None:
    answer = tell(browser, authorization=BEARER)
    assert (answer.status, answer.json()["accepted"]) == (202, 1)
    (push,) = pushes.taken
    assert (push.registry, push.repository, push.tag) == ("ghcr.io", "physics/analysis", "24.2.1")
    assert push.source == "generic"
    assert push.delivery
    assert pushes.outcomes == [("generic", "accepted")]


def test_a_signature_is_as_good_as_the_secret(browser: Browser, pushes: Pushes) -> None:
    body = b'{"action": "published"}'
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "content-type": "application/json",
        "x-github-event": "ping",
        "x-hub-signature-256": f"sha256={signature}",
    }
    assert browser.ask("POST", "/hooks/github", headers, body).status == 202
    assert browser.ask("POST", "/hooks/github", headers, body + b" ").status == 403
    assert [outcome for _, outcome in pushes.outcomes] == ["ignored", "refused"]


def test_whoever_does_not_know_the_secret_learns_only_that(
    browser: Browser, pushes: Pushes
) -> None:
    for given in ("", "Bearer wrong", SECRET[:-1], "Bearer"):
        for source in WEBHOOK_SOURCES:
            answer = browser.post_json(f"/hooks/{source}", {"image": IMAGE}, authorization=given)
            assert answer.status == 403
            assert IMAGE not in answer.text
    assert pushes.taken == []
    assert {outcome for _, outcome in pushes.outcomes} == {"refused"}


def test_nonsense_with_the_secret_is_told(browser: Browser, pushes: Pushes) -> None:
    odd: list[object] = [{}, [], {"image": 5}, {"image": IMAGE, "x": 1}]
    for document in odd:
        answer = tell(browser, document, authorization=BEARER)
        assert answer.status == 422
        assert answer.headers["content-type"] == "application/problem+json"
    assert pushes.taken == []


def test_a_body_without_end_is_not_read(browser: Browser, pushes: Pushes) -> None:
    large = json.dumps({"image": "x" * MAX_BODY}).encode()
    for promised in (str(len(large)), "10", "-1", "x", "9" * 30):
        headers = {
            "authorization": BEARER,
            "content-type": "application/json",
            "content-length": promised,
        }
        assert browser.ask("POST", "/hooks/generic", headers, large).status == 413
    assert pushes.outcomes == []


def test_an_unknown_source_is_told_what_there_is(browser: Browser) -> None:
    answer = browser.post_json("/hooks/quay", {"image": IMAGE}, authorization=BEARER)
    assert answer.status == 404
    assert "generic" in answer.json()["hint"]


def test_a_push_that_cannot_be_stored_is_to_be_sent_again(browser: Browser, pushes: Pushes) -> None:
    pushes.is_full = True
    answer = tell(browser, authorization=BEARER)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "disk" not in answer.text
    assert pushes.outcomes == [("generic", "failed")]


def test_the_same_delivery_is_taken_once(status_site: StatusSite, tmp_path: Path) -> None:
    with State.open(tmp_path) as state:
        outcomes: list[Outcome] = []
        taking = open_hooks(
            SECRET,
            {"generic": HookSettings()},
            lambda pushes: state.submit(pushes, status_site.now),
            lambda _, outcome: outcomes.append(outcome),
        )
        browser = status_site.browser(hooks=taking)
        for _ in range(3):
            assert tell(browser, authorization=BEARER).status == 202
        assert outcomes == ["accepted", "repeated", "repeated"]
        assert len(state.pushes()) == 1


def test_only_sources_that_are_named_may_send(status_site: StatusSite, pushes: Pushes) -> None:
    taking = open_hooks(SECRET, {"harbor": HookSettings()}, pushes.submit, pushes.count)
    assert tell(status_site.browser(hooks=taking), authorization=BEARER).status == 404


def test_settings_that_cannot_work_are_refused(pushes: Pushes) -> None:
    with pytest.raises(InputError, match="has 5 characters, wanted are 16"):
        open_hooks("short", {}, pushes.submit, pushes.count)
    with pytest.raises(InputError, match="'quay' is no source"):
        open_hooks(SECRET, {"quay": HookSettings()}, pushes.submit, pushes.count)


def test_results_are_counted_where_figures_look() -> None:
    assert count_label("harbor", "refused") == ("webhooks", "harbor refused")
