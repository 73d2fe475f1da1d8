"""What is documented is what there is: error kinds, exit codes, commands."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import cvmfs_publish
from cvmfs_publish import errors
from cvmfs_publish.cli.app import Commands
from cvmfs_publish.errors import PublishError

ROOT = Path(__file__).parents[2]


def all_errors() -> set[type[PublishError]]:
    """Every error class of the package, found by importing all of it."""
    for module in pkgutil.walk_packages(cvmfs_publish.__path__, "cvmfs_publish."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: set[type[PublishError]] = set()
    todo = [PublishError]
    while todo:
        for below in todo.pop().__subclasses__():
            if below.__module__.startswith("cvmfs_publish."):
                found.add(below)
                todo.append(below)
    return found


def test_every_error_kind_is_documented_and_every_documented_kind_exists() -> None:
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE))
    documented |= set(re.findall(r"^\| \d \| `([a-z]+)` \|", text, re.MULTILINE))
    assert {error.kind for error in all_errors()} | {PublishError.kind} == documented


def test_every_error_says_in_its_docstring_what_it_means() -> None:
    for error in all_errors():
        assert error.__doc__, error


def test_exit_codes_belong_to_families() -> None:
    families: dict[type[PublishError], int] = {
        errors.InputError: 2,
        errors.RemoteError: 3,
        errors.IntegrityError: 4,
        errors.RepositoryError: 5,
    }
    for family, code in families.items():
        assert family.exit_code == code
    for error in all_errors():
        codes = {code for family, code in families.items() if issubclass(error, family)}
        assert error.exit_code in codes or not codes


def test_the_readme_names_only_commands_that_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for command in re.findall(r"cvmfs-publish ([a-z]+)\b", page.read_text("utf-8")):
            assert command in Commands.table, f"{page.name}: {command}"


def test_every_page_of_the_documentation_is_linked_and_every_link_leads_somewhere() -> None:
    linked = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
                linked.add((page.parent / target).resolve())
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} <= linked
