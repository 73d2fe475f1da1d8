"""Check a whole repository: signatures, catalogs, counters, history, reflog, objects.

Source: facts/cvmfs-format.md section 7, including what stock `check` does not see, and B.2.  The
check goes on after a problem wherever it can; it never raises because of what it reads.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from cvmfs_publish.content.hashes import ContentHash, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import compress_exactly, decompress
from cvmfs_publish.errors import IntegrityError, PublishError
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native import reflog as reflogs
from cvmfs_publish.repository.native import whitelist as whitelists
from cvmfs_publish.repository.native.catalog import CatalogRef, Counters
from cvmfs_publish.repository.native.check_catalog import (
    Entry,
    Examined,
    compare_subtree,
    compare_transition,
    examine_catalog,
    sum_counters,
)
from cvmfs_publish.repository.native.check_databases import (
    TaggedRoot,
    examine_history,
    examine_reflog,
)
from cvmfs_publish.repository.native.check_objects import (
    Advance,
    ObjectChecker,
    Progress,
    object_exists,
)
from cvmfs_publish.repository.native.check_schema import parse_number, read_properties
from cvmfs_publish.repository.native.http_origin import open_origin
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.origin import (
    MissingError,
    Origin,
    read,
)
from cvmfs_publish.repository.native.problems import Problem, Report, Severity
from cvmfs_publish.repository.native.reader import (
    MAX_CATALOG_BYTES,
    MAX_METADATA_BYTES,
    load_public_keys,
    read_object,
)
from cvmfs_publish.repository.native.signing import (
    SignatureError,
    fingerprint,
    parse_certificate,
    raw_verify,
    split_signed,
    verify_text,
)

__all__ = ["Advance", "Problem", "Progress", "Report", "Severity", "check_repository"]

DEFAULT_BUDGET = 2 * 1024**3  # bytes of contents read without `scrub`: a few seconds
SERVER_THREADS = 16  # they wait for answers most of the time
EXPIRY_WARNING = timedelta(days=7)
MAX_DEPTH = 100  # catalogs nested in each other
_MAX_REFLOG_BYTES = 1024**3
_CLOCK_TOLERANCE = 60  # seconds that clocks of two hosts may differ
_MASTER_REPLICA = ".cvmfs_master_replica"
_LAST_SNAPSHOT = ".cvmfs_last_snapshot"  # only a replica (Stratum 1) has it


def check_repository(
    location: str | Path | Origin,
    public_keys: Iterable[Path | rsa.RSAPublicKey],
    *,
    now: datetime,
    name: str | None = None,
    scrub: bool = False,
    threads: int | None = None,
    budget: int | None = DEFAULT_BUDGET,
    progress: Progress | None = None,
    reflog_checksum: ContentHash | None = None,
) -> Report:
    """Check the current revision of a repository and everything its metadata refer to.

    Args:
        location: directory or http(s) URL, or what was opened there, such as a store, which stays
            open.
        public_keys: trusted master keys, or files with them; none: a warning says that the
            whitelist's signature was not verified.
        now: aware time by which expiry and time stamps are judged.
        name: the repository's name; by default what the manifest says.
        scrub: also hash every object below `data` and report what is no object (directory or
            store), or read the content of every file (URL).  Tagged revisions are checked too.
        threads: how many objects are read at the same time; by default one per core, and
            `SERVER_THREADS` where they come from a server.
        budget: about how many bytes of contents of the current revision are read to compare their
            length and hash with the catalogs; beyond it objects are only looked for.  None: no
            limit.  Ignored with `scrub`.
        progress: called now and then, by this thread.  With `scrub` the objects of a directory
            or store are listed first, so that their number is known.
        reflog_checksum: what stock tools on this host believe the hash of the reflog to be.  It
            counts more than the manifest's, which a gc of theirs leaves behind.

    Raises:
        InputError, RepositoryError: `location` or a public key is unusable, the store cannot be
            listed, or a process that checks objects was killed.
    """
    keys = load_public_keys(public_keys)
    report = Report(name=name or "")
    is_ours = isinstance(location, str | Path)
    origin: Origin = open_origin(location) if isinstance(location, str | Path) else location
    if threads is None:
        cores = len(os.sched_getaffinity(0))
        threads = cores if isinstance(origin, LocalStore) else max(cores, SERVER_THREADS)
    try:
        with ObjectChecker(
            origin,
            report,
            threads=threads,
            budget=None if scrub else budget,
            progress=progress,
        ) as objects:
            if scrub:
                objects.measure()
            check = _Check(origin, objects, report, now, progress)
            check.reflog_checksum = reflog_checksum
            check.run(keys, name, every_tag=scrub)
            objects.finish()
            if scrub:
                objects.scrub()
                objects.finish()
    finally:
        if is_ours:
            origin.close()
    return report


@dataclass(frozen=True, slots=True)
class _Walked:
    """A catalog that was checked with everything nested in it."""

    examined: Examined
    total: Counters | None  # None: a nested catalog could not be read
    size: int  # bytes, uncompressed


class _Check:
    """The state of one check.  Every part reports its problems and lets the others go on."""

    def __init__(
        self,
        origin: Origin,
        objects: ObjectChecker,
        report: Report,
        now: datetime,
        progress: Progress | None,
    ) -> None:
        self.origin = origin
        self.objects = objects
        self.report = report
        self.now = now
        self.progress = progress
        self.walked: dict[tuple[str, ContentHash], _Walked | None] = {}
        self.collectable = False
        self.reflog_checksum: ContentHash | None = None

    def run(self, keys: list[rsa.RSAPublicKey], name: str | None, *, every_tag: bool) -> None:
        data = self.fetch(manifests.FILE_NAME, manifests.MAX_BYTES)
        if data is None:
            return
        try:
            manifest, hash_text, signature = manifests.parse_manifest(data)
        except PublishError as error:
            self.report.error(manifests.FILE_NAME, str(error))
            return
        self.report.name = manifest.name
        self.report.revision = manifest.revision
        self.report.root_hash = str(manifest.root_hash)
        self.collectable = manifest.garbage_collectable
        self.check_manifest(manifest, data, name)
        certificate = self.check_certificate(manifest, data, hash_text, signature)
        self.check_whitelist(manifest, certificate, keys)
        self.check_metainfo(manifest)
        self.check_reflog(manifest)
        self.check_root(manifest)
        self.check_history(manifest, every_tag=every_tag)

    # the files in the root directory

    def fetch(self, name: str, limit: int, *, optional: bool = False) -> bytes | None:
        """Return a file of the root directory; None if it cannot be read."""
        try:
            return read(self.origin, name, limit)
        except MissingError as error:
            if not optional:
                self.report.error(name, str(error))
        except PublishError as error:
            self.report.error(name, str(error))
        return None

    def fetch_object(
        self, place: str, value: ContentHash, kind: Suffix, limit: int = MAX_METADATA_BYTES
    ) -> bytes | None:
        """Return the decompressed, verified content of an object; None if it cannot be read."""
        try:
            return read_object(self.origin, value, kind, limit)
        except MissingError:
            self.report.error(place, f"object {value.path(kind)} is missing")
        except PublishError as error:
            self.report.error(place, str(error))
        return None

    def has_file(self, name: str) -> bool:
        try:
            return self.origin.size(name) is not None
        except PublishError as error:
            self.report.error(name, str(error))
            return False

    def exists(self, value: ContentHash, kind: Suffix) -> bool:
        try:
            return object_exists(self.origin, value, kind)
        except PublishError as error:
            self.report.error(value.path(kind), str(error))
            return True

    def check_manifest(self, manifest: Manifest, data: bytes, name: str | None) -> None:
        place, report = manifests.FILE_NAME, self.report
        payload = split_signed(data, "manifest").payload
        fields = manifests.split_fields(payload)
        letters = [letter for letter, _ in fields]
        for letter in sorted({letter for letter in letters if letters.count(letter) > 1}):
            report.error(place, f"field {letter} is repeated")
        for letter, value in fields:
            if value != value.strip():
                report.error(place, f"field {letter} has blanks around its value: {value!r}")
            if letter in "GA" and value not in ("yes", "no"):
                report.error(place, f"field {letter} is {value!r}, must be yes or no")
        if not manifest.name:
            report.error(place, "has no field N: clients refuse it")
        elif name is not None and manifest.name != name:
            report.error(place, f"is of repository {manifest.name!r}, not of {name!r}")
        if manifest.root_path_hash != manifests.ROOT_PATH_HASH:
            report.error(place, f"field R is {manifest.root_path_hash!r}: clients refuse it")
        if "T" not in letters:
            report.warning(place, "has no field T (time of publication)")
        elif manifest.timestamp > self.now.timestamp() + _CLOCK_TOLERANCE:
            report.error(
                place,
                f"field T is {manifest.timestamp}, in the future: clients that saw it refuse "
                "later revisions until then",
            )
        if manifest.root_size == 0:
            report.warning(place, "has no field B (size of the root catalog)")
        if not self.has_file(_MASTER_REPLICA):
            report.warning(_MASTER_REPLICA, "is missing: the repository cannot be replicated")
        if manifest.alternative_paths:
            self.check_alternatives(manifest)

    def check_alternatives(self, manifest: Manifest) -> None:
        for value, kind in (
            (manifest.root_hash, Suffix.CATALOG),
            (manifest.certificate, Suffix.CERTIFICATE),
        ):
            link = f".cvmfsalt-{value}{kind.value}"
            if value is not None and not self.has_file(link):
                self.report.error(link, "is missing, yet the manifest promises it (A)")

    def check_certificate(
        self, manifest: Manifest, data: bytes, hash_text: bytes, signature: bytes
    ) -> x509.Certificate | None:
        place = manifests.FILE_NAME
        try:
            split_signed(data, "manifest").check_hash("manifest")
        except IntegrityError as error:
            self.report.error(place, str(error))
        if len(hash_text) != len(str(manifest.root_hash)):
            self.report.error(
                place, "hash line is of another algorithm than the root catalog's hash"
            )
        if manifest.certificate is None:
            self.report.error(place, "names no certificate (field X): clients refuse it")
            return None
        pem = self.fetch_vanilla("certificate", manifest.certificate, Suffix.CERTIFICATE)
        if pem is None:
            return None
        try:
            certificate = parse_certificate(pem)
            verify_text(hash_text, signature, certificate)
        except SignatureError as error:
            self.report.error(place, str(error))
        except IntegrityError as error:
            self.report.error("certificate", str(error))
            return None
        ended = certificate.not_valid_after_utc
        if self.now >= ended:
            text = f"its dates ended at {ended:%Y-%m-%d %H:%M} UTC, which no client looks at"
            self.report.warning("certificate", text)
        return certificate

    def fetch_vanilla(self, place: str, value: ContentHash, kind: Suffix) -> bytes | None:
        """Return the content of an object that a replica will compress anew (section 1.5)."""
        try:
            stored = read_object(self.origin, value, kind, MAX_METADATA_BYTES, compressed=False)
            content = decompress(stored, MAX_METADATA_BYTES)
        except MissingError:
            self.report.error(place, f"object {value.path(kind)} is missing")
        except PublishError as error:
            self.report.error(place, str(error))
        else:
            if "ng" in zlib.ZLIB_RUNTIME_VERSION:
                self.report.warning(
                    place, f"not compared with vanilla zlib: this is {zlib.ZLIB_RUNTIME_VERSION}"
                )
            elif stored != compress_exactly(content):
                self.report.error(
                    place,
                    f"object {value.path(kind)} is not what zlib level 6 makes of its content: "
                    "replicas would store other bytes under its name",
                )
            return content
        return None

    def check_whitelist(
        self,
        manifest: Manifest,
        certificate: x509.Certificate | None,
        keys: list[rsa.RSAPublicKey],
    ) -> None:
        place, report = whitelists.FILE_NAME, self.report
        data = self.fetch(place, whitelists.MAX_BYTES)
        if data is None:
            return
        try:
            whitelist, hash_text, signature = whitelists.parse_whitelist(data)
        except IntegrityError as error:
            report.error(place, str(error))
            return
        try:
            split_signed(data, "whitelist").check_hash("whitelist")
            if keys:
                raw_verify(hash_text, signature, keys)
            else:
                report.warning(place, "signature not verified: no public key given")
        except IntegrityError as error:
            report.error(place, str(error))
        if whitelist.name != manifest.name:
            report.error(place, f"is for {whitelist.name!r}, not for {manifest.name!r}")
        expiry = f"{whitelist.expires_at:%Y-%m-%d %H:%M} UTC"
        if whitelist.is_expired(self.now):
            report.error(place, f"expired at {expiry}; clients look at the hour only")
        elif whitelist.is_expired(self.now + EXPIRY_WARNING):
            report.warning(place, f"expires at {expiry}: resign it")
        if "Wcachain" in whitelist.options:
            self_signed = certificate is not None and certificate.issuer == certificate.subject
            report.add(
                Problem(
                    place,
                    Severity.ERROR if self_signed else Severity.WARNING,
                    "demands a chain of certificates (Wcachain), which "
                    + ("a self-signed one has not" if self_signed else "was not verified"),
                )
            )
        if "Vpkcs7" in whitelist.options:
            report.warning(place, "has a PKCS#7 signature (Vpkcs7), which was not verified")
        for line in whitelist.malformed:
            report.error(place, f"malformed line, skipped by clients: {line!r}")
        if certificate is not None and not any(
            fingerprint(certificate, trusted.algorithm) == trusted
            for trusted in whitelist.fingerprints
        ):
            report.error(place, "does not list the certificate that signed the manifest")

    def check_metainfo(self, manifest: Manifest) -> None:
        if manifest.metainfo is None:
            return
        content = self.fetch_vanilla("metainfo", manifest.metainfo, Suffix.METAINFO)
        if content is None:
            return
        try:
            is_object = isinstance(json.loads(content), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            self.report.error("metainfo", "is not a JSON object")

    def check_reflog(self, manifest: Manifest) -> None:
        place = reflogs.FILE_NAME
        data = self.fetch(place, _MAX_REFLOG_BYTES, optional=True)
        is_replica = self.has_file(_LAST_SNAPSHOT)  # has a reflog of its own; Y is the source's
        if data is None:
            if manifest.reflog is not None and not is_replica:
                self.report.error(place, "is missing, yet the manifest has its hash (Y)")
            else:
                self.report.warning(place, "is missing: garbage collection is not possible")
            return
        if manifest.reflog is None:
            self.report.error(manifests.FILE_NAME, f"has no field Y, yet there is {place}")
        elif not is_replica:
            self.check_reflog_hash(data, manifest.reflog)
        now = int(self.now.timestamp())
        examine_reflog(data, manifest, self.exists, self.report, now=now)

    def check_reflog_hash(self, data: bytes, stated: ContentHash) -> None:
        place, known = reflogs.FILE_NAME, self.reflog_checksum
        expected = stated if known is None else known
        found = ContentHash.of(data, expected.algorithm)
        if found != expected:
            who = "the manifest" if known is None else "reflog.chksum in the spool"
            self.report.error(place, f"has hash {found}, but {who} says {expected}")
        elif expected != stated:
            self.report.warning(
                place,
                f"has hash {found}, but the manifest says {stated}, as after a gc by stock tools; "
                "the next revision puts that right",
            )

    # catalogs

    def check_root(self, manifest: Manifest) -> None:
        ref = CatalogRef(manifest.root_hash, manifest.root_size)
        walked = self.walk("", ref, None, depth=0)
        if walked is None:
            return
        place, properties = manifests.FILE_NAME, walked.examined.properties
        if properties.get("revision") != str(manifest.revision):
            self.report.error(
                place,
                f"field S is {manifest.revision}, but the root catalog has revision "
                f"{properties.get('revision')}",
            )
        modified = parse_number(properties.get("last_modified"))
        if modified is not None and 0 < manifest.timestamp < modified:
            self.report.error(
                place,
                f"field T is {manifest.timestamp}, before last_modified {modified} of the root",
            )
        ttl = properties.get("TTL")
        if ttl is not None and ttl != str(manifest.ttl):
            self.report.warning(place, f"field D is {manifest.ttl}, but TTL of the root is {ttl}")

    def walk(
        self, prefix: str, ref: CatalogRef, mount: Entry | None, *, depth: int
    ) -> _Walked | None:
        """Check a catalog and those nested in it; None if it cannot be read."""
        place = "/" + prefix
        key = prefix, ref.hash
        if key not in self.walked:
            if depth > MAX_DEPTH:
                self.report.error(place, f"more than {MAX_DEPTH} catalogs nested in each other")
                return None
            self.walked[key] = self.walk_new(prefix, ref, depth)
        walked = self.walked[key]
        if walked is None:
            return None
        if ref.size and ref.size != walked.size:
            self.report.error(
                place, f"catalog {ref.hash} has {walked.size} bytes, not {ref.size} as promised"
            )
        if mount is not None and walked.examined.root is not None:
            compare_transition(prefix, mount, walked.examined.root, self.report)
        return walked

    def walk_new(self, prefix: str, ref: CatalogRef, depth: int) -> _Walked | None:
        data = self.fetch_object("/" + prefix, ref.hash, Suffix.CATALOG, MAX_CATALOG_BYTES)
        if data is None:
            return None
        self.objects.note(ref.hash, Suffix.CATALOG)
        examined = examine_catalog(data, prefix, self.report)
        if examined is None:
            return None
        size = len(data)
        del data
        self.report.counts["catalogs"] += 1
        self.report.counts["entries"] += examined.entries
        if self.progress is not None:
            self.progress(Advance("entries", self.report.counts["entries"]))
        self.check_predecessor(prefix, examined)
        self.objects.add(examined.claims.items())
        examined.claims = {}
        parts: list[Counters] = []
        complete = True
        for path, (nested, mount) in examined.nested.items():
            below = self.walk(path, nested, mount, depth=depth + 1)
            if below is None or below.total is None:
                complete = False
            else:
                parts.append(below.total)
        examined.nested = {}
        if not complete:
            return _Walked(examined, None, size)
        subtree = sum_counters(parts)
        compare_subtree(examined, subtree, prefix, self.report)
        return _Walked(examined, sum_counters((examined.own, subtree)), size)

    def check_predecessor(self, prefix: str, examined: Examined) -> None:
        text = examined.properties.get("previous_revision")
        place = "/" + prefix
        try:
            previous = None if text is None else ContentHash.parse(text)
        except IntegrityError:
            return  # reported already
        if previous is None or not any(previous.digest):
            if not prefix and (parse_number(examined.properties.get("revision")) or 0) > 1:
                self.report.warning(place, "root catalog names no predecessor")
        elif not self.exists(previous, Suffix.CATALOG):
            # Replicas that fetch old revisions, too, stop here (section 8.2); but garbage
            # collection leaves such references in catalogs it keeps.
            text = f"preceding catalog {previous} does not exist: a replica may fail to fetch it"
            if not self.collectable:
                self.report.error(place, text)
            elif prefix:
                self.report.warning(place, text)

    # tags

    def check_history(self, manifest: Manifest, *, every_tag: bool) -> None:
        if manifest.history is None:
            self.report.warning("history", "there is none: no tags, no revision to go back to")
            return
        data = self.fetch_object("history", manifest.history, Suffix.HISTORY)
        if data is None:
            return
        for tag in examine_history(data, manifest, self.exists, self.report):
            self.check_tag(tag, deep=every_tag)

    def check_tag(self, tag: TaggedRoot, *, deep: bool) -> None:
        place = f"tag {tag.tag}"
        walked = self.walked.get(("", tag.hash))
        if walked is None and deep:
            if not self.exists(tag.hash, Suffix.CATALOG):
                self.report.error(place, f"root catalog {tag.hash} does not exist")
                return
            walked = self.walk("", CatalogRef(tag.hash, 0), None, depth=0)
        if walked is None:
            self.check_tagged_root(tag)
        else:
            self.compare_tag(tag, walked.examined.properties, walked.size)

    def check_tagged_root(self, tag: TaggedRoot) -> None:
        """Look at the root catalog of a tag, not at what it refers to."""
        place = f"tag {tag.tag}"
        data = self.fetch_object(place, tag.hash, Suffix.CATALOG, MAX_CATALOG_BYTES)
        if data is None:
            return
        try:
            self.compare_tag(tag, read_properties(data), len(data))
        except IntegrityError as error:
            self.report.error(place, f"root catalog {tag.hash}: {error}")

    def compare_tag(self, tag: TaggedRoot, properties: dict[str, str], size: int) -> None:
        place, report = f"tag {tag.tag}", self.report
        if properties.get("root_prefix"):
            report.error(
                place, f"names the catalog of {properties['root_prefix']}, not of the root"
            )
        if properties.get("revision") != str(tag.revision):
            report.error(
                place,
                f"says revision {tag.revision}, its root catalog {properties.get('revision')}",
            )
        if size != tag.size:
            report.error(place, f"says {tag.size} bytes, its root catalog has {size}")
        if properties.get("last_modified") != str(tag.timestamp):
            report.warning(
                place,
                f"says time {tag.timestamp}, its root catalog {properties.get('last_modified')}",
            )
