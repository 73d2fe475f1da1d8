"""Read what `cvmfs_server` knows of a repository: its `server.conf` and S3 configuration file.

Source: facts/cvmfs-format.md sections 6.3, 6.4 and 11.6.  Stock tools source these files in a
shell.  No shell runs here: what would need one is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from cvmfs_publish.content.hashes import HashAlgorithm
from cvmfs_publish.errors import InputError

CONFIG_DIRECTORY = Path("/etc/cvmfs/repositories.d")  # below it NAME/server.conf
KEYS_DIRECTORY = Path("/etc/cvmfs/keys")  # where mkfs puts NAME.{pub,crt,key,masterkey}
SPOOL_DIRECTORY = Path("/var/spool/cvmfs")  # below it NAME, unless the file names another
MAX_FILE_BYTES = 1024 * 1024  # what mkfs writes has two kilobytes

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHELL = frozenset(";&|<>()")  # between words these are commands, not text
# `date --date`, as in "4 weeks ago"; a month is what a person means who writes one
_TIME_SPAN = re.compile(r"([0-9]{1,6})\s+(second|minute|hour|day|week|month|year)s?\s+ago")
_DAYS = {"day": 1, "week": 7, "month": 30, "year": 365}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0", ""})


@dataclass(frozen=True, slots=True)
class LocalUpstream:
    """Objects in a local directory."""

    directory: Path


@dataclass(frozen=True, slots=True)
class S3Upstream:
    """Objects in a bucket of an S3-compatible server."""

    endpoint: str  # http(s)://host[:port], without bucket
    bucket: str
    prefix: str  # of every key, without slashes at its ends; usually the repository's name
    access_key: str
    secret_key: str = field(repr=False)
    region: str = ""  # "" with signatures of version 2
    dns_buckets: bool = True  # bucket.host instead of host/bucket
    peek: bool = True  # look whether an object exists before it is sent
    config_file: Path = Path()


@dataclass(frozen=True, slots=True)
class GatewayUpstream:
    """Objects wherever a gateway puts them; it alone may write there."""

    url: str  # of its interface, as in http://host:4929/api/v1


@dataclass(frozen=True, slots=True)
class ServerConf:
    """What a repository's `server.conf` says, as far as it matters to a publisher."""

    path: Path
    name: str
    upstream: LocalUpstream | S3Upstream | GatewayUpstream
    spool: Path
    user: str  # who owns spool and storage; "" if not said
    keys: Path
    hash: HashAlgorithm
    compression: str  # zlib or none
    garbage_collection: bool
    auto_tag: bool
    auto_tag_timespan: timedelta | None  # older automatic tags are removed; None: never
    ttl: int | None  # seconds; None: the catalog's stays
    include_xattrs: bool
    chunking: bool
    chunk_sizes: tuple[int, int, int]  # bytes: least, average, most
    nested_kcatalog_limit: int | None  # thousands of entries
    root_kcatalog_limit: int | None
    file_mbyte_limit: int | None
    enforce_limits: bool
    volatile: bool
    url: str  # CVMFS_STRATUM0, where the repository is served
    remarks: tuple[str, ...]  # what will be done otherwise than stock tools do it; for the operator


@dataclass(frozen=True, slots=True)
class Assignment:
    """One `KEY=value` line."""

    key: str
    value: str
    line: int


def read_server_conf(path: Path, *, gateway: bool = False) -> ServerConf:
    """Read a `server.conf`, and the S3 configuration if it names one.

    Args:
        path: the file.
        gateway: the repository may be one behind a gateway.

    Raises:
        InputError: a file cannot be read or needs a shell, a value is impossible, or the
            repository is of a kind that this publisher must not write.
    """
    return _Reader(path, gateway=gateway).conf()


# files


def parse_assignments(text: str, source: str) -> dict[str, Assignment]:
    """Return the variables a shell would have after sourcing `text`; the last one of a key wins.

    Raises:
        InputError: a line is no plain assignment; `source` names the file.
    """
    result: dict[str, Assignment] = {}
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip(" \t\r")
        if not stripped or stripped.startswith("#"):
            continue
        key, value = _parse_line(stripped, f"{source}:{number}")
        result[key] = Assignment(key, value, number)
    return result


