"""Turn measured runs into medians, a table and a comparison with the targets.  Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import Cost

MB = 1_000_000
KB = 1000

COLD = "cvmfs-publish, cold"
UPDATE = "cvmfs-publish, one more layer"
UNCHANGED = "cvmfs-publish, unchanged"
DIRECTORY = "cvmfs-publish, plain tree, cold"
DIRECTORY_UPDATE = "cvmfs-publish, plain tree, one more layer"
SERVER = "cvmfs-publish, cvmfs_server, cold"
SERVER_UPDATE = "cvmfs-publish, cvmfs_server, one more layer"
STAND_IN = "cvmfs-publish, stand-in for cvmfs_server, cold"
STAND_IN_UPDATE = "cvmfs-publish, stand-in for cvmfs_server, one more layer"
STAND_IN_NOTE = (
    "the stand-in for cvmfs_server is that of the tests, as the real one is not here or cannot be"
    " used: it mounts nothing, and its factor is no factor of cvmfs_server"
)
DUCC = "DUCC and cvmfs_server, cold"
DUCC_UPDATE = "DUCC and cvmfs_server, one more layer"
UMOCI = "umoci unpack"
SKOPEO = "skopeo copy"
APPTAINER = "apptainer build --sandbox"
STEPS = (
    COLD, UPDATE, UNCHANGED, DIRECTORY, DIRECTORY_UPDATE, SERVER, SERVER_UPDATE,
    STAND_IN, STAND_IN_UPDATE, DUCC, DUCC_UPDATE, UMOCI, SKOPEO, APPTAINER,
)  # fmt: skip
BACKENDS = (
    (DIRECTORY, COLD), (DIRECTORY_UPDATE, UPDATE), (SERVER, COLD), (SERVER_UPDATE, UPDATE),
    (STAND_IN, COLD), (STAND_IN_UPDATE, UPDATE), (DUCC, COLD), (DUCC_UPDATE, UPDATE),
)  # fmt: skip
NOTHING = "—"  # a cell without a value

RATIO_TARGET = 0.6  # of the wall time of umoci unpack
MEMORY_TARGET = 500 * MB
STORED_TARGET = 1.08  # of what zlib level 6 needs
UPDATE_TARGET = 3.0  # seconds
UNCHANGED_TARGET = 1.0  # seconds
COLD_START_TARGET = 0.9  # of what a job fetches from an image in one catalog
LOADED_TARGET = 12  # catalogs
DISTURBED = 0.25  # processors that others kept busy; the registry's share stays below


@dataclass(frozen=True)
class Run:
    """One measured run of a step; bytes."""

    step: str
    cost: Cost
    requests: Mapping[str, int]
    stored: int  # what the step left on disk, or added to it
    contents: int = 0  # of these, file contents in the object store


@dataclass(frozen=True)
class Target:
    """One promise and what was measured for it."""

    promise: str
    measured: str
    kept: bool


@dataclass(frozen=True)
class Splitting:
    """What dividing an image into catalogs costs, and saves when a job starts.

    Sizes are stored bytes; `whole`: if the image were one catalog.
    """

    catalogs: int  # of the image
    stored: int  # bytes of them
    stored_whole: int
    seconds: float  # of a processor, to build and store them
    seconds_whole: float
    loaded: int  # catalogs a job needs, the repository's own included
    loaded_whole: int
    loaded_bytes: int  # of them
    loaded_bytes_whole: int
    object_bytes: int  # of the files the job reads

    @property
    def ratio(self) -> float:
        """Return what a job fetches, catalogs and files, relative to one catalog."""
        whole = self.loaded_bytes_whole + self.object_bytes
        return (self.loaded_bytes + self.object_bytes) / whole

    @property
    def is_worth_it(self) -> bool:
        """Whether the targets are kept."""
        return self.ratio <= COLD_START_TARGET and self.loaded <= LOADED_TARGET


@dataclass(frozen=True)
class Report:
    """All runs of one benchmark; `zlib6` in bytes; `notes` on steps that did not run."""

    runs: Sequence[Run]
    zlib6: int
    notes: Sequence[str] = field(default_factory=tuple)
    splitting: Splitting | None = None

    def of(self, step: str) -> list[Run]:
        """Return the runs of a step, in the order they were made."""
        return [run for run in self.runs if run.step == step]

    def median(self, step: str) -> float | None:
        """Return the median wall time of a step in seconds."""
        seconds = [run.cost.seconds for run in self.of(step)]
        return statistics.median(seconds) if seconds else None


def format_requests(requests: Mapping[str, int]) -> str:
    """Return `1 HEAD manifest, 4 GET layer`, or a dash."""
    parts = [f"{count} {what}" for what, count in sorted(requests.items()) if count]
    return ", ".join(parts) or NOTHING


def most_requests(runs: Sequence[Run]) -> Counter[str]:
    """Return, for every sort of request, the most that any of the runs made."""
    most: Counter[str] = Counter()
    for run in runs:
        most |= Counter(run.requests)
    return most


def plan_rows(report: Report) -> list[list[str]]:
    """Return the cells of the table, header first."""
    rows = [
        [
            "step",
            "median s",
            "min-max s",
            "of umoci",
            "CPU s",
            "others' CPU s",
            "peak MB",
            "on disk MB",
            "requests",
        ]
    ]
    umoci = report.median(UMOCI)
    for step in STEPS:
        runs = report.of(step)
        median = report.median(step)
        if median is None:
            continue
        seconds = [run.cost.seconds for run in runs]
        rows.append(
            [
                step,
                f"{median:.2f}",
                f"{min(seconds):.2f}-{max(seconds):.2f}",
                f"{median / umoci:.2f}" if umoci else NOTHING,
                f"{statistics.median(run.cost.cpu_seconds for run in runs):.1f}",
                f"{statistics.median(run.cost.other_cpu_seconds for run in runs):.1f}",
                f"{max(run.cost.peak_memory for run in runs) / MB:.0f}",
                f"{statistics.median(run.stored for run in runs) / MB:.1f}",
                format_requests(most_requests(runs)),
            ]
        )
    return rows


def format_rows(rows: Sequence[Sequence[str]], text: Collection[int]) -> str:
    """Return a Markdown table; the columns in `text` go to the left, the others to the right."""
    columns = range(len(rows[0]))
    widths = [max(len(row[column]) for row in rows) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cells[column].ljust(widths[column])
            if column in text
            else cells[column].rjust(widths[column])
            for column in columns
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * widths[column] if column in text else "-" * (widths[column] - 1) + ":"
        for column in columns
    ]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def compare(report: Report) -> list[Target]:
    """Compare the runs with the targets; steps that were not run are left out."""
    targets = []
    cold, umoci = report.median(COLD), report.median(UMOCI)
    if cold is not None and umoci is not None:
        ratio = cold / umoci
        targets.append(
            Target(
                f"cold publish ≤ {RATIO_TARGET} of umoci unpack",
                f"{ratio:.2f} ({cold:.1f} s / {umoci:.1f} s)",
                ratio <= RATIO_TARGET,
            )
        )
    if cold is not None:
        memory = max(run.cost.peak_memory for run in report.of(COLD))
        stored = max(run.contents for run in report.of(COLD))
        ratio = stored / report.zlib6
        targets += [
            Target(
                f"peak memory of a cold publish ≤ {MEMORY_TARGET / MB:.0f} MB",
                f"{memory / MB:.0f} MB",
                memory <= MEMORY_TARGET,
            ),
            Target(
                f"stored contents ≤ {STORED_TARGET} of zlib level 6",
                f"{ratio:.3f} ({stored / MB:.1f} MB / {report.zlib6 / MB:.1f} MB)",
                ratio <= STORED_TARGET,
            ),
        ]
    targets += _compare_updates(report)
    if report.splitting is not None and report.splitting.catalogs > 1:
        targets += _compare_splitting(report.splitting)
    return targets


def _compare_splitting(splitting: Splitting) -> list[Target]:
    return [
        Target(f"a job's first bytes ≤ {COLD_START_TARGET} of one catalog",
               f"{splitting.ratio:.3f}", splitting.ratio <= COLD_START_TARGET),
        Target(f"catalogs a job loads ≤ {LOADED_TARGET}", f"{splitting.loaded}",
               splitting.loaded <= LOADED_TARGET),
    ]  # fmt: skip


def _compare_updates(report: Report) -> list[Target]:
    targets = []
    update, unchanged = report.median(UPDATE), report.median(UNCHANGED)
    if update is not None:
        fetched = most_requests(report.of(UPDATE))["GET layer"]
        targets += [
            Target(f"one more layer ≤ {UPDATE_TARGET:g} s", f"{update:.2f} s",
                   update <= UPDATE_TARGET),
            Target("one more layer: at most one layer fetched", f"{fetched}", fetched <= 1),
        ]  # fmt: skip
    if unchanged is not None:
        asked = most_requests(report.of(UNCHANGED))
        targets += [
            Target(f"unchanged ≤ {UNCHANGED_TARGET:g} s", f"{unchanged:.2f} s",
                   unchanged <= UNCHANGED_TARGET),
            Target("unchanged: one HEAD, nothing else", format_requests(asked),
                   asked == Counter({"HEAD manifest": 1})),
        ]  # fmt: skip
    return targets


def find_disturbances(report: Report) -> list[str]:
    """Return a warning for every step whose times others on the machine have spoiled."""
    return [
        f"{step}: others kept {others:.1f} processors busy; its times say little"
        for step in STEPS
        if (runs := report.of(step))
        and (
            others := statistics.median(
                run.cost.other_cpu_seconds / run.cost.seconds for run in runs
            )
        )
        > DISTURBED
        and statistics.median(run.cost.seconds for run in runs) > 5  # else start and end weigh
    ]


def format_backends(report: Report) -> str:
    """Return a Markdown table of what other backends need, relative to the native one; or ""."""
    rows = [["backend", "s", "native s", "times native"]]
    for step, native in BACKENDS:
        seconds, own = report.median(step), report.median(native)
        if seconds is not None and own is not None:
            rows.append([step, f"{seconds:.2f}", f"{own:.2f}", f"{seconds / own:.1f}"])
    return format_rows(rows, (0,)) if len(rows) > 1 else ""


def format_splitting(splitting: Splitting) -> str:
    """Return a Markdown table: one catalog against several."""
    each = splitting

    def row(what: str, whole: float, divided: float, form: str) -> list[str]:
        ratio = f"{divided / whole:.3f}" if whole else NOTHING
        return [what, format(whole, form), format(divided, form), ratio]

    fetched = each.loaded_bytes_whole + each.object_bytes, each.loaded_bytes + each.object_bytes
    rows = [
        ["the image's index", "in one catalog", "divided", "ratio"],
        row("catalogs", 1, each.catalogs, "d"),
        row("stored, KB", each.stored_whole / KB, each.stored / KB, ",.0f"),
        row("built in CPU s", each.seconds_whole, each.seconds, ".2f"),
        row("a job loads catalogs", each.loaded_whole, each.loaded, "d"),
        row("… KB of catalogs", each.loaded_bytes_whole / KB, each.loaded_bytes / KB, ",.0f"),
        row("… KB of catalogs and files", fetched[0] / KB, fetched[1] / KB, ",.0f"),
    ]
    return format_rows(rows, (0,))


def format_report(report: Report) -> str:
    """Return the tables, the comparison and the notes as text that is also Markdown."""
    verdicts = [["target", "measured", "kept"]]
    verdicts += [[t.promise, t.measured, "yes" if t.kept else "NO"] for t in compare(report)]
    parts = [format_rows(plan_rows(report), (0, 8))]
    backends = format_backends(report)
    if backends:
        parts.append(backends)
    if report.splitting is not None:
        parts.append(format_splitting(report.splitting))
    parts.append(format_rows(verdicts, (0, 1, 2)))
    notes = [*report.notes, *find_disturbances(report)]
    if report.of(STAND_IN):
        notes.insert(0, STAND_IN_NOTE)
    parts += [f"note: {note}" for note in notes]
    return "\n\n".join(parts)
