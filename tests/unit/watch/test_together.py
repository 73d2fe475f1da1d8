"""systemd is told of several services what it would be told of one."""

from __future__ import annotations

from cvmfs_publish.watch.systemd import Together


def told(count: int, *said: tuple[int, str]) -> list[str]:
    """Return what is told when these services say these things."""
    found: list[str] = []
    together = Together(count, found.append)
    for number, message in said:
        together.of(number)(message)
    return found


def test_one_alone_is_told_as_it_says() -> None:
    words = ["READY=1", "WATCHDOG=1", "WATCHDOG=1", "RELOADING=1\nX=2", "READY=1", "STOPPING=1"]
    assert told(1, *((0, word) for word in words)) == words


def test_all_are_ready_when_the_last_one_is() -> None:
    assert told(2, (0, "READY=1")) == []
    assert told(2, (0, "READY=1"), (0, "READY=1")) == []
    assert told(2, (0, "READY=1"), (1, "READY=1")) == ["READY=1"]


def test_one_that_does_not_live_is_not_covered_up_by_the_others() -> None:
    assert told(2, (0, "WATCHDOG=1"), (0, "WATCHDOG=1"), (0, "WATCHDOG=1")) == []
    lives = [(0, "WATCHDOG=1"), (1, "WATCHDOG=1")]
    assert told(2, *lives, *lives, (1, "WATCHDOG=1")) == ["WATCHDOG=1"] * 2


def test_all_reload_and_stop_once() -> None:
    ready = [(0, "READY=1"), (1, "READY=1")]
    assert told(2, *ready, (0, "RELOADING=1\nX=1"), (1, "RELOADING=1\nX=2"), *ready) == [
        *("READY=1", "RELOADING=1\nX=1", "READY=1")
    ]
    assert told(2, (0, "STOPPING=1"), (1, "STOPPING=1")) == ["STOPPING=1"]
