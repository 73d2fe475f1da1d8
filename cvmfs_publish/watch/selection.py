"""Turn a wish and the tags there are into the images that are wanted now."""

from __future__ import annotations

import re
from collections.abc import Iterable

from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.watch.versions import Version
from cvmfs_publish.watch.wish import TagRule, Wish

# What signing tools leave beside an image: distribution-spec, "Referrers Tag Schema", and cosign's
# .sig, .att and .sbom.  None of it is an image.
_REFERRERS = re.compile(r"sha(?:256|512)-[0-9a-f]{32,128}(?:\.[a-z]+)?")


def expand(wish: Wish, tags: Iterable[str]) -> list[Reference]:
    """Return the images that a wish means while its repository has these tags.

    A wish without a rule means its image, whatever the tags are.
    """
    if wish.reference is not None:
        return [wish.reference]
    if wish.rule is None:
        raise TypeError(f"{wish.place}: neither an image nor a rule")
    found = []
    for tag in select_tags(wish.rule, tags):
        try:
            found.append(Reference.parse(f"{wish.registry}/{wish.repository}:{tag}"))
        except InputError:  # a name too long to be published, or no tag at all
            continue
    return found


def select_tags(rule: TagRule, tags: Iterable[str]) -> list[str]:
    """Return the tags a rule selects, each once: in the order given, or the newest first."""
    selected = [tag for tag in dict.fromkeys(tags) if _is_selected(rule, tag)]
    if rule.newest is None:
        return selected
    if rule.order == "name":
        return sorted(selected, reverse=True)[: rule.newest]
    versions = [(version, tag) for tag in selected if (version := Version.find(tag)) is not None]
    versions.sort(key=lambda each: (each[0].key, each[1]), reverse=True)
    return [tag for _, tag in versions[: rule.newest]]


def _is_selected(rule: TagRule, tag: str) -> bool:
    if _REFERRERS.fullmatch(tag):
        return False
    if rule.match and not any(pattern.matches(tag) for pattern in rule.match):
        return False
    if any(pattern.matches(tag) for pattern in rule.exclude):
        return False
    if rule.semver is None:
        return True
    version = Version.find(tag)
    return version is not None and rule.semver.holds(version)
