"""Let several repositories be fed from one source: each question and each layer goes out once.

Layers are kept as they came, compressed and verified, in a folder that all publishers of one host
share; so also two that run at the same time fetch a layer once.  They are kept only while there is
room, for a short time, and nothing depends on them: what is not there is fetched again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import PublishError, RemoteError
from cvmfs_publish.reference import Reference
from cvmfs_publish.sources.base import (
    BlobStream,
    ImageSource,
    LayerDescriptor,
    Locator,
    Platform,
    ResolvedImage,
    SecondSource,
)
from cvmfs_publish.sources.cosign import Candidate
from cvmfs_publish.sources.sif_signature import SifKeys
from cvmfs_publish.sources.trust import DOCKER, Evidence

KEPT_SECONDS = 3600.0  # by then, every repository has taken what it wants
SHARE_OF_FREE = 4  # one part in so many of what is free may be taken
PATIENCE = (
    30.0  # seconds in which another publisher has to get on, or its layer is fetched here too
)
LOOK_EVERY = 0.1  # seconds, while another publisher fetches the same
MAX_ANSWERS = 256 << 20  # bytes of manifests and configurations that are remembered
PART = ".part"

log = logging.getLogger(__name__)


class Source(ImageSource, Locator, SecondSource, Evidence, Protocol):
    """All that a publisher asks."""


class SharedSource:
    """A `Source` that asks another one everything once.  Any number of threads may ask."""

    def __init__(self, source: Source, blobs: SharedBlobs) -> None:
        self._source = source
        self._blobs = blobs
        self._lock = threading.Lock()  # guards what follows
        self._answers: dict[Hashable, Any] = {}
        self._size = 0  # of what is remembered

    # ImageSource

    def head(self, reference: Reference) -> Digest:
        """As promised by `ImageSource.head`; once asked, the answer stays the same."""
        found: Digest = self._once(("head", reference), lambda: self._source.head(reference))
        return found

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        """As promised by `ImageSource.resolve`."""
        found: ResolvedImage = self._once(
            ("resolve", reference, platform, digest),
            lambda: self._source.resolve(reference, platform, digest),
        )
        return found

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> BlobStream:
        """As promised by `ImageSource.open_layer`."""
        if reference.origin is not None and reference.origin.transport != DOCKER:
            return self._source.open_layer(reference, layer)  # a file is here, or kept already
        return self._blobs.open(layer, lambda: self._source.open_layer(reference, layer))

    def _once(self, key: Hashable, ask: Callable[[], Any]) -> Any:  # noqa: ANN401 - what `ask` gives
        with self._lock:
            answer = self._answers.get(key)
        if answer is None:
            try:
                answer = ask()
            except PublishError as error:  # who failed a moment ago is not asked again
                answer = error
            self._remember(key, answer)
        if isinstance(answer, PublishError):
            raise answer
        return answer

    def _remember(self, key: Hashable, answer: object) -> None:
        size = 0
        if isinstance(answer, ResolvedImage):
            size = len(answer.manifest) + len(answer.config)
        with self._lock:
            if self._size + size <= MAX_ANSWERS:
                self._answers[key] = answer
                self._size += size

    # SecondSource

    def distrust(self, digest: Digest) -> bool:
        """As promised by `SecondSource.distrust`."""
        return self._blobs.distrust(digest) or self._source.distrust(digest)

    # Locator

    def locate(self, text: str, name: str = "") -> Reference:
        """As promised by `Locator.locate`."""
        return self._source.locate(text, name)

    def locate_again(self, name: str, origin: str) -> Reference:
        """As promised by `Locator.locate_again`."""
        return self._source.locate_again(name, origin)

    def state(self, reference: Reference, platform: Platform) -> str:
        """As promised by `Locator.state`."""
        return self._source.state(reference, platform)

    # Evidence

    def iter_candidates(
        self, reference: Reference, digest: Digest, skip: Callable[[str], None]
    ) -> Iterator[Candidate]:
        """As promised by `Evidence.iter_candidates`."""
        return self._source.iter_candidates(reference, digest, skip)

    def find_sif_signers(self, image: ResolvedImage, keys: SifKeys) -> tuple[str, ...]:
        """As promised by `Evidence.find_sif_signers`."""
        return self._source.find_sif_signers(image, keys)


class SharedBlobs:
    """The folder of layers.  Any number of threads and processes may use it at once.

    `SHA256` is a whole layer, whose digest was right; `SHA256.part` one that is being fetched, and
    held by `flock(2)` by whoever does so.
    """

    def __init__(
        self,
        folder: Path,
        *,
        stays: bool = False,
        wait: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Name the folder; `stays`: leave what is fetched here to publishers that come later."""
        self._folder = folder
        self._stays = stays
        self.wait = wait
        self.clock = clock
        self._lock = threading.Lock()  # guards what follows
        self._own: set[Path] = set()
        self._bad: set[Digest] = set()
        self._told = False

    def open(self, layer: LayerDescriptor, fetch: Callable[[], BlobStream]) -> BlobStream:
        """Return the stream of a layer, from the folder or by `fetch`; nothing is done yet."""
        return _SharedBlob(self, layer, self.path(layer.digest), fetch)

    def path(self, digest: Digest) -> Path:
        return self._folder / f"{digest.algorithm}-{digest.hex}"

    def distrust(self, digest: Digest) -> bool:
        """Whether a layer was damaged here, so that another place may give other bytes."""
        with self._lock:
            was_bad = digest in self._bad
            self._bad.discard(digest)
        return was_bad

    def note_damage(self, digest: Digest) -> None:
        """Never give this copy again."""
        with self._lock:
            self._bad.add(digest)
        with suppress(OSError):
            self.path(digest).unlink()

    def note_kept(self, path: Path) -> None:
        with self._lock:
            self._own.add(path)

    def has_room(self, size: int) -> bool:
        """Whether a layer may be kept and still enough is free for the repositories."""
        held = sum(size for _, size, _ in self._files())
        free = os.statvfs(self._folder)
        return (held + size) * SHARE_OF_FREE <= free.f_bavail * free.f_frsize + held

    def tell(self, reason: str) -> None:
        """Say once why layers are fetched more than once."""
        with self._lock:
            was_told, self._told = self._told, True
        if not was_told:
            log.warning("%s: layers are fetched for each repository anew: %s", self._folder, reason)

    def sweep(self, now: float) -> None:
        """Remove what nobody needs any more: old layers, and parts that nobody is fetching."""
        for path, _, modified_at in self._files():
            if path.suffix == PART:
                _remove_unless_held(path)
            elif not 0 <= now - modified_at < KEPT_SECONDS:
                with suppress(OSError):
                    path.unlink()

    def close(self) -> None:
        """Remove what was fetched for this process alone."""
        with self._lock:
            own, self._own = self._own, set()
        for path in own if not self._stays else ():
            with suppress(OSError):
                path.unlink()

    def prepare(self) -> bool:
        """Make the folder; return whether there is one."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self.tell(error.strerror or str(error))
            return False
        return True

    def _files(self) -> Iterator[tuple[Path, int, float]]:
        try:
            entries = list(os.scandir(self._folder))
        except OSError:
            return
        for entry in entries:
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                yield Path(entry.path), status.st_size, status.st_mtime


class _SharedBlob:
    """A `BlobStream`: a copy that is there, or the bytes that arrive, which are then copied."""

    def __init__(
        self,
        blobs: SharedBlobs,
        layer: LayerDescriptor,
        path: Path,
        fetch: Callable[[], BlobStream],
    ) -> None:
        self._blobs = blobs
        self._layer = layer
        self._path = path
        self._part = path.with_name(path.name + PART)
        self._fetch = fetch
        self._copy: BinaryIO | None = None  # is read
        self._new: BinaryIO | None = None  # is written, and held
        self._stream: BlobStream | None = None
        self._hasher = layer.digest.hasher()
        self._ended = False

    def __enter__(self) -> _SharedBlob:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._drop()
        if self._copy is not None:
            self._copy.close()
        if self._stream is not None:
            self._stream.__exit__(kind, error, traceback)

    def read(self, size: int) -> bytes:
        """As promised by `BlobStream.read`."""
        if self._ended or size <= 0:
            return b""
        if self._copy is None and self._stream is None:
            self._begin()
        return self._read_copy(self._copy, size) if self._copy is not None else self._arrive(size)

    def _begin(self) -> None:
        """Find the layer, wait for whoever is fetching it, or begin to."""
        waiting_since, known_size = self._blobs.clock(), -1
        while self._blobs.prepare():
            if self._find_copy():
                return
            if self._hold():
                if self._find_copy():  # whoever held it before is done
                    self._drop()
                    return
                break
            size = _size(self._part)
            if size != known_size:
                waiting_since, known_size = self._blobs.clock(), size
            elif self._blobs.clock() - waiting_since > PATIENCE:
                break  # stopped, or very slow
            self._blobs.wait(LOOK_EVERY)
        stream = self._fetch()
        self._stream = stream.__enter__()

    def _find_copy(self) -> bool:
        with suppress(OSError):
            self._copy = self._path.open("rb")
        return self._copy is not None

    def _hold(self) -> bool:
        """Become the one who fetches this layer for all; True as well if nothing can be kept."""
        try:
            new = self._part.open("ab")
        except OSError as error:
            self._blobs.tell(error.strerror or str(error))
            return True
        try:
            fcntl.flock(new, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(new.fileno()).st_ino != _inode(self._part):  # it is a whole layer now
                new.close()
                return False
            new.truncate(0)
            if not self._blobs.has_room(self._layer.size):
                self._blobs.tell(f"there is no room for {self._layer.size} bytes")
                self._part.unlink()
                new.close()
                return True
        except BlockingIOError:
            new.close()
            return False
        except OSError as error:
            self._blobs.tell(error.strerror or str(error))
            new.close()
            return True
        self._new = new
        return True

    def _arrive(self, size: int) -> bytes:
        if self._stream is None:
            raise TypeError("nothing is being fetched")
        data = self._stream.read(size)
        try:
            if not data:
                self._keep()
            elif self._new is not None:
                self._new.write(data)
        except OSError as error:
            self._blobs.tell(error.strerror or str(error))
            self._drop()
        self._ended = not data
        return data

    def _keep(self) -> None:
        """The digest was right: give the layer to others."""
        if self._new is None:
            return
        self._new.flush()
        self._part.rename(self._path)
        self._new.close()
        self._new = None
        self._blobs.note_kept(self._path)

    def _drop(self) -> None:
        """Keep nothing of what came so far."""
        if self._new is None:
            return
        with suppress(OSError):  # while it is held, so that it is nobody else's
            self._part.unlink()
        with suppress(OSError):  # what is in the buffer may not fit on the disk
            self._new.close()
        self._new = None

    def _read_copy(self, copy: BinaryIO, size: int) -> bytes:
        try:
            data = copy.read(size)
        except OSError as error:
            raise self._damage(error.strerror or str(error)) from error
        self._hasher.update(data)
        if not data:
            if self._hasher.hexdigest() != self._layer.digest.hex:
                raise self._damage("it has another digest now")
            self._ended = True
        return data

    def _damage(self, what: str) -> RemoteError:
        self._blobs.note_damage(self._layer.digest)
        return RemoteError(
            f"{self._path}: the copy of layer {self._layer.digest} is damaged: {what}",
            hint="it is removed, and fetched again; check the disk",
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _remove_unless_held(path: Path) -> None:
    with suppress(OSError), path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
