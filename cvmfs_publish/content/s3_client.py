"""Talk to one bucket of an S3-compatible object store; errors become ours, secrets stay inside.

Source: Amazon S3 API reference (PutObject, GetObject, HeadObject, DeleteObjects, ListObjectsV2;
"conditional writes"); facts/cvmfs-format.md section 6.4.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store as Client

from cvmfs_publish.content.local import PIECE
from cvmfs_publish.content.store import MissingError
from cvmfs_publish.errors import RepositoryError

CONNECT_SECONDS = 10.0
FIRST_PAUSE = timedelta(milliseconds=100)  # before the first repetition; then twice as long
LONGEST_PAUSE = timedelta(seconds=5)
REPETITIONS = 12  # at most; time ends them earlier unless answers come at once
PART = 16 * 1024**2  # bytes of a large file sent in one request; Amazon takes 10,000 parts
PARTS = 4  # sent at the same time
BULK = 1000  # keys of one DeleteObjects request, at most
SWAPS = 3  # times a conditional write is sent while it is known not to have arrived

_DATA_HEADERS = {"Content-Type": "application/octet-stream", "Cache-Control": "max-age=259200"}
_ROOT_HEADERS = {"Content-Type": "application/x-cvmfs", "Cache-Control": "max-age=61"}
_PAGE_HEADERS = {"Content-Type": "text/html", "Cache-Control": "max-age=61"}

_PANIC = "PanicException"  # of the library, which exports no name for it; no Exception
_STATUS = re.compile(r"status code: (\d{3})\b")
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9]{1,80})\s*</Code>")
_REASON = re.compile(
    r'"(failed to lookup address[^"]*|Connection refused|[^"]*certificate[^"]*)"'
    r"|(InvalidCertificate\(\s*\w+|InvalidContentType|TimedOut|Timeout|IncompleteMessage"
    r"|ConnectionReset|UnexpectedEof)"
)
_REASONS = {
    "TimedOut": "no answer in time",
    "Timeout": "no answer in time",
    "IncompleteMessage": "the connection broke",
    "ConnectionReset": "the connection broke",
    "UnexpectedEof": "the connection broke",
    "InvalidContentType": "the server does not speak TLS",
}

_TRY_AGAIN = "the published revision is untouched; try again later"
_RIGHTS = (
    "the key needs s3:GetObject, s3:PutObject and s3:DeleteObject on {place}/* and s3:ListBucket"
    " on the bucket; without the last, a file that is missing looks like a refusal"
)
_CREDENTIALS = (
    "correct `repository.s3` in the configuration, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_FULL = "free some space or have the quota raised"
_BY_CODE = {
    "NoSuchBucket": "create the bucket, or correct `repository.storage`",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "AuthorizationHeaderMalformed": "correct `repository.s3.region`",
    "PermanentRedirect": "correct `repository.s3.endpoint` or `repository.s3.region`",
    "ExpiredToken": "renew AWS_SESSION_TOKEN and the keys that belong to it",
    "InvalidToken": "renew AWS_SESSION_TOKEN and the keys that belong to it",
    "RequestTimeTooSkewed": "set the clock of this host (NTP)",
    "RequestExpired": "set the clock of this host (NTP)",
    "QuotaExceeded": _FULL,
    "XMinioAdminBucketQuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "InsufficientStorage": _FULL,
    "SlowDown": "the store asks for fewer requests: lower `repository.s3.connections`",
}
_BY_STATUS = {
    301: "correct `repository.s3.endpoint` or `repository.s3.region`",
    307: "correct `repository.s3.endpoint` or `repository.s3.region`",
    401: _CREDENTIALS,
    403: _RIGHTS,
    507: _FULL,
}


T = TypeVar("T")
R = TypeVar("R")


class S3Error(RepositoryError):
    """The object store refused a request, failed, or cannot be reached."""

    def __init__(self, message: str, *, hint: str, status: int | None, code: str) -> None:
        super().__init__(message, hint=hint)
        self.status = status  # of the answer, None if there was none that could be read
        self.code = code  # as in `AccessDenied`, empty if the answer had none

    @property
    def is_refusal(self) -> bool:
        """Whether the store answered that nothing was done."""
        return self.status is not None and 300 <= self.status < 500


class ChangedError(Exception):
    """A conditional write was refused: the file is not what was expected.  For callers here."""


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where a bucket is, who asks, and how patiently."""

    bucket: str
    prefix: str  # within the bucket, without slashes at its ends; may be empty
    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)  # of temporary keys
    endpoint: str | None = None  # URL; None: Amazon's of the region
    region: str = "us-east-1"
    virtual_host: bool = False  # the bucket in the host's name instead of the path
    connections: int = 64  # requests at the same time, those of worker processes included
    lease: float = 60.0  # seconds without a refresh after which a lock is free
    timeout: float = 120.0  # seconds for one request
    patience: float = 60.0  # seconds after which a request that failed is not repeated

    @property
    def location(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Got(NamedTuple):
    """A file and what the store says of it."""

    data: bytes  # empty if there are more than the limit
    size: int
    version: str  # the ETag
    modified: int  # Unix seconds, by the store's clock


class Meta(NamedTuple):
    """What the store says of a file."""

    name: str
    size: int
    modified: int  # Unix seconds, by the store's clock


class Bucket:
    """The files below one prefix of a bucket.  Any number of threads may use it together.

    Requests that fail in passing (5xx, broken connections) are repeated for `patience` seconds with
    growing pauses.  Every method raises `S3Error` for what remains.
    """

    def __init__(self, settings: S3Settings) -> None:
        """Prepare; nothing is sent yet."""
        self.settings = settings
        self.location = settings.location
        self._client = _client(settings)
        self._single = _client(settings, disable_bulk_delete=True)
        self._has_bulk_delete = True

    def impatient(self, seconds: float) -> Bucket:
        """Return the same bucket with requests that take, repeated, hardly more than `seconds`."""
        timeout = min(self.settings.timeout, seconds)
        patience = min(self.settings.patience, seconds)
        return Bucket(replace(self.settings, timeout=timeout, patience=patience))

    def get(self, name: str, limit: int | None = None) -> Got | None:
        """Return a file, None if there is none; not its bytes if there are more than `limit`."""
        with self._errors("reading", name):
            try:
                found = obstore.get(self._client, name)
                size = found.meta["size"]
                data = bytes(found.bytes()) if limit is None or size <= limit else b""
            except FileNotFoundError as error:
                self._check_bucket(error, name)
                return None
            version, modified = found.meta["e_tag"], found.meta["last_modified"]
        if version is None:
            raise S3Error(
                f"{self.location}/{name}: the store sends no ETag",
                hint="without it nobody can tell whether a file has changed; use another store",
                status=None,
                code="",
            )
        return Got(data, size, version, int(modified.timestamp()))

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes; raise `MissingError` if there is none."""
        with self._errors("reading", name):
            try:
                yield from obstore.get(self._client, name).stream(min_chunk_size=PIECE)
            except FileNotFoundError as error:
                self._check_bucket(error, name)
                raise MissingError(f"{self.location}/{name} is missing") from None

    def head(self, name: str) -> Meta | None:
        """Return what the store says of a file, None if there is none."""
        with self._errors("asking for", name):
            try:
                found = obstore.head(self._client, name)
            except FileNotFoundError:
                return None  # no answer to HEAD says whether there is a bucket
            except BaseError:
                with suppress(FileNotFoundError):
                    obstore.get_range(self._client, name, start=0, end=1)  # says the reason as well
                raise
        return Meta(name, found["size"], int(found["last_modified"].timestamp()))

    def put(self, name: str, data: bytes) -> None:
        """Write a file in one request, whatever was there."""
        with self._errors("writing", name):
            self._put(name, data, "overwrite")

    def put_file(self, name: str, path: Path) -> None:
        """Write a file of any size, whatever was there: it appears complete or not at all.

        Above `PART` bytes in several requests, a few parts in memory at a time.
        """
        with self._errors("writing", name):
            obstore.put(
                self._client,
                name,
                path,
                attributes=_DATA_HEADERS,
                use_multipart=path.stat().st_size > PART,
                chunk_size=PART,
                max_concurrency=PARTS,
            )

    def put_if(self, name: str, data: bytes, expected: str | None) -> str:
        """Write a file if its version is `expected` (None: if there is none); return its version.

        Raises `ChangedError` if not, which may also be because an earlier try has arrived.
        """
        mode = "create" if expected is None else {"e_tag": expected}
        with self._errors("writing", name):
            try:
                return str(self._put(name, data, mode)["e_tag"])
            except (AlreadyExistsError, PreconditionError) as error:
                self._check_bucket(error, name)
                raise ChangedError from None

    def swap(self, name: str, data: bytes, expected: str | None) -> str:
        """As `put_if`, but whether it was done is found out where the answer leaves it open.

        Raises:
            ChangedError: nothing was done.
            S3Error: nothing was done if it `is_refusal`; else it may still be done at any time.
        """
        for left in reversed(range(SWAPS)):
            failure: S3Error | None = None
            try:
                return self.put_if(name, data, expected)
            except ChangedError:
                pass
            except S3Error as error:
                if error.is_refusal:
                    raise
                failure = error
            found = self.get(name)
            if found is not None and found.data == data:
                return found.version
            if failure is None or (found.version if found is not None else None) != expected:
                raise ChangedError
            if not left:
                raise failure
        raise AssertionError  # the last turn ends in one of the ways above

    def remove(self, name: str) -> None:
        """Remove one file; no error if it is gone."""
        with self._errors("removing", name):
            try:
                obstore.delete(self._single, name)
            except FileNotFoundError as error:
                self._check_bucket(error, name)

    def delete(self, names: Sequence[str], pool: ThreadPoolExecutor) -> None:
        """Remove files; no error for one that is gone."""
        parts = [names[start : start + BULK] for start in range(0, len(names), BULK)]
        if self._has_bulk_delete and len(names) > 1:
            try:
                run(pool, self._delete_part, parts)
            except S3Error as error:
                if error.code not in ("NotImplemented", "MethodNotAllowed"):
                    raise
                self._has_bulk_delete = False
            else:
                return
        run(pool, self.remove, names)

    def _delete_part(self, names: Sequence[str]) -> None:
        with self._errors("removing", names[0]):
            try:
                obstore.delete(self._client, names)
            except FileNotFoundError as error:
                self._check_bucket(error, names[0])

    def below(self, folder: str) -> Iterator[Meta]:
        """Yield what is below a folder."""
        with self._errors("listing", folder):
            for batch in obstore.list(self._client, prefix=folder, chunk_size=BULK):
                for found in batch:
                    modified = int(found["last_modified"].timestamp())
                    yield Meta(found["path"], found["size"], modified)

    def _put(self, name: str, data: bytes, mode: Any) -> Any:  # noqa: ANN401 - of obstore
        headers = _headers(name)
        return obstore.put(
            self._client, name, data, attributes=headers, mode=mode, use_multipart=False
        )

    @contextmanager
    def _errors(self, what: str, name: str) -> Iterator[None]:
        """Let nothing of the library out but what callers here expect."""
        try:
            yield
        except FileNotFoundError as error:
            raise self._error(error, what, name) from None
        except (BaseError, ValueError) as error:
            raise self._error(error, what, name) from None
        except BaseException as error:
            if type(error).__name__ != _PANIC:
                raise
            raise self._error(error, what, name) from None

    def _check_bucket(self, error: Exception, name: str) -> None:
        if "<Code>NoSuchBucket</Code>" in str(error):
            raise self._error(error, "looking for", name)

    def _error(self, error: BaseException, what: str, name: str) -> S3Error:
        """Tell what went wrong without the library's pages of detail, and without any secret."""
        text = str(error)
        found, named = _STATUS.search(text), _CODE.search(text)
        status = int(found[1]) if found else None
        code = named[1] if named else ""
        if code:
            reason = code if status is None else f"{code} ({status})"
        elif status is not None:
            reason = f"the server answered {status}"
        elif "Received redirect without LOCATION" in text:
            reason, status = "the server sends elsewhere, but not where", 301
        elif type(error).__name__ == _PANIC:
            reason = f"no request can be made of this address or these keys ({text[-200:]})"
        else:
            reason = _network_reason(text)
        hint = _BY_CODE.get(code) or _BY_STATUS.get(status or 0) or _TRY_AGAIN
        if status is None:
            hint = "check `repository.s3.endpoint` and the network; " + _TRY_AGAIN
        if code == "NoSuchBucket":
            subject = f"s3://{self.settings.bucket}"
        else:
            subject = f"{self.location}/{name}"
        if self.settings.endpoint is not None and status is None:
            subject += f" at {self.settings.endpoint}"
        return S3Error(
            f"{what} {subject}: {reason}",
            hint=hint.format(place=self.location),
            status=status,
            code=code,
        )


def run(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Call `function` with each item, as many at a time as `pool` has threads.

    After an error nothing more is started, and nothing runs any longer when it is raised.
    """
    futures = [pool.submit(function, item) for item in items]
    try:
        return [future.result() for future in futures]
    except BaseException:
        for future in futures:
            future.cancel()
        wait(futures)
        raise


def _client(settings: S3Settings, **more: Any) -> Client:  # noqa: ANN401
    """The library would also look into the environment: everything it finds there is set here."""
    endpoint = settings.endpoint
    if endpoint is not None and settings.virtual_host:
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{settings.bucket}.{host}"
    credential = {
        "access_key_id": settings.access_key,
        "secret_access_key": settings.secret_key,
        "token": settings.token,
        "expires_at": None,
    }
    config: dict[str, Any] = {
        "region": settings.region,
        "virtual_hosted_style_request": settings.virtual_host,
        "skip_signature": False,
        "conditional_put": "etag",
        "disable_tagging": True,
        **more,
    }
    if endpoint is not None:
        config["endpoint"] = endpoint
    return Client(
        settings.bucket,
        prefix=settings.prefix or None,
        config=config,  # type: ignore[arg-type]  # a TypedDict, built in steps
        client_options={
            "allow_http": endpoint is not None and endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=min(CONNECT_SECONDS, settings.timeout)),
            "timeout": timedelta(seconds=settings.timeout),
            "user_agent": "cvmfs-publish",
        },
        retry_config={
            "max_retries": REPETITIONS,
            "retry_timeout": timedelta(seconds=settings.patience),
            "backoff": {"init_backoff": FIRST_PAUSE, "max_backoff": LONGEST_PAUSE, "base": 2},
        },
        credential_provider=lambda: credential,  # type: ignore[arg-type]
    )


def _headers(name: str) -> dict[str, str]:
    if name.startswith("data/"):
        return _DATA_HEADERS
    return _PAGE_HEADERS if name.endswith(".html") else _ROOT_HEADERS


def _network_reason(text: str) -> str:
    found = _REASON.search(text)
    if found is None:
        return text.partition("\n")[0][-200:].rpartition(" - ")[2]
    if found[1]:
        return found[1].lower() if found[1] == "Connection refused" else found[1]
    return _REASONS.get(found[2], "its certificate is not trusted")
