"""Read one published revision as a client would: verified, without mounting it.

Source: facts/cvmfs-format.md section 2.4 (manifest_fetch.cc: DoVerify), 3.9 and 4.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType

from cryptography.hazmat.primitives.asymmetric import rsa

from cvmfs_publish.content.hashes import DIGEST_BYTES, ContentHash, HashAlgorithm, Suffix
from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.content.objects import decompress
from cvmfs_publish.errors import InputError, IntegrityError
from cvmfs_publish.layers.tree import MAX_LINKS, Node, RepoPath
from cvmfs_publish.repository.native import manifest as manifests
from cvmfs_publish.repository.native import whitelist as whitelists
from cvmfs_publish.repository.native.catalog import (
    FLAG_EXTERNAL,
    Catalog,
    CatalogRef,
    Row,
    split_path,
)
from cvmfs_publish.repository.native.listing import (
    DirectorySize,
    KnownFiles,
    SmallFile,
    find_small_files,
    list_stored,
    measure_directories,
)
from cvmfs_publish.repository.native.manifest import Manifest
from cvmfs_publish.repository.native.origin import Origin, read
from cvmfs_publish.repository.native.signing import (
    ForeignError,
    SignatureError,
    WrongKeyError,
    fingerprint,
    parse_certificate,
    read_public_key,
    split_signed,
)

GiB = 1024**3
MAX_CATALOG_BYTES = GiB  # decompressed; a catalog of 5 million entries
MAX_METADATA_BYTES = 64 * 1024 * 1024  # certificate, history, metainfo, decompressed
MAX_FILE_BYTES = GiB  # what `read_file` returns unless told otherwise
OPEN_CATALOGS = 32  # kept in memory at the same time
_VARIABLE = re.compile(r"\$\((\w+)(?::-([^)]*))?\)")
_PIECE = 1024 * 1024


_Mounted = tuple[Catalog, dict[RepoPath, CatalogRef]]  # with the catalogs nested in it


def open_snapshot(
    location: Path | Origin,
    public_keys: Iterable[Path | rsa.RSAPublicKey],
    *,
    now: datetime | None,
    name: str | None = None,
) -> Snapshot:
    """Open the current revision after verifying what clients verify, in their order (2.4).

    Args:
        location: directory of the repository, or what reads from it: `http_origin.open_origin`.
        public_keys: master keys that are trusted, or files with them.
        now: aware time at which the whitelist must be valid; None: one that has expired will do.
        name: the repository's name; by default what the manifest says.

    Raises:
        IntegrityError: a file, hash or signature is not what was promised.
        RemoteError: the server refused or was unreachable.
    """
    keys = load_public_keys(public_keys)
    origin = LocalStore(location) if isinstance(location, Path) else location
    try:
        return Snapshot(origin, _verified_manifest(origin, keys, name, now))
    except BaseException:
        origin.close()
        raise


def browse_snapshot(location: Path | Origin, *, name: str | None = None) -> Snapshot:
    """Open the current revision of a place one trusts: hashes are verified, no signature."""
    origin = LocalStore(location) if isinstance(location, Path) else location
    data = read(origin, manifests.FILE_NAME, manifests.MAX_BYTES)
    manifest, _, _ = manifests.parse_manifest(data)
    split_signed(data, "manifest").check_hash("manifest")
    _check_manifest(manifest, name)
    return Snapshot(origin, manifest)


def load_public_keys(keys: Iterable[Path | rsa.RSAPublicKey]) -> list[rsa.RSAPublicKey]:
    """Read those keys that are given as files; raise `RepositoryError` if one is none."""
    return [read_public_key(key) if isinstance(key, Path) else key for key in keys]


def _verified_manifest(
    origin: Origin, keys: list[rsa.RSAPublicKey], name: str | None, now: datetime | None
) -> Manifest:
    data = read(origin, manifests.FILE_NAME, manifests.MAX_BYTES)
    manifest, _, _ = manifests.parse_manifest(data)
    _check_manifest(manifest, name)
    if manifest.certificate is None:
        raise SignatureError(f"manifest of {manifest.name} names no certificate")
    pem = read_object(origin, manifest.certificate, Suffix.CERTIFICATE, MAX_METADATA_BYTES)
    certificate = parse_certificate(pem)
    manifests.verify_manifest(data, certificate)
    signed = read(origin, whitelists.FILE_NAME, whitelists.MAX_BYTES)
    if now is None:
        whitelist = whitelists.verify_signature(signed, keys, name=manifest.name)
    else:
        whitelist = whitelists.verify_whitelist(signed, keys, name=manifest.name, now=now)
    if "Wcachain" in whitelist.options:
        raise SignatureError(
            f"whitelist of {manifest.name} demands that the certificate's issuers are verified, "
            "which is not supported"
        )
    if not any(
        fingerprint(certificate, trusted.algorithm) == trusted for trusted in whitelist.fingerprints
    ):
        raise WrongKeyError(f"certificate of {manifest.name} is not on the whitelist")
    return manifest


def _check_manifest(manifest: Manifest, name: str | None) -> None:
    if not manifest.name or (name is not None and manifest.name != name):
        raise ForeignError(f"manifest is of repository {manifest.name!r}, not of {name!r}")
    if manifest.root_path_hash != manifests.ROOT_PATH_HASH:
        raise IntegrityError(
            f"manifest field R is {manifest.root_path_hash!r}, not {manifests.ROOT_PATH_HASH}"
        )


class Hasher:
    """Compute a content hash piece by piece."""

    def __init__(self, algorithm: HashAlgorithm) -> None:
        self._shake = hashlib.shake_128() if algorithm is HashAlgorithm.SHAKE128 else None
        name = "ripemd160" if algorithm is HashAlgorithm.RMD160 else "sha1"
        self._hash = hashlib.new(name, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        (self._shake or self._hash).update(data)

    def digest(self) -> bytes:
        return self._shake.digest(DIGEST_BYTES) if self._shake else self._hash.digest()


def iter_object(
    origin: Origin, content_hash: ContentHash, kind: Suffix, *, compressed: bool = True
) -> Iterator[bytes]:
    """Yield the content of an object in pieces.

    Nothing may be done with the pieces that could not be undone before the last one has come:
    only then the hash is known to be right.

    Raises:
        IntegrityError: the object is missing, its bytes do not match its name, or (`compressed`)
            it is not exactly one zlib stream.
    """
    name = content_hash.path(kind)
    digest = Hasher(content_hash.algorithm)
    decoder = zlib.decompressobj() if compressed else None
    for piece in origin.pieces(name):
        stored = piece
        digest.update(stored)
        if decoder is None:
            yield stored
            continue
        try:
            while stored and not decoder.eof:
                yield decoder.decompress(stored, _PIECE)
                stored = decoder.unconsumed_tail
        except zlib.error as error:
            raise IntegrityError(f"object {name} is not a zlib stream: {error}") from error
        if stored or decoder.unused_data:
            raise IntegrityError(f"object {name} has bytes after its zlib stream")
    if digest.digest() != content_hash.digest:
        raise IntegrityError(f"object {name} is damaged: its hash differs")
    if decoder is not None:
        yield decoder.flush()
        if not decoder.eof:
            raise IntegrityError(f"object {name} is cut short")


def read_object(
    origin: Origin, content_hash: ContentHash, kind: Suffix, limit: int, *, compressed: bool = True
) -> bytes:
    """Return the verified content of an object; raise `IntegrityError` if above `limit` bytes."""
    found = bytearray()
    for piece in iter_object(origin, content_hash, kind, compressed=compressed):
        found += piece
        if len(found) > limit:
            raise IntegrityError(f"object {content_hash.path(kind)} has more than {limit} bytes")
    return bytes(found)


def iter_content(origin: Origin, path: RepoPath, node: Node) -> Iterator[bytes]:
    """Yield the content of a file in pieces; only after the last one all of it is verified.

    Several threads may do so at once.  `path` is for messages.

    Raises:
        IntegrityError: content is missing, damaged, or not as long as the entry says.
    """
    content = node.content
    if content is None:
        raise IntegrityError(f"/{path}: content is not stored in the repository")
    compressed = content.compressed
    position = 0
    if content.chunks:
        for chunk in content.chunks:
            if chunk.offset != position:
                raise IntegrityError(
                    f"/{path}: chunk starts at {chunk.offset}, the last one ended at {position}"
                )
            pieces = iter_object(origin, chunk.hash, Suffix.CHUNK, compressed=compressed)
            yield from _exactly(pieces, chunk.size, f"/{path}: chunk at {position}")
            position += chunk.size
        if position != node.size:
            raise IntegrityError(f"/{path}: chunks end at {position} of {node.size} bytes")
    elif content.hash is not None:
        pieces = iter_object(origin, content.hash, Suffix.DATA, compressed=compressed)
        yield from _exactly(pieces, node.size, f"/{path}")
    else:
        raise IntegrityError(f"/{path}: chunked file without chunks")


class Snapshot:
    """One revision of a repository, read-only.

    Catalogs are fetched when they are needed, and verified by hash.  Paths are `RepoPath`s.
    Symbolic links are never followed, except by `resolve`.  Metadata methods are for one thread;
    `open_object` may be called by several.  Every method may raise `IntegrityError` where the
    repository is damaged and `RemoteError` where its server is unreachable.
    """

    def __init__(self, origin: Origin, manifest: Manifest, root: CatalogRef | None = None) -> None:
        """Read the revision with root catalog `root`, by default the one the manifest names."""
        self.origin = origin
        self.manifest = manifest
        self.root = root or CatalogRef(manifest.root_hash, manifest.root_size)
        self._open: OrderedDict[RepoPath, _Mounted] = OrderedDict()

    def close(self) -> None:
        """Release catalogs and connections."""
        for catalog, _ in self._open.values():
            catalog.close()
        self._open.clear()
        self.origin.close()

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # catalogs

    def catalogs(self) -> Iterator[tuple[RepoPath, CatalogRef]]:
        """Yield every catalog with the path of its root, a parent before those nested in it."""
        stack = [("", self.root)]
        while stack:
            prefix, ref = stack.pop()
            yield prefix, ref
            nested = self._catalog(prefix, ref)[1]
            stack.extend(sorted(nested.items(), reverse=True))

    def catalog(self, path: RepoPath) -> Catalog:
        """Return the catalog that describes what is in directory `path`.

        It stays open while fewer than `OPEN_CATALOGS` others have been used since.
        """
        prefix = ""
        catalog, nested = self._catalog(prefix, self.root)
        while below := next((p for p in _ancestors(path, prefix) if p in nested), None):
            catalog, nested = self._catalog(below, nested[below])
            prefix = below
        return catalog

    def identity(self, path: RepoPath) -> ContentHash | None:
        """Return what changes with anything at `path` or below; None if there is nothing.

        It may change with what is beside it, too: it is the hash of a catalog.
        """
        prefix, ref = "", self.root
        catalog, nested = self._catalog(prefix, ref)
        while below := next((p for p in _ancestors(path, prefix) if p in nested), None):
            prefix, ref = below, nested[below]
            if below == path:  # it is not even loaded
                return ref.hash
            catalog, nested = self._catalog(prefix, ref)
        return ref.hash if catalog.get(path) is not None else None

    def _catalog(self, prefix: RepoPath, ref: CatalogRef) -> _Mounted:
        if prefix in self._open:
            self._open.move_to_end(prefix)
            return self._open[prefix]
        data = read_object(self.origin, ref.hash, Suffix.CATALOG, MAX_CATALOG_BYTES)
        if ref.size and ref.size != len(data):
            raise IntegrityError(
                f"catalog {ref.hash} at /{prefix} has {len(data)} bytes, promised {ref.size}"
            )
        mounted = _mount(data, prefix)
        self._open[prefix] = mounted
        if len(self._open) > OPEN_CATALOGS:
            self._open.popitem(last=False)[1][0].close()
        return mounted

    # entries

    def lookup(self, path: RepoPath) -> Row | None:
        """Return the entry at exactly `path`, None if there is none.

        Of a directory with a nested catalog it is the row in that catalog.
        """
        return self.catalog(path).get(path)

    def listdir(self, path: RepoPath = "") -> list[Row]:
        """Return the entries of a directory in the byte order of their names.

        Raises:
            InputError: `path` is no directory.
        """
        catalog = self.catalog(path)
        row = catalog.get(path)
        if row is None or not row.node.is_dir:
            raise InputError(f"/{path} is no directory of {self.manifest.name}")
        return catalog.children(path)

    def walk(self, path: RepoPath = "") -> Iterator[Row]:
        """Yield every entry below a directory: parents first, siblings in byte order."""
        stack = [path]
        while stack:
            rows = self.listdir(stack.pop())
            yield from rows
            stack.extend(row.path for row in reversed(rows) if row.node.is_dir)

    def resolve(
        self, path: str, *, follow_last: bool = True, variables: Mapping[str, str] | None = None
    ) -> RepoPath | None:
        """Return where `path` leads on a client, all symbolic links followed.

        Args:
            path: relative to the repository root.
            follow_last: follow the last component too.
            variables: of the client, for links with `$(NAME)` or `$(NAME:-default)` in their text.

        Returns:
            A path without links, whose last component may not exist; None if it leads out of
            `/cvmfs/<name>` or through more than `MAX_LINKS` links.
        """
        done: list[str] = []
        todo = [name for name in reversed(path.split("/")) if name not in ("", ".")]
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                if not done:
                    return None
                done.pop()
                continue
            done.append(name)
            row = self.lookup("/".join(done))
            if row is None or not row.node.is_symlink or not (todo or follow_last):
                continue
            links += 1
            target = _expand(row.node.target, variables or {})
            if target.startswith("/"):
                mount = f"/cvmfs/{self.manifest.name}/"
                if not (target + "/").startswith(mount):
                    return None
                target, done = target[len(mount) :], []
            else:
                done.pop()
            if links > MAX_LINKS:
                return None
            todo.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
        return "/".join(done)

    def find_files(
        self, top: RepoPath, name: str, excluded: Collection[str] = ()
    ) -> Iterator[tuple[RepoPath, bytes]]:
        """Yield path and content of all small files called `name` anywhere below a directory.

        Far faster than one by one: see `listing.find_small_files`.
        """
        for file, data in self.read_small_files(self.list_small_files(top, name, excluded)):
            yield file.path, data

    def list_small_files(
        self,
        top: RepoPath,
        name: str,
        excluded: Collection[str] = (),
        known: KnownFiles | None = None,
    ) -> list[SmallFile]:
        """Return all small files called `name` below a directory; see `find_small_files`."""
        return list(find_small_files(self._load_many, self.root, top, name, excluded, known))

    def read_small_files(self, files: Sequence[SmallFile]) -> Iterator[tuple[SmallFile, bytes]]:
        """Yield those files with their content, in the same order."""
        stored = self.origin.read_many((file.hash, Suffix.DATA) for file in files)
        for file, data in zip(files, stored, strict=True):
            yield file, decompress(data, MAX_FILE_BYTES) if file.compressed else data

    def list_lines(self, path: RepoPath) -> list[str] | None:
        """Return the canonical listing of a directory, in no order.

        None if it has no catalog of its own: then it is not what this program publishes.
        """
        nested = self.catalog(split_path(path)[0]).nested()
        return list_stored(self._load, path, nested[path]) if path in nested else None

    def directory_sizes(self, path: RepoPath) -> list[DirectorySize] | None:
        """Return what every directory below one holds, in no order.

        None if it has no catalog of its own: then it is not what this program publishes.
        """
        nested = self.catalog(split_path(path)[0]).nested()
        if path not in nested:
            return None
        return list(measure_directories(self._load, path, nested[path]))

    def _load(self, ref: CatalogRef) -> Catalog:
        data = read_object(self.origin, ref.hash, Suffix.CATALOG, MAX_CATALOG_BYTES)
        return self._opened(ref, data)

    def _load_many(self, refs: Sequence[CatalogRef]) -> Iterator[Catalog]:
        stored = self.origin.read_many((ref.hash, Suffix.CATALOG) for ref in refs)
        for ref, data in zip(refs, stored, strict=True):
            yield self._opened(ref, decompress(data, MAX_CATALOG_BYTES))

    @staticmethod
    def _opened(ref: CatalogRef, data: bytes) -> Catalog:
        if ref.size and ref.size != len(data):
            raise IntegrityError(f"catalog {ref.hash} has {len(data)} bytes, promised {ref.size}")
        return Catalog.open(data)

    # content

    def open_object(
        self, content_hash: ContentHash, kind: Suffix, *, compressed: bool = True
    ) -> Iterator[bytes]:
        """Yield the content of an object in pieces; see `iter_object`."""
        return iter_object(self.origin, content_hash, kind, compressed=compressed)

    def iter_file(self, path: RepoPath) -> Iterator[bytes]:
        """Yield a file's content in pieces; only after the last one all of it is verified.

        Raises:
            InputError: `path` is no regular file.
            IntegrityError: content is missing, damaged, or not as long as the entry says.
        """
        row = self.lookup(path)
        if row is None or not row.node.is_file:
            raise InputError(f"/{path} is no file of {self.manifest.name}")
        return self.iter_content(row)

    def iter_content(self, row: Row) -> Iterator[bytes]:
        """Yield the content of a file whose row is known; several threads may do so at once.

        Raises:
            IntegrityError: as `iter_file`.
        """
        if row.flags & FLAG_EXTERNAL:
            raise IntegrityError(f"/{row.path}: content is not stored in the repository")
        return iter_content(self.origin, row.path, row.node)

    def read_file(self, path: RepoPath, *, limit: int = MAX_FILE_BYTES) -> bytes:
        """Return a file's verified content; raise `InputError` if it is larger than `limit`."""
        row = self.lookup(path)
        if row is not None and row.node.size > limit:
            raise InputError(f"/{path} has {row.node.size} bytes, more than {limit}")
        return b"".join(self.iter_file(path))


