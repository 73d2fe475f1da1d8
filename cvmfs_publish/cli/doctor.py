"""`doctor`: what this machine lacks for what the configuration asks of it, with the remedy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cvmfs_publish.cli.assembly import (
    open_artefact_store,
    open_directory,
    open_native,
    open_server,
)
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import plural, printable
from cvmfs_publish.cli.publishing import find_credentials, open_budgets, open_registries
from cvmfs_publish.cli.several import in_each
from cvmfs_publish.config import Config, find_config
from cvmfs_publish.doctor.host import (
    check_clock,
    check_folder,
    check_program,
    check_software,
    check_state,
    is_synchronised,
)
from cvmfs_publish.doctor.model import Finding, Outcome, examine, good, is_fit, unused
from cvmfs_publish.doctor.native import check_keys, check_spool, check_storage
from cvmfs_publish.doctor.service import (
    check_listen,
    check_registries,
    check_secrets,
    check_sites,
    check_trust,
    configured_registries,
    read_wishlists,
)
from cvmfs_publish.doctor.stock import Account, check_server
from cvmfs_publish.doctor.tree import check_tree
from cvmfs_publish.errors import InputError
from cvmfs_publish.repository.native.spool import Spool
from cvmfs_publish.watch.lists import WishlistLoader, configured_places
from cvmfs_publish.watch.outbound import Outbound

PATIENCE = timedelta(seconds=5)  # with a registry; a person is waiting
NO_TERMINAL = 100_000  # columns: lines stay whole for `grep` and files
LEAST_WIDTH = 60

app = command_app()


@app.command()
def doctor(
    context: typer.Context,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Ask no registry, web server or object store."),
    ] = False,
) -> int:
    """Show what this machine lacks, with the remedy for each.

    Looks at everything that the configuration asks of this host, as the account that runs it:
    nothing is published, and no secret is told.  The lock of an object store or of a plain tree is
    taken for a moment, since only that shows whether it works.  Ends with 2 if something is
    missing; a warning ends with 0.

    Example: cvmfs-publish doctor --offline
    """
    session = session_of(context)
    if _has_several(session):
        return in_each(session, lambda one: _doctor(one, offline=offline))
    return _doctor(session, offline=offline)


def _has_several(session: Session) -> bool:
    """Whether there are several configurations to look at; one that is wrong is for the checks."""
    try:
        return len(session.configs) > 1
    except InputError:
        return False


def _doctor(session: Session, *, offline: bool) -> int:
    found = list(_examine(session, offline=offline))
    counts = {each: sum(one.outcome is each for one in found) for each in Outcome}
    ok = is_fit(found)
    session.out.result(
        {"ok": ok, "checks": [_document(each) for each in found]},
        f"{_table(session, found)}\n{_summary(counts)}",
    )
    return 0 if ok else InputError.exit_code


def _examine(session: Session, *, offline: bool) -> Iterator[Finding]:
    now = datetime.now(UTC)
    yield from examine("libraries", check_software)
    yield from check_clock(now, is_synchronised())
    configuration = list(examine("configuration", lambda: _read_configuration(session)))
    yield from configuration
    if session.has_config:
        yield from _Examination(session, now, offline).findings()


def _read_configuration(session: Session) -> Iterator[Finding]:
    path = find_config(session.config_path, session.environ, session.cwd)
    config = session.config
    backend = config.repository.backend
    yield good("configuration", f"{path}: {config.repository.name}, backend {backend}")


@dataclass(frozen=True, slots=True)
class _Examination:
    """What is looked at once there is a configuration."""

    session: Session
    now: datetime
    offline: bool

    @property
    def config(self) -> Config:
        return self.session.config

    def findings(self) -> Iterator[Finding]:
        config = self.config
        checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
            ("state", lambda: check_state(config.state)),
            ("repository", lambda: REPOSITORIES[config.repository.backend](self)),
            ("secrets", lambda: check_secrets(config, self.session.environ)),
            ("trust", self._trust),
            ("site", self._sites),
            ("fallback", self._fallback),
            ("wishlist", self._lists_and_registries),
            ("watch.listen", self._listen),
            ("programs", self._programs),
        ]
        for subject, check in checks:
            yield from examine(subject, check)

    # the repository, by backend

    def native(self) -> Iterator[Finding]:
        repository = open_native(self.config)
        storage = self.config.repository.storage
        folder = storage if isinstance(storage, Path) else None
        if folder is None and self.offline:
            yield unused("storage", f"{storage} is not asked with --offline")
            return
        try:
            yield from examine("storage", lambda: check_storage(repository, folder, self.now))
            yield from examine("keys", lambda: check_keys(repository, self.now))
        finally:
            repository.store.close()
        spool = self.config.repository.spool
        if spool is not None:
            name = self.config.repository.name
            yield from examine("spool", lambda: check_spool(Spool(spool, name)))

    def directory(self) -> Iterator[Finding]:
        share = self.config.repository.directory.how_to_share
        return check_tree(open_directory(self.config), share, self.now)

    def cvmfs_server(self) -> Iterator[Finding]:
        account = Account(os.geteuid(), dict(self.session.environ))
        repository = open_server(self.config)
        return check_server(repository, account, self.now, offline=self.offline)

    # beside it

    def _trust(self) -> Iterator[Finding]:
        return check_trust(self.config) if self.config.trust else iter(())

    def _sites(self) -> Iterator[Finding]:
        names = (*self.config.sandbox.sites, *self.config.web.sites)
        return check_sites(list(dict.fromkeys(map(str, names))))

    def _fallback(self) -> Iterator[Finding]:
        fallback = self.config.fallback
        if fallback is None:
            return
        store = open_artefact_store(self.config)
        if isinstance(fallback.store, Path) and fallback.store.is_dir():
            yield from check_folder("fallback", fallback.store)
        else:
            yield good("fallback", f"{fallback.store}, made or found when it is written")
        if store is not None:
            store.close()

    def _lists_and_registries(self) -> Iterator[Finding]:
        config, registries = self.config, dict.fromkeys(configured_registries(self.config))
        places = configured_places(config)
        with TemporaryDirectory(prefix="cvmfs-publish-") as folder, Outbound() as outbound:
            loader = WishlistLoader(places, Path(folder), outbound, self.session.environ)
            for finding, lists in read_wishlists(loader, places, offline=self.offline):
                yield finding
                registries |= dict.fromkeys(w.registry for each in lists for w in each.wishes)
        if self.offline:
            yield unused("registries", "are not asked with --offline")
        elif not registries:
            yield unused("registries", "none is named by the configuration or a wishlist")
        else:
            yield from examine("registries", lambda: self._registries(list(registries)))

    def _registries(self, names: list[str]) -> Iterator[Finding]:
        images = [f"{name}/any" for name in names]  # only the host matters: logins are by host
        logins = find_credentials(self.config, self.session.environ, images)
        budgets = open_budgets(self.config, self.now)
        with open_registries(self.config, logins, budgets, attempts=1, patience=PATIENCE) as source:
            yield from check_registries(source.client, names)

    def _listen(self) -> Iterator[Finding]:
        listen = self.config.watch.listen
        return check_listen(listen) if listen is not None else iter(())

    def _programs(self) -> Iterator[Finding]:
        config, path = self.config, self.session.environ.get("PATH")
        fallback = config.fallback
        has_git = any(str(place.where).startswith("git+") for place in configured_places(config))
        wanted = (
            ("sqfstar", "fallback files (SIF)", fallback is not None and fallback.format == "sif",
             "squashfs-tools"),
            ("git", "wishlists in git repositories", has_git, "git"),
            ("sqfs2tar", "images that are SIF or squashfs files", False, "squashfs-tools-ng"),
            ("apptainer", "`bench`", False, "apptainer"),
        )  # fmt: skip
        for name, what, needed, package in wanted:
            yield from check_program(name, what, path, needed=needed, package=package)


REPOSITORIES: dict[str, Callable[[_Examination], Iterator[Finding]]] = {
    "native": _Examination.native,
    "directory": _Examination.directory,
    "cvmfs_server": _Examination.cvmfs_server,
}


# telling


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.subject,
        "outcome": finding.outcome.value,
        "message": finding.message,
        "remedy": finding.remedy,
    }


def _table(session: Session, found: list[Finding]) -> str:
    """Return the findings below each other, as wide as the terminal; the remedy under each."""
    out = session.out
    width = NO_TERMINAL
    if out.stdout.isatty():
        width = max(Console(file=out.stdout).width, LEAST_WIDTH)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("outcome", "check"):
        table.add_column(column, no_wrap=True)
    table.add_column("message", overflow="fold")
    for each in found:
        remedy = f"\nremedy: {each.remedy}" if each.remedy else ""
        shown = "-" if each.outcome is Outcome.UNUSED else each.outcome.value
        table.add_row(*map(Text, (shown, each.subject, printable(each.message + remedy))))
    drawn = StringIO()
    Console(file=drawn, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in drawn.getvalue().splitlines())


def _summary(counts: dict[Outcome, int]) -> str:
    missing, warnings = counts[Outcome.MISSING], counts[Outcome.WARNING]
    verb = "is" if missing < 2 else "are"
    what = plural(missing, "thing") if missing else "nothing"
    return f"{what} {verb} missing, {plural(warnings, 'warning')}"
