"""Words for people: tables, sizes, and nothing that a name could do to a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
from datetime import UTC, datetime, timedelta, timezone

import pytest

from cvmfs_publish.cli.output import (
    Output,
    format_bytes,
    format_fields,
    format_minute,
    format_table,
    format_time,
    plural,
    printable,
)
from cvmfs_publish.cli.progress import StatusLine


def make(*, as_json: bool = False, quiet: bool = False) -> tuple[Output, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Output(out, err, as_json=as_json, quiet=quiet), out, err


def test_a_result_is_text_or_json() -> None:
    output, out, err = make()
    output.result({"a": 1}, "one")
    assert (out.getvalue(), err.getvalue()) == ("one\n", "")
    output, out, err = make(as_json=True)
    output.result({"a": "é\udcff"}, "one")
    assert json.loads(out.getvalue()) == {"a": "é\udcff"}
    assert out.getvalue().isascii()


def test_an_error_after_the_result_is_no_second_document() -> None:
    output, out, err = make(as_json=True)
    output.result({"a": 1}, "one")
    output.error("bug", "late")
    assert json.loads(out.getvalue()) == {"a": 1}
    assert err.getvalue() == "cvmfs-publish: error: late\n"


def test_notes_are_for_people_who_want_them() -> None:
    for options, expected in [({}, "note\n"), ({"quiet": True}, ""), ({"as_json": True}, "")]:
        output, out, err = make(**options)
        output.note("note")
        assert (out.getvalue(), err.getvalue()) == ("", expected)


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[31mb\x07\x00\x7f\x9b\r") == "a\\x1b[31mb\\x07\\x00\\x7f\\x9b\\x0d"
    assert printable("é\tü\n") == "é\tü\n"
    output, _, err = make()
    output.error("remote", "\x1b]0;title\x07", "\x1b[2J")
    assert "\x1b" not in err.getvalue()
    assert "\x07" not in err.getvalue()


def test_a_table_has_a_row_per_line() -> None:
    text = format_table(("A", "LONG"), [("one", "x"), ("two\nthree", "")])
    assert text.splitlines() == ["A           LONG", "one         x", "two\\nthree"]


def test_fields_are_below_each_other() -> None:
    assert format_fields([("a", "1"), ("long", "2"), ("", "")]) == "a     1\nlong  2\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (2_315_886_350, "2.32 GB"),
        (10**15 * 5, "5.00 PB"),
        (10**18 * 5, "5000 PB"),
    ],
)
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_counts_agree_with_their_nouns() -> None:
    assert (plural(1, "image"), plural(0, "image")) == ("1 image", "0 images")
    assert plural(1234, "entry", "entries") == "1,234 entries"


def test_times_are_utc() -> None:
    at = datetime(2026, 11, 20, 1, 2, 3, 999, timezone(timedelta(hours=2)))
    assert format_time(at) == "2026-11-19T23:02:03Z"
    assert format_minute(at) == "2026-11-19 23:02 UTC"
    assert format_minute(at.astimezone(UTC)) == format_minute(at)


def test_progress_is_drawn_on_terminals_only() -> None:
    output, _, err = make()
    with StatusLine(output) as status:
        status.show("half")
    assert err.getvalue() == ""


@pytest.mark.parametrize(
    ("environ", "quiet", "draws"),
    [
        ({}, False, True),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": "1"}, False, True),
        ({}, True, False),
    ],
)
def test_a_status_line_is_drawn_over_and_removed(
    environ: dict[str, str], quiet: bool, draws: bool
) -> None:
    control, terminal = pty.openpty()
    with open(terminal, "w") as stream:
        output = Output(io.StringIO(), stream, environ, quiet=quiet)
        assert output.has_colour is ("NO_COLOR" not in environ)
        with StatusLine(output) as status:
            status.show("half\x1b[31m " + "x" * 1000)
            status.show("at once, so not drawn")
        stream.write(".")
        stream.flush()
        drawn = ""
        while not drawn.endswith("."):  # a terminal hands over what it has got so far
            drawn += os.read(control, 10_000).decode()
    os.close(control)
    if draws:
        assert drawn.startswith("\r\x1b[Khalf\\x1b[31m xxx")
        assert drawn.endswith("\r\x1b[K.")
        assert len(drawn) < 500
        assert "at once" not in drawn
    else:
        assert drawn == "."
