"""Health is 200 only if everything works that has to."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from cvmfs_publish.state.database import StateError
from cvmfs_publish.state.state import State
from cvmfs_publish.web.service import Service
from tests.asgi import Answer, Browser
from tests.status_site import StatusSite


def ask(site: StatusSite, service: Service) -> Answer:
    return site.browser(service).get("/healthz")


def failed(answer: Answer) -> set[str]:
    document = answer.json()
    found = {check["name"] for check in document["checks"] if not check["ok"]}
    assert document["ok"] == (not found)
    assert answer.status == (503 if found else 200)
    return found


def test_everything_is_checked_and_told(browser: Browser) -> None:
    answer = browser.get("/healthz")
    assert failed(answer) == set()
    assert answer.headers["cache-control"] == "no-store"
    names = [check["name"] for check in answer.json()["checks"]]
    assert names == ["repository", "whitelist", "state", "watcher", "publishing"]
    assert all(check["text"] for check in answer.json()["checks"])


def test_a_watcher_that_is_silent_is_no_health(status_site: StatusSite) -> None:
    late = status_site.now + timedelta(minutes=2)
    assert failed(ask(status_site, status_site.service(clock=lambda: late))) == {"watcher"}
    alone = status_site.service(clock=lambda: late, expects_watcher=False)
    assert failed(ask(status_site, alone)) == set()


def test_an_expired_whitelist_is_no_health(status_site: StatusSite) -> None:
    late = status_site.now + timedelta(days=60)
    service = status_site.service(clock=lambda: late, expects_watcher=False)
    answer = ask(status_site, service)
    assert failed(answer) == {"whitelist"}
    assert "clients refuse" in answer.text


def test_a_state_that_cannot_be_written_is_no_health(status_site: StatusSite) -> None:
    def fail() -> None:
        raise StateError("the disk is full")

    answer = ask(status_site, status_site.service(probe=fail))
    assert failed(answer) == {"state"}
    assert "the disk is full" in answer.text
    probed: list[int] = []
    assert failed(ask(status_site, status_site.service(probe=lambda: probed.append(1)))) == set()
    assert probed == [1]


def test_a_repository_that_cannot_be_written_for_minutes_is_no_health(
    status_site: StatusSite,
) -> None:
    with State.open(status_site.state_folder) as state:
        state.mark("refused", status_site.now - timedelta(minutes=4))
        assert failed(ask(status_site, status_site.service())) == set()
        state.mark("refused", status_site.now - timedelta(minutes=6))
        answer = ask(status_site, status_site.service())
        assert failed(answer) == {"publishing"}
        assert "nothing can be published since" in answer.text
        state.unmark("refused")
    assert failed(ask(status_site, status_site.service())) == set()


def test_without_repository_and_state_nothing_is_well(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    nothing = StatusSite(tmp_path)
    assert failed(ask(nothing, nothing.service())) == {
        "repository",
        "whitelist",
        "state",
        "watcher",
    }
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "watch.sqlite").write_bytes(b"no database" * 1000)
    assert "state" in failed(ask(nothing, nothing.service()))
