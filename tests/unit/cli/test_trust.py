"""`trust`: what is refused is not published in part, and what is published says why it may be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cvmfs_publish.digest import Digest
from cvmfs_publish.repository.records import Publication
from tests.fakes.registry import FakeRegistry, status
from tests.images import Tar
from tests.layouts import write_oci_layout
from tests.signing import (
    bundle,
    new_key,
    pem,
    public,
    refer,
    sign,
    sign_by_tag,
    sign_bytes,
    simple_payload,
    statement,
)
from tests.unit.cli.support import Shell
from tests.unit.cli.test_repository import NAME

pytestmark = pytest.mark.slow

KEY = new_key()
OTHER = new_key()
FINGERPRINT = public(KEY)[0].fingerprint


def layer(data: bytes) -> bytes:
    tar = Tar()
    tar.file("file", data)
    return tar.done()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def image(registry: FakeRegistry) -> Digest:
    return registry.add_image("a/b", [layer(b"first")], tag="1")


def configure(home: Shell, *rules: object) -> None:
    (home.cwd / "ours.pub").write_bytes(pem(KEY))
    (home.cwd / "other.pub").write_bytes(pem(OTHER))
    text = f"repository: {{name: {NAME}}}\ntrust: {json.dumps(rules)}\n"
    (home.cwd / "cvmfs-publish.yaml").write_text(text)


def cosign(pattern: str = "*", keys: str = "ours.pub", **more: object) -> dict[str, object]:
    return {"match": pattern, "policy": "cosign", "keys": [keys], **more}


def stored(home: Shell) -> set[Path]:
    return {path for path in (home.cwd / "repository").rglob("*") if path.is_file()}


def test_an_unsigned_image_leaves_nothing_behind(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    configure(home, cosign())
    before = stored(home)
    (result,) = home.json("publish", registry.name("a/b", "1"), code=4)["images"]
    assert result["error"]["kind"] == "unsigned"
    assert (result["signature"], result["signed_by"]) == (None, [])
    assert FINGERPRINT in result["error"]["message"]
    assert home.json("info")["revision"] == 1
    assert stored(home) == before
    assert registry.count("GET", "/blobs/") == 1  # the configuration, no layer
    assert not list((home.cwd / "state").rglob("*.zst"))


def test_a_signed_image_is_published_and_its_record_names_the_key(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    configure(home, cosign())
    sign(registry, "a/b", image, KEY)
    name = registry.name("a/b", "1")
    (published,) = home.json("publish", name)["images"]
    shown = home.json("show", name)
    for document in (published, shown):
        assert (document["signature"], document["signed_by"]) == ("cosign", [FINGERPRINT])
    assert shown["trust"].startswith("sha256:")
    text = home.run("show", name).out
    assert "cosign, found good" in text
    assert FINGERPRINT in text
    asked = len(registry.requests)
    assert home.run("publish", name).out.startswith("unchanged")
    assert [r.method for r in registry.requests[asked:]] == ["HEAD"]  # not asked again


def test_a_bundle_of_an_index_covers_its_platforms(home: Shell, registry: FakeRegistry) -> None:
    configure(home, cosign())
    platforms = {
        platform: registry.add_image("a/m", [layer(platform.encode())], tag="", platform=platform)
        for platform in ("linux/amd64", "linux/arm64")
    }
    index = registry.add_index("a/m", platforms, tag="1")
    name = registry.name("a/m", "1")
    refer(registry, "a/m", platforms["linux/arm64"], bundle(KEY, statement(index)))
    assert home.run("publish", name).code == 4  # refers to something else than the index
    refer(registry, "a/m", index, bundle(KEY, statement(index)))
    for platform in platforms:
        assert home.run("publish", name, "--platform", platform).code == 0
        assert home.json("show", name, "--platform", platform)["signed_by"] == [FINGERPRINT]
    pinned = f"{registry.host}/a/m@{platforms['linux/amd64']}"
    assert home.run("publish", pinned).code == 4  # nobody signed the one platform by itself


def test_an_unsigned_version_leaves_the_signed_one_where_it_is(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    configure(home, cosign())
    sign(registry, "a/b", image, KEY)
    name = registry.name("a/b", "1")
    first = home.json("publish", name)
    registry.add_image("a/b", [layer(b"second")], tag="1")
    assert home.run("publish", name).code == 4
    assert home.json("info")["revision"] == first["revision"]
    assert home.json("show", name)["digest"] == str(image)


def test_of_several_images_only_the_refused_one_is_left_out(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    registry.add_image("c/d", [layer(b"unsigned")], tag="1")
    sign(registry, "a/b", image, KEY)
    configure(home, cosign())
    good, bad = registry.name("a/b", "1"), registry.name("c/d", "1")
    document = home.json("publish", bad, good, code=6)
    assert [each["status"] for each in document["images"]] == ["failed", "published"]
    assert [each["reference"] for each in home.json("list")["images"]] == [good]


def test_the_narrowest_rule_decides(home: Shell, registry: FakeRegistry, image: Digest) -> None:
    name, pinned = registry.name("a/b", "1"), f"{registry.name('a/b', '1')}@{image}"
    reject = {"match": "*", "policy": "reject"}
    accept = {"match": f"{registry.host}/a/*", "policy": "accept"}
    digest = {"match": f"{registry.host}/a/b:1", "policy": "digest"}
    configure(home, digest, reject)
    ran = home.run("publish", name)
    assert ran.code == 4
    assert "names no digest" in ran.err
    configure(home, reject)
    ran = home.run("publish", name, pinned)
    assert ran.code == 4
    assert ran.err.count("`trust` rejects *") == 2
    assert registry.requests == []  # nobody was asked
    configure(home, digest, accept, reject)
    assert home.run("publish", pinned).code == 0
    shown = home.json("show", name)
    assert (shown["signature"], shown["signed_by"]) == ("digest", [])
    assert "named by digest" in home.run("show", name).out
    configure(home, accept, reject)
    assert home.run("publish", name).out.startswith("unchanged")
    other = registry.name("x/y", "1")
    assert home.run("publish", other).code == 4


def test_another_rule_asks_again_about_what_is_unchanged(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    name = registry.name("a/b", "1")
    configure(home)
    assert home.run("publish", name).code == 0
    assert "not checked" in home.run("show", name).out
    revision = home.json("info")["revision"]
    configure(home, cosign())
    ran = home.run("publish", name)
    assert ran.code == 4  # published before, and no longer good enough
    assert home.json("info")["revision"] == revision  # but what is published stays
    sign(registry, "a/b", image, KEY)
    layers = registry.count("GET", "/blobs/")
    assert home.run("publish", name).out.startswith("published")
    assert registry.count("GET", "/blobs/") - layers == 2  # configuration and payload
    assert home.json("show", name)["signed_by"] == [FINGERPRINT]
    configure(home, cosign(f"{registry.host}/a/"))  # another pattern asks the same
    assert home.run("publish", name).out.startswith("unchanged")
    configure(home, cosign(keys="other.pub"))
    assert home.run("publish", name).code == 4
    configure(home, {"match": "*", "policy": "accept"})
    assert home.run("publish", name).out.startswith("unchanged")


def test_a_registry_that_cannot_be_asked_is_worth_a_retry(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    configure(home, cosign())
    sign(registry, "a/b", image, KEY)
    registry.fault("GET", r"\.sig$", status(403), times=None)
    (result,) = home.json("publish", registry.name("a/b", "1"), code=3)["images"]
    assert result["error"]["kind"] == "access-denied"
    assert home.json("info")["revision"] == 1


def test_a_key_that_cannot_be_read_stops_everything(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    """Also for images that no rule with this key fits: a half-read policy is none."""
    configure(home, cosign("ghcr.io/*", keys="missing.pub"))
    ran = home.run("publish", registry.name("a/b", "1"))
    assert ran.code == 2
    assert str(home.cwd / "missing.pub") in ran.err
    assert registry.requests == []


def test_a_dry_run_asks_for_signatures(home: Shell, registry: FakeRegistry, image: Digest) -> None:
    configure(home, cosign())
    name = registry.name("a/b", "1")
    assert home.run("publish", "--dry-run", name).code == 4
    sign(registry, "a/b", image, KEY)
    assert home.run("publish", "--dry-run", name).out.startswith("would publish")


def test_verify_holds_what_is_published_against_the_present_rules(
    home: Shell, registry: FakeRegistry
) -> None:
    platforms = {"linux/amd64": registry.add_image("a/m", [layer(b"x")], tag="")}
    index = registry.add_index("a/m", platforms, tag="1")
    name = registry.name("a/m", "1")
    configure(home)
    assert home.run("publish", name).code == 0
    assert home.run("verify", name).code == 0
    configure(home, cosign())
    (difference,) = home.json("verify", name, code=4)["differences"]
    assert (difference["what"], difference["expected"]) == ("trust", "cosign")
    assert "no signature" in difference["found"]
    sign(registry, "a/m", index, KEY)
    assert home.run("verify", name).code == 0
    registry.add_image("a/m", [layer(b"moved on")], tag="1")
    assert home.run("verify", name).code == 0
    registry.fault("GET", r"\.sig$", status(403), times=None)
    assert home.run("verify", name).code == 3


def test_a_record_with_the_digest_of_something_signed_does_not_deceive_verify(
    home: Shell, registry: FakeRegistry, image: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who writes the repository could name any signed digest in a record."""
    configure(home)
    name = registry.name("a/b", "1")
    signed = registry.add_image("a/b", [layer(b"signed")], tag="")
    sign(registry, "a/b", signed, KEY)

    def forged(**values: Any) -> Publication:  # noqa: ANN401
        return Publication(**{**values, "digest": str(signed)})

    with monkeypatch.context() as patch:
        patch.setattr("cvmfs_publish.publish.Publication", forged)
        assert home.run("publish", name).code == 0
    configure(home, cosign())
    (difference,) = home.json("verify", name, code=4)["differences"]
    assert difference["what"] == "manifest of its digest"


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({"match": "debian", "policy": "accept"}, "trust[0].match: 'debian' is not a pattern"),
        ({"match": "*"}, "trust[0]: required key 'policy' missing"),
        ({"match": "*", "policy": "cosing"}, "did you mean 'cosign'?"),
        ({"match": "*", "policy": "cosign"}, "trust[0]: keys is missing"),
        ({"match": "*", "policy": "sif-pgp"}, "trust[0]: keys is missing"),
        ({"match": "*", "policy": "digest", "keys": ["ours.pub"]}, "looks at no keys"),
        ({"match": "*", "policy": "reject", "annotations": {"a": "b"}}, "for the policy cosign"),
        (
            {"match": "*", "policy": "sif-pgp", "keys": ["a"], "signed_name": "same"},
            "trust[0].signed_name: is for the policy cosign only",
        ),
        ({"match": "*", "policy": "accept", "key": "x"}, "did you mean 'keys'?"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(
    home: Shell, rule: dict[str, object], what: str
) -> None:
    configure(home, rule)
    ran = home.run("publish", "localhost/a/b")
    assert ran.code == 2
    assert what in ran.err


def test_one_pattern_has_one_rule(home: Shell) -> None:
    configure(
        home,
        {"match": "docker.io/a/", "policy": "accept"},
        {"match": "Index.Docker.io/a/*", "policy": "reject"},
    )
    ran = home.run("publish", "localhost/a/b")
    assert ran.code == 2
    assert "trust[1].match: Index.Docker.io/a/* is the same pattern as that of trust[0]" in ran.err


# ------------------------------------------------------------------ images from elsewhere


def archive(home: Shell) -> str:
    layout = home.cwd / "layout"
    write_oci_layout(layout, [layer(b"from elsewhere")], {}, tag="1")
    return "oci:layout:1"


def test_an_image_from_elsewhere_obeys_the_rule_of_its_place(home: Shell) -> None:
    place = archive(home)
    for rule in (
        {"match": f"oci:{home.cwd}/*", "policy": "reject"},
        {"match": "oci:*", "policy": "digest"},
        {"match": "*", "policy": "reject"},
        cosign("oci:/"),
    ):
        configure(home, rule)
        ran = home.run("publish", place, "--as", "ghcr.io/a/b:1")
        assert ran.code == 4, ran
        assert f"from oci:{home.cwd}/layout:1" in ran.err
    configure(home, {"match": "oci:*", "policy": "accept"}, {"match": "*", "policy": "reject"})
    assert home.run("publish", place, "--as", "ghcr.io/a/b:1").code == 0


@pytest.mark.parametrize(
    "text",
    [
        "https://E.org/team/a.sif",
        "https://e.org:443/team/a.sif",
        "https://e.org./team/a.sif",
        "https://e.org/%74eam/a.sif",
        "https://e.org/open/../team/a.sif",
        "https://e.org/open/%2e%2e/team/a.sif",
        "oras://E.org/team/a:1",
    ],
)
def test_another_spelling_of_a_place_is_no_way_round_a_rule(home: Shell, text: str) -> None:
    rejected = [
        {"match": f"{kind}://e.org/team/*", "policy": "reject"} for kind in ("https", "oras")
    ]
    configure(home, *rejected, {"match": "https://e.org/open/*", "policy": "accept"})
    ran = home.run("publish", text, "--as", "ghcr.io/a/b:1")
    assert ran.code in {2, 4}, ran
    assert "`trust` rejects" in ran.err or "rules of `trust` compare" in ran.err


def test_an_image_from_elsewhere_obeys_the_rule_of_its_name_as_well(home: Shell) -> None:
    """Whoever runs ghcr.io/team/tool relies on what the rule for that name asks."""
    place = archive(home)
    configure(home, cosign("ghcr.io/team/*"), {"match": "oci:*", "policy": "accept"})
    ran = home.run("publish", place, "--as", "ghcr.io/team/tool:1")
    assert ran.code == 4
    assert "is in no registry, where `trust` wants a signature of cosign" in ran.err
    assert home.run("publish", place, "--as", "ghcr.io/other/tool:1").code == 0


def test_an_image_under_another_name_is_proven_where_it_is(
    home: Shell, registry: FakeRegistry, image: Digest
) -> None:
    there = f"docker://{registry.name('a/b', '1')}"
    sign(registry, "a/b", image, KEY)
    configure(home, cosign(f"{registry.host}/a/*"), {"match": "*", "policy": "reject"})
    assert home.run("publish", there, "--as", "local.example.org/x:1").code == 0
    shown = home.json("show", "local.example.org/x:1")
    assert shown["signed_by"] == [FINGERPRINT]
    both = cosign("local.example.org/*", keys="other.pub")
    configure(home, cosign(f"{registry.host}/a/*"), both)
    assert home.run("publish", there, "--as", "local.example.org/x:1").code == 4
    sign_both(registry, "a/b", image)
    assert home.run("publish", there, "--as", "local.example.org/x:1").code == 0
    shown = home.json("show", "local.example.org/x:1")
    assert shown["signed_by"] == [FINGERPRINT, public(OTHER)[0].fingerprint]


def sign_both(registry: FakeRegistry, repository: str, digest: Digest) -> None:
    payload = simple_payload(digest)
    pairs = [(payload, sign_bytes(key, payload)) for key in (KEY, OTHER)]
    sign_by_tag(registry, repository, digest, *pairs)
