"""Look at a repository of `cvmfs_server`: the program, mount and spool, and who may use them."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cvmfs_publish.doctor.host import (
    check_folder,
    check_published,
    file_system_of,
    find_program,
)
from cvmfs_publish.doctor.model import Finding, examine, good, missing, unused, warn
from cvmfs_publish.doctor.native import check_whitelist
from cvmfs_publish.errors import RemoteError
from cvmfs_publish.repository.cvmfs_server import ServerRepository
from cvmfs_publish.repository.native.server_conf import GatewayUpstream, LocalUpstream, ServerConf
from cvmfs_publish.repository.server_program import OLDEST, OLDEST_INGEST, format_version
from cvmfs_publish.watch.programs import run_program, words

HOOKS = Path("/etc/cvmfs/cvmfs_server_hooks.sh")
MOUNTS = Path("/cvmfs")
PROGRAM = Path("/usr/bin/cvmfs-publish")  # where packages put it, as sudoers lines name it
_SUDO_TIME = timedelta(seconds=20)  # a directory service may have to be asked


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs this, and with which environment."""

    uid: int
    environ: Mapping[str, str]  # of what is started

    @property
    def path(self) -> str | None:
        return self.environ.get("PATH")

    @property
    def name(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"#{self.uid}"


def check_server(
    repository: ServerRepository, account: Account, now: datetime, *, offline: bool
) -> Iterator[Finding]:
    """Look at everything that a publish by `cvmfs_server` needs; nothing is changed."""
    conf = repository.conf
    yield good("server.conf", f"{conf.path}, repository {conf.name}")
    yield from examine("cvmfs_server", lambda: check_version(repository))
    yield from examine("owner", lambda: check_owner(conf, account))
    yield from examine("mount", lambda: check_mount(repository))
    yield from examine("spool", lambda: check_spool(repository, account))
    if isinstance(conf.upstream, GatewayUpstream):
        yield from examine("gateway", lambda: check_gateway(conf))
    if offline and not isinstance(conf.upstream, LocalUpstream):
        yield unused("repository", f"{conf.url} is not asked with --offline")
    else:
        yield from examine("repository", lambda: check_revision(repository, now))
        yield from examine("whitelist", lambda: check_expiry(repository, now))
    yield from check_hooks(HOOKS)


def check_version(repository: ServerRepository) -> Iterator[Finding]:
    """Ask the program for its version; one that is missing or too old is an error."""
    version = repository.server.check_version()
    program = repository.options.program
    if version is None:
        yield warn(
            "cvmfs_server",
            f"{program} does not say its version; {format_version(OLDEST)} or newer is needed",
            "look at `cvmfs_server` without arguments",
        )
    elif version < OLDEST_INGEST:
        yield warn(
            "cvmfs_server",
            f"{program}, version {format_version(version)}: sandboxes are written into the mount,"
            f" as its `ingest` does not keep owners before {format_version(OLDEST_INGEST)}",
            "update cvmfs-server",
        )
    else:
        yield good("cvmfs_server", f"{program}, version {format_version(version)}")


def check_mount(repository: ServerRepository) -> Iterator[Finding]:
    """Look whether the repository is there, and that no empty folder stands in its place."""
    with repository.open():
        pass
    mount = repository.options.mount
    if mount.parent == MOUNTS and not mount.is_mount():
        yield missing(
            "mount",
            f"{mount} is a folder on which nothing is mounted",
            f"`cvmfs_server mount {repository.name}`",
        )
        return
    yield good("mount", f"{mount} ({file_system_of(mount) or 'unknown'})")


def check_gateway(conf: ServerConf) -> Iterator[Finding]:
    """Look for the key to the gateway, and for the one that verifies what is published."""
    for kind, use in (("gw", "for leases"), ("pub", "to verify what is published")):
        path = conf.keys / f"{conf.name}.{kind}"
        if not os.access(path, os.R_OK):
            yield missing(
                "gateway",
                f"{path}, {use}, does not exist or cannot be read",
                "copy it from the gateway, for the repository's owner to read",
            )
            return
    yield good("gateway", f"its key is {conf.keys / conf.name}.gw")


def check_spool(repository: ServerRepository, account: Account) -> Iterator[Finding]:
    """Look for transactions, ours and those of others, and for room."""
    spool = repository.conf.spool
    if not spool.is_dir():
        yield missing(
            "spool",
            f"{spool} does not exist",
            "correct CVMFS_SPOOL_DIR in server.conf, or make the repository with `cvmfs_server"
            " mkfs`",
        )
        return
    is_owner = account.uid in (0, spool.stat().st_uid)
    if is_owner:
        yield from check_folder("spool", spool)
    elif not os.access(spool, os.R_OK | os.X_OK):
        yield missing("spool", f"{spool} cannot be read", "run as the repository's owner")
        return
    unfinished = repository.server.unfinished()
    if unfinished is not None:
        what, is_dead = unfinished
        yield warn(
            "transaction",
            f"a publish of ours {'was interrupted' if is_dead else 'is at work'}: {what}",
            "nothing: the next publish ends what it left" if is_dead else "wait for it to end",
        )
        return
    repository.server.check_free()
    yield good("transaction", "nobody is in one")


def check_revision(repository: ServerRepository, now: datetime) -> Iterator[Finding]:
    published = repository.revision()
    yield good("repository", f"{repository.name}, revision {published.number}")
    yield from check_published(published.timestamp, now)


def check_expiry(repository: ServerRepository, now: datetime) -> Iterator[Finding]:
    remedy = f"`cvmfs_server resign {repository.name}`, where the master key is, renews it"
    yield from check_whitelist(repository.whitelist(), now, remedy)


def check_hooks(path: Path) -> Iterator[Finding]:
    """Tell of hooks: they run with each of our transactions, too."""
    if path.exists():
        yield good("hooks", f"{path} exists: its hooks run with every publish")
    else:
        yield unused("hooks", f"{path} does not exist")


# who may


def check_owner(conf: ServerConf, account: Account) -> Iterator[Finding]:
    """Look whether this account may publish, or may become who may."""
    if not conf.user:
        yield good("owner", f"{conf.path} names none")
        return
    try:
        owner = pwd.getpwnam(conf.user)
    except KeyError:
        yield missing(
            "owner",
            f"{conf.path} says {conf.user}, and there is no such account",
            "create the account, or correct CVMFS_USER",
        )
        return
    if account.uid in (0, owner.pw_uid):
        yield good("owner", f"{conf.user}; this is {account.name}")
    else:
        yield _sudo(conf, account)


def _sudo(conf: ServerConf, account: Account) -> Finding:
    """Become the owner by sudo for the shortest run there is, which changes nothing."""
    program = find_program("cvmfs-publish", account.path) or PROGRAM
    rule = f"{account.name} ALL=({conf.user}) NOPASSWD: {program}"
    sudo = find_program("sudo", account.path)
    what = f"{conf.name} belongs to {conf.user}, and this is {account.name}"
    if sudo is None:
        return missing(
            "owner", f"{what}; sudo is not installed", f"publish as {conf.user}, or install sudo"
        )
    command = [str(sudo), "-n", "-u", conf.user, "--", str(program), "--version"]
    try:
        ran = run_program(
            command, environ=account.environ, timeout=_SUDO_TIME, subject="sudo rules"
        )
    except RemoteError as error:
        return missing("owner", f"{what}; {error}", f"let sudoers say: {rule}")
    if ran.code != 0:
        said = words(ran.said) or f"it ended with code {ran.code}"
        return missing(
            "owner", f"{what}, whom sudo does not let: {said}", f"let sudoers say: {rule}"
        )
    return good("owner", f"{what}; `sudo -u {conf.user} {program} …` publishes")