def _mount(data: bytes, prefix: RepoPath) -> _Mounted:
    catalog = Catalog.open(data)
    try:
        found, nested = catalog.prefix, catalog.nested()
    except IntegrityError:
        catalog.close()
        raise
    if found != prefix:
        catalog.close()
        raise IntegrityError(f"catalog of /{found} is mounted at /{prefix}")
    return catalog, nested


def _ancestors(path: RepoPath, prefix: RepoPath) -> Iterator[RepoPath]:
    """Yield the paths above `path`, itself included, that are below `prefix`; shortest first."""
    position = len(prefix) + 1 if prefix else 0
    while position < len(path):
        end = path.find("/", position)
        end = len(path) if end < 0 else end
        yield path[:end]
        position = end + 1


def _expand(target: str, variables: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: variables.get(match[1]) or match[2] or "", target)


def _exactly(pieces: Iterator[bytes], size: int, what: str) -> Iterator[bytes]:
    """Pass pieces on; raise `IntegrityError` as soon as they cannot add up to `size` bytes."""
    total = 0
    for piece in pieces:
        total += len(piece)
        if total > size:
            break
        yield piece
    if total != size:
        more = "more than " if total > size else ""
        raise IntegrityError(f"{what}: content has {more}{min(total, size)} bytes, promised {size}")
