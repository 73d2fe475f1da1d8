"""Add a repository to a configuration of several; every other line of the file stays as it is."""

from __future__ import annotations

import os
import re
from pathlib import Path

from cvmfs_publish import settings
from cvmfs_publish.config import Config, ConfigFile, RepositoryName
from cvmfs_publish.errors import InputError

_SECTION = re.compile(r"(?m)^repositories:[ \t]*(?:#.*)?\n")
_MEMBER = re.compile(r"(?m)^( +)[^\s#]")


def is_of_several(path: Path) -> bool:
    """Whether the file has a section `repositories`; raise `InputError` if it cannot be read."""
    return _SECTION.search(settings.read_text(path)) is not None


def find_member(path: Path, name: RepositoryName) -> Config | None:
    """Return what the file says of a repository; None if it does not name it, or there is none.

    Raises `InputError` if the file is wrong.
    """
    if not path.is_file() or not is_of_several(path):
        return None
    found = settings.load(ConfigFile, path).configs
    return next((each for each in found if each.repository.name == name), None)


def check_new(path: Path, name: RepositoryName) -> None:
    """Raise `InputError` if the file has this repository, or is wrong."""
    if find_member(path, name) is not None:
        raise InputError(
            f"{path} has the repository {name} already",
            hint="choose another name, or change the section with an editor",
        )


def add_member(path: Path, name: RepositoryName, rendered: str) -> None:
    """Add a repository, as `render_default_config` describes it, before the others.

    The file is replaced at once, and only by one that says of the others what it said before.
    """
    text = settings.read_text(path)
    match = _SECTION.search(text)
    below = _MEMBER.search(text, match.end()) if match is not None else None
    if match is None or below is None:
        raise InputError(
            f"{path}: below `repositories:` nothing can be added",
            hint="write one repository on lines of its own below it, indented by two blanks",
        )
    section = _section(name, rendered, below[1])
    changed = text[: match.end()] + section + text[match.end() :]
    before = settings.load(ConfigFile, path).configs
    after = settings.parse(ConfigFile, changed, str(path), base=path.parent).configs
    if [config for config in after if config.repository.name != name] != list(before):
        raise InputError(
            f"{path} cannot be changed without changing what it says of other repositories",
            hint=f"add this below `repositories:` with an editor:\n{section}",
        )
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_text(changed, encoding="utf-8")
        new.chmod(path.stat().st_mode & 0o777)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}",
            hint=f"the repository exists now; add this below `repositories:`:\n{section}",
        ) from error


def _section(name: RepositoryName, rendered: str, indent: str) -> str:
    """Return what the rendered file says of its repository, as one of several."""
    lines = [f"{indent}{name}:"]
    held = ""
    for line in _body(rendered):
        key = line.strip()
        if key.startswith(("#", "name:")) or not key:
            continue
        if key.endswith(":"):  # a section: only if something stands in it
            held = line
            continue
        if held and line.startswith("    "):
            lines.append(f"{indent}{held}")
        held = ""
        lines.append(f"{indent}{line}")
    return "\n".join(lines) + "\n"


def _body(rendered: str) -> list[str]:
    """Return the lines of the section `repository`."""
    _, _, rest = rendered.partition("\nrepository:\n")
    lines = rest.splitlines()
    end = next((number for number, line in enumerate(lines) if line and line[0] != " "), len(lines))
    return lines[:end]
