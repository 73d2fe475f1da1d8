"""Templates: each says which variables it gets, uses all of them, and each changes what it writes.

What is compared is what the renderers really hand over for the sites that come along and for one
that uses every section, so a new template is under test as soon as a site renders it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path

import jinja2.meta

from cvmfs_publish.errors import InputError
from cvmfs_publish.sites.data import load_site, templates_dir
from cvmfs_publish.sites.pages import TEXT, Pages, RenderedFile
from cvmfs_publish.sites.render import GROUPS
from tests.site_texts import FULL, SITES, parse_site

TEMPLATES = templates_dir()
DOCUMENTED = re.compile(r"\{#\n(?P<lines>(?:[a-z_]+: .*\n)+)#\}\n")


@dataclass(frozen=True)
class Call:
    """One time a template was rendered."""

    template: str
    values: Mapping[str, object]


class RecordingPages(Pages):
    """Pages that remember what was asked of them."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.calls: list[Call] = []
        self.copied: set[str] = set()

    def read(self, name: str) -> bytes:
        self.copied.add(name)
        return super().read(name)

    def render(self, name: str, mode: int = TEXT, /, **values: object) -> RenderedFile:
        self.calls.append(Call(name, values))
        return super().render(name, mode, **values)


@cache
def recorded() -> RecordingPages:
    pages = RecordingPages(TEMPLATES)
    for site in (*map(load_site, SITES), parse_site(FULL)):
        for render in GROUPS:
            render(site, pages)
    return pages


def names_of_templates() -> list[str]:
    """Every template that is rendered; what is copied as it is has no variables.

    Those of pages for browsers, in `web`, are tested where pages are.
    """
    everything = {
        path.relative_to(TEMPLATES).as_posix()
        for path in TEMPLATES.rglob("*")
        if path.is_file() and path.parent.name != "web"
    }
    return sorted(everything - recorded().copied)


def documented_variables(name: str) -> list[str]:
    text = (TEMPLATES / name).read_text("utf-8")
    block = DOCUMENTED.match(text)
    lines = block["lines"].splitlines() if block else []  # an undocumented template has none
    return [line.split(":", 1)[0] for line in lines]


def calls_of(name: str) -> list[Call]:
    return [call for call in recorded().calls if call.template == name]


def test_every_template_is_used_by_some_site() -> None:
    assert names_of_templates() == sorted({call.template for call in recorded().calls})


def test_every_template_documents_exactly_the_variables_it_uses_and_gets() -> None:
    wrong = {}
    for name in names_of_templates():
        source = (TEMPLATES / name).read_text("utf-8")
        used = jinja2.meta.find_undeclared_variables(recorded().environment.parse(source))
        given = {variable for call in calls_of(name) for variable in call.values}
        documented = documented_variables(name)
        if not sorted(documented) == sorted(used) == sorted(given):
            wrong[name] = {"documented": documented, "used": used, "given": given}
    assert wrong == {}


def test_every_variable_of_every_template_changes_what_it_writes() -> None:
    dead = [
        (name, variable)
        for name in names_of_templates()
        for variable in documented_variables(name)
        if not any(_matters(call, variable) for call in calls_of(name))
    ]
    assert dead == []


def _matters(call: Call, variable: str) -> bool:
    before = recorded().environment.get_template(call.template).render(call.values)
    for value in _changed(call.values[variable]):
        values = {**call.values, variable: value}
        try:
            after = recorded().environment.get_template(call.template).render(values)
        except (jinja2.TemplateError, ValueError, TypeError):  # not of the form it takes apart
            continue
        if after != before:
            return True
    return False


def _changed(value: object) -> Iterator[object]:
    """Values like `value`, and different."""
    match value:
        case None:
            yield "x"
        case bool():
            yield not value
        case int():
            yield value + 1
        case str():
            yield value + "x"
            yield ""
        case Mapping():
            yield {}
            for key, item in value.items():
                yield from ({**value, key: other} for other in _changed(item))
            yield {**value, "x": "x"}
        case tuple() | list():
            yield [*value, *value]
            yield []
            yield [*value, "x"]
            yield [*value, ("x", "x")]
        case _ if is_dataclass(value) and not isinstance(value, type):
            for entry in fields(value):
                for other in _changed(getattr(value, entry.name)):
                    try:
                        yield replace(value, **{entry.name: other})
                    except (InputError, TypeError, AttributeError):  # refused by the model itself
                        continue


def test_a_template_without_documentation_is_noticed(tmp_path: Path) -> None:
    assert DOCUMENTED.match("{#\nsite: its name\nvalues: assignments\n#}\nx") is not None
    assert DOCUMENTED.match("#!/bin/sh\n{#\nsite: its name\n#}\n") is None
    (tmp_path / "t").write_text("{#\nsite: its name\n#}\n#!/bin/sh\n")
    page = Pages(tmp_path).render("t", site="x")
    assert page.content == b"#!/bin/sh\n"  # the comment leaves no trace, not even a line
