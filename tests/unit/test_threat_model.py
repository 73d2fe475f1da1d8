"""Every promise of docs/threat-model.md names a test that holds it, and that test exists."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "threat-model.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@cache
def found_in(path: str) -> frozenset[str]:
    return frozenset(re.findall(r"^def (test_\w+)\(", (ROOT / path).read_text("utf-8"), re.M))


def promises() -> list[str]:
    """Return the rows of the tables that say what holds."""
    rows, found = [], False
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("| what holds |"):
            found = True
        elif not line.startswith("|"):
            found = False
        elif found and not line.startswith("|---"):
            rows.append(line)
    return rows


def test_every_promise_names_a_test() -> None:
    assert len(promises()) > 30
    assert [row for row in promises() if not NAMED.search(row)] == []


def test_every_test_that_is_named_exists() -> None:
    named = NAMED.findall(PAGE.read_text("utf-8"))
    assert [f"{path}::{name}" for path, name in named if name not in found_in(path)] == []


def test_everything_that_looks_like_a_test_is_read_as_one() -> None:
    text = PAGE.read_text("utf-8")
    assert text.count("::") == len(NAMED.findall(text))
