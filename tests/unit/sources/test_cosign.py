"""Signatures of cosign: those of real cosign, what else the formats allow, what is no proof."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from cvmfs_publish.config import TrustRule
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import InputError, IntegrityError, PublishError, RemoteError
from cvmfs_publish.patterns import ImagePattern
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources import cosign
from cvmfs_publish.sources.base import AccessDeniedError, Platform, ResolvedImage
from cvmfs_publish.sources.public_keys import PublicKey, parse_public_keys, read_key_file
from cvmfs_publish.sources.registry import signatures
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.signatures import RegistrySignatures
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError
from cvmfs_publish.sources.trust import Approval, Rule, Trust, UntrustedError, load_rules
from tests.fakes.registry import TYPES, FakeRegistry, body, html, status, with_header, wrong_bytes
from tests.signing import (
    bundle,
    load_vector,
    new_key,
    pem,
    public,
    refer,
    sign,
    sign_by_tag,
    sign_bytes,
    simple_payload,
    statement,
    vectors,
)

KEYS = ("p256", "p384", "p521", "rsa", "ed25519")
FORMS = ("tag", "referrer", "bundle")
KEY = new_key()
OTHER = new_key()
RSA = rsa.generate_private_key(65537, 2048)


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        yield fake


@pytest.fixture
def store() -> Iterator[RegistrySignatures]:
    with RegistryClient(sleep=lambda _: None, attempts=2) as client:
        yield RegistrySignatures(client)


@pytest.fixture
def image(registry: FakeRegistry) -> Digest:
    return registry.add_image("a/b", [b""])


@dataclass(frozen=True)
class Registered:
    """Proofs of images in registries."""

    store: RegistrySignatures

    def iter_candidates(
        self, reference: Reference, digest: Digest, skip: Callable[[str], None]
    ) -> Iterator[cosign.Candidate]:
        return self.store.iter_candidates(reference, digest, skip)

    def find_sif_signers(self, image: ResolvedImage, keys: SifKeys) -> tuple[str, ...]:
        raise UnsignedSifError("it is no SIF file")


def vector_key(name: str) -> tuple[PublicKey, ...]:
    return parse_public_keys(vectors()["keys"][name].encode(), Path("vector.pub"))


def check(
    store: RegistrySignatures,
    registry: FakeRegistry,
    digest: Digest,
    keys: tuple[PublicKey, ...],
    *,
    repository: str = "a/b",
    annotations: dict[str, str] | None = None,
    same_name: bool = False,
) -> Approval:
    rule = Rule(ImagePattern.parse("*"), "cosign", SifKeys(pem=keys), annotations or {}, same_name)
    reference = Reference.parse(registry.name(repository))
    image = ResolvedImage(reference, digest, digest, b"", digest, b"", (), Platform.default())
    return Trust([rule], Registered(store)).check(image)


# ------------------------------------------------------------------ real cosign


@pytest.mark.parametrize("has_api", [True, False])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", KEYS)
def test_what_real_cosign_signed_is_trusted(
    registry: FakeRegistry, store: RegistrySignatures, key: str, form: str, has_api: bool
) -> None:
    registry.lists_referrers = has_api
    repository = f"{key}/{form}"
    digest = load_vector(registry, repository)
    if has_api:  # then it must not depend on the tag that stands for the API
        registry.tags[repository].pop(f"{digest.algorithm}-{digest.hex}", None)
    (wanted,) = vector_key(key)
    for wanted_too in ({}, {"stage": "production"}):
        approval = check(
            *(store, registry, digest, (*public(OTHER), wanted)),
            repository=repository,
            annotations=wanted_too,
        )
        assert approval.signed_by == (wanted.fingerprint,)
        assert approval.policy == "cosign"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("key", KEYS)
def test_what_another_key_signed_is_not(
    registry: FakeRegistry, store: RegistrySignatures, key: str, form: str
) -> None:
    repository = f"{key}/{form}"
    digest = load_vector(registry, repository)
    keys = tuple(one for other in KEYS if other != key for one in vector_key(other))
    with pytest.raises(UntrustedError, match="signed by none of the keys") as caught:
        check(store, registry, digest, keys, repository=repository)
    assert all(one.fingerprint in str(caught.value) for one in keys)
    assert str(digest) in str(caught.value)
    assert "cosign sign --key" in caught.value.hint


@pytest.mark.parametrize("form", FORMS)
def test_other_annotations_than_wanted_are_no_good(
    registry: FakeRegistry, store: RegistrySignatures, form: str
) -> None:
    digest = load_vector(registry, f"p256/{form}")
    for wanted in ({"stage": "test"}, {"stage": "production", "team": "a"}):
        with pytest.raises(UntrustedError, match="wanted is"):
            check(
                *(store, registry, digest, vector_key("p256")),
                repository=f"p256/{form}",
                annotations=wanted,
            )


@pytest.mark.parametrize("form", FORMS)
def test_a_signature_of_another_image_is_no_good_here(
    registry: FakeRegistry, store: RegistrySignatures, form: str
) -> None:
    """Whoever may push can copy signatures; they are for the digest in them."""
    repository = f"p256/{form}"
    signed = load_vector(registry, repository)
    evil = registry.add_image(repository, [b"evil"], tag="1")
    tags = registry.tags[repository]
    for tag in list(tags):
        if signed.hex in tag:
            tags[tag.replace(signed.hex, evil.hex)] = tags[tag]
    registry.lists_referrers = False
    with pytest.raises(UntrustedError) as caught:
        check(store, registry, evil, vector_key("p256"), repository=repository)
    assert f"not {evil}" in str(caught.value) or f"not to {evil}" in str(caught.value)


# ------------------------------------------------------------------ other good signatures


@pytest.mark.parametrize("pss", [True, False])
def test_rsa_signatures_of_either_padding_are_good(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest, pss: bool
) -> None:
    payload = simple_payload(image)
    sign_by_tag(registry, "a/b", image, (payload, sign_bytes(RSA, payload, pss=pss)))
    assert check(store, registry, image, public(RSA)).signed_by == (public(RSA)[0].fingerprint,)


def test_plain_ed25519_signatures_are_good_as_well(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    sign(registry, "a/b", image, key)
    assert check(store, registry, image, public(key)).signed_by
    with pytest.raises(UntrustedError, match="signed by none of the keys"):
        check(store, registry, image, public(ed25519.Ed25519PrivateKey.generate()))


def test_one_good_signature_among_bad_ones_is_enough(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    good, other = simple_payload(image), simple_payload("sha256:" + "0" * 64)
    sign_by_tag(
        *(registry, "a/b", image),
        (good, sign_bytes(OTHER, good)),
        (other, sign_bytes(KEY, other)),
        (b"[]", sign_bytes(KEY, b"[]")),
        (b"{", sign_bytes(KEY, b"{")),
        (good, b""),
        (good, sign_bytes(KEY, good)),
    )
    assert check(store, registry, image, public(KEY)).signed_by


def test_the_first_good_signature_ends_the_search(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    sign(registry, "a/b", image, KEY)
    check(store, registry, image, public(KEY))
    assert [r.path.split("/")[-2] for r in registry.requests] == ["manifests", "blobs"]


def test_several_keys_in_one_file_are_all_meant(tmp_path: Path) -> None:
    path = tmp_path / "keys.pub"
    path.write_bytes(b"ours:\n" + pem(KEY) + pem(RSA))
    found = parse_public_keys(read_key_file(path), path)
    assert found == public(KEY, RSA)
    assert [key.fingerprint[:7] for key in found] == ["sha256:", "sha256:"]


# ------------------------------------------------------------------ what is no proof


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (b"null", "not a JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "malformed"),
        (b'{"critical": []}', "malformed"),
        (b'{"critical": {"image": {}}}', "malformed"),
        (b'{"critical": {"image": {"docker-manifest-digest": 1}}}', "signed is 1, not"),
    ],
)
def test_a_signed_document_that_says_nothing_of_the_image_is_no_proof(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest, payload: bytes, what: str
) -> None:
    sign_by_tag(registry, "a/b", image, (payload, sign_bytes(KEY, payload)))
    with pytest.raises(UntrustedError, match=what):
        check(store, registry, image, public(KEY))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"_type": "https://example.org"}, "the statement is of type"),
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "slsa"),
        ({"subject": []}, "not about exactly one image"),
        ({"subject": [{"digest": {"sha256": "0" * 64}}]}, "not sha256:"),
        ({"subject": [{}]}, "malformed"),
        ({"subject": [7]}, "malformed"),
        ({"subject": [{"digest": "x"}]}, "malformed"),
    ],
)
def test_a_signed_statement_that_does_not_sign_the_image_is_no_proof(
    registry: FakeRegistry,
    store: RegistrySignatures,
    image: Digest,
    changes: dict[str, object],
    what: str,
) -> None:
    refer(registry, "a/b", image, bundle(KEY, statement(image)))
    assert check(store, registry, image, public(KEY)).signed_by
    another = registry.add_image("a/b", [b"another"])
    refer(registry, "a/b", another, bundle(KEY, statement(another, **changes)))
    with pytest.raises(UntrustedError, match=what):
        check(store, registry, another, public(KEY))


def test_an_envelope_of_another_type_is_no_proof(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    refer(registry, "a/b", image, bundle(KEY, statement(image), "application/json"))
    with pytest.raises(UntrustedError, match="the envelope holds 'application/json'"):
        check(store, registry, image, public(KEY))


def test_the_type_of_an_envelope_is_part_of_what_is_signed() -> None:
    """Else a payload could be signed as one thing and read as another."""
    digest = Digest.of(b"")
    document = json.loads(bundle(KEY, statement(digest), "application/json"))
    document["dsseEnvelope"]["payloadType"] = cosign.IN_TOTO
    candidate = cosign.parse_bundle("here", json.dumps(document).encode())
    assert cosign.find_signer(candidate, public(KEY)) is None


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"{}", b'{"mediaType": "x", "dsseEnvelope": {}}'),
        json.dumps({"mediaType": cosign.BUNDLE, "messageSignature": {}}).encode(),
        *(
            json.dumps({"mediaType": cosign.BUNDLE, "dsseEnvelope": envelope}).encode()
            for envelope in (
                {},
                {"payloadType": "x", "signatures": 1, "payload": ""},
                {"payloadType": "x", "signatures": [1], "payload": ""},
                {"payloadType": "x", "signatures": [{"sig": "!"}], "payload": ""},
                {"payloadType": "x", "signatures": [{"sig": ""}], "payload": 5},
            )
        ),
    ],
)
def test_a_malformed_bundle_is_passed_over(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest, data: bytes
) -> None:
    refer(registry, "a/b", image, data)
    with pytest.raises(UntrustedError, match="no good signature: referrer sha256:"):
        check(store, registry, image, public(KEY))
    refer(registry, "a/b", image, bundle(KEY, statement(image)))
    assert check(store, registry, image, public(KEY)).signed_by


def test_a_referrer_that_refers_to_something_else_is_passed_over(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    other = registry.add_image("a/b", [b"other"], tag="")
    found = refer(registry, "a/b", other, bundle(KEY, statement(image)))
    registry.lists_referrers = False
    entry = {**registry.describe("a/b", found), "artifactType": cosign.BUNDLE}
    index = {"schemaVersion": 2, "manifests": [entry]}
    tag = f"sha256-{image.hex}"
    registry.add_manifest("a/b", index, TYPES["oci"]["index"], tag=tag)
    with pytest.raises(UntrustedError, match=f"refers to {other}, not to {image}"):
        check(store, registry, image, public(KEY))


def test_without_any_signature_the_image_is_refused(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    with pytest.raises(UntrustedError, match="has no signature; `trust` wants one by sha256:"):
        check(store, registry, image, public(KEY))


def test_sboms_and_the_like_are_not_even_fetched(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    refer(registry, "a/b", image, b"{}", "application/spdx+json")
    with pytest.raises(UntrustedError, match="has no signature"):
        check(store, registry, image, public(KEY))
    assert registry.count("GET", "/manifests/sha256:") == 0


def test_a_name_may_be_asked_for(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    sign(registry, "a/b", image, KEY, name=f"{registry.host}/a/b:some-tag")
    assert check(store, registry, image, public(KEY), same_name=True).signed_by
    for name in (f"{registry.host}/a/other", "not a name", ""):
        sign(registry, "a/b", image, KEY, name=name)
        assert check(store, registry, image, public(KEY)).signed_by
        with pytest.raises(UntrustedError, match=r"signed as .*, not as 127"):
            check(store, registry, image, public(KEY), same_name=True)


# ------------------------------------------------------------------ a registry in trouble, or lying


@pytest.mark.parametrize(
    ("path", "change", "error"),
    [
        (r"\.sig$", status(500), RemoteError),
        (r"\.sig$", status(403), AccessDeniedError),
        (r"\.sig$", html(), RemoteError),
        ("/blobs/", status(404), RemoteError),
        ("/blobs/", status(503), RemoteError),
        ("/blobs/", wrong_bytes(), IntegrityError),
        ("/referrers/", status(500), RemoteError),
        ("/referrers/", status(403), AccessDeniedError),
        ("/referrers/", html(), RemoteError),
        ("/manifests/sha256:", status(503), RemoteError),
        ("/manifests/sha256:", wrong_bytes(), IntegrityError),
    ],
)
def test_a_registry_that_does_not_answer_well_refuses_the_image(
    registry: FakeRegistry,
    store: RegistrySignatures,
    image: Digest,
    path: str,
    change: object,
    error: type[PublishError],
) -> None:
    assert callable(change)
    if path == "/blobs/" or path.startswith(r"\."):
        sign(registry, "a/b", image, KEY)
    else:
        refer(registry, "a/b", image, bundle(KEY, statement(image)))
    registry.fault("GET", path, change, times=None)
    with pytest.raises(error) as caught:
        check(store, registry, image, public(KEY))
    assert caught.value.exit_code == error.exit_code


@pytest.mark.parametrize("path", [r"\.sig$", "/referrers/"])
@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"layers": 1, "manifests": [1]}'])
def test_a_malformed_list_is_passed_over(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest, path: str, data: bytes
) -> None:
    sign(registry, "a/b", image, OTHER)
    registry.fault("GET", path, body(data), times=None)
    with pytest.raises(UntrustedError, match="no good signature"):
        check(store, registry, image, public(KEY))


@pytest.mark.parametrize("code", [400, 404, 405, 406, 501])
def test_a_registry_without_referrers_has_a_tag_in_their_place(
    registry: FakeRegistry, store: RegistrySignatures, code: int
) -> None:
    digest = load_vector(registry, "p256/bundle")
    registry.fault("GET", "/referrers/", status(code), times=None)
    assert check(store, registry, digest, vector_key("p256"), repository="p256/bundle").signed_by


def test_a_listed_referrer_that_is_gone_is_passed_over(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    refer(registry, "a/b", image, bundle(KEY, statement(image)))
    registry.fault("GET", "/manifests/sha256:", status(404), times=None)
    with pytest.raises(UntrustedError, match="is listed, but not there"):
        check(store, registry, image, public(KEY))


def test_every_page_of_referrers_is_read(
    registry: FakeRegistry,
    store: RegistrySignatures,
    image: Digest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.page_size = 2
    for number in range(6):
        refer(registry, "a/b", image, b"%d" % number, "application/spdx+json")
    refer(registry, "a/b", image, bundle(KEY, statement(image)))
    assert check(store, registry, image, public(KEY)).signed_by
    assert registry.count("GET", "/referrers/") == 4
    monkeypatch.setattr(signatures, "MAX_PAGES", 3)
    with pytest.raises(UntrustedError, match="more than 3 pages"):
        check(store, registry, image, public(KEY))


def test_a_page_of_referrers_that_is_elsewhere_is_not_asked_for(
    registry: FakeRegistry, store: RegistrySignatures, image: Digest
) -> None:
    link = with_header("Link", '<https://evil.example.org/x?from=1>; rel="next"')
    registry.fault("GET", "/referrers/", link, times=None)
    with pytest.raises(RemoteError, match=r"evil\.example\.org"):
        check(store, registry, image, public(KEY))


def test_the_search_ends(
    registry: FakeRegistry,
    store: RegistrySignatures,
    image: Digest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signatures, "MAX_FETCHED", 5)
    for number in range(9):
        refer(registry, "a/b", image, b"%d" % number)
    with pytest.raises(IntegrityError, match="none of the first 5 documents"):
        check(store, registry, image, public(KEY))
    assert len(registry.requests) < 8


def test_not_every_signature_of_thousands_is_tried(
    registry: FakeRegistry,
    store: RegistrySignatures,
    image: Digest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signatures, "MAX_SIGNATURES", 2)
    payload = simple_payload(image)
    bad, good = (payload, sign_bytes(OTHER, payload)), (payload, sign_bytes(KEY, payload))
    sign_by_tag(registry, "a/b", image, bad, good)
    assert check(store, registry, image, public(KEY)).signed_by
    sign_by_tag(registry, "a/b", image, bad, bad, good)
    with pytest.raises(UntrustedError, match="of 3 signatures 2 are tried"):
        check(store, registry, image, public(KEY))
    crowded = json.loads(bundle(KEY, statement(image)))
    crowded["dsseEnvelope"]["signatures"] *= 21
    with pytest.raises(cosign.ClaimError, match="21 signatures; at most 20"):
        cosign.parse_bundle("here", json.dumps(crowded).encode())


def test_a_large_payload_is_not_fetched(
    registry: FakeRegistry,
    store: RegistrySignatures,
    image: Digest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sign(registry, "a/b", image, KEY)
    monkeypatch.setattr(signatures, "MAX_SIGNATURE_BYTES", 100)
    with pytest.raises(UntrustedError, match="100 are the most"):
        check(store, registry, image, public(KEY))
    assert registry.count("GET", "/blobs/") == 0


# ------------------------------------------------------------------ keys


def _pem(key: dsa.DSAPublicKey | ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "holds no PEM block PUBLIC KEY"),
        (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "but a private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be understood"),
        (_pem(rsa.generate_private_key(65537, 1024).public_key()), "RSA of 1024 bits"),
        (_pem(ec.generate_private_key(ec.SECP256K1()).public_key()), "on the curve secp256k1"),
        (_pem(dsa.generate_private_key(1024).public_key()), "of the type DSAPublicKey"),
        (b"x" * (1 << 20) + b"y", "larger than 1048576 bytes"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_key_that_cannot_be_used_is_a_mistake_of_the_configuration(
    tmp_path: Path, data: bytes | None, what: str
) -> None:
    path = tmp_path / "cosign.pub"
    if data is not None:
        path.write_bytes(data)
    rule = TrustRule(ImagePattern.parse("*"), "cosign", (path,))
    with pytest.raises(InputError, match=what) as caught:
        load_rules([rule])
    assert str(path) in str(caught.value)


def test_a_fingerprint_is_that_of_the_der_form() -> None:
    """As `openssl pkey -pubin -in cosign.pub -outform DER | sha256sum` says."""
    der = base64.b64decode("".join(pem(KEY).decode().splitlines()[1:-1]))
    assert public(KEY)[0].fingerprint == str(Digest.of(der))
