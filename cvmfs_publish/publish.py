"""Publish images: from references as people type them to one new revision of a repository.

All images of a call become visible together.  An image that is published as its registry has it
costs one HEAD request; one whose layers are known costs its manifest, its configuration and
metadata work.  An image that fails is reported and leaves the others alone; what fails in the
repository itself stops everything.

Where replicas are to have an image before its name leads there (`repository/staging.py`), a publish
ends with a sandbox and a name that waits.

Where images are published as single files too (`fallback`), the file comes first: no name leads to
an image whose promised file could not be written.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Protocol

from cvmfs_publish import __version__
from cvmfs_publish.config import MAX_CATALOG_ENTRIES
from cvmfs_publish.content.artefacts import ArtefactError
from cvmfs_publish.content.ingest import Ingestor
from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import (
    InputError,
    IntegrityError,
    PublishError,
    RepositoryError,
    exit_code_of,
)
from cvmfs_publish.findings import Finding
from cvmfs_publish.layers import record as layer_records
from cvmfs_publish.layers.fetch import READERS, fetch_layers
from cvmfs_publish.layers.merge import merge
from cvmfs_publish.layers.read import LayerLimits, check_path
from cvmfs_publish.layers.record import LayerEntry, LayerRecord, RecordStore
from cvmfs_publish.layers.tree import Directory, Tree, encode_name
from cvmfs_publish.layers.treedigest import TreeSummary, summarise_tree
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.artefact import Packer, Source, walk_tree
from cvmfs_publish.repository.base import Repository, Transaction, View, Walkable, persist
from cvmfs_publish.repository.compliance import check_record
from cvmfs_publish.repository.fallback import point_immutable_names, point_names
from cvmfs_publish.repository.layouts import (
    DEFAULT_PLATFORM,
    Layout,
    Placement,
    image_record_of,
    place,
    place_name,
    short_name_of,
)
from cvmfs_publish.repository.names import (
    check_short_name,
    leads_to,
    publish_name,
    put_sandbox,
    put_sandbox_record,
)
from cvmfs_publish.repository.records import (
    Artefact,
    Publication,
    SandboxRecord,
    Staged,
    read_publication,
    read_sandbox,
    read_staged,
)
from cvmfs_publish.repository.staging import is_to_wait, settle, stage_name
from cvmfs_publish.sandbox.policy import SandboxPolicy, summarise
from cvmfs_publish.sandbox.prepare import RECIPE, Prepared, prepare
from cvmfs_publish.sources.base import (
    ImageSource,
    LayerDescriptor,
    Locator,
    Platform,
    ResolvedImage,
)
from cvmfs_publish.sources.compliance import Compliance, ComplianceError
from cvmfs_publish.sources.trust import Approval, Trust

Status = Literal["published", "staged", "unchanged", "refused", "failed"]  # staged: its name waits
CHANGES = 10  # how many times the entries of an image its layers may have together
METADATA = 1 << 30  # bytes of names, link targets and attributes of all layers, kept in memory
OWN_ENTRIES = 2  # of every catalog: its directory and its marker


class Reporter(Protocol):
    """Told what is going on, from several threads; must be quick and must not raise."""

    def phase(self, reference: str, phase: str) -> None:
        """`phase` of an image or, with reference "", of the repository begins."""

    def layer(self, reference: str, digest: str, done: int, total: int) -> None:
        """`done` of `total` compressed bytes of a layer were read."""


class Silent:
    """A reporter that says nothing."""

    def phase(self, reference: str, phase: str) -> None:
        pass

    def layer(self, reference: str, digest: str, done: int, total: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class PublishSettings:
    """How images are read and prepared."""

    policy: SandboxPolicy = field(default_factory=SandboxPolicy)
    limits: LayerLimits = field(default_factory=LayerLimits)
    image_bytes: int = 256 * 1024**3  # unpacked bytes of one image
    layout: Layout = "unpacked"  # `osg`: names without registry, too

    def short_name(self, reference: Reference) -> str:
        """Return the second name of an image, as records have it; "" if it has none."""
        name = short_name_of(reference) if self.layout == "osg" else ""
        return f"/{name}" if name else ""

    def with_policy(self, changes: Mapping[str, Any]) -> PublishSettings:
        """Return these with other fields of the policy."""
        return replace(self, policy=replace(self.policy, **changes))

    def recipe(self) -> str:
        """Return a digest of everything but the image that decides what a sandbox looks like."""
        parts = [RECIPE, layer_records.FORMAT, asdict(self.policy)]
        text = json.dumps(parts, sort_keys=True)
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@dataclass(slots=True)
class ImageResult:
    """What became of one image."""

    reference: str
    status: Status
    platform: str
    publication: Publication | None = None  # of a staged one, the record its name will have
    waits_for: int = 0  # of a staged one: how many replicas are to have it
    fallback: Artefact | None = None  # the image as one file
    layers_total: int = 0
    layers_reused: int = 0
    fetched_bytes: int = 0
    seconds: float = 0.0
    error: PublishError | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells images of a call apart."""
        return self.reference, self.platform


