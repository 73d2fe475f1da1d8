"""`accept` and `refuse`: what gets in, what does not, and what is said of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cvmfs_publish import settings
from cvmfs_publish.config import Config, ConfigFile
from cvmfs_publish.digest import Digest
from cvmfs_publish.origin import Origin
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import Platform, ResolvedImage
from cvmfs_publish.sources.compliance import Compliance, ComplianceError

AMD64 = Platform.default()
ANY = Digest("sha256", "0" * 64)


def rules(text: str) -> Compliance:
    return Compliance.of(read(f"repositories: {{a.example.org: {{{text}}}}}"))


def read(text: str) -> Config:
    (config,) = settings.parse(ConfigFile, text, "test").configs
    return config


def image(
    reference: Reference, labels: dict[str, Any], annotations: object = None
) -> ResolvedImage:
    manifest = json.dumps({"annotations": annotations}).encode()
    config = json.dumps({"config": {"Labels": labels}}).encode()
    return ResolvedImage(reference, ANY, ANY, manifest, ANY, config, (), AMD64)


def gets_in(compliance: Compliance, name: str, platform: Platform = AMD64) -> bool:
    try:
        compliance.admit(Reference.parse(name), platform)
    except ComplianceError:
        return False
    return True


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("", "debian:12", None),
        ("accept: [ghcr.io/a/*]", "ghcr.io/a/b:1", "ghcr.io/ab/b:1"),
        ("accept: [docker.io/library/debian]", "debian:12", "debianx:12"),
        ("refuse: ['*/*cuda*']", "ghcr.io/a/b:1", "ghcr.io/a/my-cuda-12:1"),
        ("accept: [ghcr.io/a/*], refuse: [ghcr.io/a/b]", "ghcr.io/a/c:1", "ghcr.io/a/b:1"),
        # the narrower one does not matter: `refuse` always does
        ("accept: [ghcr.io/a/b], refuse: [ghcr.io/*]", None, "ghcr.io/a/b:1"),
        ("refuse: [ghcr.io/a/b:2*]", "ghcr.io/a/b:1", "ghcr.io/a/b:2.1"),
        # one that is named by digest may have the tag
        ("refuse: [ghcr.io/a/b:2*]", f"ghcr.io/a/b:1@{ANY}", f"ghcr.io/a/b@{ANY}"),
        ("accept: [ghcr.io/a/b:2*]", "ghcr.io/a/b:2", f"ghcr.io/a/b@{ANY}"),
    ],
)
def test_names_decide(text: str, inside: str | None, outside: str | None) -> None:
    compliance = rules(text)
    assert inside is None or gets_in(compliance, inside)
    assert outside is None or not gets_in(compliance, outside)


def test_platforms_decide_before_anybody_is_asked() -> None:
    arm = Platform.parse("linux/arm64")
    compliance = rules("accept: [{platforms: [linux/amd64]}]")
    assert gets_in(compliance, "debian")
    assert not gets_in(compliance, "debian", arm)
    refusing = rules("refuse: [{match: docker.io/*, platforms: ['*/arm*']}]")
    assert not gets_in(refusing, "debian", arm)
    assert gets_in(refusing, "debian")
    assert gets_in(refusing, "ghcr.io/a/b", arm)


@pytest.mark.parametrize(
    ("labels", "annotations", "is_refused", "is_accepted"),
    [
        ({"l": "MIT"}, None, False, True),
        ({"l": "Vendor-NonFree"}, None, True, False),
        ({"l": "nonfree"}, None, True, False),
        ({}, {"l": "MIT"}, False, True),
        ({"l": "MIT"}, {"l": "NONFREE"}, True, False),  # whoever says both says the worse
        ({}, None, False, False),
        ({"k": "MIT"}, None, False, False),
        ({"l": 3}, None, False, False),
        ({"l": None}, [], False, False),
    ],
)
def test_labels_decide_when_they_are_known(
    labels: dict[str, Any], annotations: object, is_refused: bool, is_accepted: bool
) -> None:
    reference = Reference.parse("ghcr.io/a/b:1")
    resolved = image(reference, labels, annotations)
    for text, expected in (
        ("refuse: [{labels: {l: ['*NonFree*']}}]", not is_refused),
        ("accept: [{labels: {l: [mit, apache*]}}]", is_accepted),
    ):
        compliance = rules(text)
        compliance.admit(reference, AMD64)
        if expected:
            compliance.check(resolved)
        else:
            with pytest.raises(ComplianceError):
                compliance.check(resolved)


def test_documents_that_are_no_objects_say_nothing() -> None:
    reference = Reference.parse("ghcr.io/a/b:1")
    odd = ResolvedImage(reference, ANY, ANY, b"[" * 50_000, ANY, b'{"config": 1}', (), AMD64)
    rules("refuse: [{labels: {l: ['*']}}]").check(odd)
    with pytest.raises(ComplianceError):
        rules("accept: [{labels: {l: ['*']}}]").check(odd)


@pytest.mark.parametrize(
    ("origin", "is_accepted"),
    [
        (None, True),
        (Origin("docker", "ghcr.io/team/c:2"), True),
        (Origin("docker", "ghcr.io/others/c:2"), False),
        (Origin.parse("sif:/data/team/x.sif"), True),
        (Origin.parse("sif:/home/me/x.sif"), False),
    ],
)
def test_both_names_of_an_image_have_to_be_accepted(
    origin: Origin | None, is_accepted: bool
) -> None:
    compliance = rules("accept: [ghcr.io/team/*, 'sif:/data/team/*']")
    reference = Reference("ghcr.io", "team/b", "1", None, origin)
    if is_accepted:
        compliance.admit(reference, AMD64)
    else:
        with pytest.raises(ComplianceError):
            compliance.admit(reference, AMD64)


def test_a_refusal_names_image_repository_rule_reason_and_remedy() -> None:
    compliance = rules("refuse: [{match: ghcr.io/a/*, platforms: ['linux/*'], reason: no export}]")
    with pytest.raises(ComplianceError) as caught:
        compliance.admit(Reference.parse("ghcr.io/a/b:1"), AMD64)
    assert str(caught.value) == (
        "ghcr.io/a/b:1 may not get into a.example.org: `refuse` names ghcr.io/a/* for linux/*,"
        " because: no export"
    )
    assert "change `repositories.a.example.org.refuse`" in caught.value.hint
    assert caught.value.exit_code == 2
    single = Compliance.of(read("repository: {name: a.example.org, accept: [ghcr.io/a/*]}"))
    with pytest.raises(ComplianceError) as caught:
        single.admit(Reference.parse("debian:12"), AMD64)
    assert str(caught.value) == (
        "docker.io/library/debian:12 may not get into a.example.org: `accept` is for ghcr.io/a/*,"
        " which does not fit docker.io/library/debian:12"
    )
    assert caught.value.hint.endswith("add a rule to `repository.accept`")
