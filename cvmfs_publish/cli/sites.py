"""`site list|check|show|render`: site configurations and what is generated from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
import yaml

from cvmfs_publish.cli.context import session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import format_table, plural
from cvmfs_publish.sites.data import list_sites, load_site, templates_dir
from cvmfs_publish.sites.describe import check_site, effective_values
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
) -> None:
    """Write the files that worker nodes of a site need: launcher, configuration, batch files.

    The folder is replaced as a whole if it is an earlier rendering, and refused if it is not.
    Rendering twice gives identical bytes.

    Example: cvmfs-publish site render slac --out /srv/www/slac
    """
    session = session_of(context)
    configuration = load_site(name)
    folder = session.cwd / (out or configuration.name)
    files = render_site(configuration, templates_dir())
    write_site(files, folder)
    session.out.result(
        {"site": configuration.name, "out": str(folder), "files": sorted(files)},
        f"{folder}: {plural(len(files), 'file')} for {configuration.name}",
    )