@dataclass(frozen=True, slots=True)
class PublishResult:
    """What became of all images of a call."""

    revision: int
    root_hash: str
    images: tuple[ImageResult, ...]

    @property
    def exit_code(self) -> int:
        """0 all done; 6 some failed; if all failed, the code of the first failure."""
        errors = [image.error for image in self.images if image.error is not None]
        return exit_code_of(errors, len(self.images))


@dataclass(slots=True)
class _Wish:
    """One image of a call, on its way."""

    result: ImageResult
    platform: Platform
    replicas: int  # that are to have it before its name leads there
    reference: Reference | None = None
    digest: Digest | None = None
    state: str = ""  # of what it comes from; see `Locator.state`
    present: Publication | None = None  # all that is missing is its artefact, or its name
    started: float = 0.0

    def fail(self, error: PublishError) -> None:
        if isinstance(error, IntegrityError) and not error.hint:
            error.hint = "the image is damaged or malformed; rebuild it and push it again"
        self.result.status = "refused" if isinstance(error, ComplianceError) else "failed"
        self.result.error = error
        self.stop()

    def start(self) -> None:
        """Begin, or go on, to work on this image; others of the call are worked on in between."""
        self.started = time.monotonic()

    def stop(self) -> None:
        self.result.seconds += time.monotonic() - self.started


