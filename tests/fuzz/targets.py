"""What is fuzzed: one function for each reader of foreign bytes.

Each returns for whatever bytes, or lets out what is a bug.  Our own errors are answers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import PublishError
from cvmfs_publish.layers.merge import merge
from cvmfs_publish.layers.read import LayerLimits, read_layer
from cvmfs_publish.layers.tree import Directory, encode_name
from cvmfs_publish.origin import Origin
from cvmfs_publish.patterns import ImageName, ImagePattern
from cvmfs_publish.reference import Reference, is_tag
from cvmfs_publish.sources import cosign
from cvmfs_publish.sources.archives import Archive, DockerArchiveSource, OciArchiveSource
from cvmfs_publish.sources.base import Platform, SourceLimits, origin_of
from cvmfs_publish.sources.members import MissingMemberError
from cvmfs_publish.sources.openpgp import is_openpgp_text, open_message, parse_key_ring
from cvmfs_publish.sources.public_keys import PublicKey, parse_public_keys
from cvmfs_publish.sources.registry import answers, manifest, schema1, tag_list
from cvmfs_publish.sources.registry.auth import (
    Credential,
    Response,
    authorise,
    is_web_address,
    parse_challenges,
)
from cvmfs_publish.sources.registry.platform import choose_manifest
from cvmfs_publish.sources.registry.rate_limit import parse_rate_limit
from cvmfs_publish.sources.sif_format import parse_sif
from cvmfs_publish.sources.sif_signature import SifKeys, UnsignedSifError, find_signers
from cvmfs_publish.verify import Hashing
from cvmfs_publish.watch.webhooks import (
    WEBHOOK_SOURCES,
    Delivery,
    HookSettings,
    WebhookSource,
)
from tests.property import test_merge_oracle

Target = Callable[[bytes], object]
OURS = (PublishError, cosign.ClaimError, UnsignedSifError)
LIMITS = LayerLimits(layer_bytes=1 << 22, ratio=200, entries=200)
KEYS = Path(__file__).parent / "keys"
AMD64 = Platform.default()
NOW, NOTHING = datetime(2026, 11, 29, tzinfo=UTC), timedelta()


@contextmanager
def answers_are_ours() -> Iterator[None]:
    """Let nothing but bugs out; what is said must be fit to be shown."""
    try:
        yield
    except OURS as error:
        said = str(error)
    else:
        return
    assert said
    assert said.encode("utf-8", "replace").decode() == said, "what cannot be written"


def challenge(data: bytes) -> None:
    """A WWW-Authenticate header and, behind a NUL, what the token server answers."""
    header, _, body = data.decode("latin-1").partition("\0")
    with answers_are_ours():
        for each in parse_challenges(header):
            assert each.scheme == each.scheme.lower()
    for credential in (None, Credential("bot", "secret"), Credential(identity_token="secret")):
        with answers_are_ours():
            authorization = _authorise(header, credential, body.encode("latin-1"))
            assert authorization.isprintable()
            assert authorization.isascii()


def _authorise(header: str, credential: Credential | None, body: bytes) -> str:
    flow = authorise(header, "repository:a/b:pull", credential, "test")
    try:
        request = next(flow)
        assert is_web_address(request.url)
        assert answers.origin(request.url)[1]
        flow.send(Response(200, body))
    except StopIteration as stop:
        return str(stop.value.authorization)
    raise AssertionError("it asks more than once")


def answer(data: bytes) -> None:
    """Headers and bodies that say when to come back and where to go; pages of tags."""
    first, _, rest = data.decode("latin-1").partition("\0")
    headers = {"Retry-After": first, "Date": rest}
    wait = answers.parse_retry_after(lambda name: headers.get(name, ""))
    assert wait is None or wait.total_seconds() >= 0
    limits = dict.fromkeys(("RateLimit", "RateLimit-Remaining", "RateLimit-Limit"), first)
    limits["RateLimit-Reset"] = rest
    stated = parse_rate_limit(lambda name: limits.get(name, ""), NOW)
    assert stated is None or (str(stated).isprintable() and stated.until_next(NOW) >= NOTHING)
    with answers_are_ours():
        target = answers.parse_redirect("https://example.org/v2/", first, "test")
        assert is_web_address(target)
        assert target.startswith("https:")
    with answers_are_ours():
        query = tag_list.parse_next(first, "https://example.org/v2/a/tags/list", "test")
        assert query is None or query.isprintable()
    with answers_are_ours():
        assert all(map(is_tag, tag_list.parse_tags(data, "", "test")))
    code, said = answers.parse_errors(data)
    assert said.isprintable()
    assert isinstance(code, str)


def reference(data: bytes) -> None:
    """What people, wishlists and webhooks call an image."""
    text = data.decode("utf-8", "surrogateescape")
    with answers_are_ours():
        found = Reference.parse(text)
        assert Reference.parse(str(found)) == found
        name = f"{found.registry}/{found.repository}"
        pattern = ImagePattern.parse(f"{name}:{found.tag}" if found.tag else name)
        assert pattern.fits(ImageName.of(found))
        parts = found.name.split("/")
        assert not {"", ".", ".."} & set(parts)
        assert all(len(encode_name(part)) <= 255 for part in parts)
    with answers_are_ours():
        origin = Origin.parse(text)
        if origin is not None:
            ImageName.of_origin(origin.below("/folder"))
    with answers_are_ours():
        glob = ImagePattern.parse(text)
        glob.fits(ImageName("example.org/", "a/b", "1"))
        assert ImagePattern.parse(text).rank == glob.rank


def document(data: bytes) -> None:
    """Manifests, indexes, configurations and lists of referrers."""
    types = (manifest.OCI_MANIFEST, manifest.OCI_INDEX, manifest.DOCKER_MANIFEST, "text/plain", "")
    for media_type in types:
        with answers_are_ours():
            found = manifest.parse_manifest(data, media_type, "test")
            if isinstance(found, manifest.Index):
                choose_manifest(found, AMD64, "test")
            else:
                config = manifest.parse_config(data, "test")
                manifest.describe_layers(found, config, "test")
    for parse in (
        manifest.parse_config,
        manifest.parse_artefact,
        manifest.parse_referrers,
        schema1.payload_of,
        schema1.parse_old_manifest,
    ):
        with answers_are_ours():
            parse(data, "test")


class Documents:
    """The members of an archive that consists of documents, found as blobs and by their names."""

    def __init__(self, data: bytes) -> None:
        documents = data.split(b"\0")
        is_list = documents[0].startswith(b"[")  # what newer versions of Docker write
        self._found = dict.fromkeys(("index.json", "repositories"), documents[0])
        if is_list:
            self._found["manifest.json"] = documents[0]
        for each in documents:
            name = Digest.of(each).hex
            for path in (f"blobs/sha256/{name}", f"{name}.json", f"{name}/json"):
                self._found[path] = each

    def size(self, name: str) -> int:
        if name not in self._found:
            raise MissingMemberError(f"no {name[:50]!a}")
        return len(self._found[name])

    def open(self, name: str) -> io.BytesIO:
        self.size(name)
        return io.BytesIO(self._found[name])


def archive(data: bytes) -> None:
    """The documents of image archives, divided by NUL; the first is the index."""
    for kind in (OciArchiveSource, DockerArchiveSource):
        for tag in ("", "1", "@0"):
            source = kind(SourceLimits())
            whole = Archive(Documents(data), "")
            source.archive = lambda origin, found=whole: found  # type: ignore[method-assign, misc]
            reference = Reference("a.example", "b", "1", None, Origin("oci-archive", "/f", tag))
            with answers_are_ours():
                source.name(origin_of(reference))
            with answers_are_ours():
                image = source.resolve(reference, AMD64, source.head(reference))
                assert Digest.of(image.manifest) == image.manifest_digest
                for each in image.layers:
                    with answers_are_ours(), source.open_layer(reference, each) as stream:
                        stream.read(1 << 16)


def layer(data: bytes) -> None:
    """A layer, compressed or not, read and put on an empty root."""
    with answers_are_ours():
        record = read_layer(io.BytesIO(data), Digest.of(data), len(data), None, Hashing(), LIMITS)
        tree, _ = merge([record, record])
        for path, entry in tree.walk():
            assert not {"", ".", ".."} & set(path.split("/"))
            assert b"\0" not in encode_name(path)
            assert isinstance(entry, Directory) or not entry.is_dir


def stacked(data: bytes) -> None:
    """Layers on layers against the naive oracle, driven by Hypothesis."""
    test: Any = test_merge_oracle.test_merge_agrees_with_a_naive_reading_of_the_spec
    test.hypothesis.fuzz_one_input(data)


def sif(data: bytes) -> None:
    """A SIF file and its signatures."""

    def read(offset: int, size: int) -> bytes:
        assert offset >= 0
        assert size >= 0
        return data[offset : offset + size]

    with answers_are_ours():
        found = parse_sif(read, len(data), "test")
        for each in found.objects:
            assert each.offset + each.size <= len(data)
        assert not find_signers(found, read, SifKeys(pem=(a_key(),)))


def signature(data: bytes) -> None:
    """What is found beside an image, and what is inside it once a key is found to have signed."""
    head, _, tail = data.partition(b"\0")
    for found in _candidates(data, head, tail):
        assert cosign.find_signer(found, (a_key(),)) is None
        with suppress(cosign.ClaimError):
            claim = cosign.read_claim(found)
            name = Reference.parse("example.org/a/b:1")
            cosign.check_claim(claim, Digest.of(data), name, {"a": "b"}, same_name=True)


def _candidates(data: bytes, head: bytes, tail: bytes) -> Iterator[cosign.Candidate]:
    with suppress(cosign.ClaimError):
        yield cosign.parse_bundle("test", data)
    with suppress(cosign.ClaimError):
        yield cosign.parse_simple_signing("test", head, tail.decode("latin-1"))
    yield cosign.Candidate("test", data, (tail,), data, cosign.SIMPLE_SIGNING)
    yield cosign.Candidate("test", data, (tail,), data, cosign.IN_TOTO)


def openpgp(data: bytes) -> None:
    """Rings of certificates, and messages they may have signed; also PEM files."""
    with answers_are_ours():
        parse_key_ring(data, KEYS)
    with answers_are_ours():
        parse_public_keys(data, KEYS)
    is_openpgp_text(data)
    ring = parse_key_ring((KEYS / "test.pgp").read_bytes(), KEYS)
    found = open_message(data, ring)
    # only what the key has really signed, and nothing that was added to it
    assert found is None or found.text == (KEYS / "signed.txt").read_bytes()


def webhook(data: bytes) -> None:
    """What a stranger sends as a webhook: headers, a NUL, the body; and the same, verified."""
    head, _, body = data.partition(b"\0")
    pairs = [line.partition(":") for line in head.decode("latin-1").splitlines()]
    headers = [(name.strip(), value.strip()) for name, _, value in pairs]
    for make in WEBHOOK_SOURCES.values():
        source = make(HookSettings(registry="example.org"))
        with answers_are_ours():
            delivery = Delivery.of(headers, body)
            assert not _is_believed(source, delivery)
            for push in source.parse(delivery).pushes:
                tag = f":{push.tag}" if push.tag else ""
                Reference.parse(f"{push.registry}/{push.repository}{tag}")


def _is_believed(source: WebhookSource, delivery: Delivery) -> bool:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    try:
        source.verify(delivery, "a secret that nobody knows " * 3, now)
    except PublishError:
        return False
    return True


@cache
def a_key() -> PublicKey:
    """Return the key of nobody: what it verifies is a bug."""
    point = ec.derive_private_key(0x5EED, ec.SECP256R1()).public_key()
    pem = point.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (key,) = parse_public_keys(pem, KEYS)
    return key


TARGETS: dict[str, Target] = {
    "answer": answer,
    "archive": archive,
    "challenge": challenge,
    "layer": layer,
    "manifest": document,
    "openpgp": openpgp,
    "reference": reference,
    "sif": sif,
    "signature": signature,
    "stacked": stacked,
    "webhook": webhook,
}
