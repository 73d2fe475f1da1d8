"""Look at what the configuration names beside the repository: lists, sites, secrets, hosts."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from cvmfs_publish.config import Config
from cvmfs_publish.doctor.model import Finding, good, missing, of_error, unused, warn
from cvmfs_publish.errors import InputError, PublishError
from cvmfs_publish.sites.data import read_site
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.trust import load_rules
from cvmfs_publish.watch.lists import Place, WishlistLoader
from cvmfs_publish.watch.outbound import Validators
from cvmfs_publish.watch.wishlist import Wishlist, parse_wishlist
from cvmfs_publish.web.server import bind
from cvmfs_publish.words import plural

PARALLEL = 8  # registries asked at the same time

# registries


def check_registries(client: RegistryClient, registries: Iterable[str]) -> Iterator[Finding]:
    """Ask every registry once, with its login if there is one."""

    def ask(registry: str) -> Finding:
        try:
            how = client.greet(registry)
        except PublishError as error:
            return of_error(f"registry {registry}", error)
        return good(f"registry {registry}", f"answers {how}")

    with ThreadPoolExecutor(PARALLEL, "registries") as pool:
        yield from pool.map(ask, registries)


def configured_registries(config: Config) -> list[str]:
    """Return the registries that the configuration names, and their mirrors."""
    found: dict[str, None] = {}
    for host, registry in config.registries.items():
        found |= dict.fromkeys([str(host), *(str(place.host) for place in registry.mirrors)])
    return list(found)


# wishlists


def read_wishlists(
    loader: WishlistLoader, places: Sequence[Place], *, offline: bool
) -> Iterator[tuple[Finding, tuple[Wishlist, ...]]]:
    """Read each place once, as if nothing had been read before."""
    for place in places:
        if offline and not isinstance(place.where, Path):
            yield unused("wishlist", f"{place.name} is not read with --offline"), ()
            continue
        try:
            yield _read(loader, place)
        except PublishError as error:
            yield of_error("wishlist", error), ()


def _read(loader: WishlistLoader, place: Place) -> tuple[Finding, tuple[Wishlist, ...]]:
    fetched = loader.origin(place).fetch(Validators())
    lists = tuple(
        parse_wishlist(each.text, each.source, terms=place.terms, kind=place.kind)
        for each in (fetched.documents if fetched is not None else ())
    )
    wishes = sum(len(each.wishes) for each in lists)
    errors = [problem for each in lists for problem in each.problems if problem.is_error]
    if errors:
        first = f"{errors[0].place}: {errors[0].message}"
        found = warn(
            "wishlist",
            f"{place.name}: {plural(len(errors), 'line')} cannot be used, such as {first}",
            "`cvmfs-publish wishlist check` tells all of them",
        )
    elif not wishes:
        found = warn("wishlist", f"{place.name} wishes nothing", "add images, or remove the list")
    else:
        found = good("wishlist", f"{place.name}: {plural(wishes, 'wish', 'wishes')}")
    return found, lists


# sites


def check_sites(names: Sequence[str]) -> Iterator[Finding]:
    for name in names:
        errors = read_site(name).errors
        if errors:
            more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
            yield missing("site", f"{errors[0]}{more}", f"`cvmfs-publish site check {name}`")
        else:
            yield good("site", f"{name} is valid")


# secrets and keys


def check_secrets(config: Config, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Read every secret that is configured, as whoever uses it will.  None is told."""
    readers: list[tuple[str, Path | None, Callable[[], object]]] = []
    for host, registry in config.registries.items():
        if registry.username is not None:
            login = partial(registry.read_password, environ)
            readers.append((f"registries.{host}", registry.password_file, login))
    if config.webhooks is not None:
        secret = config.webhooks
        readers.append(("webhooks.secret_file", secret.secret_file, secret.read_secret))
    if config.web.token_file is not None:
        readers.append(("web.token_file", config.web.token_file, config.web.read_token))
    for number, each in enumerate(config.notify):
        name = f"notify[{number}]"
        if each.secret_file is not None:
            readers.append((f"{name}.secret_file", each.secret_file, each.read_secret))
        if each.password_file is not None:
            readers.append((f"{name}.password_file", each.password_file, each.read_password))
    for name, keys in (("repository.s3", config.repository.s3), ("sources.s3", config.sources.s3)):
        if keys.secret_key_file is not None:
            readers.append((f"{name}.secret_key_file", keys.secret_key_file, keys.read_secret_key))
    swift = config.sources.swift
    if swift.key_file is not None:
        readers.append(("sources.swift.key_file", swift.key_file, swift.read_key))
    for subject, file, read in readers:
        yield _check_secret(subject, file, read)


def _check_secret(subject: str, file: Path | None, read: Callable[[], object]) -> Finding:
    try:
        read()
    except InputError as error:
        return missing(subject, str(error), error.hint or "write it into the file, chmod 400")
    if file is None:
        return good(subject, "is there")
    with suppress(OSError):
        mode = stat.S_IMODE(file.stat().st_mode)
        if mode & 0o077:
            return warn(subject, f"{file} is open to others (mode {mode:04o})", f"chmod 400 {file}")
    return good(subject, f"{file} is there, closed to others")


def check_trust(config: Config) -> Iterator[Finding]:
    rules = load_rules(config.trust)
    yield good("trust", f"{plural(len(rules), 'rule')}, all keys can be read")


# ports


def check_listen(listen: str) -> Iterator[Finding]:
    """Try to listen where `watch` is to; a port that is taken may be so by `watch` itself."""
    try:
        bind(listen).close()
    except InputError as error:
        if "in use" not in str(error):
            raise
        yield warn(
            "watch.listen",
            str(error),
            "if that is `watch`, all is well; else choose another HOST:PORT",
        )
        return
    yield good("watch.listen", f"{listen} is free")