class Publisher:
    """Publishes images from one source into one repository."""

    def __init__(
        self,
        repository: Repository,
        source: ImageSource,
        records: RecordStore,
        settings: PublishSettings,
        reporter: Reporter | None = None,
        packer: Packer | None = None,
        trust: Trust | None = None,
        compliance: Compliance | None = None,
    ) -> None:
        """Put the parts together; with a `packer` every image is published as a file too.

        `trust`: what is asked of an image before anything of it is fetched; nothing by default.
        `compliance`: which images may get into the repository; all by default.
        """
        self._repository = repository
        self._source = source
        self._records = records
        self._settings = settings
        self._recipe = settings.recipe()
        self._reporter = reporter or Silent()
        self._packer = packer
        self._trust = trust or Trust()
        self._compliance = compliance or Compliance()

    def publish(
        self,
        references: Sequence[str],
        *,
        names: Mapping[str, str] | None = None,
        now: datetime,
        platform: Platform | Sequence[Platform] | None = None,
        after_replicas: int = 0,
        force: bool = False,
        dry_run: bool = False,
    ) -> PublishResult:
        """Publish images in one transaction.

        Args:
            references: as people type them; duplicates are published once.
            names: under which some of them are published, if not under their own.
            now: time of the new revision.
            platform: of all images; linux/amd64 by default.  Several are published side by side.
            after_replicas: names lead to new images only when so many replicas have these; 0 at
                once.  Nothing is waited for here.
            force: prepare and publish again what is unchanged.  Layers are still not read again.
            dry_run: resolve images and say what would happen; nothing is fetched or written.

        Raises:
            LockedError: another writer is active.
            RepositoryError: the repository cannot be written; nothing of the call is published.
        """
        chosen = platform or DEFAULT_PLATFORM
        platforms = [chosen] if isinstance(chosen, Platform) else dict.fromkeys(chosen)
        called = names or {}
        wishes = [
            self._wish(text, called.get(text, ""), each, after_replicas)
            for text in dict.fromkeys(references)
            for each in platforms
        ]
        _refuse_namesakes(wishes)
        asked: dict[str, Digest] = {}
        with self._repository.open() as view:
            due = [wish for wish in wishes if self._is_due(wish, view, asked, force=force)]
        if due and dry_run:
            for wish in due:
                self._foresee(wish)
        elif due:
            persist(lambda: self._publish_due(due, now, force=force))
        revision = self._repository.revision()
        return PublishResult(
            revision.number, revision.root_hash, tuple(wish.result for wish in wishes)
        )

    # before the transaction

    def _wish(self, text: str, name: str, platform: Platform, replicas: int) -> _Wish:
        result = ImageResult(text, "failed", str(platform))
        wish = _Wish(result, platform, replicas, started=time.monotonic())
        try:
            if isinstance(self._source, Locator):
                wish.reference = self._source.locate(text, name)
            else:
                wish.reference = Reference.parse(name or text)
            wish.result.reference = str(wish.reference)
        except PublishError as error:
            wish.fail(error)
        return wish

    def _is_due(self, wish: _Wish, view: View, asked: dict[str, Digest], *, force: bool) -> bool:
        """Ask the source for the digest; whether it is not what is published already.

        `asked` holds what the call was told so far: all platforms of an image are of one digest.
        """
        if wish.reference is None:
            return False
        wish.start()
        self._reporter.phase(wish.result.reference, "asking")
        names = place_name(wish.reference, wish.platform)
        current, staged = read_publication(view, names.publication), read_staged(view, names.staged)
        newest = staged.publication if staged is not None else current
        try:
            self._compliance.admit(wish.reference, wish.platform)
            self._trust.admit(wish.reference)
            wish.digest = self._ask(wish, wish.reference, asked, None if force else newest)
        except PublishError as error:
            wish.fail(error)
            return False
        if staged is not None and self._is_as_wanted(wish, view, staged.publication, force=force):
            try:
                check_record(view, self._compliance, staged.publication, is_staged=True)
            except ComplianceError as error:
                wish.fail(error)
                return False
            if staged.replicas != wish.replicas:
                wish.present = staged.publication
            return self._lacks_artefact(wish, view, staged.publication, "staged")
        if (
            current is not None
            and leads_to(view, names, current.sandbox.lstrip("/"))
            and self._is_as_wanted(wish, view, current, force=force)
        ):
            try:
                check_record(view, self._compliance, current)
            except ComplianceError as error:
                wish.fail(error)
                return False
            if staged is not None:
                wish.present = current
            return self._lacks_artefact(wish, view, current, "unchanged")
        wish.stop()
        return True

    def _is_as_wanted(self, wish: _Wish, view: View, found: Publication, *, force: bool) -> bool:
        """Whether what was published is what would be published now."""
        return (
            not force
            and wish.reference is not None
            and found.digest == str(wish.digest)
            and found.recipe == self._recipe
            and found.short_name == self._settings.short_name(wish.reference)
            and not self._is_to_be_asked(wish.reference, found)
            and view.is_directory(found.sandbox.lstrip("/"))
        )

    def _is_to_be_asked(self, reference: Reference, found: Publication) -> bool:
        """Whether an image was published under a rule that asked something else than today's."""
        wanted = self._trust.identity(reference)
        return bool(wanted) and wanted != found.trust

    def _ask(
        self,
        wish: _Wish,
        reference: Reference,
        asked: dict[str, Digest],
        found: Publication | None,
    ) -> Digest:
        """Return the digest of an image; that of its record, if its file is as it was then."""
        if reference.origin is not None and isinstance(self._source, Locator):
            wish.state = self._source.state(reference, wish.platform)
            is_same = found is not None and found.source == str(reference.origin)
            if found is not None and is_same and found.source_state == wish.state != "":
                return Digest.parse(found.digest)
        if wish.result.reference not in asked:
            asked[wish.result.reference] = self._source.head(reference)
        return asked[wish.result.reference]

    def _lacks_artefact(self, wish: _Wish, view: View, found: Publication, status: Status) -> bool:
        """Whether anything is missing of an image whose sandbox is there."""
        wish.result.status = status
        wish.result.waits_for = wish.replicas if status == "staged" else 0
        wish.result.publication = found
        wish.result.layers_total = wish.result.layers_reused = len(found.layers)
        try:
            wish.result.fallback = self._known_artefact(view, found)
        except ArtefactError as error:
            wish.fail(error)
            return False
        if self._packer is not None and wish.result.fallback is None:
            wish.present = found
        wish.stop()
        return wish.present is not None

    def _known_artefact(self, view: View, found: Publication) -> Artefact | None:
        """Return the artefact of a sandbox, if it is of the format that is wanted now."""
        record = read_sandbox(view, image_record_of(Digest.parse(found.image_id)))
        if record is None or record.tree_digest != found.tree_digest or record.fallback is None:
            return None
        is_wanted = self._packer is None or self._packer.has(record.fallback)
        return record.fallback if is_wanted else None

    def _foresee(self, wish: _Wish) -> None:
        if wish.reference is None or wish.present is not None:
            return
        wish.start()
        try:
            image = self._source.resolve(wish.reference, wish.platform, wish.digest)
            self._compliance.check(image)
            self._trust.check(image)
        except PublishError as error:
            wish.fail(error)
            return
        known = [layer for layer in image.layers if self._known(layer) is not None]
        wish.result.status = "published"
        wish.result.layers_total = len(image.layers)
        wish.result.layers_reused = len(known)
        wish.result.fetched_bytes = sum(layer.size for layer in image.layers if layer not in known)
        wish.stop()

    # inside the transaction

    def _publish_due(self, due: list[_Wish], now: datetime, *, force: bool) -> None:
        def step(name: str) -> None:
            self._reporter.phase("", name)

        with (
            self._repository.transaction(int(now.timestamp()), step) as transaction,
            transaction.ingestor(READERS) as ingestor,
        ):
            if self._packer is not None:
                self._packer.store.sweep()
            for wish in due:
                if wish.result.error is not None:  # it failed before others were quicker
                    continue
                try:
                    if wish.present is not None:
                        self._complete(wish, wish.present, transaction)
                        self._settle(wish, wish.present, transaction, now)
                    else:
                        self._publish_one(wish, transaction, ingestor, now, force=force)
                except ArtefactError as error:
                    wish.fail(error)
                except RepositoryError:
                    raise
                except PublishError as error:
                    wish.fail(error)
            done = [
                wish.result
                for wish in due
                if wish.result.error is None and wish.result.status != "staged"
            ]
            point_names(
                transaction, [image.publication for image in done if image.publication is not None]
            )

    def _settle(
        self, wish: _Wish, found: Publication, transaction: Transaction, now: datetime
    ) -> None:
        """Let the name of an image whose sandbox is there wait, or wait no longer."""
        settled = settle(transaction, found, wish.replicas, now, self._compliance)
        if isinstance(settled, Publication) and settled != found:
            wish.result.publication, wish.result.status = settled, "published"
            wish.result.waits_for = 0
        elif isinstance(settled, Staged):
            point_immutable_names(transaction, [settled.publication])

    def _complete(self, wish: _Wish, found: Publication, transaction: Transaction) -> None:
        """Write the artefact of an image that is published; nothing is asked of the registry."""
        wish.start()
        known = self._known_artefact(transaction, found)
        if known is None and self._packer is not None:  # no other image of the call has it
            with self._repository.open() as view:
                if not isinstance(view, Walkable):
                    raise TypeError("artefacts are wanted, but of this repository none are made")
                self._reporter.phase(wish.result.reference, "fallback")
                path = found.sandbox.lstrip("/")
                root = view.node(path)
                if root is None:
                    raise RepositoryError(f"{found.sandbox} of {found.reference} is missing")
                source = Source(
                    lambda: view.walk(path),
                    lambda below, node: view.iter_content(f"{path}/{below}", node),
                    root,
                    Platform.parse(found.platform),
                    found.tree_digest,
                )
                known = self._packer.pack(source, wish.result.reference)
            record = SandboxRecord(found.recipe, found.tree_digest, known)
            put_sandbox_record(transaction, image_record_of(Digest.parse(found.image_id)), record)
        wish.result.fallback = known
        wish.stop()

    def _publish_one(
        self,
        wish: _Wish,
        transaction: Transaction,
        ingestor: Ingestor,
        now: datetime,
        *,
        force: bool,
    ) -> None:
        if wish.reference is None:
            return
        wish.start()
        name = wish.result.reference
        self._reporter.phase(name, "resolving")
        image = self._source.resolve(wish.reference, wish.platform, wish.digest)
        self._compliance.check(image)
        approval = self._trust.check(image)
        records = self._read_layers(wish, image, ingestor)
        self._reporter.phase(name, "stacking")
        changes = sum(len(record.entries) for record in records)
        if not changes and image.reference.origin is not None:
            raise IntegrityError(
                f"{name} from {image.reference.origin} holds no files at all",
                hint="was it cut short?  A tar that ends before its first file is a valid one",
            )
        _check_changes(changes, self._settings.limits, name)
        tree, findings = merge(records, keep_dirlinks=self._settings.policy.keep_dirlinks)
        prepared = prepare(
            tree,
            image.config,
            self._settings.policy,
            transaction.store,
            keep_runtime_files=image.has_runtime_files,
        )
        size = summarise_tree(tree)
        self._check_size(size, name)
        _check_paths(tree, self._settings.limits, name)
        _check_width(tree, size, name)
        placement = place(
            wish.reference, image.platform, image.config_digest, image.manifest_digest
        )
        publication = self._record(
            image, placement, records, size, prepared, findings, approval, transaction, now
        )
        if image.reference.origin is not None:
            publication = replace(
                publication, source=str(image.reference.origin), source_state=wish.state
            )
        publication = replace(publication, short_name=self._settings.short_name(wish.reference))
        check_short_name(transaction, publication, force=force)
        wish.result.fallback = self._artefact(wish, publication, tree, transaction, force=force)
        self._reporter.phase(name, "committing")
        sandbox = SandboxRecord(publication.recipe, publication.tree_digest, wish.result.fallback)
        wish.result.publication = publication
        self._apply(transaction, image, placement, publication, sandbox, tree, force=force)
        if wish.replicas and is_to_wait(transaction, image.reference, publication):
            staged = Staged(publication, wish.replicas)
            stage_name(transaction, image.reference, staged, image.manifest)
            wish.result.status = "staged"
            wish.result.waits_for = wish.replicas
        else:
            wish.result.publication = publish_name(
                transaction, image.reference, publication, image.manifest
            )
            wish.result.status = "published"
        wish.stop()

    def _artefact(
        self,
        wish: _Wish,
        publication: Publication,
        tree: Tree,
        transaction: Transaction,
        *,
        force: bool,
    ) -> Artefact | None:
        """Return the artefact of an image, written now unless it is known."""
        if self._packer is None or not force:
            known = self._known_artefact(transaction, publication)
            if known is not None or self._packer is None:
                return known
        self._reporter.phase(wish.result.reference, "fallback")
        source = Source(
            lambda: walk_tree(tree),
            transaction.iter_content,
            tree.root.node,
            Platform.parse(publication.platform),
            publication.tree_digest,
        )
        return self._packer.pack(source, wish.result.reference)

    def _check_size(self, size: TreeSummary, name: str) -> None:
        settings = self._settings
        if size.entries > settings.limits.entries:
            raise IntegrityError(
                f"{name} has {size.entries} entries; the limit is {settings.limits.entries}",
                hint="raise `limits.entries` if this image is trusted to be that large",
            )
        if size.bytes > settings.image_bytes:
            raise IntegrityError(
                f"{name} has {size.bytes} bytes; the limit is {settings.image_bytes}",
                hint="raise `limits.image_bytes` if this image is trusted to be that large",
            )

    def _record(
        self,
        image: ResolvedImage,
        placement: Placement,
        records: Iterable[LayerRecord],
        size: TreeSummary,
        prepared: Prepared,
        findings: list[Finding],
        approval: Approval,
        transaction: Transaction,
        now: datetime,
    ) -> Publication:
        return Publication(
            reference=str(image.reference),
            digest=str(image.digest),
            manifest_digest=str(image.manifest_digest),
            image_id=str(image.config_digest),
            platform=str(image.platform),
            path="/" + placement.name,
            sandbox="/" + placement.sandbox,
            published_at=now.isoformat(timespec="seconds"),
            revision=transaction.revision,
            entries=size.entries,
            content_bytes=size.bytes,
            stored_bytes=sum(record.stored_bytes for record in records),
            tree_digest=str(size.digest),
            recipe=self._recipe,
            layers=tuple(str(layer.digest) for layer in image.layers),
            roots_added=prepared.roots_added,
            findings=tuple(summarise([*findings, *prepared.findings])),
            publisher=f"cvmfs-publish {__version__}",
            signature=approval.policy,
            signed_by=approval.signed_by,
            trust=approval.rule,
        )

    def _apply(
        self,
        transaction: Transaction,
        image: ResolvedImage,
        placement: Placement,
        publication: Publication,
        sandbox: SandboxRecord,
        tree: Tree,
        *,
        force: bool,
    ) -> None:
        """Write a sandbox and its record; it is left alone if it is the same."""
        is_new = put_sandbox(transaction, placement, sandbox, tree, force=force)
        digest = Digest.parse(publication.tree_digest)
        difference = transaction.tree_difference(placement.sandbox, tree, digest)
        if difference and not is_new:  # changed by somebody else since
            put_sandbox(transaction, placement, sandbox, tree, force=True)
            difference = transaction.tree_difference(placement.sandbox, tree, digest)
        if difference:
            raise RepositoryError(
                f"{image.reference}: what was stored of it is not what its layers say: "
                f"{difference}",
                hint="nothing was published; look at the storage and its disk, then try again",
            )

    # layers

    def _known(self, layer: LayerDescriptor) -> LayerRecord | None:
        """Return the record of a layer that was read before and whose objects are all there."""
        record = self._records.load(layer.digest)
        if record is None or (layer.diff_id is not None and record.diff_id != layer.diff_id):
            return None
        names = (content_hash.path(kind) for content_hash, kind in record.objects())
        return record if self._repository.has_objects(names, record.stored_bytes) else None

    def _read_layers(
        self, wish: _Wish, image: ResolvedImage, ingestor: Ingestor
    ) -> list[LayerRecord]:
        """Return the records of all layers, in order; those unknown are fetched in parallel."""
        self._reporter.phase(wish.result.reference, "fetching")
        weight = _Weight(self._settings.limits, wish.result.reference)
        found: dict[Digest, LayerRecord] = {}
        missing: dict[Digest, LayerDescriptor] = {}
        for layer in image.layers:
            if layer.digest in found or layer.digest in missing:
                continue
            record = self._known(layer)
            if record is not None:
                weight.add(record)
                ingestor.keep(record.objects())
                found[layer.digest] = record
            else:
                missing[layer.digest] = layer
        wish.result.layers_total = len(image.layers)
        wish.result.layers_reused = len(image.layers) - len(missing)
        if missing:
            found |= self._fetch(wish.result.reference, image, missing.values(), ingestor, weight)
            ingestor.write_back()
            wish.result.fetched_bytes = sum(layer.size for layer in missing.values())
        return [found[layer.digest] for layer in image.layers]

    def _fetch(
        self,
        name: str,
        image: ResolvedImage,
        layers: Iterable[LayerDescriptor],
        ingestor: Ingestor,
        weight: _Weight,
    ) -> dict[Digest, LayerRecord]:
        def finished(record: LayerRecord) -> None:
            self._keep(record)
            weight.add(record)

        def report(layer: LayerDescriptor, done: int) -> None:
            self._reporter.layer(name, str(layer.digest), done, layer.size)

        return fetch_layers(
            self._source,
            image,
            layers,
            ingestor,
            self._settings.limits,
            report=report,
            finished=finished,
        )

    def _keep(self, record: LayerRecord) -> None:
        try:
            self._records.save(record)
        except OSError as error:
            raise RepositoryError(
                f"the record of layer {record.digest} cannot be kept: {error.strerror}"
                f" ({error.filename})",
                hint="free space in the `state` directory, or make it writable",
            ) from error


