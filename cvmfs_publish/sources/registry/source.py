"""Images from a Docker or OCI registry, as an `ImageSource`.

Source: OCI distribution-spec `spec.md`, "Pull".
"""

from __future__ import annotations

from dataclasses import dataclass

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import LayerDescriptor, Platform, ResolvedImage
from cvmfs_publish.sources.registry.blobs import VerifiedBlob
from cvmfs_publish.sources.registry.client import RegistryClient, Reply
from cvmfs_publish.sources.registry.manifest import (
    ACCEPT,
    MANIFEST_LIMIT,
    Descriptor,
    Index,
    Manifest,
    NotAnImageError,
    check_not_a_web_page,
    describe_layers,
    parse_config,
    parse_manifest,
)
from cvmfs_publish.sources.registry.platform import check_platform, choose_manifest
from cvmfs_publish.sources.registry.tag_list import (
    MAX_PAGES,
    MAX_TAGS,
    PAGE_LIMIT,
    first_query,
    parse_next,
    parse_tags,
)

DIGEST_HEADER = "Docker-Content-Digest"
_ACCEPT = {"Accept": ACCEPT}


@dataclass(frozen=True, slots=True)
class _Document:
    """A manifest or index as received, its bytes proven to match the digest."""

    body: bytes
    content_type: str
    digest: Digest


class RegistrySource:
    """An `ImageSource` and `TagLister` for every registry the client can reach."""

    def __init__(self, client: RegistryClient) -> None:
        self.client = client

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`; one HEAD request with a registry that knows digests.

        Docker Hub counts GETs of manifests as pulls, HEADs not.
        """
        if reference.digest is not None:
            return reference.digest
        path = f"manifests/{reference.tag}"
        # 405, 501: some registries know no HEAD
        with self.client.open("HEAD", reference, path, _ACCEPT, allowed=(405, 501)) as reply:
            stated = reply.header(DIGEST_HEADER) if reply.status < 300 else ""
            reply.drain()  # there is no body to come; now the connection is for the next request
        if stated:
            return _parse_stated(stated, reference)
        document = self._fetch_manifest(reference, reference.tag)
        parse_manifest(document.body, document.content_type, str(reference))
        return document.digest

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`: two GETs, or three with an index."""
        subject = str(reference)
        document = self._fetch_manifest(reference, digest or reference.digest or reference.tag)
        top = document.digest
        manifest = parse_manifest(document.body, document.content_type, subject)
        chosen: Platform | None = None
        if isinstance(manifest, Index):
            entry = choose_manifest(manifest, platform, subject)
            chosen = entry.platform
            document, manifest = self._fetch_entry(reference, entry)
        config_bytes = self._read_config(reference, manifest.config)
        config = parse_config(config_bytes, subject)
        if chosen is None:  # an index entry for the platform outweighs what the config says
            check_platform(config.platform, platform, subject)
        return ResolvedImage(
            reference=reference,
            digest=top,
            manifest_digest=document.digest,
            manifest=document.body,
            config_digest=manifest.config.digest,
            config=config_bytes,
            layers=describe_layers(manifest, config, subject),
            platform=platform,
        )

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> VerifiedBlob:
        """As promised by `ImageSource.open_layer`."""
        return self._open_blob(reference, layer.digest, layer.size)

    def tags(self, registry: str, repository: str) -> tuple[str, ...]:
        """As promised by `TagLister.tags`; one GET for each page."""
        whole = Reference(registry, repository, "")
        subject = str(whole)
        found: dict[str, None] = {}
        asked: set[str] = set()
        query: str | None = first_query()
        while query is not None:
            # What is incomplete must not pass for complete: names may be removed because of it
            if query in asked:
                raise RemoteError(
                    f"{subject}: the list of tags leads round in a circle after {len(found)} tags"
                )
            asked.add(query)
            page, query = self._fetch_tags(whole, query)
            found.update(dict.fromkeys(page))
            if len(found) > MAX_TAGS or len(asked) > MAX_PAGES:
                raise RemoteError(f"{subject}: the list of tags has no end after {len(found)} tags")
        return tuple(found)

    def _fetch_tags(self, whole: Reference, query: str) -> tuple[list[str], str | None]:
        """Return the tags of one page and the query of the next."""
        path, subject = f"tags/list?{query}", str(whole)
        body, header = self.client.fetch(whole, path, {}, PAGE_LIMIT)
        page = parse_tags(body, header("Content-Type"), subject)
        return page, parse_next(header("Link"), self.client.url(whole, path), subject)

    def _open_blob(self, reference: Reference, digest: Digest, size: int) -> VerifiedBlob:
        def open_at(offset: int) -> Reply:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            return self.client.open("GET", reference, f"blobs/{digest}", headers, allowed=(416,))

        return VerifiedBlob(
            open_at,
            digest,
            size,
            str(reference),
            attempts=self.client.attempts,
            wait=self.client.wait,
        )

    def _fetch_manifest(self, reference: Reference, name: Digest | str) -> _Document:
        body, header = self.client.fetch(reference, f"manifests/{name}", _ACCEPT, MANIFEST_LIMIT)
        stated = header(DIGEST_HEADER)
        if isinstance(name, Digest):
            promised = name
        else:
            promised = _parse_stated(stated, reference) if stated else Digest.of(body)
        hasher = promised.hasher()
        hasher.update(body)
        # A web page has no such digest either, but is the fault of something passing
        check_not_a_web_page(header("Content-Type"), str(reference))
        if hasher.hexdigest() != promised.hex:
            raise IntegrityError(
                f"{reference}: the manifest should be {promised}, "
                f"the {len(body)} bytes received are {promised.algorithm}:{hasher.hexdigest()}",
                hint="the registry or a cache before it is damaged; fetching again will not help",
            )
        return _Document(body, header("Content-Type"), promised)

    def _fetch_entry(self, reference: Reference, entry: Descriptor) -> tuple[_Document, Manifest]:
        subject = f"{reference} ({entry.digest})"
        document = self._fetch_manifest(reference, entry.digest)
        if len(document.body) != entry.size:
            raise IntegrityError(
                f"{subject}: the manifest has {len(document.body)} bytes, promised {entry.size}"
            )
        manifest = parse_manifest(
            document.body, document.content_type, subject, promised_type=entry.media_type
        )
        if isinstance(manifest, Index):
            raise NotAnImageError(f"{subject} is an index inside an index")
        return document, manifest

    def _read_config(self, reference: Reference, config: Descriptor) -> bytes:
        with self._open_blob(reference, config.digest, config.size) as blob:
            return b"".join(iter(lambda: blob.read(1 << 20), b""))


def _parse_stated(text: str, reference: Reference) -> Digest:
    try:
        return Digest.parse(text.strip())
    except IntegrityError as exc:
        raise IntegrityError(
            f"{reference}: the registry's {DIGEST_HEADER} {text[:100]!a} is not a digest"
        ) from exc
