"""`bench`: how long a job takes to start on this node."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_publish.cli.context import session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import format_table
from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.bench import Bench, Plan, Row
from cvmfs_publish.sites.data import load_site, templates_dir

app = command_app()


@app.command()
def bench(
    context: typer.Context,
    image: Annotated[
        str | None,
        typer.Option(metavar="IMAGE", help="Published name or absolute path; else the site's own."),
    ] = None,
    site: Annotated[
        str, typer.Option(metavar="SITE", help="Site by name, or path of a site file.")
    ] = "generic",
    local: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The image on a local disk, from `export`; else a copy is made."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Local disk for the copy; else $TMPDIR or /tmp."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Runs of the quick cases.")] = 20,
    cold_runs: Annotated[
        int, typer.Option(min=1, max=100, help="Runs of the cases that transfer data.")
    ] = 3,
) -> None:
    """Measure how long a job takes to start here.

    For every way to get the image: a bare process, a local sandbox, cvmfs-run, CernVM-FS warm
    and cold, and the site's fallback.  Cold needs the right to empty the client's cache
    (`cvmfs_talk`, usually root).  What cannot be measured is listed with the reason.

    Example: cvmfs-publish bench --site slac --image ghcr.io/example/analysis:1.2
    """
    session = session_of(context)
    configuration = load_site(site)
    wanted = image or configuration.images.cpu
    if wanted is None:
        raise InputError(
            f"the site {configuration.name} has no default image",
            hint="name one: --image ghcr.io/example/analysis:1.2",
        )
    if local is not None:
        local = session.cwd / local
        if not local.is_dir():
            raise InputError(f"{local}: is no folder", hint="`cvmfs-publish export` writes one")
    place = str(session.cwd / work) if work else session.environ.get("TMPDIR")
    try:
        folder = tempfile.TemporaryDirectory(prefix="cvmfs-publish-bench-", dir=place)
    except OSError as exc:
        raise InputError(f"{place}: {exc.strerror or exc}", hint="choose another --work") from exc
    with folder as name:
        measured = Bench(configuration, templates_dir(), Path(name), session.environ)
        rows = measured.measure(Plan(wanted, local, runs, cold_runs), session.out.note)
    session.out.result(
        {
            "site": configuration.name,
            "image": wanted,
            "rows": [
                {
                    "case": row.name,
                    "runs": len(row.seconds),
                    "median_ms": _ms(row.median),
                    "quartiles_ms": None if row.spread is None else [*map(_ms, row.spread)],
                    "note": row.note,
                }
                for row in rows
            ],
        },
        format_table(("CASE", "MEDIAN", "QUARTILES", "RUNS", "NOTE"), [_line(row) for row in rows]),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _line(row: Row) -> tuple[str, ...]:
    if row.median is None or row.spread is None:
        return row.name, "-", "-", "0", row.note
    low, high = row.spread
    return (
        row.name,
        f"{row.median * 1000:.1f} ms",
        f"{low * 1000:.1f} to {high * 1000:.1f}",
        str(len(row.seconds)),
        row.note,
    )