def _refuse_namesakes(wishes: Iterable[_Wish]) -> None:
    """Fail those that would be published under the name of another of the call."""
    taken: dict[str, Reference] = {}
    for wish in wishes:
        if wish.reference is None:
            continue
        first = taken.setdefault(wish.reference.name, wish.reference)
        if first.origin != wish.reference.origin:
            wish.start()
            origins = [str(each.origin or "its registry") for each in (first, wish.reference)]
            wish.fail(
                InputError(
                    f"{wish.reference} is to come from {origins[1]} and, in the same call, from "
                    f"{origins[0]}",
                    hint="publish them under different names, with --as",
                )
            )
            wish.reference = None


class _Weight:
    """How much all layers of an image have, told before the memory for it is taken."""

    def __init__(self, limits: LayerLimits, name: str) -> None:
        self._limits = limits
        self._name = name
        self._lock = threading.Lock()  # layers are read by several threads
        self._changes = 0
        self._metadata = 0

    def add(self, record: LayerRecord) -> None:
        """Raise `IntegrityError` if this layer is too much."""
        metadata = sum(map(_metadata, record.entries))
        with self._lock:
            self._changes += len(record.entries)
            self._metadata += metadata
            _check_changes(self._changes, self._limits, self._name)
            if self._metadata > METADATA:
                raise IntegrityError(
                    f"{self._name} has {self._metadata} bytes of names, link targets and attributes"
                    f" in all of its layers; the limit is {METADATA}",
                    hint="no tool writes such an image: it is made to exhaust memory",
                )


