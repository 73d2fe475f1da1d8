"""A repository of a test in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.content.s3 import S3Store
from cvmfs_publish.content.s3_client import S3Settings
from cvmfs_publish.repository.native.repository import NativeOptions, NativeRepository
from tests.s3 import S3Bucket
from tests.support import NAME, Site


class S3Site(Site):
    """As `Site`; `storage` is where its files are written for the judge."""

    def __init__(
        self,
        base: Path,
        bucket: S3Bucket | None,
        settings: S3Settings,
        algorithm: HashAlgorithm = HashAlgorithm.SHA1,
    ) -> None:
        """Use a bucket as `settings` say; without `bucket` there is no `judge`."""
        self.bucket = bucket
        self.settings = settings
        super().__init__(base, algorithm)

    def reopen(self, options: NativeOptions) -> None:
        store = S3Store(self.settings)
        self.repository = NativeRepository(NAME, store, self.keys, options)

    def judge(self, *options: str) -> list[str]:
        assert self.bucket is not None
        self.bucket.mirror(self.storage)
        return super().judge(*options)


@contextmanager
def s3_site(base: Path, bucket: S3Bucket, settings: S3Settings | None = None) -> Iterator[S3Site]:
    """Create a repository in `bucket` for the length of a test."""
    created = S3Site(base, bucket, settings or bucket.settings)
    created.create()
    with created.client:
        yield created
    created.repository.store.close()
