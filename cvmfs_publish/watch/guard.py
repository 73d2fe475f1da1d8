"""Decide which wishes are in force when a list has changed: what vanished may be a mistake.

A list that is cut short on its way looks like a list from which images were taken out, and what is
in no list may be removed.  The rules, for all lists of one place together:

- A list that had wishes and can no longer be read as one counts as it was read last.
- If not a single wish is left of some, they all stay, for as long as that lasts.
- If there were ten wishes or more and over half of them are gone, what is new counts, and what is
  gone stays as well until this has lasted for a day.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cvmfs_publish.errors import InputError
from cvmfs_publish.watch.wish import Wish, Wishlist

GUARDED = 10  # wishes; below that half of them is soon taken out on purpose
HOLD = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is in force."""

    lists: tuple[Wishlist, ...]
    errors: tuple[InputError | None, ...]  # one for each list
    is_taken: bool  # the new lists are from now on what the next are compared with
    held_since: datetime | None = None  # since when more than half has been gone


def judge(
    old: Sequence[Wishlist], new: Sequence[Wishlist], held_since: datetime | None, now: datetime
) -> Verdict:
    """Return which wishes count of what was in force and what is there now."""
    before = {each.source: each for each in old}
    lists = [_readable(each, before.get(each.source)) for each in new]
    errors = [_unreadable(each) for each in new]
    had, has = _names(old), _names(lists)
    gone = had - has
    if had and not has:
        what = f"no image is named any more; the {len(had)} that were named last still count"
        hint = "to give the list up, take it out of `wishlists` in the configuration"
        return _hold(old, lists, errors, _Hold(what, hint))
    if len(had) >= GUARDED and 2 * len(gone) > len(had):
        since = now if held_since is None or held_since > now else held_since
        if now - since < HOLD:
            what = f"{len(gone)} of {len(had)} images are gone; they still count"
            hint = f"if that is meant, they count no more from {since + HOLD:%Y-%m-%d %H:%M} UTC on"
            return _hold(old, lists, errors, _Hold(what, hint, since))
    # while a list cannot be read, the next is compared with what was complete
    return Verdict(tuple(lists), tuple(errors), all(error is None for error in errors))


def _readable(new: Wishlist, old: Wishlist | None) -> Wishlist:
    """A list that is none is what it was; its problems are those of now."""
    if _unreadable(new) is None or old is None:
        return new
    return replace(new, wishes=old.wishes)


def _unreadable(wishlist: Wishlist) -> InputError | None:
    """A list without any wish, but with an error, is none."""
    if wishlist.wishes or not wishlist.errors:
        return None
    problem = wishlist.errors[0]
    return InputError(f"{problem.place}: {problem.message}", hint=problem.hint)


@dataclass(frozen=True, slots=True)
class _Hold:
    """Why what is gone still counts."""

    what: str
    hint: str
    since: datetime | None = None


def _hold(
    old: Sequence[Wishlist],
    lists: Sequence[Wishlist],
    errors: Sequence[InputError | None],
    hold: _Hold,
) -> Verdict:
    """Return the new lists with the wishes that they lack, and lists that are gone altogether."""
    has = _names(lists)
    before = {each.source: each for each in old}
    merged = [
        replace(each, wishes=(*each.wishes, *_missing(before.pop(each.source, None), has)))
        for each in lists
    ]
    merged += [replace(each, wishes=tuple(_missing(each, has))) for each in before.values()]
    told = [*errors, *[None] * len(before)]
    for at, each in enumerate(merged):
        told[at] = told[at] or InputError(f"{each.source}: {hold.what}", hint=hold.hint)
    return Verdict(tuple(merged), tuple(told), False, hold.since)


def _missing(old: Wishlist | None, has: Container[str]) -> list[Wish]:
    return [wish for wish in old.wishes if wish.name not in has] if old else []


def _names(lists: Iterable[Wishlist]) -> set[str]:
    return {wish.name for each in lists for wish in each.wishes}