def _metadata(entry: LayerEntry) -> int:
    node, size = entry.node, len(entry.path) + len(entry.target)
    if node is not None:
        size += len(node.target)
        if node.xattrs:
            size += sum(len(name) + len(value) for name, value in node.xattrs)
    return size


def _check_changes(changes: int, limits: LayerLimits, name: str) -> None:
    """Refuse an image that has one large layer thousands of times, to take hours."""
    most = CHANGES * limits.entries
    if changes > most:
        raise IntegrityError(
            f"{name} has {changes} entries in all of its layers; at most {CHANGES} times the limit"
            f" of {limits.entries} entries are stacked",
            hint="raise `limits.entries` if this image is trusted",
        )


def _length(name: str) -> int:
    return len(name) if name.isascii() else len(encode_name(name))


def _check_paths(tree: Tree, limits: LayerLimits, name: str) -> None:
    """Refuse paths that links of lower layers have made longer than any layer's own."""
    stack = [("", tree.root)]
    while stack:
        prefix, directory = stack.pop()
        if directory.children:
            check_path(prefix + max(directory.children, key=_length), limits, name)
        stack.extend(
            (f"{prefix}{child}/", entry)
            for child, entry in directory.children.items()
            if isinstance(entry, Directory)
        )


def _check_width(tree: Tree, size: TreeSummary, name: str) -> None:
    """Refuse a directory that no catalog may hold; it cannot be divided (E-61)."""
    most = MAX_CATALOG_ENTRIES - OWN_ENTRIES
    if size.entries <= most:
        return
    directories = ((path, entry) for path, entry in tree.walk() if isinstance(entry, Directory))
    for path, directory in (("", tree.root), *directories):
        if len(directory.children) > most:
            raise IntegrityError(
                f"{name}: /{path} has {len(directory.children)} entries directly in it; at most "
                f"{most} of one directory can be published",
                hint="spread them over several directories when the image is built",
            )