def _parse_line(line: str, place: str) -> tuple[str, str]:
    text = re.sub(r"^(?:export|readonly)[ \t]+", "", line)
    key, equals, rest = text.partition("=")
    if not equals or not _NAME.fullmatch(key):
        raise InputError(
            f"{place}: {_short(line)} is not KEY=value; this file is read without a shell",
            hint="write plain assignments only",
        )
    return key, "".join(_unquote(rest, key, place))


def _unquote(text: str, key: str, place: str) -> Iterator[str]:
    """Yield the pieces of a word without its quotes, refusing what a shell would expand."""
    position, last = 0, ":"  # a tilde at the start or after a colon is expanded
    while position < len(text):
        char = text[position]
        if char in " \t":
            rest = text[position:].strip()
            if rest and not rest.startswith("#"):
                raise InputError(
                    f"{place}: {key} is followed by {_short(rest)}, which a shell would run",
                    hint="put quotes around a value with blanks",
                )
            return
        if char == "'":
            end = text.find("'", position + 1)
            if end < 0:
                raise InputError(f"{place}: the quote in the value of {key} is not closed")
            yield text[position + 1 : end]
            position = end + 1
        elif char == '"':
            position, piece = _double_quoted(text, position + 1, key, place)
            yield piece
        elif char == "\\":
            if position + 1 == len(text):
                raise InputError(f"{place}: the value of {key} goes on in the next line")
            yield text[position + 1]
            position += 2
        elif char in "$`" or char in _SHELL or (char == "~" and last == ":"):
            raise _needs_shell(text[position:], key, place)
        else:
            yield char
            position += 1
        last = char


def _double_quoted(text: str, position: int, key: str, place: str) -> tuple[int, str]:
    """Return where the text after the closing quote begins, and what was between the quotes."""
    found: list[str] = []
    while position < len(text):
        char = text[position]
        if char == '"':
            return position + 1, "".join(found)
        if char in "$`":
            raise _needs_shell(text[position:], key, place)
        if char == "\\" and text[position + 1 : position + 2] in ("$", "`", '"', "\\"):
            position += 1
            char = text[position]
        found.append(char)
        position += 1
    raise InputError(f"{place}: the quote in the value of {key} is not closed")


