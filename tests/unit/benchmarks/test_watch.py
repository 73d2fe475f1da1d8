"""The benchmark of the watcher measures what it says; on few tags here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import watch
from benchmarks.watch import STORM_SHARE, Cycle, format_table, measure, plan_world

LIST = """\
version: 1
images:
  - docker.io/library/debian:12
  - ghcr.io/a/b:1
  - {name: quay.io/c/d, tags: {match: '1.*'}}
"""


@pytest.fixture
def wishlist(tmp_path: Path) -> Path:
    path = tmp_path / "list.yaml"
    path.write_text(LIST)
    return path


def test_the_world_has_what_lists_name_and_as_much_more_as_is_asked_for(wishlist: Path) -> None:
    world, made_up = plan_world([wishlist], 100)
    assert sorted(world) == ["docker.io", "ghcr.io", "quay.io"]
    assert world["docker.io"]["library/debian"] == ["12"]
    assert len(world["quay.io"]["c/d"]) == 20
    tags = sum(len(tags) for found in world.values() for tags in found.values())
    assert tags == 100
    assert made_up.count("  - ") == 78


def test_a_steady_cycle_asks_once_and_a_storm_makes_no_storm(
    wishlist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "STORM_SECONDS", 300)
    first, steady, storm = measure([wishlist], 120)
    assert first.requests == {"HEAD ok": 120, "GET ok": 1}
    assert steady.requests == {"HEAD ok": 120}
    assert steady.peak_bytes < 200e6
    assert 0.2 < first.budget_used < steady.budget_used < storm.budget_used <= 1
    refused = sum(count for what, count in storm.requests.items() if "ok" not in what)
    # questions go on once an interval while the storm lasts; refusals are few, for they end rounds
    cycles = storm.simulated_seconds / (15 * 60) + 1
    assert storm.requests["HEAD ok"] <= 120 * cycles
    assert 0 < refused < STORM_SHARE * 120 * cycles
    assert "| steady | 120 |" in format_table([first, steady, storm])


def test_a_registry_that_is_asked_for_more_than_it_allows_fails_the_benchmark(
    wishlist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch.Simulator, "most_in_an_hour", lambda *_: 10**6)
    with pytest.raises(RuntimeError, match="times what it allows"):
        measure([wishlist], 30)


def test_the_table_has_a_line_for_each_cycle() -> None:
    cycle = Cycle("storm", 1, 0.1, 0.1, 10**6, 60.0, {"HEAD ok": 1}, 1, 0.5)
    assert (
        format_table([cycle]).splitlines()[-1].endswith("| 50% | 1 HEAD ok, 1 min of the clock |")
    )
