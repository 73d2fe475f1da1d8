"""`site list|check|show|render`: site configurations and what is generated from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cvmfs_publish.cli.context import session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import Output, error_document, format_table, plural
from cvmfs_publish.content.artefacts import MAX_LIST_BYTES
from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import join
from cvmfs_publish.sites.changes import Changes, compare_site
from cvmfs_publish.sites.data import list_sites, load_site, read_site, templates_dir
from cvmfs_publish.sites.describe import effective_origins, effective_values, find_origin
from cvmfs_publish.sites.fallback_list import check_fallback_list
from cvmfs_publish.sites.remarks import Remark, check_site
from cvmfs_publish.sites.render import render_site
from cvmfs_publish.sites.writing import write_site

SiteArgument = Annotated[
    str,
    typer.Argument(metavar="SITE", help="Name of a site that came along, or path of a site file."),
]
SiteArguments = Annotated[
    list[str],
    typer.Argument(metavar="SITE…", help="Names of sites that came along, or paths of site files."),
]
MAX_COLUMN = 60  # of values whose origins stand below each other

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
def check(
    context: typer.Context,
    names: SiteArguments,
    strict: Annotated[bool, typer.Option("--strict", help="Remarks are errors, too.")] = False,
) -> int:
    """Say what is wrong with site configurations, and what is probably not meant.

    Every mistake is told with file, line, key and remedy, and ends with 2; a remark does not.

    Example: cvmfs-publish site check ./mysite.yaml
    """
    out = session_of(context).out
    checked = [_check(name) for name in names]
    if not out.as_json:
        for each in checked:
            for error in each.errors:
                out.error(error.kind, str(error), error.hint)
    valid = not any(each.errors or (strict and each.remarks) for each in checked)
    document = {"valid": valid, "sites": [each.document() for each in checked]}
    out.result(document, "\n".join(line for each in checked for line in each.lines()))
    return 0 if valid else InputError.exit_code


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is to be said about one site."""

    name: str  # the site's, or as it was asked for if it cannot be read
    errors: Sequence[InputError]
    remarks: Sequence[tuple[str, Remark]]  # with FILE:LINE

    def document(self) -> dict[str, object]:
        return {
            "site": self.name,
            "valid": not self.errors,
            "errors": [error_document(error) for error in self.errors],
            "remarks": [
                {"place": place, "key": key, "what": what, "remedy": remedy}
                for place, (key, what, remedy) in self.remarks
            ],
        }

    def lines(self) -> Iterator[str]:
        for place, (key, what, remedy) in self.remarks:
            yield f"remark: {place}: {key}: {what}"
            yield f"  remedy: {remedy}"
        if self.errors:
            yield f"{self.name}: {plural(len(self.errors), 'error')}"
        else:
            yield f"{self.name}: valid, {plural(len(self.remarks), 'remark')}"


def _check(name: str) -> _Checked:
    reading = read_site(name)
    if reading.value is None:
        return _Checked(name, reading.errors, ())
    try:
        render_site(reading.value, templates_dir())
    except InputError as exc:  # what only the files themselves show
        error = InputError(f"{name}: {exc}", hint=exc.hint)
        return _Checked(reading.value.name, (error,), ())
    remarks = check_site(reading.value)
    placed = [(find_origin(reading.origins, remark.key), remark) for remark in remarks]
    return _Checked(reading.value.name, (), placed)


@app.command()
def show(context: typer.Context, name: SiteArgument) -> None:
    """Show every key of a site configuration with the value in force, and where it comes from.

    Behind each value stands the file and line that gives it, or `default`.

    Example: cvmfs-publish site show slac
    """
    reading = read_site(name)
    site = reading.get()
    values, origins = effective_values(site), effective_origins(site, reading.origins)
    lines = list(_page(values, origins))
    width = max(len(text) for text, origin in lines if origin and len(text) <= MAX_COLUMN)
    text = "\n".join(f"{text:<{width}}  # {origin}" if origin else text for text, origin in lines)
    session_of(context).out.result({"values": values, "origins": origins}, text)


def _page(value: object, origins: Mapping[str, str], key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the lines of a value as YAML, each with the origin of what stands in it, or ""."""
    indent = "  " if key else ""
    if isinstance(value, Mapping):
        for name, item in value.items():
            head = f"{indent}{_scalar(name)}:"
            for number, (text, origin) in enumerate(_item(item, origins, join(key, name))):
                yield (f"{head}{text}" if number == 0 else f"{indent}{text}"), origin
    elif isinstance(value, list):
        for at, item in enumerate(value):
            if isinstance(item, Mapping) and item:
                for number, (text, origin) in enumerate(_page(item, origins, f"{key}[{at}]")):
                    yield (f"{indent}- {text[2:]}" if number == 0 else f"{indent}{text}"), origin
            else:
                for text, origin in _item(item, origins, f"{key}[{at}]"):
                    yield f"{indent}-{text}", origin


def _item(value: object, origins: Mapping[str, str], key: str) -> Iterator[tuple[str, str]]:
    """Yield what stands behind a key, with a blank before it, and the lines below it."""
    if isinstance(value, Mapping | list) and value:
        yield "", ""
        yield from _page(value, origins, key)
    elif isinstance(value, str) and "\n" in value.strip():
        yield " |", origins[key]
        yield from ((f"  {line}", "") for line in value.strip().split("\n"))
    else:
        yield f" {_scalar(value)}", origins[key]


def _scalar(value: object) -> str:
    """Return a value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


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
    write_site(files, folder, durable=True)
    session.out.result(
        {"site": configuration.name, "out": str(folder), "files": sorted(files)},
        f"{folder}: {plural(len(files), 'file')} for {configuration.name}",
    )


def _read_fallback_list(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LIST_BYTES)
    except OSError as exc:
        raise InputError(
            f"{path}: {exc.strerror or exc}",
            hint="name share/cvmfs-publish/fallback.txt of the repository, or a copy of it",
        ) from exc
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
