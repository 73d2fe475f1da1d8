"""Keep artefacts in an S3-compatible object store; see `content.artefacts`.

An object appears when its upload is complete, so what remains of a killed one is at most parts that
the bucket's rule for incomplete uploads removes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cvmfs_publish.content.artefacts import (
    LIST_FILE,
    MAX_LIST_BYTES,
    NAME,
    ArtefactError,
    Partials,
    artefact_errors,
)
from cvmfs_publish.content.s3_client import BULK, Bucket, S3Error, S3Settings
from cvmfs_publish.content.store import StoredObject

REMOVERS = 8  # requests at the same time, where the store has no bulk removal


class S3ArtefactStore:
    """See `content.artefacts.ArtefactStore`."""

    def __init__(self, settings: S3Settings, spool: Path) -> None:
        """Use a bucket; an artefact on its way is in the folder `spool`."""
        self.location = settings.location
        self._bucket = Bucket(settings)
        self._partials = Partials(spool, parents=True)

    @contextmanager
    def partial(self) -> Iterator[BinaryIO]:
        with self._partials.open() as file:
            yield file

    def keep(self, partial: BinaryIO, name: str) -> None:
        with _errors():
            with artefact_errors(f"writing to {partial.name}"):
                partial.flush()
            self._bucket.put_file(name, Path(partial.name))

    def size(self, name: str) -> int | None:
        with _errors():
            found = self._bucket.head(name)
            return found.size if found is not None else None

    def artefacts(self) -> Iterator[StoredObject]:
        with _errors():
            for found in self._bucket.below(""):
                if NAME.fullmatch(found.name):
                    yield StoredObject(found.name, found.size, found.modified)

    def remove(self, names: Iterable[str]) -> None:
        todo = list(names)
        with _errors(), ThreadPoolExecutor(REMOVERS) as pool:
            for start in range(0, len(todo), BULK):
                self._bucket.delete(todo[start : start + BULK], pool)

    def read_list(self) -> bytes | None:
        with _errors():
            found = self._bucket.get(LIST_FILE, MAX_LIST_BYTES)
            return found.data if found is not None else None

    def write_list(self, data: bytes) -> None:
        with _errors():
            self._bucket.put(LIST_FILE, data)

    def sweep(self) -> None:
        self._partials.sweep()

    def close(self) -> None:
        """Connections are the library's."""


@contextmanager
def _errors() -> Iterator[None]:
    """Tell trouble with artefacts from trouble with the repository, in a bucket as well."""
    try:
        yield
    except S3Error as error:
        hint = error.hint.replace("repository.storage", "fallback.store")
        raise ArtefactError(
            str(error), hint=hint.replace("repository.s3", "fallback.s3")
        ) from error


def open_described(description: dict[str, Any], spool: Path) -> S3ArtefactStore:
    """Open what `content.stores.open_artefacts` is asked for."""
    settings = {key: value for key, value in description.items() if key != "kind"}
    return S3ArtefactStore(S3Settings(**settings), spool)
