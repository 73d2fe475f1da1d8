"""Turn the headers in which servers state a quota into a limit and what is left of it.  Pure.

Sources: Docker Hub, "Pull usage and limits" (`RateLimit-Remaining: 76;w=21600`); IETF draft
"RateLimit header fields for HTTP", versions 03 to 10; GitHub and GitLab, where a reset is a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cvmfs_publish.sources.registry.answers import parse_retry_after

UNIX_TIME_FROM = 10**9  # a number from here on is a time, not a wait: 31 years or 2001-09-09
MAX_SECONDS = 10**7  # of a wait or a window: four months
_NUMBER = re.compile(r"\s*([0-9]{1,12})(?![0-9])")
_WINDOW = re.compile(r";\s*w\s*=\s*\"?([0-9]{1,9})(?![0-9])")
# All in one header: `limit=100, remaining=50, reset=5` or, later, `"default";r=50;t=30`
_FIELD = re.compile(r"\b(limit|remaining|reset|r|t)\s*=\s*([0-9]{1,12})(?![0-9])")
_LATER_NAMES = {"r": "remaining", "t": "reset"}


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A quota as its server states it."""

    remaining: int
    limit: int | None = None
    window: timedelta | None = None
    resets_at: datetime | None = None

    def until_next(self, now: datetime) -> timedelta:
        """Return how long to wait where nothing is left; zero if that is not known.

        Without a time of reset the window slides, as Docker Hub's does, and one is free again after
        its share of it.
        """
        if self.resets_at is not None:
            return max(self.resets_at - now, timedelta())
        return self.window / self.limit if self.window and self.limit else timedelta()

    def __str__(self) -> str:
        text = f"{self.remaining}" + (f" of {self.limit}" if self.limit is not None else "")
        text += f" in {format_wait(self.window)}" if self.window else ""
        return f"{text} left" + (f" until {self.resets_at:%H:%M:%S} UTC" if self.resets_at else "")


def parse_rate_limit(header: Callable[[str], str], now: datetime) -> RateLimit | None:
    """Return the quota in the headers of an answer, None if they state none that is understood."""
    joined = {
        _LATER_NAMES.get(name, name): int(number)
        for name, number in _FIELD.findall(header("RateLimit"))
    }
    for prefix in ("RateLimit", "X-RateLimit"):
        texts = {name: header(f"{prefix}-{name}") for name in ("Limit", "Remaining", "Reset")}
        numbers = {name: _number(text, joined.get(name.lower())) for name, text in texts.items()}
        remaining = numbers["Remaining"]
        window = _WINDOW.search(texts["Limit"]) or _WINDOW.search(texts["Remaining"])
        if remaining is not None:
            return RateLimit(
                remaining,
                numbers["Limit"],
                timedelta(seconds=min(int(window[1]), MAX_SECONDS)) if window else None,
                _parse_reset(numbers["Reset"], now),
            )
    return None


def parse_wait(header: Callable[[str], str], now: datetime) -> timedelta | None:
    """Return the wait that a server asks for, or implies by a quota that is used up."""
    asked = parse_retry_after(header)
    if asked is not None:
        return asked
    stated = parse_rate_limit(header, now)
    if stated is None or stated.remaining > 0:
        return None
    return stated.until_next(now) or None


def format_wait(wait: timedelta) -> str:
    """Return a wait in whole seconds, rounded up: asking a moment too early is for nothing."""
    return str(timedelta(seconds=-(-wait // timedelta(seconds=1))))


def _number(text: str, default: int | None) -> int | None:
    match = _NUMBER.match(text)
    return int(match[1]) if match else default


def _parse_reset(number: int | None, now: datetime) -> datetime | None:
    if number is None:
        return None
    if number >= UNIX_TIME_FROM:
        wait = datetime.fromtimestamp(min(number, 10**11), UTC) - now
    else:
        wait = timedelta(seconds=number)
    return now + min(wait, timedelta(seconds=MAX_SECONDS))
