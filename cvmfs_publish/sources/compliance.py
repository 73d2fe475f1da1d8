"""Decide whether an image may get into a repository: its `accept` and `refuse`, applied.

An image that is not in the registry of its name has two names: where it comes from, and what it is
published as.  Both have to be accepted, and one that is refused is enough to keep it out.

Names and platforms are known before anybody is asked; labels and annotations are what an image's
author says, so they are for what authors want to be kept, and no protection from authors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cvmfs_publish.config import Config, ImageRule, TextPattern, as_rules
from cvmfs_publish.errors import InputError
from cvmfs_publish.patterns import ImageName, fits_text
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform, ResolvedImage
from cvmfs_publish.sources.trust import DOCKER, registry_reference

Labels = Mapping[str, frozenset[str]]  # what labels and annotations say, by key
SHOWN = 5  # rules in a message


class ComplianceError(InputError):
    """The repository's `accept` or `refuse` keeps this image out of it."""

    kind = "compliance"


@dataclass(frozen=True, slots=True)
class Compliance:
    """The rules of one repository.  Any number of threads may ask."""

    repository: str = ""
    section: str = "repository"  # of the configuration, where they are
    accept: tuple[ImageRule, ...] = ()  # none: all images
    refuse: tuple[ImageRule, ...] = ()

    @classmethod
    def of(cls, config: Config) -> Compliance:
        """Return the rules of the repository that is configured."""
        own = config.repository
        section = f"repositories.{own.name}" if config.is_one_of_several else "repository"
        return cls(own.name, section, as_rules(own.accept), as_rules(own.refuse))

    @property
    def needs_labels(self) -> bool:
        """Whether names and platforms alone do not decide."""
        return any(rule.labels for rule in (*self.accept, *self.refuse))

    def admit(self, reference: Reference, platform: Platform) -> None:
        """Raise `ComplianceError` for what no label could make acceptable."""
        self._decide(reference, platform, None)

    def admits(self, reference: Reference, platform: Platform) -> bool:
        """Whether its name and platform do not keep an image out."""
        try:
            self.admit(reference, platform)
        except ComplianceError:
            return False
        return True

    def check(self, image: ResolvedImage) -> None:
        """Raise `ComplianceError` for an image that may not get in."""
        labels = read_labels(image.manifest, image.config) if self.needs_labels else {}
        self._decide(image.reference, image.platform, labels)

    def check_labels(self, reference: Reference, platform: Platform, labels: Labels) -> None:
        """Raise `ComplianceError` for an image of which this is known."""
        self._decide(reference, platform, labels)

    def _decide(self, reference: Reference, platform: Platform, labels: Labels | None) -> None:
        """`labels` None: they are not known yet, and what depends on them is left open."""
        for name in _names(reference):
            for rule in self.refuse:
                if _may_be(rule, name) and _is_for(rule, platform) and _says(rule, labels):
                    raise self._refused(reference, platform, rule, labels)
            if not self.accept:
                continue
            named = [rule for rule in self.accept if rule.match.fits(name)]
            fitting = [rule for rule in named if _is_for(rule, platform)]
            if labels is not None:
                fitting = [rule for rule in fitting if _says_only(rule, labels)]
            if not fitting:
                raise self._not_accepted(reference, platform, name, named, labels)

    def _refused(
        self, reference: Reference, platform: Platform, rule: ImageRule, labels: Labels | None
    ) -> ComplianceError:
        return ComplianceError(
            f"{_subject(reference, platform)} may not get into {self.repository}: `refuse` names"
            f" {_describe(rule, labels)}",
            hint=f"nothing overrides that; if it is wanted there, change `{self.section}.refuse`",
        )

    def _not_accepted(
        self,
        reference: Reference,
        platform: Platform,
        name: ImageName,
        named: Sequence[ImageRule],
        labels: Labels | None,
    ) -> ComplianceError:
        what = f"{name.place}{name.path}" + (f":{name.tag}" if name.tag else "")
        rules = [_describe(rule, labels) for rule in (named or self.accept)]
        more = f" and {len(rules) - SHOWN} more" if len(rules) > SHOWN else ""
        return ComplianceError(
            f"{_subject(reference, platform)} may not get into {self.repository}: `accept` is for"
            f" {'; '.join(rules[:SHOWN])}{more}, which does not fit {what}",
            hint=f"if it is wanted there, add a rule to `{self.section}.accept`",
        )


