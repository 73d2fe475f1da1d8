"""Modules (Lmod, Tcl) and command wrappers for images whose entry says what they offer."""

from __future__ import annotations

from cvmfs_publish.sites.model import Site, Software
from cvmfs_publish.sites.pages import PROGRAM, TEXT, Files, Pages, RenderedFile


def render_software(site: Site, pages: Pages) -> Files:
    """Return the files below modules/ (Lmod), modules-tcl/ and software/."""
    files: dict[str, RenderedFile] = {}
    for software in site.software:
        files |= _render_modules(site, software, pages)
        files |= _render_commands(site, software, pages)
    return files


def _render_modules(site: Site, software: Software, pages: Pages) -> Files:
    shared: dict[str, object] = {
        "module": software.name,
        "version": software.version,
        "help": _help(software),
        "whatis": _whatis(software),
        "folder": _folder(software),
        "environment": software.environment,
    }
    place = f"{software.name}/{software.version}"
    return {
        f"modules/{place}.lua": pages.render(
            "modules/module.lua", TEXT, install_dir=site.install_dir, **shared
        ),
        f"modules-tcl/{place}": pages.render("modules/module.tcl", TEXT, **shared),
    }


def _render_commands(site: Site, software: Software, pages: Pages) -> Files:
    """Return one wrapper for each command, and two helpers: any command, and a shell."""
    # A command of the image wins over a helper of the same name.
    words = {helper: shown for helper, (shown, _) in _helpers(software).items()}
    words |= {command: (command,) for command in software.commands}
    return {
        f"{_folder(software)}/{name}": pages.render(
            "software/command",
            PROGRAM,
            module=software.name,
            version=software.version,
            image=software.image,
            words=command,
            install_dir=site.install_dir,
        )
        for name, command in words.items()
    }


def _helpers(software: Software) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return words and meaning of the helpers, by name; the names are those shpc uses."""
    return {
        f"{software.name}-exec": ((), "runs any command of the image"),
        f"{software.name}-shell": (("/bin/sh",), "is a shell in the image"),
    }


def _folder(software: Software) -> str:
    return f"software/{software.name}/{software.version}/bin"


def _help(software: Software) -> str:
    lines = [
        f"{software.name} {software.version}, commands of the image {software.image}:",
        *(f"  {command}" for command in software.commands),
        *(
            f"{helper} {meaning}"
            for helper, (_, meaning) in _helpers(software).items()
            if helper not in software.commands
        ),
    ]
    if software.description:
        lines.insert(0, software.description)
    if software.url:
        lines.append(f"See {software.url}")
    return "\n".join(lines)


def _whatis(software: Software) -> list[str]:
    lines = [f"Name: {software.name}", f"Version: {software.version}"]
    if software.description:
        lines.append(f"Description: {software.description}")
    if software.url:
        lines.append(f"URL: {software.url}")
    return lines
