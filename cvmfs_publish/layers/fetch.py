"""Fetch several layers of an image at the same time and read them to their ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from cvmfs_publish.digest import Digest
from cvmfs_publish.errors import IntegrityError, PublishError, RemoteError
from cvmfs_publish.layers.read import Contents, LayerLimits, read_layer
from cvmfs_publish.layers.record import LayerRecord
from cvmfs_publish.sources.base import (
    BlobStream,
    ImageSource,
    LayerDescriptor,
    ResolvedImage,
    SecondSource,
)

READERS = 4  # layers fetched and read at the same time


def fetch_layers(
    source: ImageSource,
    image: ResolvedImage,
    layers: Iterable[LayerDescriptor],
    contents: Contents,
    limits: LayerLimits,
    *,
    report: Callable[[LayerDescriptor, int], None],
    finished: Callable[[LayerRecord], None] = lambda _: None,
) -> dict[Digest, LayerRecord]:
    """Return the records of layers, each of them verified.

    Args:
        source: of the image.
        image: whose layers they are.
        layers: each of them once.
        contents: takes the contents of files.
        limits: what a layer may contain.
        report: told by several threads how many compressed bytes of a layer were read.
        finished: told by several threads of every layer that is complete, also if another fails.

    Raises: as `read_layer` and `finished`; the others are stopped then.
    """
    stop = threading.Event()

    def read(layer: LayerDescriptor) -> LayerRecord:
        with source.open_layer(image.reference, layer) as stream:
            blob = _Watched(stream, stop, lambda done: report(layer, done))
            return read_layer(blob, layer.digest, layer.size, layer.diff_id, contents, limits)

    def fetch(layer: LayerDescriptor) -> LayerRecord:
        while True:
            try:
                record = read(layer)
            except (IntegrityError, RemoteError):
                # A mirror's copy may be damaged: what was stored of it, nothing leads to
                if isinstance(source, SecondSource) and source.distrust(layer.digest):
                    continue
                raise
            finished(record)
            return record

    # Largest first: the last one to finish decides how long it takes.
    ordered = sorted(layers, key=lambda layer: layer.size, reverse=True)
    with ThreadPoolExecutor(READERS, thread_name_prefix="layer") as pool:
        futures: dict[Future[LayerRecord], Digest] = {}
        try:
            for layer in ordered:
                futures[pool.submit(fetch, layer)] = layer.digest
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()  # whoever still reads is not needed, or there is nobody
            for future in futures:
                future.cancel()
    _raise_first(futures)
    return {digest: future.result() for future, digest in futures.items()}


class _StoppedError(PublishError):
    """Another layer of the image failed, so this one is not needed any more."""


class _Watched:
    """A blob that can be stopped and tells how far it is."""

    def __init__(
        self, stream: BlobStream, stop: threading.Event, report: Callable[[int], None]
    ) -> None:
        self._stream = stream
        self._stop = stop
        self._report = report
        self._done = 0

    def read(self, size: int) -> bytes:
        if self._stop.is_set():
            raise _StoppedError("stopped")
        data = self._stream.read(size)
        self._done += len(data)
        self._report(self._done)
        return data


def _raise_first(futures: Iterable[Future[LayerRecord]]) -> None:
    """Raise the error that made the others stop."""
    errors = [future.exception() for future in futures if not future.cancelled()]
    real = [error for error in errors if error is not None and not isinstance(error, _StoppedError)]
    for error in real:
        raise error
