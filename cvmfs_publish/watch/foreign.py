"""Turn lists made for other publishers, DUCC and OSG's, into wishes, read as those read them.

Sources: DUCC's `lib/recipe.go`, `lib/parse.go` and `lib/image.go` (2.12 and devel); OSG's
`cvmfs-singularity-sync` (2026).  Where they fail or misunderstand, a line is a problem instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import yaml

from cvmfs_publish.errors import InputError
from cvmfs_publish.reference import DOCKER_HUB, Reference
from cvmfs_publish.watch.patterns import Pattern
from cvmfs_publish.watch.wish import Collector, TagRule, Terms, Wish

DUCC_KEYS = ("version", "user", "cvmfs_repo", "output_format", "input", "ignoreErrors")
_DUCC_OWN = DUCC_KEYS[1:4]  # what steers DUCC alone

_DUCC = re.compile(r"(?:([A-Za-z][A-Za-z0-9+.-]*)://)?([^/]*)(?:/(.*))?")


class Named(NamedTuple):
    """An image or, with a rule, a repository whose tags are meant; and a remark."""

    image: Reference
    rule: TagRule | None = None
    warning: str = ""
    hint: str = ""


# ---------------------------------------------------------------- OSG


def parse_osg(text: str, collector: Collector, terms: Terms) -> None:
    """One name in a line; blank lines and lines that start with # say nothing."""
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        place = collector.line(number, entry)
        try:
            named = parse_osg_name(entry)
        except InputError as exc:
            collector.refuse(place, str(exc), exc.hint, terms.owner or "")
        else:
            collector.add(Wish.at(place, named.image, named.rule, terms))


def parse_osg_name(entry: str) -> Named:
    """One or two parts are on Docker Hub; of three and more the first is the registry, always."""
    if any(character.isspace() for character in entry):
        hint = "a remark needs a line of its own" if "#" in entry else "write one name in a line"
        raise InputError(f"{entry[:100]!r}: a name has no blanks", hint=hint)
    components = entry.split("/")
    first = components[0]
    if len(components) == 2 and _is_host(first):
        raise InputError(
            f"{entry!r}: a name of two parts is on Docker Hub, and {first!r} is no name there",
            hint="this format cannot name a repository of one part elsewhere; "
            "`wishlist import` writes the format that can",
        )
    if len(components) >= 3 and not _is_host(first):
        raise InputError(
            f"{entry!r}: of three parts and more the first is the registry, and {first!r} is none",
            hint="a registry has a dot or a port: REGISTRY/NAMESPACE/NAME:TAG",
        )
    if len(components) < 3:
        components = [DOCKER_HUB, *(["library"] if len(components) == 1 else []), *components]
    name, _, tag = components[-1].partition(":")
    if "@" not in name and "*" in tag:
        # fnmatch's rules hold for `?` and `[` too, but only beside a `*`
        rule = TagRule(match=(Pattern.glob(tag),))
        return Named(Reference.parse("/".join([*components[:-1], name])), rule)
    return Named(Reference.parse("/".join(components)))


def _is_host(text: str) -> bool:
    return "." in text or ":" in text or text.lower() == "localhost"


# ---------------------------------------------------------------- DUCC


def parse_ducc(document: yaml.MappingNode, collector: Collector, terms: Terms) -> None:
    """A recipe of version 1: its `input` counts, the rest steers DUCC itself."""
    for key, value in document.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else ""
        place = collector.line(key.start_mark.line + 1, f"{name}: …")
        if name == "input":
            _parse_input(value, collector, terms)
        elif name == "version":
            if getattr(value, "value", None) != "1":
                collector.warn(place, "the version of a recipe is 1; it is read as one")
        elif name == "ignoreErrors":
            collector.warn(place, "ignoreErrors means nothing here: every failure is told")
        elif name not in DUCC_KEYS:
            collector.warn(place, f"the key {name!r} means nothing in a recipe")


