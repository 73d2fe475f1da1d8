"""Say what a site configuration means: its effective values, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import timedelta

from cvmfs_publish.settings import DEFAULT, join
from cvmfs_publish.sites.binds import plan_roots
from cvmfs_publish.sites.model import Site
from cvmfs_publish.sites.values import STANDARD


def effective_values(site: Site) -> dict[str, object]:
    """Return every key with the value in force, defaults included, as plain data for YAML or JSON.

    `roots` is expanded to the list that jobs get.
    """
    values = _plain(site)
    if not isinstance(values, dict):
        raise TypeError("a site is a mapping")
    values["roots"] = [str(root) for root in plan_roots(site)]
    return values


def effective_origins(site: Site, given: Mapping[str, str]) -> dict[str, str]:
    """Return where each of the `effective_values` comes from: FILE:LINE, or `default`.

    Keys are paths of single values, of empty lists and of empty sections: `fallback.cache_mb`,
    `binds[0].source`.  `given` is what reading the site found.
    """
    places: dict[str, str] = {
        entry: given.get(f"roots[{at}]", DEFAULT) for at, entry in enumerate(site.roots)
    }
    found = {path: given.get(path, DEFAULT) for path, _ in _leaves(effective_values(site), "")}
    for at, root in enumerate(plan_roots(site)):
        found[f"roots[{at}]"] = places.get(root) or places[STANDARD]
    return found


def find_origin(given: Mapping[str, str], key: str) -> str:
    """Return where a key was written, or the section it would stand in; else `default`."""
    while key:
        if key in given:
            return given[key]
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return DEFAULT


def _leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, join(path, key))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, timedelta):
        return f"{int(value.total_seconds())}s"
    return str(value) if isinstance(value, str) else value