def _needs_shell(text: str, key: str, place: str) -> InputError:
    return InputError(
        f"{place}: the value of {key} needs a shell: {_short(text)}",
        hint="write the value itself; this file is read without a shell",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "…")


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}",
            hint="--server-conf names the file; without one give --storage and --keys",
        ) from error
    if len(data) > MAX_FILE_BYTES or b"\0" in data:
        raise InputError(f"{path} is no configuration file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error


class _Reader:
    """Turns the variables of one file into values."""

    def __init__(self, path: Path, *, gateway: bool = False) -> None:
        self.path = path
        self.gateway = gateway
        self.found = parse_assignments(_read_text(path), str(path))
        self.remarks: list[str] = []

    def conf(self) -> ServerConf:
        name = self.needed("CVMFS_REPOSITORY_NAME")
        kind = self.text("CVMFS_REPOSITORY_TYPE", "stratum0")
        if kind != "stratum0":
            raise self.wrong(
                "CVMFS_REPOSITORY_TYPE", f"{kind!r}: only the Stratum 0 of a repository is written"
            )
        self.refuse_what_cannot_be_honoured()
        self.tell_what_is_done_otherwise()
        return ServerConf(
            path=self.path,
            name=name,
            upstream=self.upstream(),
            spool=Path(self.text("CVMFS_SPOOL_DIR", str(SPOOL_DIRECTORY / name))),
            user=self.text("CVMFS_USER"),
            keys=Path(self.text("CVMFS_KEYS_DIR", str(KEYS_DIRECTORY))),
            hash=self.hash(),
            compression=self.compression(),
            garbage_collection=self.flag("CVMFS_GARBAGE_COLLECTION"),
            auto_tag=self.flag("CVMFS_AUTO_TAG", default=True),
            auto_tag_timespan=self.timespan(),
            ttl=self.number("CVMFS_REPOSITORY_TTL"),
            include_xattrs=self.flag("CVMFS_INCLUDE_XATTRS"),
            chunking=self.flag("CVMFS_USE_FILE_CHUNKING", default=True),
            chunk_sizes=(
                self.number("CVMFS_MIN_CHUNK_SIZE") or 4 * 1024**2,
                self.number("CVMFS_AVG_CHUNK_SIZE") or 8 * 1024**2,
                self.number("CVMFS_MAX_CHUNK_SIZE") or 16 * 1024**2,
            ),
            nested_kcatalog_limit=self.number("CVMFS_NESTED_KCATALOG_LIMIT"),
            root_kcatalog_limit=self.number("CVMFS_ROOT_KCATALOG_LIMIT"),
            file_mbyte_limit=self.number("CVMFS_FILE_MBYTE_LIMIT"),
            enforce_limits=self.flag("CVMFS_ENFORCE_LIMITS"),
            volatile=self.flag("CVMFS_VOLATILE_CONTENT"),
            url=self.text("CVMFS_STRATUM0"),
            remarks=tuple(self.remarks),
        )

    def refuse_what_cannot_be_honoured(self) -> None:
        if self.text("CVMFS_VOMS_AUTHZ"):
            raise self.wrong(
                "CVMFS_VOMS_AUTHZ", "repositories with access control are not written here"
            )
        if self.flag("CVMFS_EXTERNAL_DATA"):
            raise self.wrong(
                "CVMFS_EXTERNAL_DATA", "contents kept outside of the repository are not written"
            )

    def tell_what_is_done_otherwise(self) -> None:
        if not self.flag("CVMFS_USE_FILE_CHUNKING", default=True):
            self.remarks.append(
                "CVMFS_USE_FILE_CHUNKING is false: large files are stored in chunks all the same"
            )
        if self.flag("CVMFS_ENFORCE_LIMITS"):
            self.remarks.append(
                "CVMFS_ENFORCE_LIMITS: files larger than CVMFS_FILE_MBYTE_LIMIT are not refused;"
                " `nesting.max_entries` and `limits` are what holds here"
            )
        if self.flag("CVMFS_GENERATE_LEGACY_BULK_CHUNKS"):
            self.remarks.append(
                "CVMFS_GENERATE_LEGACY_BULK_CHUNKS: large files are stored in chunks only"
            )
        if self.flag("CVMFS_VIRTUAL_DIR"):
            self.remarks.append(
                "CVMFS_VIRTUAL_DIR: /.cvmfs is kept as it is, new tags do not appear in it"
            )
        if self.flag("CVMFS_AUTO_GC"):
            self.remarks.append(
                "CVMFS_AUTO_GC: nothing is collected after a publish; run `cvmfs-publish gc`"
            )
        if not self.flag("CVMFS_INCLUDE_XATTRS"):
            self.remarks.append(
                "CVMFS_INCLUDE_XATTRS is not set: extended attributes that the sandbox policy"
                " keeps are stored all the same"
            )

    # values

    def text(self, key: str, default: str = "") -> str:
        return self.found[key].value if key in self.found else default

    def needed(self, key: str) -> str:
        if not self.text(key):
            raise InputError(
                f"{self.path}: {key} is missing",
                hint="is this a file of `cvmfs_server`?",
            )
        return self.text(key)

    def wrong(self, key: str, what: str, hint: str = "") -> InputError:
        line = f":{self.found[key].line}" if key in self.found else ""
        return InputError(f"{self.path}{line}: {key}: {what}", hint=hint)

    def flag(self, key: str, *, default: bool = False) -> bool:
        if key not in self.found:
            return default
        value = self.text(key).lower()
        if value not in _TRUE | _FALSE:
            raise self.wrong(key, f"{value!r} is neither true nor false")
        return value in _TRUE

    def number(self, key: str) -> int | None:
        value = self.text(key)
        if not value:
            return None
        if not (value.isascii() and value.isdecimal() and len(value) <= 18):
            raise self.wrong(key, f"{_short(value)} is not a number")
        return int(value)

    def hash(self) -> HashAlgorithm:
        value = self.text("CVMFS_HASH_ALGORITHM", "sha1")
        try:
            return HashAlgorithm(value)
        except ValueError:
            known = ", ".join(algorithm.value for algorithm in HashAlgorithm)
            raise self.wrong(
                "CVMFS_HASH_ALGORITHM", f"{_short(value)} is none of {known}"
            ) from None

    def compression(self) -> str:
        value = self.text("CVMFS_COMPRESSION_ALGORITHM", "default")
        if value not in ("default", "zlib", "none"):
            raise self.wrong(
                "CVMFS_COMPRESSION_ALGORITHM", f"{_short(value)} is none of default, zlib, none"
            )
        return "none" if value == "none" else "zlib"

    def timespan(self) -> timedelta | None:
        key = "CVMFS_AUTO_TAG_TIMESPAN"
        value = self.text(key).strip()
        if not value:
            return None
        match = _TIME_SPAN.fullmatch(value.lower())
        if match is None:
            raise self.wrong(key, f"{_short(value)} is not understood", 'write "4 weeks ago"')
        count, unit = int(match[1]), match[2]
        return timedelta(days=count * _DAYS.get(unit, 0), seconds=count * _SECONDS.get(unit, 0))

    # storage

    def upstream(self) -> LocalUpstream | S3Upstream | GatewayUpstream:
        key = "CVMFS_UPSTREAM_STORAGE"
        kind, _, rest = self.needed(key).partition(",")
        _, comma, place = rest.partition(",")
        if not comma or not place:
            raise self.wrong(key, "is not of the form KIND,TEMPORARY FOLDER,PLACE")
        if kind == "local":
            if not place.startswith("/"):
                raise self.wrong(key, f"{place!r} is no absolute path")
            return LocalUpstream(Path(place))
        if kind == "S3":
            return self.s3(place)
        if kind == "gw" and self.gateway:
            return GatewayUpstream(place)
        if kind == "gw":
            raise self.wrong(
                key,
                f"the repository is behind the gateway {place}, which alone may write its storage",
                "publish into it with `backend: cvmfs_server`, which asks the gateway",
            )
        raise self.wrong(key, f"storage of kind {kind!r} is not known")

    def s3(self, place: str) -> S3Upstream:
        key = "CVMFS_UPSTREAM_STORAGE"
        alias, at, config = place.partition("@")
        if not at or not alias.strip("/") or not config.startswith("/"):
            raise self.wrong(key, f"{place!r} is not ALIAS@CONFIGURATION FILE")
        return read_s3_conf(Path(config), alias.strip("/"))


def read_s3_conf(path: Path, prefix: str) -> S3Upstream:
    """Read the file that `CVMFS_UPSTREAM_STORAGE` names after the `@`.

    Raises:
        InputError: it cannot be read, lacks a key or asks for what is not possible.
    """
    reader = _Reader(path)
    host = reader.needed("CVMFS_S3_HOST").removeprefix("http://").removeprefix("https://")
    secure = reader.flag("CVMFS_S3_USE_HTTPS")
    port = reader.number("CVMFS_S3_PORT")
    flavour = reader.text("CVMFS_S3_FLAVOR")
    if flavour == "azure":
        raise reader.wrong("CVMFS_S3_FLAVOR", "Azure's blob storage is not S3")
    if flavour not in ("", "awsv2", "awsv4"):
        raise reader.wrong("CVMFS_S3_FLAVOR", f"{_short(flavour)} is neither awsv2 nor awsv4")
    if reader.text("CVMFS_S3_PROXY"):
        raise reader.wrong("CVMFS_S3_PROXY", "a proxy before the storage is not used here")
    if reader.text("CVMFS_S3_X_AMZ_ACL", "public-read"):
        # Without it nobody could read what is published, the manifest first of all.
        raise reader.wrong(
            "CVMFS_S3_X_AMZ_ACL",
            "objects are stored without an ACL here, stock tools send x-amz-acl: public-read "
            "unless this is empty",
            "give the bucket a policy that lets everybody read, then write CVMFS_S3_X_AMZ_ACL=",
        )
    if re.search(r"[/@?#\s]", host):
        raise reader.wrong("CVMFS_S3_HOST", f"{_short(host)} is no host")
    endpoint = f"{'https' if secure else 'http'}://{host}" + (f":{port}" if port else "")
    return S3Upstream(
        endpoint=endpoint,
        bucket=reader.needed("CVMFS_S3_BUCKET"),
        prefix=prefix,
        access_key=reader.needed("CVMFS_S3_ACCESS_KEY"),
        secret_key=reader.needed("CVMFS_S3_SECRET_KEY"),
        region=reader.text("CVMFS_S3_REGION"),
        dns_buckets=reader.flag("CVMFS_S3_DNS_BUCKETS", default=True),
        peek=reader.flag("CVMFS_S3_PEEK_BEFORE_PUT", default=True),
        config_file=path,
    )


def default_server_conf(name: str, directory: Path = CONFIG_DIRECTORY) -> Path:
    """Return where `cvmfs_server mkfs` puts the configuration of a repository."""
    return directory / name / "server.conf"
