"""`wishlist check|expand|import`: what wishlists say, what they mean today, what others say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import Output, error_document, format_table, plural
from cvmfs_publish.cli.publishing import find_credentials, open_budgets, open_registries
from cvmfs_publish.config import Config, ListUrl, find_config
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, PublishError, exit_code_of
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ImageSource, TagLister
from cvmfs_publish.watch.convert import convert
from cvmfs_publish.watch.lists import Place, WishlistLoader, configured_places
from cvmfs_publish.watch.origins import Document, PathOrigin
from cvmfs_publish.watch.outbound import Outbound, Validators
from cvmfs_publish.watch.selection import expand
from cvmfs_publish.watch.wishlist import Problem, Wish, Wishlist, parse_wishlist

PARALLEL = 16  # questions to registries at the same time

FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE…]",
        help="Files, folders or URLs of wishlists; else those of the configuration.",
    ),
]

app = command_app()


@app.callback()
def wishlist() -> None:
    """Check wishlists, show their images, convert other lists."""


@app.command()
def check(
    context: typer.Context,
    files: FilesArgument = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="Tell only what is wrong with lines that this older version of FILE did not have.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors, too.")] = False,
) -> int:
    """Say what is wrong with wishlists, line by line.

    The formats are this project's own, DUCC's recipe and OSG's docker_images.txt.  Nothing is asked
    of registries.  Ends with 2 if a line is wrong; a warning is told and ends with 0.

    Example: cvmfs-publish wishlist check images.yaml --against images.yaml.orig
    """
    session = session_of(context)
    lists = [parsed for parsed, _ in _read_lists(session, files)]
    old: Wishlist | None = None
    if against is not None:
        if len(lists) != 1:
            raise InputError(
                f"--against compares one wishlist with its older version, found {len(lists)}",
                hint="name one FILE",
            )
        old = parse_wishlist(_read_document(session.cwd / against).text, str(against))
    checked = [_compare(each, old) for each in lists]
    for each in checked:
        _tell(session.out, each.problems)
    valid = not any(p.is_error or strict for each in checked for p in each.problems)
    document = {"valid": valid, "lists": [each.document() for each in checked]}
    session.out.result(document, "\n".join(each.line() for each in checked))
    return 0 if valid else InputError.exit_code


@dataclass(frozen=True, slots=True)
class _Checked:
    """One list, or how it differs from what it was."""

    wishlist: Wishlist
    problems: Sequence[Problem]
    added: Sequence[Wish] | None = None  # None: it was compared with nothing
    removed: Sequence[Wish] = ()

    def document(self) -> dict[str, object]:
        found: dict[str, object] = {
            "source": self.wishlist.source,
            "wishes": len(self.wishlist.wishes),
            "problems": [_problem_document(problem) for problem in self.problems],
        }
        if self.added is not None:
            found["added"] = [wish.name for wish in self.added]
            found["removed"] = [wish.name for wish in self.removed]
        return found

    def line(self) -> str:
        errors = sum(problem.is_error for problem in self.problems)
        warnings = len(self.problems) - errors
        counts = f"{plural(errors, 'error')}, {plural(warnings, 'warning')}"
        source = self.wishlist.source
        if self.added is None:
            return f"{source}: {plural(len(self.wishlist.wishes), 'wish', 'wishes')}, {counts}"
        lines = [f"{source}: {len(self.added)} added, {len(self.removed)} removed, {counts}"]
        lines += [f"+ {wish.name}" for wish in self.added]
        lines += [f"- {wish.name}" for wish in self.removed]
        return "\n".join(lines)


def _compare(new: Wishlist, old: Wishlist | None) -> _Checked:
    """A problem that the older version had too is not of this change."""
    if old is None:
        return _Checked(new, new.problems)
    known = {problem.identity[1:] for problem in old.problems}
    before, after = {wish.name for wish in old.wishes}, {wish.name for wish in new.wishes}
    return _Checked(
        new,
        [problem for problem in new.problems if problem.identity[1:] not in known],
        [wish for wish in new.wishes if wish.name not in before],
        [wish for wish in old.wishes if wish.name not in after],
    )


@app.command("expand")
def expand_command(
    context: typer.Context,
    files: FilesArgument = None,
    no_digests: Annotated[
        bool,
        typer.Option("--no-digests", help="Show the images only; asks for lists of tags alone."),
    ] = False,
) -> int:
    """Show which images wishlists mean today: every tag, and what it leads to.

    Asks registries for the tags of repositories with a rule, and then once (HEAD) for each image.

    Example: cvmfs-publish wishlist expand images.yaml
    """
    session = session_of(context)
    lists = [parsed for parsed, _ in _read_lists(session, files)]
    for each in lists:
        _tell(session.out, each.problems)
    wishes = [wish for each in lists for wish in each.wishes]
    config = _find_config(session)
    names = sorted({f"{wish.registry}/{wish.repository}" for wish in wishes})
    logins = find_credentials(config, session.environ, names)
    with open_registries(config, logins, open_budgets(config, datetime.now(UTC))) as source:
        rows = list(_expand(source, source, wishes, with_digests=not no_digests))
    for row in rows:
        if row.error is not None:
            session.out.warn(f"{row.wish.place}: {row.error}", row.error.hint)
    problems = [problem for each in lists for problem in each.problems]
    session.out.result(
        {
            "images": [row.document() for row in rows],
            "problems": [_problem_document(problem) for problem in problems],
        },
        format_table(
            ("IMAGE", "DIGEST", "LINE"),
            [(str(row.reference or row.wish.name), row.outcome(), row.wish.place) for row in rows],
        ),
    )
    code = exit_code_of([row.error for row in rows if row.error is not None], len(rows))
    return code or (InputError.exit_code if any(p.is_error for p in problems) else 0)


@dataclass(frozen=True, slots=True)
class _Row:
    """One image that is wanted, or a wish that cannot be expanded now."""

    wish: Wish
    reference: Reference | None
    digest: Digest | None = None
    error: PublishError | None = None

    def outcome(self) -> str:
        if self.error is not None:
            return self.error.kind
        return str(self.digest or "")

    def document(self) -> dict[str, object]:
        return {
            "reference": str(self.reference) if self.reference is not None else None,
            "wish": self.wish.name,
            "digest": str(self.digest) if self.digest is not None else None,
            "platforms": [str(platform) for platform in self.wish.platforms],
            "source": self.wish.source,
            "line": self.wish.line,
            "owner": self.wish.owner,
            "error": error_document(self.error) if self.error is not None else None,
        }


def _expand(
    lister: TagLister, source: ImageSource, wishes: Sequence[Wish], *, with_digests: bool
) -> Iterator[_Row]:
    """Ask for every list of tags once, and for every image once; in the order of the wishes."""
    repositories = dict.fromkeys(
        (wish.registry, wish.repository) for wish in wishes if wish.rule is not None
    )
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="expand") as pool:
        found = dict(
            zip(repositories, pool.map(lambda r: _tags(lister, *r), repositories), strict=True)
        )
        rows = [row for wish in wishes for row in _rows(wish, found)]
        if with_digests:
            asked = dict.fromkeys(row.reference for row in rows if row.reference is not None)
            digests = dict(zip(asked, pool.map(lambda r: _head(source, r), asked), strict=True))
            rows = [_answered(row, digests) for row in rows]
    yield from rows


def _tags(lister: TagLister, registry: str, repository: str) -> tuple[str, ...] | PublishError:
    try:
        return lister.tags(registry, repository)
    except PublishError as exc:
        return exc


def _rows(
    wish: Wish, found: Mapping[tuple[str, str], tuple[str, ...] | PublishError]
) -> list[_Row]:
    tags = found.get((wish.registry, wish.repository), ()) if wish.rule is not None else ()
    if isinstance(tags, PublishError):
        return [_Row(wish, None, error=tags)]
    return [_Row(wish, reference) for reference in expand(wish, tags)]


def _head(source: ImageSource, reference: Reference) -> Digest | PublishError:
    try:
        return source.head(reference)
    except PublishError as exc:
        return exc


def _answered(row: _Row, digests: Mapping[Reference, Digest | PublishError]) -> _Row:
    if row.reference is None:
        return row
    answer = digests[row.reference]
    if isinstance(answer, PublishError):
        return _Row(row.wish, row.reference, error=answer)
    return _Row(row.wish, row.reference, answer)


@app.command("import")
def import_command(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A DUCC recipe or an OSG docker_images.txt.")
    ],
) -> int:
    """Convert a list of DUCC or OSG to the own format, on stdout.

    Remarks stay.  A line that cannot be taken over becomes a remark, is told, and ends with 2.

    Example: cvmfs-publish wishlist import docker_images.txt > images.yaml
    """
    session = session_of(context)
    document = _read_document(session.cwd / file)
    conversion = convert(document.text, file)
    _tell(session.out, conversion.problems)
    session.out.result(
        {
            "text": conversion.text,
            "problems": [_problem_document(problem) for problem in conversion.problems],
        },
        conversion.text.rstrip("\n"),
    )
    is_complete = not any(problem.is_error for problem in conversion.problems)
    return 0 if is_complete else InputError.exit_code


# ---------------------------------------------------------------- reading


def _read_lists(session: Session, files: list[str] | None) -> list[tuple[Wishlist, str]]:
    """Return the lists that are named, or the configured ones, with their texts.

    What was read last does not count here.  Raises the first error of a place that cannot be read.
    """
    if files:
        places = [_place(text, session.cwd) for text in files]
    else:
        places = configured_places(session.config)
    if not places:
        raise InputError(
            "no wishlist: none is named, and none is in the configuration",
            hint="name a FILE, or write `wishlists: [FILE]` into the configuration",
        )
    found = []
    with TemporaryDirectory(prefix="cvmfs-publish-") as folder, Outbound() as outbound:
        loader = WishlistLoader(places, Path(folder), outbound, session.environ)
        for place in places:
            fetched = loader.origin(place).fetch(Validators())
            for document in fetched.documents if fetched is not None else ():
                shown = _relative(document.source, session.cwd) if files else document.source
                parsed = parse_wishlist(document.text, shown, terms=place.terms, kind=place.kind)
                found.append((parsed, document.text))
    return found


def _place(text: str, cwd: Path) -> Place:
    return Place(ListUrl.parse(text) if "://" in text else cwd / text)


def _read_document(path: Path) -> Document:
    """Return the text of one file."""
    fetched = PathOrigin(path).fetch(Validators())
    if fetched is None or len(fetched.documents) != 1:
        raise InputError(f"{path}: is not one file")
    return fetched.documents[0]


def _relative(source: str, cwd: Path) -> str:
    """Return a file as it was named: problems are told beside what was typed."""
    path = Path(source)
    return str(path.relative_to(cwd)) if path.is_relative_to(cwd) else source


def _find_config(session: Session) -> Config | None:
    """Return a configuration, for its logins, which all repositories share; None if none is."""
    try:
        find_config(session.config_path, session.environ, session.cwd)
    except InputError:
        return None
    return session.configs[0]


# ---------------------------------------------------------------- telling


def _tell(out: Output, problems: Sequence[Problem]) -> None:
    if out.as_json:
        return
    for problem in problems:
        subject = f"{problem.place}: {problem.message}"
        if problem.is_error:
            out.error(InputError.kind, subject, problem.hint)
        else:
            out.warn(subject, problem.hint)


def _problem_document(problem: Problem) -> dict[str, object]:
    return {
        "source": problem.source,
        "line": problem.line,
        "text": problem.text,
        "severity": "error" if problem.is_error else "warning",
        "message": problem.message,
        "hint": problem.hint,
        "owner": problem.owner,
    }
