"""Templates of pages: each says which variables it gets, uses all of them, and is used."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import jinja2.meta
import jinja2.nodes
import pytest

from cvmfs_publish.errors import PublishError
from cvmfs_publish.sites.data import templates_dir
from cvmfs_publish.web.pages import ASSETS, HtmlPages, format_moment, image_path, short_digest
from tests.status_site import ANALYSIS, BROKEN, LIST, ROOT, TOKEN, Orders, StatusSite

FOLDER = templates_dir() / "web"
DOCUMENTED = re.compile(r"\{#\n(?P<lines>(?:[a-z_]+: .*\n)+)#\}\n")
PARTS = {"base.html", "parts.html"}  # extended or imported by others


class RecordingPages(HtmlPages):
    """Pages that remember what they were given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.given: dict[str, set[str]] = {}

    def render(self, name: str, /, **values: object) -> str:
        self.given.setdefault(name, set()).update(values)
        return super().render(name, **values)


@pytest.fixture(scope="module")
def recorded(status_site: StatusSite) -> RecordingPages:
    pages = RecordingPages(FOLDER)
    service = status_site.service(control=Orders(), token=TOKEN)
    object.__setattr__(service, "html", pages)
    browser = status_site.browser(service)
    browser.post_form("/login", {"token": TOKEN})
    for path in (
        "/",
        "/images",
        f"/images/{ROOT}",
        f"/images/{BROKEN}",
        f"/live/images/{ANALYSIS}",
        "/wishlists",
        f"/wishlists/lines?list={LIST}",
        "/events",
        "/api",
        "/login",
        "/nowhere",
    ):
        browser.get(path)
    return pages


def test_every_template_is_used(recorded: RecordingPages) -> None:
    templates = {path.name for path in FOLDER.glob("*.html")}
    assert recorded.given.keys() | PARTS == templates
    assert {path.name for path in FOLDER.iterdir()} == templates | ASSETS.keys()


def test_every_template_documents_exactly_the_variables_it_uses_and_gets(
    recorded: RecordingPages,
) -> None:
    wrong = {}
    for name, given in recorded.given.items():
        documented = variables(name)
        used = undeclared(recorded, name)
        if not sorted(documented) == sorted(used) == sorted(given):
            wrong[name] = {"documented": documented, "used": used, "given": given}
    assert wrong == {}


def variables(name: str) -> list[str]:
    block = DOCUMENTED.match((FOLDER / name).read_text("utf-8"))
    assert block, name
    return [line.split(":", 1)[0] for line in block["lines"].splitlines()]


def undeclared(pages: RecordingPages, name: str) -> set[str]:
    """What the template and those it extends or includes ask for, but for what all of them have."""
    environment = pages.environment
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, name)
    parsed = environment.parse(source)
    found = jinja2.meta.find_undeclared_variables(parsed)
    # what is imported or defined at the top is not seen to be known inside blocks
    found -= {macro.name for macro in parsed.find_all(jinja2.nodes.Macro)}
    for imported in parsed.find_all(jinja2.nodes.FromImport):
        found -= {name if isinstance(name, str) else name[1] for name in imported.names}
    for other in jinja2.meta.find_referenced_templates(parsed):
        if other is not None and other != "parts.html":
            found |= undeclared(pages, other)
    return found - environment.globals.keys()


def test_a_variable_that_is_missing_is_an_error() -> None:
    with pytest.raises(PublishError, match=r"template error\.html: UndefinedError"):
        HtmlPages(FOLDER).render("error.html", message="x")


def test_everything_is_escaped() -> None:
    pages = HtmlPages(FOLDER)
    template = pages.environment.from_string('<a title="{{ x }}">{{ x }}</a>')
    assert template.render(x='"><script>') == (
        '<a title="&#34;&gt;&lt;script&gt;">&#34;&gt;&lt;script&gt;</a>'
    )


def test_no_template_marks_anything_as_safe() -> None:
    for path in FOLDER.glob("*.html"):
        assert not re.search(r"\|\s*safe|autoescape|Markup", path.read_text("utf-8")), path


def test_names_stay_readable_in_addresses() -> None:
    assert image_path("ghcr.io/a/b:1") == "/images/ghcr.io/a/b:1"
    assert (
        image_path("a/b@sha256:1", "linux/arm64") == "/images/a/b@sha256:1?platform=linux%2Farm64"
    )
    assert image_path('x" onclick="') == "/images/x%22%20onclick%3D%22"


def test_times_and_digests_are_short() -> None:
    assert format_moment(datetime(2026, 11, 29, 12, 5, tzinfo=UTC)) == "2026-11-29 12:05"
    assert format_moment("2026-11-29T13:05:00+01:00") == "2026-11-29 12:05"
    assert format_moment("yesterday") == "yesterday"
    assert short_digest("sha256:" + "ab" * 32) == "abababababab"