def ducc_settings(document: yaml.Node | None) -> Iterator[tuple[int, str, str]]:
    """Yield line, key and value of what a recipe says to DUCC alone."""
    for key, value in document.value if isinstance(document, yaml.MappingNode) else ():
        if isinstance(value, yaml.ScalarNode) and getattr(key, "value", "") in _DUCC_OWN:
            yield key.start_mark.line + 1, key.value, value.value


def _parse_input(node: yaml.Node, collector: Collector, terms: Terms) -> None:
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
        return
    if not isinstance(node, yaml.SequenceNode):
        place = collector.line(node.start_mark.line + 1, "input: …")
        collector.refuse(place, "input: wants a list of images", "write `- IMAGE` lines")
        return
    for item in node.value:
        owner = terms.owner or ""
        if not isinstance(item, yaml.ScalarNode):
            place = collector.line(item.start_mark.line + 1, "…")
            hint = "put quotes around it; no blank stands behind its colon"
            collector.refuse(place, "an image is one text", hint, owner)
            continue
        place = collector.line(item.start_mark.line + 1, item.value)
        try:
            named = parse_ducc_name(item.value)
        except InputError as exc:
            collector.refuse(place, str(exc), exc.hint, owner)
            continue
        if named.warning:
            collector.warn(place, named.warning, named.hint, owner)
        collector.add(Wish.at(place, named.image, named.rule, terms))


def parse_ducc_name(entry: str) -> Named:
    """[SCHEME://]HOST[:PORT]/PATH[:TAG][@DIGEST]; only the tag may have a `*`."""
    match = _DUCC.fullmatch(entry)
    if match is None:  # a line break
        raise InputError(f"{entry!r}: an image is one line")
    scheme, host, path = (match[1] or "https").lower(), match[2], match[3] or ""
    if scheme not in ("https", "http", "docker"):
        raise InputError(f"{entry!r}: the scheme {scheme}:// is none of a registry", hint=_WRITE)
    if "@" in host:
        raise InputError(
            f"{entry!r}: a list holds no logins",
            hint="they belong into the section `registries` of the configuration",
        )
    if not _is_host(host) or not (match[1] or match[3]):
        raise InputError(f"{entry!r}: {host!r} is not a registry", hint=_remedy(match))
    path, at, digest = path.partition("@")
    repository, colon, tag = path.partition(":")
    if not repository.strip("/"):
        raise InputError(f"{entry!r} names no repository", hint=_WRITE)
    if ":" in tag:
        raise InputError(f"{entry!r}: there are too many colons", hint=_WRITE)
    if at and "*" in tag:
        raise InputError(f"{entry!r}: a digest is one image, a * means several", hint=_WRITE)
    base = f"{host}/{repository.strip('/')}"
    warning, hint = ("", "")
    if scheme == "http":
        warning = "that a registry is reached without TLS is not taken from a list"
        hint = f"`plain_http: true` in the section `registries.{host}` of the configuration"
    if "*" in tag:
        return Named(Reference.parse(base), TagRule(match=(ducc_pattern(tag),)), warning, hint)
    return Named(Reference.parse(f"{base}{colon}{tag}{at}{digest}"), None, warning, hint)


def ducc_pattern(tag: str) -> Pattern:
    """What DUCC makes of a tag with `*`: a regular expression in which nothing is escaped.

    `lib/image.go`, filterUsingGlob: every `*` becomes `.*`, the longest match must be the whole
    tag.  So `v2.*` means `v2` and at least one more character, whichever.
    """
    if "?" in tag or "#" in tag:
        raise InputError(
            f"{tag!r}: in a URL the name ends before ? and #, so DUCC never sees the rest"
        )
    return Pattern.expression(tag, tag.replace("*", ".*"))


_WRITE = "write https://REGISTRY/REPOSITORY:TAG"


def _remedy(match: re.Match[str]) -> str:
    """Without a scheme a short name is meant, with one a host of the local network."""
    if match[1]:
        return f"a registry has a dot or a port; name its port, {match[2]}:443"
    name = match[0] if match[3] else f"library/{match[0]}"
    return f"a recipe names the registry: https://{DOCKER_HUB}/{name}"