NO_RULES = Compliance()  # every image may get in


def read_labels(manifest: bytes, config: bytes) -> Labels:
    """Return what a manifest's annotations and a configuration's labels say, together."""
    annotations = _mapping(_document(manifest), "annotations")
    image = _mapping(_document(config), "config")
    return merge_labels([annotations, _mapping(image, "Labels")])


def read_kept_labels(manifest: bytes, labels: bytes) -> Labels:
    """Return the same from what a repository keeps: `manifest.json` and `labels.json`."""
    return merge_labels([_mapping(_document(manifest), "annotations"), _document(labels)])


def merge_labels(sources: Iterable[Mapping[str, Any]]) -> Labels:
    """Return all that is said under each key."""
    found: dict[str, frozenset[str]] = {}
    for source in sources:
        for key, text in source.items():
            found[key] = found.get(key, frozenset()) | {str(text)}
    return found


def _document(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # what an author wrote into a SIF file, for example
        return {}
    return found if isinstance(found, dict) else {}


def _mapping(document: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = document.get(key)
    return found if isinstance(found, dict) else {}


def _names(reference: Reference) -> tuple[ImageName, ...]:
    """Return all names of an image: what it is published as, and where it comes from."""
    named = ImageName.of(reference)
    if reference.origin is None:
        return (named,)
    there = registry_reference(reference) if reference.origin.transport == DOCKER else None
    origin = ImageName.of(there) if there else ImageName.of_origin(reference.origin)
    return (named, origin)


def _may_be(rule: ImageRule, name: ImageName) -> bool:
    """Whether a rule may be about an image; one that is named by digest may have any tag."""
    pattern = rule.match if name.tag else replace(rule.match, tag="*")
    return pattern.fits(name)


def _is_for(rule: ImageRule, platform: Platform) -> bool:
    return not rule.platforms or any(_fits(each, str(platform)) for each in rule.platforms)


def _says(rule: ImageRule, labels: Labels | None) -> bool:
    """Whether something that is said under each key fits; nothing does if it is not known."""
    if not rule.labels:
        return True
    return labels is not None and all(
        any(_fits(each, text) for text in labels.get(key, ()) for each in texts)
        for key, texts in rule.labels.items()
    )


def _says_only(rule: ImageRule, labels: Labels) -> bool:
    """Whether something is said under each key, and all of it fits."""
    return all(
        bool(labels.get(key))
        and all(any(_fits(each, text) for each in texts) for text in labels[key])
        for key, texts in rule.labels.items()
    )


def _fits(pattern: TextPattern, text: str) -> bool:
    return fits_text(pattern.casefold(), text.casefold())


def _describe(rule: ImageRule, labels: Labels | None) -> str:
    parts = [str(rule.match)]
    if rule.platforms:
        parts.append(f"for {' or '.join(rule.platforms)}")
    for key, texts in rule.labels.items():
        said = ""
        if labels is not None:
            found = sorted(labels.get(key, ()))
            said = (
                f" (here {', '.join(repr(each[:100]) for each in found)})"
                if found
                else (" (here nothing)")
            )
        parts.append(f"with {key} {' or '.join(repr(str(text)) for text in texts)}{said}")
    reason = f", because: {rule.reason}" if rule.reason else ""
    return " ".join(parts) + reason


def _subject(reference: Reference, platform: Platform) -> str:
    origin = f" from {reference.origin}" if reference.origin else ""
    usual = "" if platform == Platform.default() else f" ({platform})"
    return f"{reference}{origin}{usual}"
