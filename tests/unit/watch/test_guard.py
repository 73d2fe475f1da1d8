"""Lists that shrink: what counts, and from when on."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from cvmfs_publish.watch.guard import HOLD, Verdict, judge
from cvmfs_publish.watch.wishlist import Wishlist, parse_wishlist

NOW = datetime(2026, 11, 29, 12, 0, tzinfo=UTC)


def names(first: int, last: int) -> str:
    return "\n".join(f"a/b{number}:1" for number in range(first, last))


def lists(*texts: str) -> list[Wishlist]:
    return [parse_wishlist(text, f"list{number}") for number, text in enumerate(texts)]


def in_force(verdict: Verdict) -> int:
    return sum(len(each.wishes) for each in verdict.lists)


def test_the_first_reading_counts_as_it_is() -> None:
    verdict = judge([], lists(names(0, 20)), None, NOW)
    assert (in_force(verdict), verdict.is_taken, verdict.errors) == (20, True, (None,))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (names(0, 20), names(0, 21)),
        (names(0, 20), names(0, 10)),  # half is not more than half
        (names(0, 20), names(10, 40)),
        (names(0, 9), names(0, 1)),  # few may change at will
        (names(0, 20), names(0, 20) + "\nA/B"),  # a wrong line is no wrong list
    ],
)
def test_lists_that_change_as_lists_do_count_at_once(old: str, new: str) -> None:
    verdict = judge(lists(old), lists(new), None, NOW)
    assert verdict.lists == tuple(lists(new))
    assert (verdict.is_taken, verdict.errors) == (True, (None,))


def test_more_than_half_gone_is_held_for_a_day_and_what_is_new_counts() -> None:
    old, new = lists(names(0, 20)), lists(names(11, 25))
    first = judge(old, new, None, NOW)
    assert (in_force(first), first.is_taken, first.held_since) == (25, False, NOW)
    assert first.errors[0] is not None
    assert str(first.errors[0]) == "list0: 11 of 20 images are gone; they still count"
    assert "2026-11-30 12:00 UTC" in first.errors[0].hint
    again = judge(old, new, NOW, NOW + HOLD - timedelta(seconds=1))
    assert (in_force(again), again.is_taken, again.held_since) == (25, False, NOW)
    at_last = judge(old, new, NOW, NOW + HOLD)
    assert (in_force(at_last), at_last.is_taken, at_last.errors) == (14, True, (None,))


def test_a_list_that_comes_back_is_no_longer_held() -> None:
    verdict = judge(lists(names(0, 20)), lists(names(0, 20)), NOW, NOW + HOLD)
    assert (verdict.is_taken, verdict.held_since) == (True, None)


def test_a_clock_that_was_set_back_starts_the_day_anew() -> None:
    later = NOW + timedelta(days=400)
    verdict = judge(lists(names(0, 20)), lists(names(0, 2)), later, NOW)
    assert (verdict.is_taken, verdict.held_since) == (False, NOW)


@pytest.mark.parametrize("old", [names(0, 1), names(0, 20)])
@pytest.mark.parametrize("new", ["", "# nothing"])
def test_a_list_that_shrinks_to_nothing_is_never_believed(old: str, new: str) -> None:
    verdict = judge(lists(old), lists(new), NOW, NOW + timedelta(days=365))
    assert [each.wishes for each in verdict.lists] == [lists(old)[0].wishes]
    assert not verdict.is_taken
    assert verdict.errors[0] is not None
    assert "no image is named any more" in str(verdict.errors[0])


@pytest.mark.parametrize(
    "new", ["<html>Not Found</html>", "version: 1\nimages: [a", "Server error"]
)
def test_a_list_that_is_none_any_more_counts_as_it_was_and_its_problem_is_told(new: str) -> None:
    verdict = judge(lists(names(0, 3)), lists(new), None, NOW)
    assert verdict.lists[0].wishes == lists(names(0, 3))[0].wishes
    assert verdict.lists[0].problems == lists(new)[0].problems
    assert not verdict.is_taken
    assert verdict.errors[0] is not None
    assert verdict.lists[0].problems[0].message in str(verdict.errors[0])


def test_a_list_that_was_never_one_is_an_error_and_nothing_counts() -> None:
    verdict = judge([], lists("<html>"), None, NOW)
    assert (in_force(verdict), verdict.is_taken) == (0, False)
    assert verdict.errors[0] is not None


def test_the_lists_of_a_folder_are_judged_together() -> None:
    old = lists(names(0, 10), names(10, 40))
    moved = judge(old, lists(names(0, 40)), None, NOW)
    assert (len(moved.lists), in_force(moved), moved.is_taken) == (1, 40, True)
    one_gone = judge(old, lists(names(0, 10)), None, NOW)
    assert [len(each.wishes) for each in one_gone.lists] == [10, 30]
    assert [each.source for each in one_gone.lists] == ["list0", "list1"]
    assert not one_gone.is_taken
    small_one_gone = judge(old, old[1:], None, NOW)
    assert (in_force(small_one_gone), small_one_gone.is_taken) == (30, True)


def test_one_wrong_list_of_a_folder_changes_nothing_for_the_others() -> None:
    old = lists(names(0, 10), names(10, 20))
    verdict = judge(old, lists("<html>", names(10, 21)), None, NOW)
    assert [len(each.wishes) for each in verdict.lists] == [10, 11]
    assert [error is None for error in verdict.errors] == [False, True]
    assert not verdict.is_taken
