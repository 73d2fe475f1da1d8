"""`site list|check|show|render`: site configurations and what is generated from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from cvmfs_publish.cli.context import session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import Output, format_table, plural
from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.changes import Changes, compare_site
from cvmfs_publish.sites.data import list_sites, load_site, templates_dir
from cvmfs_publish.sites.describe import check_site, effective_values
from cvmfs_publish.sites.fallback_list import check_fallback_list
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site

SiteArgument = Annotated[
    str,
    typer.Argument(metavar="SITE", help="Name of a site that came along, or path of a site file."),
]

app = command_app()


@app.callback()
def site() -> None:
    """Show, check and render site configurations."""


@app.command("list")
def list_command(context: typer.Context) -> None:
    """List the site configurations that came along.

    Example: cvmfs-publish site list
    """
    sites = [load_site(name) for name in list_sites()]
    session_of(context).out.result(
        {"sites": [{"name": site.name, "description": site.description} for site in sites]},
        format_table(("SITE", "DESCRIPTION"), [(site.name, site.description) for site in sites]),
    )


@app.command()
def check(context: typer.Context, name: SiteArgument) -> None:
    """Say what is wrong with a site configuration, and what is probably not meant.

    A mistake is an error with file, line and key; a remark is not.

    Example: cvmfs-publish site check ./mysite.yaml
    """
    configuration = load_site(name)
    remarks = check_site(configuration)
    lines = [f"remark: {key}: {what}" for key, what in remarks]
    lines.append(f"{configuration.name}: valid, {plural(len(remarks), 'remark')}")
    session_of(context).out.result(
        {
            "site": configuration.name,
            "valid": True,
            "remarks": [{"key": key, "what": what} for key, what in remarks],
        },
        "\n".join(lines),
    )


@app.command()
def show(context: typer.Context, name: SiteArgument) -> None:
    """Show every key of a site configuration with the value in force, defaults included.

    Example: cvmfs-publish site show slac
    """
    values = effective_values(load_site(name))
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip("\n")
    session_of(context).out.result(values, text)


@app.command()
def render(
    context: typer.Context,
    name: SiteArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write; else ./SITE.")
    ] = None,
    diff: Annotated[
        bool, typer.Option("--diff", help="Show what would change in the folder; write nothing.")
    ] = False,
    fallback_list: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="List of fallback images (share/cvmfs-publish/fallback.txt of the repository) to"
            " ship as etc/fallback.txt, for nodes that cannot read the repository.",
        ),
    ] = None,
) -> None:
    """Write the files that worker nodes of a site need: launcher, configuration, batch files.

    The folder is replaced as a whole if it is an earlier rendering, and refused if it is not.
    Rendering twice gives identical bytes.

    Example: cvmfs-publish site render slac --out /srv/www/slac --diff
    """
    session = session_of(context)
    configuration = load_site(name)
    folder = session.cwd / (out or configuration.name)
    listed = _read_fallback_list(session.cwd / fallback_list) if fallback_list else None
    files = render_site(configuration, templates_dir(), listed)
    if diff:
        _show_changes(session.out, configuration.name, folder, compare_site(files, folder))
        return
    write_site(files, folder)
    session.out.result(
        {"site": configuration.name, "out": str(folder), "files": sorted(files)},
        f"{folder}: {plural(len(files), 'file')} for {configuration.name}",
    )


def _read_fallback_list(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path}: {exc.strerror or exc}") from exc
    check_fallback_list(data, str(path))
    return data


def _show_changes(out: Output, name: str, folder: Path, changes: Changes) -> None:
    document = {
        "site": name,
        "out": str(folder),
        "added": changes.added,
        "changed": changes.changed,
        "removed": changes.removed,
        "diff": changes.text,
    }
    out.result(document, changes.text.rstrip("\n"))
    counts = (
        f"{len(changes.added)} to add, {len(changes.changed)} to change, "
        f"{len(changes.removed)} to remove"
    )
    out.note(f"{folder}: {counts if changes else 'nothing would change'}; nothing was written")
