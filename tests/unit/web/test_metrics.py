"""Figures are what Prometheus reads, and what the documentation says."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from cvmfs_publish.state import figures
from cvmfs_publish.web.metrics import FAMILIES, PREFIX
from tests.asgi import Browser
from tests.status_site import LIST, S1, URL_LIST, StatusSite

DOCUMENTATION = Path(__file__).parents[3] / "docs" / "status-site.md"
Figures = dict[str, dict[tuple[str, ...], float]]


def read(browser: Browser) -> Figures:
    answer = browser.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name: {
            tuple(value for _, value in sorted(other.labels.items())): other.value
            for other in family.samples
            if other.name == sample.name
        }
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_the_figures_are_right(browser: Browser, status_site: StatusSite) -> None:
    found = {name.removeprefix(PREFIX): values for name, values in read(browser).items()}
    assert found["revision"] == {(): 3.0}
    assert found["published_images"] == {(): 3.0}
    assert found["up"] == {("repository",): 1.0, ("state",): 1.0}
    assert found["images"][("quarantined",)] == 1.0
    assert found["images"][("gone",)] == 0.0
    assert found["queue_jobs"] == {("running",): 1.0, ("waiting",): 2.0}
    assert found["oldest_wish_seconds"] == {(): 3 * 86400.0}
    assert found["wishlist_problems"] == {(LIST,): 2.0, (URL_LIST,): 0.0}
    assert found["wishlist_failed"] == {(LIST,): 0.0, (URL_LIST,): 1.0}
    assert found["registry_budget_remaining"] == {("docker.io",): 37.0}
    assert found["registry_blocked_seconds"][("quay.io",)] == 300.0
    assert found["polls_total"] == {("ghcr.io", "found"): 88.0}
    assert found["webhooks_total"] == {("accepted", "distribution"): 3.0}  # labels by name
    assert found["replica_lag_revisions"] == {(S1,): 2.0}
    assert found["replica_healthy"] == {(S1,): 1.0}
    assert found["fetched_bytes_total"] == {(): 6184.0}
    assert found["publish_seconds_sum"] == {("fetching",): 12.5}
    assert found["publish_seconds_bucket"][("10.0", "fetching")] == 0.0
    assert found["publish_seconds_bucket"][("30.0", "fetching")] == 1.0
    assert found["publish_seconds_bucket"][("+Inf", "fetching")] == 1.0
    assert found["watcher_alive_timestamp_seconds"] == {(): status_site.now.timestamp()}
    assert 25 < found["whitelist_days_left"][()] < 31


def test_every_figure_is_there_and_has_its_labels(browser: Browser) -> None:
    text = browser.get("/metrics").text
    for family in text_string_to_metric_families(text):
        known = FAMILIES[family.name.removeprefix(PREFIX)]
        assert family.documentation == known.about
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(known.labels), sample
    names = set(re.findall(rf"^# TYPE {PREFIX}(\S+)", text, re.MULTILINE))
    assert {name.removesuffix("_total") for name in names} == FAMILIES.keys()


def test_what_cannot_be_read_is_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "watch.sqlite").write_bytes(b"no database" * 1000)
    found = read(StatusSite(tmp_path).browser())
    assert found[f"{PREFIX}up"] == {("repository",): 0.0, ("state",): 0.0}
    assert f"{PREFIX}revision" not in found
    assert f"{PREFIX}queue_jobs" not in found


def test_an_expired_whitelist_has_days_below_zero(status_site: StatusSite) -> None:
    late = status_site.now + timedelta(days=60)
    found = read(status_site.browser(status_site.service(clock=lambda: late)))
    assert found[f"{PREFIX}whitelist_days_left"][()] < -20


def test_durations_count_in_every_bucket_they_fit_into() -> None:
    amounts = figures.observe("x", "a", 3.0)
    assert amounts[figures.bucket("x", 3.0), "a"] == 1
    assert (figures.bucket("x", 1.0), "a") not in amounts
    assert amounts["x", "a"] == 3.0
    assert amounts["x_count", "a"] == 1


def test_the_documentation_lists_every_figure() -> None:
    rows = re.findall(
        rf"^\| `{PREFIX}([a-z_]+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$",
        DOCUMENTATION.read_text("utf-8"),
        re.MULTILINE,
    )
    documented = {
        name.removesuffix("_total"): (kind, labels.strip(), about.strip())
        for name, kind, labels, about in rows
    }
    known = {
        name: (family.kind, " ".join(f"`{label}`" for label in family.labels), family.about)
        for name, family in FAMILIES.items()
    }
    assert documented == known
