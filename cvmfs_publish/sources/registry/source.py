"""Images from a Docker or OCI registry, as an `ImageSource`.

Source: OCI distribution-spec `spec.md`, "Pull".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import (
    LayerDescriptor,
    Platform,
    ResolvedImage,
    SourceLimits,
    TagListing,
)
from cvmfs_publish.sources.registry.blobs import VerifiedBlob
from cvmfs_publish.sources.registry.client import RegistryClient, Reply
from cvmfs_publish.sources.registry.manifest import (
    ACCEPT,
    MANIFEST_HINT,
    Descriptor,
    Index,
    Manifest,
    NotAnImageError,
    check_not_a_web_page,
    describe_layers,
    is_old,
    parse_config,
    parse_manifest,
)
from cvmfs_publish.sources.registry.mirrors import ATTEMPTS, Mirrors, MirrorSettings
from cvmfs_publish.sources.registry.platform import check_platform, choose_manifest
from cvmfs_publish.sources.registry.schema1 import OldImage, parse_old_manifest, payload_of
from cvmfs_publish.sources.registry.tag_list import (
    MAX_PAGES,
    MAX_TAGS,
    PAGE_LIMIT,
    first_query,
    parse_etag,
    parse_next,
    parse_tags,
)
from cvmfs_publish.sources.registry.ways import Way, Ways, join_hints

DIGEST_HEADER = "Docker-Content-Digest"
_ACCEPT = {"Accept": ACCEPT}
OLD_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"  # of schema 1, always gzip
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Document:
    """A manifest or index as received, its bytes proven to match the digest.

    Of a schema 1 manifest only what the digest is about: not the signatures.
    """

    body: bytes
    content_type: str
    digest: Digest


class RegistrySource:
    """An `ImageSource` and `TagLister` for every registry the client can reach.

    `mirrors` are asked first.  `foreign_layers` lists registries whose manifests may name addresses
    outside for layers that the registry itself does not have.
    """

    def __init__(
        self,
        client: RegistryClient,
        *,
        mirrors: Mapping[str, MirrorSettings] | None = None,
        foreign_layers: Collection[str] = (),
        limits: SourceLimits | None = None,
    ) -> None:
        self.client = client
        self._mirrors = Mirrors(mirrors or {}, client.clock)
        self._foreign_layers = frozenset(foreign_layers)
        # The last index: each platform of an image asks for it, and registries count
        self._index: Mapping[tuple[str, str, Digest], _Document] = {}
        self._taken: dict[Digest, Reference] = {}  # blobs that last came from a mirror → from where
        self._limits = limits or SourceLimits()

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`; one HEAD request with a registry that knows digests.

        Docker Hub counts GETs of manifests as pulls, HEADs not.
        """
        if reference.digest is not None:
            return reference.digest
        return self._ask(reference, reference.tag, self._head)

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`: two GETs, or three with an index.

        A schema 1 image costs one GET, and a HEAD for the size of each layer.
        """
        subject = str(reference)
        document = self._fetch(reference, digest or reference.digest or reference.tag)
        top = document.digest
        manifest = self._parse(document, subject)
        chosen: Platform | None = None
        if isinstance(manifest, Index):
            entry = choose_manifest(manifest, platform, subject)
            chosen = entry.platform
            self._index = {(reference.registry, reference.repository, top): document}
            document, manifest = self._fetch_entry(reference, entry)
        if isinstance(manifest, Manifest):
            config_bytes = self._read_config(reference, manifest.config)
            config_digest = manifest.config.digest
            config = parse_config(config_bytes, subject)
            layers = describe_layers(manifest, config, subject)
        else:
            config_bytes, config_digest = manifest.config, Digest.of(manifest.config)
            config = parse_config(config_bytes, subject)
            layers = tuple(self._describe_old(reference, each) for each in manifest.layers)
        if chosen is None:  # an index entry for the platform outweighs what the config says
            check_platform(config.platform, platform, subject)
        return ResolvedImage(
            reference=reference,
            digest=top,
            manifest_digest=document.digest,
            manifest=document.body,
            config_digest=config_digest,
            config=config_bytes,
            layers=layers,
            platform=platform,
        )

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> VerifiedBlob:
        """As promised by `ImageSource.open_layer`."""
        return self._open_blob(reference, layer.digest, layer.size, layer.urls)

    def distrust(self, digest: Digest) -> bool:
        """As promised by `SecondSource.distrust`."""
        place = self._taken.pop(digest, None)
        if place is not None:
            self._mirrors.tell_lie(place, digest)
        return place is not None

    def tags(self, registry: str, repository: str) -> tuple[str, ...]:
        """As promised by `TagLister.tags`; one GET for each page."""
        return self._list_tags(registry, repository).tags

    def list_tags(self, registry: str, repository: str, etag: str = "") -> TagListing | None:
        """As promised by `TagLister.list_tags`."""
        if not etag:
            return self._list_tags(registry, repository)
        whole = Reference(registry, repository, "")
        path = f"tags/list?{first_query()}"
        found = self.client.fetch_changed(whole, path, etag, PAGE_LIMIT)
        return None if found is None else self._list_tags(registry, repository, found)

    def _list_tags(
        self,
        registry: str,
        repository: str,
        first: tuple[bytes, Callable[[str], str]] | None = None,
    ) -> TagListing:
        """Read all pages; `first`: the first one, if it was fetched already."""
        whole = Reference(registry, repository, "")
        subject = str(whole)
        found: dict[str, None] = {}
        asked: set[str] = set()
        query: str | None = first_query()
        etag = ""
        while query is not None:
            # What is incomplete must not pass for complete: names may be removed because of it
            if query in asked:
                raise RemoteError(
                    f"{subject}: the list of tags leads round in a circle after {len(found)} tags"
                )
            asked.add(query)
            path = f"tags/list?{query}"
            body, header = first or self.client.fetch(whole, path, {}, PAGE_LIMIT)
            first = None
            found.update(dict.fromkeys(parse_tags(body, header("Content-Type"), subject)))
            query = parse_next(header("Link"), self.client.url(whole, path), subject)
            # that of one page says nothing about the others
            etag = parse_etag(header("ETag")) if query is None and len(asked) == 1 else ""
            if len(found) > MAX_TAGS or len(asked) > MAX_PAGES:
                raise RemoteError(f"{subject}: the list of tags has no end after {len(found)} tags")
        return TagListing(tuple(found), etag)

    def _ask(
        self, reference: Reference, name: Digest | str, question: Callable[[Reference, int], _T]
    ) -> _T:
        """Ask the mirrors and then the registry, until one answers; `name` is what it is about.

        `question` is given the image's name at the place and how often to try.
        """
        failures: list[PublishError] = []
        for place in self._mirrors.find(reference, name):
            try:
                return question(place, ATTEMPTS)
            except (RemoteError, IntegrityError) as exc:
                self._mirrors.tell_failure(place, exc)
                failures.append(exc)
        try:
            return question(reference, 0)
        except RemoteError as exc:
            if failures:
                exc.hint = join_hints(exc.hint, f"a mirror failed as well: {failures[0]}")
            raise

    def _head(self, place: Reference, attempts: int) -> Digest:
        path = f"manifests/{place.tag}"
        # 405, 501: some registries know no HEAD
        with self.client.open(
            "HEAD", place, path, _ACCEPT, allowed=(405, 501), attempts=attempts
        ) as reply:
            stated = reply.header(DIGEST_HEADER) if reply.status < 300 else ""
        if stated:
            return _parse_stated(stated, place)
        document = self._fetch_manifest(place, place.tag, attempts)
        self._parse(document, str(place))
        return document.digest

    def _open_blob(
        self, reference: Reference, digest: Digest, size: int, urls: Sequence[str] = ()
    ) -> VerifiedBlob:
        ways = Ways(
            [
                *(self._way(place, digest) for place in self._mirrors.find(reference, digest)),
                Way(partial(self._open_at, reference, digest, 0)),
                *(self._foreign_way(reference, url) for url in urls),
            ]
        )

        def open_at(offset: int) -> Reply:
            reply = ways.open_at(offset)
            self._taken.pop(digest, None)
            if ways.current.mirror is not None:
                self._taken[digest] = ways.current.mirror
            return reply

        return VerifiedBlob(
            open_at,
            digest,
            size,
            str(reference),
            attempts=self.client.attempts,
            wait=self.client.wait,
        )

    def _way(self, place: Reference, digest: Digest) -> Way:
        return Way(
            partial(self._open_at, place, digest, ATTEMPTS),
            partial(self._mirrors.tell_failure, place),
            place,
        )

    def _foreign_way(self, reference: Reference, url: str) -> Way:
        def open_at(offset: int) -> Reply:
            if reference.registry not in self._foreign_layers:
                raise RemoteError(
                    f"{reference}: the registry does not have a layer that the manifest says is at"
                    f" {url[:200]!a}",
                    hint=f"`registries.{reference.registry}.foreign_layers: true` allows to fetch"
                    " it from there; or push the image with all its layers",
                )
            return self.client.open_address(url, reference, _range(offset))

        return Way(open_at)

    def _open_at(self, place: Reference, digest: Digest, attempts: int, offset: int) -> Reply:
        return self.client.open(
            "GET",
            place,
            f"blobs/{digest}",
            _range(offset),
            allowed=(416,),
            attempts=attempts,
        )

    def _fetch(self, reference: Reference, name: Digest | str) -> _Document:
        if isinstance(name, Digest):
            kept = self._index.get((reference.registry, reference.repository, name))
            if kept is not None:
                return kept
        return self._ask(
            reference, name, lambda place, tries: self._fetch_manifest(place, name, tries)
        )

    def _fetch_manifest(self, reference: Reference, name: Digest | str, attempts: int) -> _Document:
        path, limit = f"manifests/{name}", self._limits.manifest_bytes
        try:
            body, header = self.client.fetch(reference, path, _ACCEPT, limit, attempts)
        except IntegrityError as exc:
            raise IntegrityError(
                f"{reference}: the manifest has more than {limit} bytes",
                hint=MANIFEST_HINT,
            ) from exc
        # A web page has no such digest either, but is the fault of something passing
        check_not_a_web_page(header("Content-Type"), str(reference))
        if is_old(body, header("Content-Type")):
            body = payload_of(body, str(reference))
        stated = header(DIGEST_HEADER)
        if isinstance(name, Digest):
            promised = name
        else:
            promised = _parse_stated(stated, reference) if stated else Digest.of(body)
        hasher = promised.hasher()
        hasher.update(body)
        if hasher.hexdigest() != promised.hex:
            raise IntegrityError(
                f"{reference}: the manifest should be {promised}, "
                f"the {len(body)} bytes received are {promised.algorithm}:{hasher.hexdigest()}",
                hint="the registry or a cache before it is damaged; fetching again will not help",
            )
        return _Document(body, header("Content-Type"), promised)

    def _parse(self, document: _Document, subject: str) -> Manifest | Index | OldImage:
        if is_old(document.body, document.content_type):
            return parse_old_manifest(document.body, subject)
        return self._parse_current(document, subject)

    def _parse_current(
        self, document: _Document, subject: str, promised_type: str = ""
    ) -> Manifest | Index:
        return parse_manifest(
            document.body,
            document.content_type,
            subject,
            promised_type,
            config_limit=self._limits.config_bytes,
        )

    def _fetch_entry(self, reference: Reference, entry: Descriptor) -> tuple[_Document, Manifest]:
        subject = f"{reference} ({entry.digest})"
        document = self._fetch(reference, entry.digest)
        if len(document.body) != entry.size:
            raise IntegrityError(
                f"{subject}: the manifest has {len(document.body)} bytes, promised {entry.size}"
            )
        manifest = self._parse_current(document, subject, entry.media_type)
        if isinstance(manifest, Index):
            raise NotAnImageError(f"{subject} is an index inside an index")
        return document, manifest

    def _describe_old(self, reference: Reference, digest: Digest) -> LayerDescriptor:
        """Ask how large a layer is, of which the manifest says the digest alone."""

        def ask(place: Reference, attempts: int) -> int:
            with self.client.open("HEAD", place, f"blobs/{digest}", {}, attempts=attempts) as reply:
                length = reply.header("Content-Length")
            if not (length.isascii() and length.isdigit() and len(length) < 19):
                raise RemoteError(f"{place}: how large {digest} is, the registry does not say")
            return int(length)

        return LayerDescriptor(digest, self._ask(reference, digest, ask), OLD_LAYER, None)

    def _read_config(self, reference: Reference, config: Descriptor) -> bytes:
        while True:
            try:
                with self._open_blob(reference, config.digest, config.size) as blob:
                    return b"".join(iter(lambda: blob.read(1 << 20), b""))
            except (RemoteError, IntegrityError):
                if not self.distrust(config.digest):
                    raise


def _range(offset: int) -> dict[str, str]:
    return {"Range": f"bytes={offset}-"} if offset else {}


def _parse_stated(text: str, reference: Reference) -> Digest:
    try:
        return Digest.parse(text.strip())
    except IntegrityError as exc:
        raise IntegrityError(
            f"{reference}: the registry's {DIGEST_HEADER} {text[:100]!a} is not a digest"
        ) from exc
