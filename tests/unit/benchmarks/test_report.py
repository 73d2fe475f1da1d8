from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from benchmarks.measure import Cost
from benchmarks.registry import count_requests
from benchmarks.report import (
    COLD,
    DIRECTORY,
    MB,
    SKOPEO,
    STAND_IN,
    STAND_IN_NOTE,
    UMOCI,
    UNCHANGED,
    UPDATE,
    Report,
    Run,
    compare,
    format_backends,
    format_report,
    format_rows,
    plan_rows,
)

COST = Cost(10.0, 15.0, 400 * MB, 700 * MB, 0.1)
ONE_HEAD = {"HEAD manifest": 1}


def run(
    step: str, seconds: float, requests: dict[str, int] | None = None, contents: int = 0
) -> Run:
    return Run(step, replace(COST, seconds=seconds), requests or {}, 700 * MB, contents)


def good_runs() -> list[Run]:
    return [
        run(COLD, 12.0, {"GET layer": 4}, 700 * MB),
        run(UPDATE, 2.0, {"GET layer": 1, "GET config": 1}),
        run(UNCHANGED, 0.5, ONE_HEAD),
        run(UMOCI, 25.0),
        run(COLD, 14.0, {"GET layer": 4}, 700 * MB),
        run(COLD, 90.0, {"GET layer": 4}, 700 * MB),
        run(UMOCI, 27.0),
        run(UMOCI, 26.0),
    ]


def test_a_good_report_keeps_every_target() -> None:
    targets = compare(Report(good_runs(), zlib6=690 * MB))
    assert len(targets) == 7
    assert all(target.kept for target in targets)
    assert targets[0].measured == "0.54 (14.0 s / 26.0 s)"


@pytest.mark.parametrize(
    ("worse", "promise"),
    [
        (run(COLD, 16.0, contents=700 * MB), "cold publish"),
        (
            replace(
                run(COLD, 12.0, contents=700 * MB), cost=replace(COST, peak_memory=500 * MB + 1)
            ),
            "peak memory",
        ),
        (run(COLD, 12.0, contents=746 * MB), "stored contents"),
        (run(UPDATE, 5.0), "one more layer ≤"),
        (run(UPDATE, 2.0, {"GET layer": 2}), "at most one layer"),
        (run(UNCHANGED, 2.0, ONE_HEAD), "unchanged ≤"),
        (run(UNCHANGED, 0.5, {"HEAD manifest": 2}), "one HEAD"),
        (run(UNCHANGED, 0.5, {"HEAD manifest": 1, "GET ping": 1}), "one HEAD"),
    ],
)
def test_a_missed_target_is_told_and_no_other(worse: Run, promise: str) -> None:
    others = [done for done in good_runs() if done.step != worse.step]
    missed = [t.promise for t in compare(Report([*others, worse], 690 * MB)) if not t.kept]
    assert len(missed) == 1
    assert promise in missed[0]


def test_one_bad_repetition_of_requests_is_not_hidden_by_good_ones() -> None:
    runs = [*good_runs(), run(UNCHANGED, 0.5, {"HEAD manifest": 1, "GET manifest": 1})]
    missed = [target for target in compare(Report(runs, 690 * MB)) if not target.kept]
    assert [target.measured for target in missed] == ["1 GET manifest, 1 HEAD manifest"]


def test_nothing_is_claimed_about_steps_that_did_not_run() -> None:
    assert compare(Report([run(SKOPEO, 1.0)], 690 * MB)) == []
    assert [row[0] for row in plan_rows(Report([run(SKOPEO, 1.0)], 0))] == ["step", SKOPEO]


def test_a_row_shows_median_range_ratio_and_the_worst_memory() -> None:
    runs = good_runs()
    runs.append(replace(runs[0], cost=replace(COST, seconds=13.0, peak_memory=444 * MB)))
    row = plan_rows(Report(runs, 690 * MB))[1]
    assert row == [
        COLD,
        "13.50",
        "12.00-90.00",
        "0.52",
        "15.0",
        "0.1",
        "444",
        "700.0",
        "4 GET layer",
    ]


def test_a_busy_machine_is_told() -> None:
    quiet = Report(good_runs(), 690 * MB)
    assert "say little" not in format_report(quiet)
    spoiled = [replace(done, cost=replace(done.cost, other_cpu_seconds=26.0))
               if done.step == UMOCI else done for done in good_runs()]  # fmt: skip
    note = "note: umoci unpack: others kept 1.0 processors busy; its times say little"
    assert format_report(Report(spoiled, 690 * MB)).endswith(note)


def test_a_table_is_aligned_markdown() -> None:
    rows = [["step", "s"], ["a", "1.00"], ["longer", "10.00"]]
    assert format_rows(rows, text=(0,)).splitlines() == [
        "| step   |     s |",
        "| ------ | ----: |",
        "| a      |  1.00 |",
        "| longer | 10.00 |",
    ]


def test_a_report_says_what_was_missed_and_left_out() -> None:
    runs = [*good_runs(), run(UNCHANGED, 9.0, ONE_HEAD), run(UNCHANGED, 9.0, ONE_HEAD)]
    text = format_report(Report(runs, 690 * MB, ["apptainer left out: not installed"]))
    assert "| unchanged ≤ 1 s " in text
    assert "9.00 s" in text
    assert "| NO " in text
    assert text.endswith("note: apptainer left out: not installed")


def test_requests_are_counted_from_an_access_log() -> None:
    layer, config = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    paths = ["GET /v2/", "HEAD /v2/bench/manifests/base", f"GET /v2/bench/manifests/{config}"]
    paths += [f"GET /v2/bench/blobs/{layer}", f"GET /v2/bench/blobs/{layer}?x=1"]
    paths += [f"GET /v2/bench/blobs/{config}", "POST /v2/bench/blobs/uploads/"]
    paths += ["GET /v2/bench/tags/list"]
    lines = [
        f'127.0.0.1 - - [20/Nov/2026:20:21:19 +0000] "{path} HTTP/1.1" 200 2 "" "client/1"'
        for path in paths
    ]
    lines.insert(1, 'time="2026-11-20T20:21:19Z" level=error msg="GET /v2/ HTTP/1.1" x=1')
    assert count_requests("\n".join(lines), frozenset({layer})) == Counter(
        {
            "GET ping": 1,
            "HEAD manifest": 1,
            "GET manifest": 1,
            "GET layer": 2,
            "GET config": 1,
            "POST upload": 1,
            "GET other": 1,
        }
    )


def test_other_backends_are_shown_relative_to_the_native_one() -> None:
    runs = [run(COLD, 2.0), run(DIRECTORY, 5.0), run(UPDATE, 0.5)]
    text = format_backends(Report(runs, 1))
    assert "| cvmfs-publish, plain tree, cold | 5.00 |     2.00 |          2.5 |" in text
    assert "cvmfs_server" not in text
    assert format_backends(Report(runs[:1], 1)) == ""
    assert "times native" in format_report(Report(runs, 1))
    assert STAND_IN_NOTE not in format_report(Report(runs, 1))


def test_the_stand_in_is_never_taken_for_the_real_program() -> None:
    runs = [run(COLD, 2.0), run(STAND_IN, 5.0)]
    text = format_report(Report(runs, 1))
    assert "| cvmfs-publish, stand-in for cvmfs_server, cold | 5.00 |" in text
    assert f"note: {STAND_IN_NOTE}" in text
