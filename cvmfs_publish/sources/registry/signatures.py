"""Fetch what a registry keeps beside an image that may be its signatures.

cosign has put them into three places: the tag `sha256-<hex>.sig`; what refers to the image by
`subject`, asked of the referrers API; and the same listed under the tag `sha256-<hex>`, where a
registry has no such API.  Everything is asked for lazily, since the first good signature is enough.
Sources: cosign `specs/SIGNATURE_SPEC.md`; distribution-spec, "Listing Referrers".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import ImageNotFoundError
from cvmfs_publish.sources.cosign import (
    BUNDLE,
    SIGNATURE_ANNOTATION,
    SIGNATURE_ARTEFACT,
    SIMPLE_SIGNING,
    Candidate,
    ClaimError,
    parse_bundle,
    parse_simple_signing,
)
from cvmfs_publish.sources.registry.client import RegistryClient
from cvmfs_publish.sources.registry.manifest import (
    MANIFEST_LIMIT,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    check_not_a_web_page,
    parse_artefact,
    parse_referrers,
)
from cvmfs_publish.sources.registry.tag_list import parse_next

MAX_FETCHED = 100  # documents for one image; every signing adds one or two
MAX_SIGNATURES = 1000  # in one manifest; cosign itself stops there
MAX_PAGES = 20  # of referrers; registries give a hundred and more in each
MAX_SIGNATURE_BYTES = 1 << 20  # of one payload or bundle; real ones have one to ten thousand
_MANIFEST = {"Accept": OCI_MANIFEST}
_INDEX = {"Accept": OCI_INDEX}
# How registries without the API say so: 404 by the specification, the others in the field
_NO_API = (400, 404, 405, 406, 501)
_KNOWN = frozenset({"", SIGNATURE_ARTEFACT, BUNDLE})


class RegistrySignatures:
    """The signatures of images in registries; see `sources.trust.SignatureStore`."""

    def __init__(self, client: RegistryClient) -> None:
        self._client = client

    def iter_candidates(
        self, reference: Reference, digest: Digest, skip: Callable[[str], None]
    ) -> Iterator[Candidate]:
        """As promised by `SignatureStore.iter_candidates`."""
        return _Search(self._client, reference, digest, skip).run()


class _Search:
    """One image's signatures being looked for."""

    def __init__(
        self,
        client: RegistryClient,
        reference: Reference,
        digest: Digest,
        skip: Callable[[str], None],
    ) -> None:
        self._client = client
        self._reference = reference
        self._digest = digest
        self._skip = skip
        self._tag = f"{digest.algorithm}-{digest.hex}"
        self._asked = 0  # requests for documents
        self._fetched: dict[str, bytes] = {}  # documents by what they were asked as

    def run(self) -> Iterator[Candidate]:
        signed = self._find(f"manifests/{self._tag}.sig", _MANIFEST)
        if signed is not None:
            yield from self._in_manifest(signed, f"tag {self._tag}.sig", must_refer=False)
        for entry in self._referrers():
            if entry.artifact_type not in _KNOWN:
                continue  # an SBOM, say
            body = self._find(f"manifests/{entry.digest}", _MANIFEST)
            if body is None:
                self._skip(f"referrer {entry.digest} is listed, but not there")
            else:
                self._check(body, entry.digest)
                yield from self._in_manifest(body, f"referrer {entry.digest}", must_refer=True)

    def _in_manifest(self, body: bytes, where: str, *, must_refer: bool) -> Iterator[Candidate]:
        try:
            artefact = parse_artefact(body, f"{self._reference}: {where}")
        except IntegrityError as error:  # anybody who may push can leave such a thing here
            self._skip(str(error))
            return
        if must_refer and artefact.subject != self._digest:
            self._skip(f"{where} refers to {artefact.subject}, not to {self._digest}")
            return
        if len(artefact.layers) > MAX_SIGNATURES:
            self._skip(f"{where}: of {len(artefact.layers)} signatures {MAX_SIGNATURES} are tried")
        for layer in artefact.layers[:MAX_SIGNATURES]:
            try:
                if layer.media_type == SIMPLE_SIGNING:
                    signature = str(layer.annotations.get(SIGNATURE_ANNOTATION, ""))
                    yield parse_simple_signing(where, self._read(layer, where), signature)
                elif layer.media_type == BUNDLE:
                    yield parse_bundle(where, self._read(layer, where))
            except ClaimError as error:
                self._skip(f"{where}: {error}")

    def _read(self, layer: Descriptor, where: str) -> bytes:
        if layer.size > MAX_SIGNATURE_BYTES:
            raise ClaimError(f"{layer.size} bytes, {MAX_SIGNATURE_BYTES} are the most")
        data = self._get(f"blobs/{layer.digest}", {}, layer.size)
        self._check(data, layer.digest)
        return data

    def _referrers(self) -> Iterator[Descriptor]:
        """Ask the referrers API, page by page, else the tag that stands for it."""
        path = f"referrers/{self._digest}"
        query: str | None = ""
        for _ in range(MAX_PAGES):
            if query is None:
                return
            page = self._ask_api(f"{path}?{query}" if query else path)
            if page is None:
                body = self._find(f"manifests/{self._tag}", _INDEX)
                yield from self._entries(body, f"tag {self._tag}") if body is not None else ()
                return
            body, query = page
            yield from self._entries(body, "list of referrers")
        self._skip(f"the list of referrers has more than {MAX_PAGES} pages, which were not read")

    def _entries(self, body: bytes, where: str) -> tuple[Descriptor, ...]:
        try:
            return parse_referrers(body, f"{self._reference}: {where}")
        except IntegrityError as error:
            self._skip(str(error))
            return ()

    def _ask_api(self, path: str) -> tuple[bytes, str | None] | None:
        """Return a page and the query of the next one; None if there is no such API."""
        with self._client.open("GET", self._reference, path, _INDEX, allowed=_NO_API) as reply:
            if reply.status in _NO_API:
                reply.drain()
                return None
            check_not_a_web_page(reply.header("Content-Type"), str(self._reference))
            body = reply.read_all(MANIFEST_LIMIT)
            url = self._client.url(self._reference, path)
            return body, parse_next(reply.header("Link"), url, str(self._reference))

    def _find(self, path: str, headers: Mapping[str, str]) -> bytes | None:
        try:
            return self._get(path, headers, MANIFEST_LIMIT)
        except ImageNotFoundError:
            return None

    def _get(self, path: str, headers: Mapping[str, str], limit: int) -> bytes:
        if path not in self._fetched:
            self._asked += 1
            if self._asked > MAX_FETCHED:
                raise IntegrityError(
                    f"{self._reference}: none of the first {MAX_FETCHED} documents beside"
                    f" {self._digest} is a signature that is wanted, and there are more",
                    hint="remove old signatures from the registry",
                )
            body, header = self._client.fetch(self._reference, path, headers, limit)
            check_not_a_web_page(header("Content-Type"), str(self._reference))
            self._fetched[path] = body
        return self._fetched[path]

    def _check(self, body: bytes, digest: Digest) -> None:
        hasher = digest.hasher()
        hasher.update(body)
        if hasher.hexdigest() != digest.hex:
            raise IntegrityError(
                f"{self._reference}: a signature document should be {digest}, received was"
                f" {digest.algorithm}:{hasher.hexdigest()}",
                hint="the registry or a cache before it is damaged; fetching again will not help",
            )
