"""The publisher's configuration: what `cvmfs-publish.yaml` may say, and what each key means.

Keys that interface documents promise but no code reads yet are refused: whoever writes
`webhooks:` believes that somebody listens.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any, Literal, Self

from cvmfs_publish import settings
from cvmfs_publish.errors import InputError
from cvmfs_publish.patterns import ImagePattern
from cvmfs_publish.settings import RefusedKeyError, about

FILE_NAME = "cvmfs-publish.yaml"
SYSTEM_FILE = Path("/etc/cvmfs-publish") / FILE_NAME
CONFIG_VARIABLE = "CVMFS_PUBLISH_CONFIG"

MAX_NAME = 60  # characters of a repository name; facts/cvmfs-format.md section 9.1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# host ::= name or IPv4 or [IPv6], port optional; docker's reference grammar, "domain"
_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")
_DOCKER_HUB = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
# A path of a repository, as distribution-spec has it
_MIRROR_PATH = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SIZE = re.compile(r"([0-9]+(?:_[0-9]+)*)\s*([kMGT]i?B|KiB|B)?")
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_PLAIN = re.compile(r"[A-Za-z0-9./_][A-Za-z0-9./_-]*")  # needs no quotes in YAML
# bucket ::= what Amazon allows and what other stores allow as well; prefix: plain path names
_S3_URL = re.compile(
    r"s3://([A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9])((?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*)/?"
)
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?(/[!-~]*)?")
_SITE = re.compile(r"[a-z0-9][a-z0-9_-]*")
# What is left of RFC 5322 when nothing in it needs quotes
_ADDRESS = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")
_WEB_URL = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?([/?][!-~]*)?")
_GIT_URL = re.compile(r"git\+(https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?|file://)/[!-?A-~@]+")
MAX_PRIORITY = 9  # of a wish
MAX_ADDRESS = 254  # characters of an address of e-mail; RFC 3696, erratum 1690
MAX_CATALOG_ENTRIES = 200_000  # a gateway refuses more (E-61)
MAX_CONNECTIONS = 1000
MAX_COUNT = 10_000  # of what is counted by hand
MAX_PORT = 65535
MAX_SECRET_BYTES = 64 * 1024  # a registry token; the longest in use are a few kilobytes
NOTIFY_KINDS = ("file", "webhook", "email", "program")
# Keys of `notify` that only one kind of notification has
_NOTIFY_OF = {
    "secret_file": "webhook",
    "sender": "email",
    "starttls": "email",
    "username": "email",
    "password_file": "email",
}


class RepositoryName(str):
    """The fully qualified name of a repository, `containers.example.org`."""

    __slots__ = ()
    WANTED = "a repository name such as containers.example.org"

    @classmethod
    def parse(cls, text: str) -> RepositoryName:
        """Raise `InputError` unless CernVM-FS accepts the name (cvmfs/sanitizer.h)."""
        if len(text) > MAX_NAME:
            raise InputError(
                f"{text[:MAX_NAME]!r}… is not a repository name: {len(text)} characters,"
                f" {MAX_NAME} are possible"
            )
        if not _NAME.fullmatch(text):
            raise InputError(
                f"{text!r} is not a repository name",
                hint="letters, digits, dots, hyphens and underscores, as in containers.example.org",
            )
        return cls(text)


class RegistryHost(str):
    """A registry as it stands in image names: `ghcr.io`, `localhost:5000`."""

    __slots__ = ()
    WANTED = "a registry host such as ghcr.io"

    @classmethod
    def parse(cls, text: str) -> RegistryHost:
        """Lower-case the host; Docker Hub's other names become `docker.io`."""
        if not _HOST.fullmatch(text):
            raise InputError(
                f"{text[:200]!r} is not a registry host",
                hint="write the host only, as in ghcr.io or localhost:5000",
            )
        host = text.lower()
        return cls("docker.io" if host in _DOCKER_HUB else host)


class MirrorPlace(str):
    """Where a mirror has a registry's images: `mirror.example.org`, `harbor.example.org/hub`."""

    __slots__ = ()
    WANTED = "HOST or HOST/PATH, such as harbor.example.org/hub"

    @classmethod
    def parse(cls, text: str) -> MirrorPlace:
        host, slash, path = text.partition("/")
        if slash and not _MIRROR_PATH.fullmatch(path):
            raise InputError(
                f"{text[:200]!r} is not a place of a mirror",
                hint=f"write {cls.WANTED}, without https:// and as image names are written",
            )
        return cls(f"{RegistryHost.parse(host)}{slash}{path}")

    @property
    def host(self) -> RegistryHost:
        return RegistryHost(self.partition("/")[0])

    @property
    def path(self) -> str:
        return self.partition("/")[2]


class VariableName(str):
    """The name of an environment variable."""

    __slots__ = ()
    WANTED = "the name of an environment variable such as GHCR_TOKEN"

    @classmethod
    def parse(cls, text: str) -> VariableName:
        if not _VARIABLE.fullmatch(text):
            raise InputError(
                f"{text[:3]!r}… is not the name of an environment variable",  # may be a secret
                hint=f"write {cls.WANTED}, not what it holds",
            )
        return cls(text)


class ByteSize(int):
    """A number of bytes; in a file also `20GiB` or `500 MB`."""

    WANTED = "a size such as 20GiB or 500000000"

    @classmethod
    def parse(cls, text: str) -> ByteSize:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise InputError(f"{text[:100]!r} is not a size", hint=f"write {cls.WANTED}")
        unit = match[2] or "B"
        factor = 1 if unit == "B" else (1024 if "i" in unit else 1000) ** _POWERS[unit[0]]
        size = int(match[1]) * factor
        if not 0 < size < 2**63:
            raise InputError(f"{text[:100]!r} is not a possible size", hint=f"write {cls.WANTED}")
        return cls(size)


class RootPath(str):
    """An absolute path of a bind-mount root inside a sandbox: `/nfs`, `/data/atlas`."""

    __slots__ = ()
    WANTED = "an absolute path such as /nfs"

    @classmethod
    def parse(cls, text: str) -> RootPath:
        """Raise `InputError` unless the path is absolute, normalised and printable."""
        parts = text.split("/")
        if text[:1] != "/" or not text.isprintable() or {"", ".", ".."} & set(parts[1:]):
            raise InputError(
                f"{text[:200]!r} cannot be a root inside an image",
                hint="write an absolute path without a slash at its end, as in /nfs",
            )
        return cls(text)


class SiteName(str):
    """The name of a site configuration that is found among the installed ones."""

    __slots__ = ()
    WANTED = "the name of a site"

    @classmethod
    def parse(cls, text: str) -> SiteName:
        if not _SITE.fullmatch(text):
            raise InputError(
                f"{text[:100]!r} is not the name of a site",
                hint="use small letters, digits, - and _, a letter or digit first",
            )
        return cls(text)


class S3Url(str):
    """A place in an S3-compatible object store: `s3://bucket/prefix`."""

    __slots__ = ()
    WANTED = "s3://BUCKET/PREFIX (plain names; a bucket's has three characters and more)"

    @classmethod
    def parse(cls, text: str) -> S3Url:
        if not _S3_URL.fullmatch(text):
            raise InputError(
                f"{text[:200]!r} is no place in an object store",
                hint="write s3://BUCKET/PREFIX, with letters, digits, dots, hyphens, underscores",
            )
        return cls(text.rstrip("/"))

    @property
    def bucket(self) -> str:
        return self[5:].partition("/")[0]

    @property
    def prefix(self) -> str:
        return self[5:].partition("/")[2]


class Endpoint(str):
    """The URL of an object store."""

    __slots__ = ()
    WANTED = "a URL such as https://s3.example.org"

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        found = _ENDPOINT.fullmatch(text)
        if not found or int((found[2] or ":0")[1:]) > MAX_PORT:
            raise InputError(f"{text[:200]!r} is no URL", hint=f"write {cls.WANTED}")
        return cls(text.rstrip("/"))


class MailAddress(str):
    """An address of e-mail, alone: `someone@example.org`."""

    __slots__ = ()
    WANTED = "an address of e-mail such as someone@example.org"

    @classmethod
    def parse(cls, text: str) -> MailAddress:
        if len(text) > MAX_ADDRESS or not _ADDRESS.fullmatch(text):
            raise InputError(
                f"{text[:100]!r} is not an address of e-mail",
                hint="write the address alone, as in someone@example.org",
            )
        return cls(text)


class Owner(str):
    """Who answers for a wish: an address of e-mail, or a name."""

    __slots__ = ()
    WANTED = "a name or an address such as someone@example.org"

    @classmethod
    def parse(cls, text: str) -> Owner:
        """Raise `InputError` for what is no line of text, or an address that is none."""
        if not text.strip() or len(text) > MAX_ADDRESS or not text.isprintable():
            raise InputError(f"{text[:60]!r} is not {cls.WANTED}")
        return cls(MailAddress.parse(text) if "@" in text else text)

    @property
    def is_address(self) -> bool:
        return "@" in self


class WebUrl(str):
    """A URL of a web server; it holds no login."""

    __slots__ = ()
    WANTED = "a URL such as https://example.org/hook"

    @classmethod
    def parse(cls, text: str) -> WebUrl:
        found = _WEB_URL.fullmatch(text)
        if not found or int((found[2] or ":0")[1:]) > MAX_PORT:
            raise InputError(f"{text[:200]!r} is no URL", hint=f"write {cls.WANTED}")
        return cls(text)


class ListUrl(str):
    """Where a wishlist is, if it is no file: on a web server, or in a git repository."""

    __slots__ = ()
    WANTED = "a URL such as https://example.org/images.txt or git+https://example.org/lists.git"

    @classmethod
    def parse(cls, text: str) -> ListUrl:
        if text.startswith("git+"):
            if not _GIT_URL.fullmatch(text):
                raise InputError(
                    f"{text[:200]!r} is no git repository",
                    hint="write git+https://HOST/REPOSITORY.git//PATH@BRANCH, without a login",
                )
            return cls(text)
        return cls(WebUrl.parse(text))


@dataclass(frozen=True)
class S3Keys:
    """How an object store is reached, and as whom."""

    endpoint: Endpoint | None = field(
        default=None,
        metadata=about(
            "the store's URL; else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or Amazon's of the region"
        ),
    )
    region: str | None = field(
        default=None,
        metadata=about("the store's region; else AWS_REGION, AWS_DEFAULT_REGION, or us-east-1"),
    )
    virtual_host: bool = field(
        default=False,
        metadata=about("the bucket is part of the host's name instead of the URL's path"),
    )
    access_key: str | None = field(
        default=None, metadata=about("the access key; else AWS_ACCESS_KEY_ID")
    )
    secret_key: str | None = field(
        default=None,
        repr=False,
        metadata=about("the secret key; better kept in `secret_key_file`"),
    )
    secret_key_file: Path | None = field(
        default=None,
        metadata=about(
            "a file that holds the secret key and nothing else, closed to others;"
            " else AWS_SECRET_ACCESS_KEY"
        ),
    )
    session_token: str | None = field(
        default=None,
        repr=False,
        metadata=about("the token of temporary keys; else AWS_SESSION_TOKEN"),
    )

    def __post_init__(self) -> None:
        if self.secret_key is not None and self.secret_key_file is not None:
            raise InputError("secret_key and secret_key_file are both given", hint="remove one")
        has_secret = self.secret_key is not None or self.secret_key_file is not None
        if has_secret != (self.access_key is not None):
            missing = "access_key" if has_secret else "secret_key_file"
            raise InputError(f"{missing} is missing: the two keys belong together")
        for name in ("region", "access_key", "secret_key", "session_token"):
            if not (getattr(self, name) or "").isprintable():
                raise InputError(
                    f"{name}: holds a character that is none of a key's, such as a line break",
                    hint=f"copy it once more, to where it is given: `repository.s3.{name}` or the"
                    " variables AWS_…",
                )

    def completed(self, environ: Mapping[str, str]) -> Self:
        """Return this with what it leaves open taken from Amazon's usual variables."""
        endpoint = environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL")
        found = replace(
            self,
            endpoint=self.endpoint or (Endpoint.parse(endpoint) if endpoint else None),
            region=self.region
            or environ.get("AWS_REGION")
            or environ.get("AWS_DEFAULT_REGION")
            or None,
        )
        key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
        if self.access_key is not None or not key or not secret:
            return found
        token = environ.get("AWS_SESSION_TOKEN") or None
        return replace(found, access_key=key, secret_key=secret, session_token=token)

    def read_secret_key(self) -> str | None:
        """Return the secret key, from its file if that is where it is; None if there is none."""
        if self.secret_key_file is None:
            return self.secret_key
        return _read_secret(self.secret_key_file, "secret key", is_private=True)


@dataclass(frozen=True)
class S3Config(S3Keys):
    """How the object store of an s3:// storage is reached."""

    connections: int = field(
        default=64,
        metadata=about("requests at the same time; fewer if the store answers SlowDown"),
    )
    lease: timedelta = field(
        default=timedelta(minutes=1),
        metadata=about(
            "the lock of a publisher that died on another host is free after this time;"
            " 15 seconds to 1 hour"
        ),
    )

    def __post_init__(self) -> None:
        S3Keys.__post_init__(self)
        if not 1 <= self.connections <= MAX_CONNECTIONS:
            raise InputError(
                f"connections: wants a number from 1 to {MAX_CONNECTIONS}, found {self.connections}"
            )
        if not timedelta(seconds=15) <= self.lease <= timedelta(hours=1):
            raise InputError(f"lease: wants 15s to 1h, found {self.lease.total_seconds():.0f}s")


@dataclass(frozen=True)
class DirectoryConfig:
    """How a plain tree of files is written."""

    share: Literal["auto", "hardlink", "reflink"] | bool = field(
        default="auto",
        metadata=about(
            "how equal files take space once: `hardlink`, those that are the same in content, mode,"
            " owner and time are one file; `reflink`, those with the same content share its blocks,"
            " on file systems that can (btrfs, XFS); `auto`, both where possible; `false`, not at"
            " all"
        ),
    )
    lock_wait: timedelta = field(
        default=timedelta(),
        metadata=about("how long to wait for another publisher to end before giving up"),
    )
    lease: timedelta = field(
        default=timedelta(minutes=2),
        metadata=about(
            "the lock of a publisher that died on another host is free a minute after this time;"
            " 30 seconds to 1 hour"
        ),
    )

    def __post_init__(self) -> None:
        if not timedelta(seconds=30) <= self.lease <= timedelta(hours=1):
            raise InputError(f"lease: wants 30s to 1h, found {self.lease.total_seconds():.0f}s")

    @property
    def how_to_share(self) -> Literal["auto", "hardlink", "reflink"] | None:
        """What `share` says, `true` meaning `auto`; None: not at all."""
        if isinstance(self.share, bool):
            return "auto" if self.share else None
        return self.share


LEASE_WAIT = timedelta(minutes=10)


@dataclass(frozen=True)
class CvmfsServerConfig:
    """How the program `cvmfs_server` is used."""

    server_conf: Path | None = field(
        default=None,
        metadata=about(
            "what `cvmfs_server mkfs` wrote; by default /etc/cvmfs/repositories.d/NAME/server.conf"
        ),
    )
    mount: Path | None = field(
        default=None, metadata=about("where the repository is mounted; by default /cvmfs/NAME")
    )
    program: str = field(
        default="cvmfs_server", metadata=about("the program, or its path if it is not in PATH")
    )
    method: Literal["auto", "ingest", "transaction"] = field(
        default="auto",
        metadata=about(
            "how sandboxes go in: `transaction`, written into the mount; `ingest`, as a tar stream"
            " where that loses nothing; `auto`, as a tar stream where it is also quicker"
        ),
    )
    timeout: timedelta = field(
        default=timedelta(hours=6), metadata=about("how long one command may take")
    )
    lock_wait: timedelta = field(
        default=timedelta(),
        metadata=about("how long to wait for another writer to end before giving up"),
    )
    lease_wait: timedelta = field(
        default=LEASE_WAIT,
        metadata=about(
            "behind a gateway: how long to wait for a lease that another publisher holds"
        ),
    )

    def __post_init__(self) -> None:
        if self.timeout < timedelta(seconds=1):
            raise InputError(
                f"timeout: wants 1s or more, found {self.timeout.total_seconds():.0f}s"
            )


class TextPattern(str):
    """What a text is compared with: `*` stands for any characters; case does not matter."""

    __slots__ = ()
    WANTED = "a text, in which `*` stands for any characters"

    @classmethod
    def parse(cls, text: str) -> TextPattern:
        if not text or not text.isprintable():
            raise InputError(f"{text[:60]!r} is not {cls.WANTED}")
        return cls(text)


@dataclass(frozen=True)
class ImageRule:
    """Some images: those for which everything holds that is said here."""

    match: ImagePattern = field(
        default=ImagePattern.parse("*"),
        metadata=about(
            "their names: REGISTRY/REPOSITORY[:TAG], `*` for any characters; by default all"
        ),
    )
    labels: Mapping[str, tuple[TextPattern, ...]] = field(
        default_factory=dict,
        metadata=about(
            "what their labels or annotations say, by key: texts of which one has to fit, `*` for"
            " any characters"
        ),
    )
    platforms: tuple[TextPattern, ...] = field(
        default=(),
        metadata=about("what they are for: OS/ARCH[/VARIANT], of which one has to fit"),
    )
    reason: str = field(
        default="", metadata=about("why, told to whoever wants another image to be published")
    )

    def __post_init__(self) -> None:
        for key, texts in self.labels.items():
            if not texts:
                raise RefusedKeyError(
                    ("labels", key), "names no text", hint='["*"] stands for every text'
                )


def as_rules(items: tuple[ImagePattern | ImageRule, ...]) -> tuple[ImageRule, ...]:
    """Return all of a list in the same form."""
    return tuple(each if isinstance(each, ImageRule) else ImageRule(each) for each in items)


@dataclass(frozen=True)
class RepositoryConfig:
    """Where the repository is and how it is written."""

    name: RepositoryName = field(metadata=about("the repository's full name, as under /cvmfs"))
    backend: Literal["native", "directory", "cvmfs_server"] = field(
        default="native",
        metadata=about(
            "what kind of repository: `native`, CernVM-FS without its software here; `directory`, a"
            " plain tree of files on a file system that workers mount; `cvmfs_server`, CernVM-FS"
            " written by that program"
        ),
    )
    storage: S3Url | Path = field(
        default=Path("repository"),
        metadata=about(
            "the folder that holds the repository and that a web server serves,"
            " or s3://BUCKET/PREFIX",
            later="swift://.*",
        ),
    )
    s3: S3Config = field(
        default_factory=S3Config,
        metadata=about("how the object store of an s3:// storage is reached"),
    )
    keys: Path = field(
        default=Path("keys"),
        metadata=about(
            "the folder of NAME.pub, NAME.crt, NAME.key and NAME.masterkey;"
            " the master key may be kept elsewhere and offline"
        ),
    )
    layout: Literal["unpacked", "osg"] = field(
        default="unpacked",
        metadata=about(
            "how images are named in the repository: `unpacked` as on unpacked.cern.ch,"
            " REGISTRY/REPOSITORY:TAG; `osg`: REPOSITORY:TAG as well, as on"
            " singularity.opensciencegrid.org"
        ),
    )
    hash: Literal["sha1", "shake128", "rmd160"] = field(
        default="sha1",
        metadata=about("the content hash of new objects; every client understands sha1"),
    )
    compression: Literal["adaptive", "zlib", "fast", "none"] = field(
        default="adaptive",
        metadata=about(
            "how new file contents are stored: `adaptive` as fast as possible within 1.08 times the"
            " size of zlib, `zlib` exactly as the stock server does, `fast` with little effort,"
            " `none` as they are"
        ),
    )
    spool: Path | None = field(
        default=None,
        metadata=about(
            "the folder /var/spool/cvmfs/NAME, where cvmfs_server writes the repository too:"
            " its locks are respected, and it learns of what is published here"
        ),
    )
    directory: DirectoryConfig = field(
        default_factory=DirectoryConfig,
        metadata=about("how a plain tree of files is written, for `backend: directory`"),
    )
    cvmfs_server: CvmfsServerConfig = field(
        default_factory=CvmfsServerConfig,
        metadata=about("how the program is used, for `backend: cvmfs_server`"),
    )
    accept: tuple[ImagePattern | ImageRule, ...] = field(
        default=(),
        metadata=about(
            "the images that may get in: patterns, or more about them; by default all, and with a"
            " list only those that one of its rules fits"
        ),
    )
    refuse: tuple[ImagePattern | ImageRule, ...] = field(
        default=(),
        metadata=about("the images that never get in, whatever `accept` says"),
    )

    def __post_init__(self) -> None:
        sections = {"directory": DirectoryConfig(), "cvmfs_server": CvmfsServerConfig()}
        for key, unset in sections.items():
            if key != self.backend and getattr(self, key) != unset:
                raise RefusedKeyError(
                    (key,), f"is for `backend: {key}`, but the backend is {self.backend}"
                )
        if self.backend == "native":
            return
        for key, default in (("hash", "sha1"), ("compression", "adaptive"), ("spool", None)):
            if getattr(self, key) != default:
                raise RefusedKeyError(
                    (key,), f"is for `backend: native`, but the backend is {self.backend}"
                )
        if isinstance(self.storage, S3Url):
            what = "a plain tree is a folder"
            if self.backend == "cvmfs_server":
                what = "where the repository is, its server.conf says"
            raise RefusedKeyError(("storage",), what, hint="object stores: `backend: native`")


@dataclass(frozen=True)
class SandboxConfig:
    """What is changed in an image on its way into the repository."""

    roots: tuple[RootPath, ...] = field(
        default=(),
        metadata=about(
            "folders to add to every image so that a site's file systems can be mounted there"
        ),
    )
    standard_roots: bool = field(
        default=True,
        metadata=about(
            "also add the well-known roots: /nfs, /gpfs, /afs, /cvmfs, /scratch, /eos and so on"
        ),
    )
    sites: tuple[SiteName | Path, ...] = field(
        default=(),
        metadata=about("sites whose own mounts become roots too: names, or paths of site files"),
    )
    permissions: Literal["readable", "strict"] = field(
        default="readable",
        metadata=about(
            "`readable`: everybody may read what the owner may, as jobs run under any account;"
            " `strict`: as in the image"
        ),
    )
    setuid: Literal["strip", "keep"] = field(
        default="strip", metadata=about("setuid and setgid bits: workers mount without them anyway")
    )
    keep_dirlinks: bool = field(
        default=False,
        metadata=about(
            "a layer's folder in place of a link to a folder fills the link's target"
            " instead of replacing the link"
        ),
    )


@dataclass(frozen=True)
class RegistryConfig:
    """How one registry is reached."""

    username: str | None = field(default=None, metadata=about("the account to log in with"))
    password: str | None = field(
        default=None,
        repr=False,
        metadata=about("its password or token; better kept in `password_file`"),
    )
    password_file: Path | None = field(
        default=None, metadata=about("a file that holds the password or token and nothing else")
    )
    password_env: VariableName | None = field(
        default=None, metadata=about("the environment variable that holds the password or token")
    )
    plain_http: bool = field(
        default=False,
        metadata=about(
            "speak HTTP instead of HTTPS; only for a registry on this machine or a trusted network"
        ),
    )
    ca_file: Path | None = field(
        default=None,
        metadata=about(
            "certificates of authorities (PEM) to trust for this registry beside the usual ones"
        ),
    )
    mirrors: tuple[MirrorPlace, ...] = field(
        default=(),
        metadata=about(
            "mirrors and pull-through proxies to ask first, in this order: HOST or HOST/PATH"
        ),
    )
    mirror_tags: bool = field(
        default=True,
        metadata=about(
            "also ask the mirrors what a tag names; false: the registry says so, and mirrors only"
            " give bytes by digest"
        ),
    )
    pulls_per_hour: int | None = field(
        default=None,
        metadata=about("GETs of manifests in any 60 minutes, which is what Docker Hub limits"),
    )
    requests_per_hour: int | None = field(
        default=None, metadata=about("requests of any kind in any 60 minutes")
    )
    foreign_layers: bool = field(
        default=False,
        metadata=about(
            "fetch layers that the registry does not have from the addresses in its manifests;"
            " whoever makes an image can then have any web server asked"
        ),
    )

    def __post_init__(self) -> None:
        given = [
            name
            for name in ("password", "password_file", "password_env")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise InputError(f"{' and '.join(given)} are both given", hint="remove one of them")
        if bool(given) != (self.username is not None):
            missing = "username" if given else "password_file"
            raise InputError(f"{missing} is missing: a login needs an account and a password")
        for name in ("pulls_per_hour", "requests_per_hour"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(
                    f"{name}: wants a number above zero, found {getattr(self, name)}",
                    hint="leave it out where there is no limit",
                )

    def read_password(self, environ: Mapping[str, str]) -> str | None:
        """Return the password from where it is; None without a login."""
        if self.password_env is not None:
            password = environ.get(self.password_env, "")
            if not password or not password.isprintable():
                raise InputError(
                    f"password_env {self.password_env}: the variable"
                    f" {'is not set' if not password else 'does not hold one line'}",
                    hint="set it where cvmfs-publish runs, or use `password_file`",
                )
            return password
        if self.password_file is None:
            return self.password
        return _read_secret(self.password_file, "password")


def _read_secret(path: Path, what: str, *, is_private: bool = False) -> str:
    """Return the one line of a file; `is_private`: refuse one that others may read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as exc:
        raise InputError(f"{what} file {path}: cannot be read: {exc.strerror or exc}") from exc
    if is_private and mode & 0o077:
        raise InputError(
            f"{what} file {path}: is open to others (mode {mode:04o})", hint=f"chmod 400 {path}"
        )
    text = data.decode("utf-8", "replace").strip()
    if not text or len(data) > MAX_SECRET_BYTES or not text.isprintable():
        raise InputError(f"{what} file {path}: does not hold one line with a {what}")
    return text


@dataclass(frozen=True)
class SwiftConfig:
    """How the OpenStack Swift of swift:// images is reached."""

    auth_url: Endpoint | None = field(
        default=None,
        metadata=about(
            "where logins are made, version 3 if it has /v3 in it, else version 1;"
            " else OS_AUTH_URL or ST_AUTH"
        ),
    )
    user: str | None = field(
        default=None,
        metadata=about("the user, `ACCOUNT:USER` in version 1; else OS_USERNAME or ST_USER"),
    )
    key: str | None = field(
        default=None, repr=False, metadata=about("its password; better kept in `key_file`")
    )
    key_file: Path | None = field(
        default=None,
        metadata=about(
            "a file that holds the password and nothing else, closed to others;"
            " else OS_PASSWORD or ST_KEY"
        ),
    )
    project: str | None = field(
        default=None, metadata=about("the project, in version 3; else OS_PROJECT_NAME")
    )
    user_domain: str | None = field(
        default=None,
        metadata=about("the user's domain, in version 3; else OS_USER_DOMAIN_NAME, or Default"),
    )
    project_domain: str | None = field(
        default=None,
        metadata=about(
            "the project's domain, in version 3; else OS_PROJECT_DOMAIN_NAME, or Default"
        ),
    )
    region: str | None = field(
        default=None,
        metadata=about(
            "the region whose store is meant, if there are several; else OS_REGION_NAME"
        ),
    )
    storage_url: Endpoint | None = field(
        default=None,
        metadata=about(
            "the URL of the containers; without a login for public ones; else OS_STORAGE_URL,"
            " or as the login says"
        ),
    )

    def __post_init__(self) -> None:
        if self.key is not None and self.key_file is not None:
            raise InputError("key and key_file are both given", hint="remove one of them")
        if (self.key is not None or self.key_file is not None) != (self.user is not None):
            raise InputError("a login needs both: user, and key_file or key")

    def completed(self, environ: Mapping[str, str]) -> SwiftConfig:
        """Return this with what it leaves open taken from OpenStack's usual variables."""

        def first(*names: str) -> str | None:
            return next((environ[name] for name in names if environ.get(name)), None)

        def url(*names: str) -> Endpoint | None:
            text = first(*names)
            return Endpoint.parse(text) if text else None

        found = replace(
            self,
            auth_url=self.auth_url or url("OS_AUTH_URL", "ST_AUTH"),
            storage_url=self.storage_url or url("OS_STORAGE_URL"),
            project=self.project or first("OS_PROJECT_NAME"),
            user_domain=self.user_domain or first("OS_USER_DOMAIN_NAME"),
            project_domain=self.project_domain or first("OS_PROJECT_DOMAIN_NAME"),
            region=self.region or first("OS_REGION_NAME"),
        )
        user, key = first("OS_USERNAME", "ST_USER"), first("OS_PASSWORD", "ST_KEY")
        if self.user is not None or not user or not key:
            return found
        return replace(found, user=user, key=key)

    def read_key(self) -> str | None:
        """Return the password, from its file if that is where it is; None if there is none."""
        if self.key_file is None:
            return self.key
        return _read_secret(self.key_file, "password", is_private=True)


@dataclass(frozen=True)
class SourcesConfig:
    """Where images come from that are in no registry."""

    s3: S3Keys = field(
        default_factory=S3Keys,
        metadata=about("how s3:// images are reached; without keys only public ones are"),
    )
    swift: SwiftConfig = field(
        default_factory=SwiftConfig, metadata=about("how swift:// images are reached")
    )
    library: RegistryHost = field(
        default=RegistryHost("library.sylabs.io"),
        metadata=about("the host of library:// images that name none"),
    )
    shub: RegistryHost = field(
        default=RegistryHost("singularity-hub.org"),
        metadata=about("the host of shub:// images that name none"),
    )


@dataclass(frozen=True)
class LimitsConfig:
    """What an image may cost before it is refused."""

    image_bytes: ByteSize = field(
        default=ByteSize(256 * 1024**3), metadata=about("unpacked bytes of one image")
    )
    layer_bytes: ByteSize = field(
        default=ByteSize(256 * 1024**3), metadata=about("unpacked bytes of one layer")
    )
    entries: int = field(
        default=500_000,
        metadata=about(
            "files, folders and links of one image; the largest seen in the field has 226,831"
        ),
    )
    path_bytes: int = field(
        default=4095,
        metadata=about("length of a path inside an image; Linux opens none longer than 4095"),
    )
    path_depth: int = field(
        default=256,
        metadata=about("folders above a file inside an image, itself included; real ones have 30"),
    )
    compression_ratio: int = field(
        default=200, metadata=about("unpacked bytes per byte of a layer; real layers stay below 20")
    )
    manifest_bytes: ByteSize = field(
        default=ByteSize(4 * 1024**2),
        metadata=about("size of a manifest or index; registries take no larger ones"),
    )
    config_bytes: ByteSize = field(
        default=ByteSize(8 * 1024**2),
        metadata=about("size of an image's configuration; real ones have 100 kB"),
    )

    def __post_init__(self) -> None:
        for name in ("entries", "path_bytes", "path_depth", "compression_ratio"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: wants a number above zero, found {getattr(self, name)}")


@dataclass(frozen=True)
class NestingConfig:
    """How the repository's index is divided into catalogs, which clients download one by one."""

    max_entries: int = field(
        default=10_000,
        metadata=about(
            "the most entries of one catalog; images of more than half of that are divided, so"
            " that a job fetches only the parts of the index that it looks at; 1,000 to 200,000"
        ),
    )

    def __post_init__(self) -> None:
        if self.max_entries < 1000:
            raise InputError(
                f"max_entries: {self.max_entries} would make thousands of catalogs",
                hint="write 1000 or more",
            )
        if self.max_entries > MAX_CATALOG_ENTRIES:
            raise InputError(
                f"max_entries: {self.max_entries} is more than the {MAX_CATALOG_ENTRIES} that a"
                " gateway accepts in one catalog",
                hint="write 200000 or less",
            )


@dataclass(frozen=True)
class HistoryConfig:
    """Which revisions get a name of their own, a tag."""

    automatic_tags: Literal["off", "forever"] | timedelta = field(
        default="off",
        metadata=about(
            "name every new revision `generic-TIME` and drop such names after this time, as"
            " CVMFS_AUTO_TAG and CVMFS_AUTO_TAG_TIMESPAN do"
        ),
    )

    @property
    def span(self) -> timedelta | None:
        """How long automatic tags live; None: there are none."""
        if isinstance(self.automatic_tags, timedelta):
            return self.automatic_tags
        return None if self.automatic_tags == "off" else timedelta.max


@dataclass(frozen=True)
class FallbackConfig:
    """Where every image is also kept as one file, for nodes that CernVM-FS cannot serve."""

    store: S3Url | Path = field(
        metadata=about(
            "the folder of the files, which a web server serves, or s3://BUCKET/PREFIX; it belongs"
            " to this repository alone and is not inside it"
        )
    )
    s3: S3Config | None = field(
        default=None,
        metadata=about("how an s3:// store is reached; by default as `repository.s3` says"),
    )
    format: Literal["sif", "tar.gz"] = field(
        default="sif",
        metadata=about(
            "`sif`: Apptainer and Singularity run the file as it is, needs squashfs-tools 4.5 here;"
            " `tar.gz`: nodes unpack it, for every runtime"
        ),
    )
    max_bytes: ByteSize | None = field(
        default=None, metadata=about("bytes of one file; an image that needs more is refused")
    )


class PageUrl(str):
    """Where browsers find the status site: `https://images.example.org`."""

    __slots__ = ()
    WANTED = "a URL without a path, such as https://images.example.org"

    @classmethod
    def parse(cls, text: str) -> PageUrl:
        found = _ENDPOINT.fullmatch(text)
        if not found or (found[3] or "/") != "/" or int((found[2] or ":0")[1:]) > MAX_PORT:
            raise InputError(f"{text[:200]!r} is no such URL", hint=f"write {cls.WANTED}")
        return cls(text.rstrip("/"))


@dataclass(frozen=True)
class WebConfig:
    """What the status site shows, and who may change something there."""

    token_file: Path | None = field(
        default=None,
        metadata=about(
            "a file that holds the token and nothing else, closed to others: whoever has the token"
            " may have images published; without it the pages only show"
        ),
    )
    url: PageUrl | None = field(
        default=None,
        metadata=about("what browsers call this place, where a proxy stands in between"),
    )
    sites: tuple[SiteName | Path, ...] = field(
        default=(),
        metadata=about(
            "sites whose commands the pages of images show: names, or paths of site files; by"
            " default those of `sandbox.sites`, or the site `generic`"
        ),
    )

    def read_token(self) -> str | None:
        """Return the token; None if nobody may change anything."""
        if self.token_file is None:
            return None
        return _read_secret(self.token_file, "token", is_private=True)


@dataclass(frozen=True)
class WatchConfig:
    """How `watch` finds out what to publish, and publishes it."""

    interval: timedelta = field(
        default=timedelta(minutes=15),
        metadata=about(
            "how often every wished image is looked at, spread evenly, and wishlists are read;"
            " webhooks and changed files do not wait for it"
        ),
    )
    tags: timedelta = field(
        default=timedelta(hours=1),
        metadata=about(
            "how often the tags of a repository are listed, of which a wishlist wishes a pattern"
        ),
    )
    listen: str | None = field(
        default=None,
        metadata=about("HOST:PORT of the status site, webhooks and metrics; --listen goes first"),
    )
    drop: Path | None = field(
        default=None,
        metadata=about(
            "a folder: archives and SIF files that are put there are published, under the name"
            " they have inside or by where they lie, REGISTRY/REPOSITORY/TAG.tar"
        ),
    )
    batch: int = field(
        default=16, metadata=about("images that wait together and are published in one revision")
    )
    quarantine_after: int = field(
        default=5,
        metadata=about(
            "attempts without success after which an image is left alone until it changes; a"
            " registry that is down does not count"
        ),
    )
    weights: Mapping[str, int] = field(
        default_factory=dict,
        metadata=about(
            "how many images of an owner, as wishlists name them, have their turn when others"
            " have one"
        ),
    )

    def __post_init__(self) -> None:
        for name in ("interval", "tags"):
            span = getattr(self, name)
            if span < timedelta(seconds=1):
                raise InputError(f"{name}: wants 1s or more, found {span.total_seconds():g}s")
        numbers = {"batch": self.batch, "quarantine_after": self.quarantine_after}
        numbers |= {f"weights.{owner}": weight for owner, weight in self.weights.items()}
        for name, number in numbers.items():
            if not 1 <= number <= MAX_COUNT:
                raise InputError(f"{name}: wants a number from 1 to {MAX_COUNT}, found {number}")


@dataclass(frozen=True)
class RetentionConfig:
    """What `watch` keeps of images that are replaced or no longer wished."""

    keep_replaced: timedelta = field(
        default=timedelta(days=30),
        metadata=about(
            "how long an image stays that no name leads to any more; counted from when the last"
            " one left it, as jobs may still run in it.  A wishlist may say otherwise for its own"
        ),
    )
    remove_unlisted: bool = field(
        default=False,
        metadata=about(
            "unpublish names that no wishlist wishes any more, once lists have been read without"
            " them for a day"
        ),
    )
    max_share: float = field(
        default=5.0,
        metadata=about("percent of all names that may be unpublished so in an hour; at least one"),
    )
    gc: Literal["off"] | timedelta = field(
        default=timedelta(days=1), metadata=about("how often garbage is collected, or off")
    )
    keep_revisions: int = field(
        default=1, metadata=about("predecessors of the published revision to keep, however old")
    )

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 100:
            raise InputError(f"max_share: wants a number up to 100, found {self.max_share:g}")
        if self.keep_revisions < 0:
            raise InputError(f"keep_revisions: wants 0 or more, found {self.keep_revisions}")


@dataclass(frozen=True)
class WishlistConfig:
    """Where a wishlist is, and what goes with its wishes where it says nothing else."""

    source: ListUrl | Path = field(
        metadata=about(
            "a file, a folder of lists, an http(s) URL, or git+https://HOST/REPOSITORY//PATH@BRANCH",
            key="from",
        )
    )
    format: Literal["own", "ducc", "osg"] | None = field(
        default=None, metadata=about("the format of the list; by default found out")
    )
    owner: Owner | None = field(
        default=None, metadata=about("who is told of problems: an address of e-mail, or a name")
    )
    keep_replaced: timedelta | None = field(
        default=None, metadata=about("how long replaced images stay, such as 30d")
    )
    priority: int | None = field(
        default=None,
        metadata=about("from -9 to 9; the higher, the earlier its images are published"),
    )

    def __post_init__(self) -> None:
        if not -MAX_PRIORITY <= (self.priority or 0) <= MAX_PRIORITY:
            raise InputError(
                f"priority: wants a number from -{MAX_PRIORITY} to {MAX_PRIORITY},"
                f" found {self.priority}"
            )


@dataclass(frozen=True)
class HookConfig:
    """What is known of one source of webhooks."""

    registry: RegistryHost | None = field(
        default=None, metadata=about("whose images are meant where a webhook names no registry")
    )
    hosts: Mapping[RegistryHost, RegistryHost] = field(
        default_factory=dict,
        metadata=about("registries as webhooks name them, and as wishlists name them"),
    )


@dataclass(frozen=True)
class WebhooksConfig:
    """Who may tell that an image was pushed."""

    secret_file: Path = field(
        metadata=about(
            "a file with the secret of all who send webhooks, 16 characters or more, closed to"
            " others"
        )
    )
    sources: Mapping[
        Literal["distribution", "harbor", "gitlab", "github", "generic"], HookConfig
    ] = field(
        default_factory=dict,
        metadata=about("the products that may send, as in /hooks/SOURCE; by default all of them"),
    )

    def read_secret(self) -> str:
        """Return the secret.  Raises `InputError` if it cannot be read, or others can read it."""
        return _read_secret(self.secret_file, "webhook secret", is_private=True)


@dataclass(frozen=True)
class NotifyConfig:
    """Who is told of what happens, and how: one of `file`, `webhook`, `email`, `program`."""

    file: Path | None = field(
        default=None, metadata=about("a file to which every event is added as a line of JSON")
    )
    webhook: WebUrl | None = field(
        default=None, metadata=about("a URL to which events are posted as JSON")
    )
    email: tuple[Literal["owner"] | MailAddress, ...] | None = field(
        default=None,
        metadata=about("addresses of e-mail; `owner` is the owner of the wish that an event is of"),
    )
    program: tuple[str, ...] | None = field(
        default=None,
        metadata=about("a program and its arguments, started with events as JSON on its stdin"),
    )
    kinds: tuple[str, ...] = field(
        default=("*",), metadata=about("only events of these kinds; `*` and `?` as in file names")
    )
    owners: tuple[str, ...] = field(
        default=(), metadata=about("only events about wishes of these owners")
    )
    timeout: timedelta = field(
        default=timedelta(seconds=30), metadata=about("for one attempt; 1 second to 10 minutes")
    )
    secret_file: Path | None = field(
        default=None,
        metadata=about(
            "`webhook`: a file with the secret that signs what is sent, closed to others"
        ),
    )
    server: str = field(
        default="localhost:25", metadata=about("`email`: HOST:PORT of the mail server")
    )
    sender: MailAddress | None = field(
        default=None, metadata=about("`email`: the address of the sender", key="from")
    )
    starttls: bool = field(
        default=False, metadata=about("`email`: encrypt, and refuse a server that cannot")
    )
    username: str | None = field(
        default=None, metadata=about("`email`: the account at the mail server")
    )
    password_file: Path | None = field(
        default=None, metadata=about("`email`: a file with its password, closed to others")
    )

    def __post_init__(self) -> None:
        given = [name for name in NOTIFY_KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise InputError(
                f"wants one of {', '.join(NOTIFY_KINDS)}, found {found}",
                hint="write one item of the list for each",
            )
        for name, kind in _NOTIFY_OF.items():
            if kind != given[0] and getattr(self, name) not in (None, False):
                raise InputError(f"{name} belongs to {kind} and means nothing to {given[0]}")
        if self.email is not None:
            self._check_mail(self.email)
        if self.program is not None and (not self.program or not self.program[0].startswith("/")):
            raise InputError("program: wants the absolute path of a program, then its arguments")
        if not timedelta(seconds=1) <= self.timeout <= timedelta(minutes=10):
            raise InputError(f"timeout: wants 1s to 10m, found {self.timeout.total_seconds():.0f}s")

    def _check_mail(self, addresses: tuple[str, ...]) -> None:
        if not addresses:
            raise InputError("email: wants at least one address, or `owner`")
        if self.sender is None:
            raise InputError("from is missing: e-mail needs the address of its sender")
        if not _HOST.fullmatch(self.server):
            raise InputError(f"server: {self.server[:200]!r} is not HOST or HOST:PORT")
        if (self.username is None) != (self.password_file is None):
            raise InputError("username and password_file belong together")
        if self.username is not None and not self.starttls:
            raise InputError(
                "username without starttls: the password would be sent to be read by anybody",
                hint="set `starttls: true`",
            )

    def read_secret(self) -> str | None:
        """Return what signs webhooks; None if they are not signed."""
        if self.secret_file is None:
            return None
        return _read_secret(self.secret_file, "webhook secret", is_private=True)

    def read_password(self) -> str | None:
        """Return the password of the account at the mail server; None without an account."""
        if self.password_file is None:
            return None
        return _read_secret(self.password_file, "password", is_private=True)


@dataclass(frozen=True)
class TrustRule:
    """What is asked of the images that a pattern fits, before they are published."""

    match: ImagePattern = field(
        metadata=about(
            "the images: REGISTRY/REPOSITORY[:TAG], `*` for any characters; the narrowest pattern"
            " that fits an image decides, `*` alone is for all others"
        )
    )
    policy: Literal["accept", "digest", "cosign", "sif-pgp", "reject"] = field(
        metadata=about(
            "`accept`: as it comes; `digest`: only references with a digest; `cosign`: only with a"
            " signature of `cosign sign --key` by one of `keys`; `sif-pgp`: only SIF files that one"
            " of `keys` signed as a whole; `reject`: never"
        )
    )
    keys: tuple[Path, ...] = field(
        default=(),
        metadata=about(
            "files of public keys, of which one has to have signed: PEM for `cosign`; for `sif-pgp`"
            " OpenPGP, or PEM as for `apptainer sign --key`"
        ),
    )
    annotations: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about("what the signature has to say as well, as `cosign sign -a KEY=VALUE` does"),
    )
    signed_name: Literal["any", "same"] = field(
        default="any",
        metadata=about(
            "`same`: the signature has to be for an image of this name; what was signed elsewhere"
            " and copied here is refused then"
        ),
    )

    def __post_init__(self) -> None:
        needs_keys = self.policy in KEY_POLICIES
        if needs_keys and not self.keys:
            raise InputError(
                f"keys is missing: the policy {self.policy} needs public keys",
                hint="keys: [cosign.pub]",
            )
        if self.keys and not needs_keys:
            raise RefusedKeyError(("keys",), f"the policy {self.policy} looks at no keys")
        if self.policy != "cosign":
            if self.annotations:
                raise RefusedKeyError(("annotations",), "is for the policy cosign only")
            if self.signed_name != "any":
                raise RefusedKeyError(("signed_name",), "is for the policy cosign only")


KEY_POLICIES = frozenset({"cosign", "sif-pgp"})


@dataclass(frozen=True)
class ReplicaConfig:
    """A replica of the repository, and how clients reach it."""

    url: WebUrl = field(metadata=about("where the replica has the repository"))
    proxy: WebUrl | None = field(
        default=None,
        metadata=about("the HTTP proxy through which clients read it; by default none"),
    )
    compare: bool = field(
        default=False,
        metadata=about(
            "ask once more past all caches, to find a proxy that answers with an older revision"
            " than the replica has"
        ),
    )


@dataclass(frozen=True)
class NamingConfig:
    """When the name of a new image leads there."""

    after_replicas: int = field(
        default=0,
        metadata=about(
            "only when so many of `replicas` have the image; 0: at once, in the revision of the"
            " image itself"
        ),
    )
    timeout: timedelta = field(
        default=timedelta(minutes=10),
        metadata=about(
            "how long `publish` waits for them; after that the name waits for the next `publish`,"
            " `switch` or `watch`"
        ),
    )

    def __post_init__(self) -> None:
        if self.after_replicas < 0:
            raise RefusedKeyError(
                ("after_replicas",),
                f"{self.after_replicas} is no number of replicas",
                hint="0 lets names lead to new images at once",
            )


@dataclass(frozen=True)
class CommonConfig:
    """What is said of all repositories together."""

    state: Path = field(
        default=Path("state"),
        metadata=about(
            "the folder for layers already read and work in progress; may be deleted at the price"
            " of reading layers again"
        ),
    )
    sandbox: SandboxConfig = field(
        default_factory=SandboxConfig,
        metadata=about("what is changed in an image on its way into the repository"),
    )
    registries: Mapping[RegistryHost, RegistryConfig] = field(
        default_factory=dict,
        metadata=about(
            "how registries are reached, by host; where no login is given, Docker's config.json is"
            " asked"
        ),
    )
    sources: SourcesConfig = field(
        default_factory=SourcesConfig,
        metadata=about("where images come from that are in no registry"),
    )
    limits: LimitsConfig = field(
        default_factory=LimitsConfig, metadata=about("what an image may cost")
    )
    trust: tuple[TrustRule, ...] = field(
        default=(),
        metadata=about("what is asked of images; where no pattern fits, they are accepted"),
    )
    nesting: NestingConfig = field(
        default_factory=NestingConfig, metadata=about("how the index is divided")
    )
    history: HistoryConfig = field(
        default_factory=HistoryConfig, metadata=about("which revisions get a name of their own")
    )
    fallback: FallbackConfig | None = field(
        default=None,
        metadata=about("publish every image also as one file, for nodes without CernVM-FS"),
    )
    watch: WatchConfig = field(
        default_factory=WatchConfig,
        metadata=about("how `watch` finds out what to publish"),
    )
    retention: RetentionConfig = field(
        default_factory=RetentionConfig,
        metadata=about("what `watch` keeps of images that are replaced or no longer wished"),
    )
    web: WebConfig = field(
        default_factory=WebConfig, metadata=about("the status site, and who may do what there")
    )
    wishlists: tuple[ListUrl | Path | WishlistConfig, ...] = field(
        default=(), metadata=about("where the lists of wanted images are: files, folders, URLs")
    )
    webhooks: WebhooksConfig | None = field(
        default=None, metadata=about("who may tell that an image was pushed; by default nobody")
    )
    notify: tuple[NotifyConfig, ...] = field(
        default=(), metadata=about("who is told of what happens")
    )
    replicas: tuple[WebUrl | ReplicaConfig, ...] = field(
        default=(),
        metadata=about("replicas (Stratum 1) of the repository: their URLs, or more about each"),
    )
    naming: NamingConfig = field(
        default_factory=NamingConfig, metadata=about("when the names of new images lead there")
    )


@dataclass(frozen=True)
class Config(CommonConfig):
    """Everything that holds for one repository."""

    repository: RepositoryConfig = field(
        kw_only=True, metadata=about("where the repository is and how it is written")
    )
    common_state: Path | None = field(
        default=None,
        metadata=about("`state` as the file says it, if there are several repositories"),
    )

    common_listen: str | None = field(
        default=None,
        metadata=about("`watch.listen` as the file says it, if there are several repositories"),
    )

    @property
    def shared_state(self) -> Path:
        """The folder of what does not belong to one repository."""
        return self.common_state or self.state

    @property
    def is_one_of_several(self) -> bool:
        """Whether there are other repositories in the same file."""
        return self.common_state is not None

    @property
    def known_replicas(self) -> tuple[ReplicaConfig, ...]:
        """All replicas in the same form, in their order."""
        return tuple(
            each if isinstance(each, ReplicaConfig) else ReplicaConfig(each)
            for each in self.replicas
        )

    def __post_init__(self) -> None:
        seen: dict[tuple[str, str, str], int] = {}
        for number, rule in enumerate(self.trust):
            first = seen.setdefault(rule.match.key, number)
            if first != number:
                raise RefusedKeyError(
                    ("trust", number, "match"),
                    f"{rule.match} is the same pattern as that of trust[{first}]",
                    hint="remove one of the two rules",
                )
        urls: set[WebUrl] = set()
        for number, replica in enumerate(self.known_replicas):
            if replica.url in urls:
                raise RefusedKeyError(
                    ("replicas", number),
                    f"{replica.url} is named twice",
                    hint="remove one: each replica counts once",
                )
            urls.add(replica.url)
        if self.naming.after_replicas > len(self.replicas):
            raise RefusedKeyError(
                ("naming", "after_replicas"),
                f"is {self.naming.after_replicas}, but `replicas` names {len(self.replicas)}",
                hint="name the replicas, or wait for fewer of them",
            )
        self._check_backend()

    def _check_backend(self) -> None:
        if self.repository.backend == "native":
            return
        if self.history.automatic_tags != "off":
            raise RefusedKeyError(
                ("history", "automatic_tags"),
                f"is for `backend: native`, but the backend is {self.repository.backend}",
                hint="`cvmfs_server` has CVMFS_AUTO_TAG; a plain tree has no revisions to name",
            )
        if self.fallback is not None:
            raise RefusedKeyError(
                ("fallback",),
                f"is for `backend: native`, but the backend is {self.repository.backend}",
            )


@dataclass(frozen=True)
class MemberConfig(RepositoryConfig):
    """One repository of several: where it is, which images it gets, and what is special of it."""

    name: RepositoryName = field(init=False, default=RepositoryName(""))  # the section's key
    sites: tuple[SiteName | Path, ...] = field(
        default=(),
        metadata=about(
            "the sites that mount this repository, beside those of `sandbox.sites`: their own"
            " mounts become roots in it"
        ),
    )
    listen: str | None = field(
        default=None,
        metadata=about(
            "HOST:PORT of this repository's status site; `watch.listen` is for what all share"
        ),
    )
    replicas: tuple[WebUrl | ReplicaConfig, ...] = field(
        default=(), metadata=about("replicas (Stratum 1) of this repository")
    )
    fallback: FallbackConfig | None = field(
        default=None, metadata=about("publish every image of this repository also as one file")
    )
    wishlists: tuple[ListUrl | Path | WishlistConfig, ...] | None = field(
        default=None,
        metadata=about("the lists of images wanted here, in place of those that are for all"),
    )
    retention: RetentionConfig | None = field(
        default=None, metadata=about("what `watch` keeps here, in place of what is said for all")
    )
    history: HistoryConfig | None = field(
        default=None,
        metadata=about("which revisions get a name here, in place of what is said for all"),
    )
    naming: NamingConfig | None = field(
        default=None,
        metadata=about("when names lead to new images here, in place of what is said for all"),
    )
    web: WebConfig | None = field(
        default=None,
        metadata=about("this repository's status site, in place of what is said for all"),
    )


@dataclass(frozen=True)
class ConfigFile(CommonConfig):
    """Everything `cvmfs-publish.yaml` says."""

    repository: RepositoryConfig | None = field(
        default=None, metadata=about("where the repository is and how it is written")
    )
    repositories: Mapping[RepositoryName, MemberConfig] | None = field(
        default=None,
        metadata=about(
            "in place of `repository`: several of them, by full name, for which the rest of this"
            " file holds"
        ),
    )

    def __post_init__(self) -> None:
        if self.repositories is None:
            if self.repository is None:
                raise InputError(
                    "required key 'repository' missing",
                    hint="`cvmfs-publish init NAME` writes a file that is complete",
                )
        elif self.repository is not None:
            raise RefusedKeyError(
                ("repositories",),
                "and `repository` are both given",
                hint="move `repository` below `repositories`, its name becoming the key",
            )
        elif not self.repositories:
            raise RefusedKeyError(("repositories",), "names no repository")
        else:
            self._check_members(self.repositories)
        for _ in self.configs:  # each of them checks itself
            pass

    def _check_members(self, members: Mapping[RepositoryName, MemberConfig]) -> None:
        for section in ("replicas", "fallback"):
            if getattr(self, section):
                raise RefusedKeyError(
                    (section,),
                    "belongs to one repository, and there are several",
                    hint=f"move it to `repositories.NAME.{section}`",
                )
        if self.web.url is not None:
            raise RefusedKeyError(
                ("web", "url"),
                "belongs to one repository, and there are several",
                hint="say it below `repositories.NAME.web`",
            )
        taken: list[tuple[S3Url | Path, RepositoryName]] = []
        for name, member in members.items():
            places: list[tuple[tuple[str, ...], S3Url | Path | None]] = [(("spool",), member.spool)]
            if member.backend != "cvmfs_server":  # its server.conf says where it is
                places.append((("storage",), member.storage))
            if member.fallback is not None:
                places.append((("fallback", "store"), member.fallback.store))
            for key, place in places:
                for other, owner in taken:
                    if place is not None and owner != name and _overlap(place, other):
                        raise RefusedKeyError(
                            ("repositories", name, *key),
                            f"{place} is in the way of {other}, which belongs to {owner}",
                            hint="give each repository a place of its own",
                        )
            taken += [(place, name) for _, place in places if place is not None]

    @property
    def configs(self) -> tuple[Config, ...]:
        """What holds for each repository, in the order of the file."""
        common = {entry.name: getattr(self, entry.name) for entry in fields(CommonConfig)}
        if self.repositories is None:
            return (Config(**common, repository=self.repository),) if self.repository else ()
        return tuple(
            self._config_of(name, member, common) for name, member in self.repositories.items()
        )

    def _config_of(
        self, name: RepositoryName, member: MemberConfig, common: Mapping[str, Any]
    ) -> Config:
        own = {
            entry.name: getattr(member, entry.name)
            for entry in fields(RepositoryConfig)
            if entry.name != "name"
        }
        special = {
            key: getattr(member, key)
            for key in ("wishlists", "retention", "history", "naming", "web")
            if getattr(member, key) is not None
        }
        sites = tuple(dict.fromkeys((*self.sandbox.sites, *member.sites)))
        special["watch"] = replace(self.watch, listen=member.listen)
        special["sandbox"] = replace(self.sandbox, sites=sites)
        special |= {"replicas": member.replicas, "fallback": member.fallback}
        special["state"] = self.state / name
        try:
            return Config(
                **{**common, **special},
                repository=RepositoryConfig(name, **own),
                common_state=self.state,
                common_listen=self.watch.listen,
            )
        except RefusedKeyError as error:
            section, *below = error.path
            path: tuple[str | int, ...] = ("repositories", name, *error.path)
            if section == "repository":
                path = ("repositories", name, *below)
            elif not getattr(member, str(section), None):  # what is said for all
                raise RefusedKeyError(
                    error.path, f"{error} (repository {name})", hint=error.hint
                ) from error
            raise RefusedKeyError(path, str(error), hint=error.hint) from error


def _overlap(one: S3Url | Path, other: S3Url | Path) -> bool:
    """Whether one place is the other or is inside it."""
    first, second = f"{one}/", f"{other}/"
    return first.startswith(second) or second.startswith(first)


def complete(config: Config, environ: Mapping[str, str]) -> Config:
    """Return `config` with what it leaves open to the environment."""
    fallback, repository = config.fallback, config.repository
    if fallback is not None and isinstance(fallback.store, S3Url):
        s3 = (fallback.s3 or repository.s3).completed(environ)
        config = replace(config, fallback=replace(fallback, s3=s3))
    if isinstance(repository.storage, S3Url):
        s3 = repository.s3.completed(environ)
        config = replace(config, repository=replace(repository, s3=s3))
    return replace(config, sources=complete_sources(config.sources, environ))


def complete_sources(sources: SourcesConfig, environ: Mapping[str, str]) -> SourcesConfig:
    """Return `sources` with what it leaves open to the environment."""
    return replace(
        sources, s3=sources.s3.completed(environ), swift=sources.swift.completed(environ)
    )


def load_config(path: Path, name: str | None = None) -> Config:
    """Read the file at `path`; relative paths in it become relative to its folder.

    With several repositories, `name` says whose configuration is meant.
    """
    found = choose_configs(load_configs(path), [name] if name is not None else [], path)
    if len(found) > 1:
        raise ChoiceError(path, found)
    return found[0]


def load_configs(path: Path) -> tuple[Config, ...]:
    """Read the file at `path`; return what it says of each repository, at least one."""
    return settings.load(ConfigFile, path).configs


class ChoiceError(InputError):
    """Several repositories are configured, and what is to be done is done in one."""

    kind = "choice"

    def __init__(self, path: Path, found: Sequence[Config]) -> None:
        names = ", ".join(config.repository.name for config in found)
        super().__init__(
            f"{path} names {len(found)} repositories, and this is done in one: {names}",
            hint="say which: --repository NAME",
        )


def choose_configs(
    configs: Sequence[Config], names: Sequence[str], path: Path
) -> tuple[Config, ...]:
    """Return the configurations of these repositories; of all if none is named."""
    known = {str(config.repository.name): config for config in configs}
    for name in names:
        if name not in known:
            meant = settings.nearest(name, known)
            raise InputError(
                f"{path} names no repository {name[:100]!r}"
                + (f"; did you mean {meant!r}?" if meant else ""),
                hint=f"it names {', '.join(known)}",
            )
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(configs)


def find_config(explicit: Path | None, environ: Mapping[str, str], cwd: Path) -> Path:
    """Return the configuration file to use: the one named, else the first that exists.

    Order: `explicit`, `$CVMFS_PUBLISH_CONFIG`, `./cvmfs-publish.yaml`, the one under `/etc`.
    A file that is named is returned whether it exists or not.
    """
    if explicit is not None:
        return explicit
    if environ.get(CONFIG_VARIABLE):
        return Path(environ[CONFIG_VARIABLE])
    for path in (cwd / FILE_NAME, SYSTEM_FILE):
        if path.is_file():
            return path
    raise InputError(
        f"no configuration: neither {cwd / FILE_NAME} nor {SYSTEM_FILE} exists",
        hint="`cvmfs-publish init NAME` creates a repository and writes one; --config names one",
    )


def render_default_config(
    name: str,
    *,
    backend: str | None = None,
    storage: str | None = "repository",
    server_conf: str | None = None,
    keys: str = "keys",
    hash_algorithm: str = "sha1",
    s3: S3Config | None = None,
    compression: str | None = None,
    spool: str | None = None,
    automatic_tags: str | None = None,
) -> str:
    """Return the text of a commented configuration file for a new repository.

    What is None stays at its default.  Of `s3` what it says is written, secrets included.
    """
    s3 = s3 or S3Config()
    return _DEFAULT_FILE.substitute(
        name=_scalar(name),
        backend=_shown("backend", backend, "native"),
        storage=_shown("storage", storage, "repository"),
        server_conf="# server_conf: /etc/cvmfs/repositories.d/NAME/server.conf"
        if server_conf is None
        else f"server_conf: {_scalar(server_conf)}",
        keys=_scalar(keys),
        hash=_scalar(hash_algorithm),
        endpoint=_shown("endpoint", s3.endpoint, "https://s3.example.org"),
        region=_shown("region", s3.region, "us-east-1"),
        virtual_host=_shown("virtual_host", "true" if s3.virtual_host else None, "false"),
        access_key=_shown("access_key", s3.access_key, "KEY"),
        secret_key=_shown("secret_key", s3.secret_key, "")
        if s3.secret_key is not None
        else _shown("secret_key_file", None, "s3.key"),
        compression=_shown("compression", compression, "adaptive"),
        spool=_shown("spool", spool, f"/var/spool/cvmfs/{name}"),
        automatic_tags=_shown("automatic_tags", automatic_tags, "off"),
    )


def _shown(key: str, value: str | None, example: str) -> str:
    return f"{key}: {_scalar(value)}" if value is not None else f"#{key}: {example}"


def _scalar(text: str) -> str:
    """JSON's quoted text is YAML's; `null` and its like never match a plain name with a dot."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in ("null", "")
    return text if plain else json.dumps(text)


_DEFAULT_FILE = Template("""\
# Configuration of cvmfs-publish.  A key behind a `#` shows its default; remove the `#` to
# change it.  Relative paths are relative to this file.  Unknown keys are errors.

# Several repositories are written from one file with `repositories:` in place of `repository:`:
# by full name the keys that follow here, without `name:`, and `sites:`, `replicas:`, `fallback:`,
# `wishlists:`, `retention:`, `history:`, `naming:`, `web:` and `listen:` of its own.
# docs/regions.md has an example.
repository:
  # The full name, as below /cvmfs on every client.
  name: $name
  # What kind of repository.  `native`: CernVM-FS, without its software on this machine.
  # `directory`: a plain tree of files on a file system that workers mount.  `cvmfs_server`:
  # CernVM-FS that this program writes; its server.conf says where.
  $backend
  # The folder that holds the repository.  A web server serves it as /cvmfs/NAME;
  # `cvmfs-publish serve` does so for a try.  Or s3://BUCKET/PREFIX in an object store.
  $storage
  # How that object store is reached.  What is not said here is taken from AWS_ENDPOINT_URL,
  # AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
  s3:
    $endpoint
    $region
    # The bucket is part of the host's name instead of the URL's path.
    $virtual_host
    $access_key
    # A file with the secret key and nothing else, mode 0400; or `secret_key:` right here, and
    # `session_token:` for temporary keys.
    $secret_key
    # Requests at the same time.  Fewer if the store answers SlowDown.
    #connections: 64
    # The lock of a publisher that died on another host is free after this time.
    #lease: 1m
  # The folder of NAME.pub, NAME.crt, NAME.key and NAME.masterkey.  Keep it private.  The master
  # key is needed only to renew the whitelist and may be kept offline.
  keys: $keys
  # How images are named: `unpacked`, as on unpacked.cern.ch: /REGISTRY/REPOSITORY:TAG.  `osg`:
  # /REPOSITORY:TAG as well, as on singularity.opensciencegrid.org.
  #layout: unpacked
  # The content hash of new objects: sha1 (understood by every client), shake128, rmd160.
  hash: $hash
  # How new file contents are stored; every client reads all of them, and what is stored already
  # stays as it is.  `adaptive`: as fast as possible within 1.08 times the size of zlib.  `zlib`:
  # exactly as the stock server does, 5 times the work.  `fast`: half the work, about 5 % larger.
  # `none`: uncompressed, for caches and networks faster than processors.
  $compression
  # Only where `cvmfs_server` writes the repository too: its spool folder.  Its locks are respected,
  # and it learns of what is published here.  `cvmfs-publish init NAME --adopt` finds it.
  $spool
  # Only for `backend: directory`.
  directory:
    # How equal files take space once.  `hardlink`: those that are the same in content, mode, owner
    # and time are one file.  `reflink`: those with the same content share its blocks; btrfs, XFS.
    # `auto`: both where possible.  `false`: not at all.
    #share: auto
    # How long to wait for another publisher to end before giving up: 10m, 1h.
    #lock_wait: 0s
    # The lock of a publisher that died on another host is free a minute after this time.
    #lease: 2m
  # Only for `backend: cvmfs_server`.
  cvmfs_server:
    # What `cvmfs_server mkfs` wrote, and where the repository is mounted.  By default:
    $server_conf
    # mount: /cvmfs/NAME
    # The program, or its path if it is not in PATH.
    #program: cvmfs_server
    # How sandboxes go in: `transaction`, written into the mount; `ingest`, as a tar stream where
    # that loses nothing; `auto`, as a tar stream where it is also quicker.
    #method: auto
    # How long one command may take.
    #timeout: 6h
    # How long to wait for another writer to end before giving up: 10m, 1h.
    #lock_wait: 0s
    # Behind a gateway: how long to wait for a lease that another publisher holds.
    #lease_wait: 10m
  # Which images may get in: patterns, or more about them.  By default all; with a list only those
  # that one of its rules fits.
  #accept: []
  # Which images never get in, whatever `accept` says.
  # Example: [{match: ghcr.io/team/*, labels: {org.opencontainers.image.licenses: ["*NonFree*"]},
  #            platforms: [linux/arm64], reason: "may not be given away"}]
  #refuse: []

# Layers already read and work in progress.  Deleting it costs reading layers again.
#state: state

sandbox:
  # Folders added to every image, so that a site's file systems can be mounted there where
  # neither overlay nor underlay works.  Example: [/nfs/slac, /fs/ddn]
  #roots: []
  # Add the well-known ones too: /nfs /gpfs /afs /cvmfs /scratch /eos /pnfs and so on.
  #standard_roots: true
  # Sites whose own mounts become roots: names of installed site configurations, or paths of
  # site files.  Example: [slac, in2p3, ./mysite.yaml]
  #sites: []
  # `readable`: everybody may read what the owner may, since jobs run under any account.
  # `strict`: permissions stay as in the image.
  #permissions: readable
  # Setuid and setgid bits: strip or keep.  Workers mount the repository without them anyway.
  #setuid: strip
  # Where a layer has a folder and a lower layer has a link to a folder: true fills the link's
  # target, false replaces the link, as container engines do.
  #keep_dirlinks: false

# How registries are reached.  Where no login is given, Docker's config.json and its helpers are
# asked.
registries:
  #ghcr.io:
    #username: bot
    # A file with the password or token and nothing else; or `password_env:`, the name of an
    # environment variable; or `password:` right here.
    #password_file: token
    # HTTP without TLS; only for a registry on this machine or a trusted network.
    #plain_http: false
    # Certificates of authorities (PEM) to trust for this registry beside the usual ones.
    #ca_file: ca.pem
    # Layers that the registry does not have, from the addresses in its manifests.  Whoever makes
    # an image can then have any web server asked.
    #foreign_layers: false
  #docker.io:
    # Asked first, in this order: HOST or HOST/PATH.  Logins of mirrors stand under their own names.
    #mirrors: []
    # Also ask them what a tag names.  false: the registry says so, mirrors only give bytes.
    #mirror_tags: true
    # What is asked for in any 60 minutes: manifests (Docker Hub's pulls), and anything.  What is
    # above that fails with `rate-limited` and can be published later.
    #pulls_per_hour: 60
    #requests_per_hour: 1000

# Where images come from that are in no registry.
sources:
  # How s3://BUCKET/KEY is reached.  What is absent comes from Amazon's usual variables, such as
  # AWS_ACCESS_KEY_ID and AWS_REGION; without keys only what everybody may read is found.
  s3:
    #endpoint: https://s3.example.org
    #region: us-east-1
    # The bucket is part of the host's name instead of the URL's path.
    #virtual_host: false
    #access_key: KEY
    # A file that holds the secret key and nothing else, closed to others; or `secret_key:` right
    # here, and `session_token:` for temporary keys.
    #secret_key_file: secret
  # How swift://CONTAINER/OBJECT is reached.  What is absent comes from OpenStack's usual variables,
  # OS_… or ST_….  Version 3 if the URL has /v3 in it, else version 1.
  swift:
    #auth_url: https://keystone.example.org/v3
    #user: publisher
    # A file that holds the password and nothing else, closed to others; or `key:` right here.
    #key_file: key
    # In version 3: whose project it is, and the domains of both, `Default` by default.
    #project: images
    #user_domain: Default
    #project_domain: Default
    # Which region's store is meant if there are several.
    #region: one
    # Where the containers are, if not where the login says; for public ones without a login.
    #storage_url: https://swift.example.org/v1/AUTH_images
  # The hosts of library:// and shub:// images that name none.  A login of such a host, or of one of
  # https:// images, is under `registries`; for library:// and shub:// its password is a token.
  #library: library.sylabs.io
  #shub: singularity-hub.org

# What an image may cost before it is refused.  Sizes are bytes, or 20GiB, 500MB.
limits:
  # Unpacked bytes of one image, and of one of its layers.
  #image_bytes: 256GiB
  #layer_bytes: 256GiB
  # Files, folders and links of one image.  The largest seen in the field has 226,831.
  #entries: 500000
  # Length of a path inside an image.  Linux opens none longer than 4095 bytes.
  #path_bytes: 4095
  # Folders above a file inside an image, itself included.
  #path_depth: 256
  # Unpacked bytes per byte of a layer.  Real layers stay below 20, a bomb has 1000.
  #compression_ratio: 200
  # Size of a manifest or index, and of the configuration of an image.
  #manifest_bytes: 4MiB
  #config_bytes: 8MiB

# What is asked of an image before it is published.  The narrowest pattern that fits it decides;
# without any, it is accepted.  Policies: accept; digest: only references with a digest; cosign:
# signed with one of the keys; sif-pgp: a SIF file signed with one of the keys; reject.
# For cosign: `annotations: {KEY: VALUE}`, what the signature has to say as well; and
# `signed_name: same`, so that a signature for another name does not count.
# Example: [{match: ghcr.io/team/*, policy: cosign, keys: [cosign.pub]},
#           {match: "*", policy: reject}]
#trust: []

nesting:
  # The most entries of one catalog, the unit in which clients download the index.  Images of more
  # than half of that are divided, so that a job fetches only the parts it looks at.  1,000 to
  # 200,000; the more, the fewer requests and the more bytes.
  #max_entries: 10000

history:
  # Every new revision gets the tag `generic-TIME`, which clients can mount and which keeps it from
  # being collected: off, forever, or for how long, such as 30d or 12h.
  $automatic_tags

# Every image is published as one file too, for nodes that CernVM-FS cannot serve.
fallback:
  # The folder of these files, which a web server serves, or s3://BUCKET/PREFIX (with an `s3:` like
  # the repository's, if it differs).  One for each repository.
  #store: fallback
  # `sif`: Apptainer runs the file as it is.  `tar.gz`: nodes unpack it, for every runtime.
  #format: sif
  # An image whose file would be larger is refused.
  #max_bytes: 20GiB

# The service `cvmfs-publish watch`.
watch:
  # How often every wished image is looked at, and wishlists are read.  Webhooks and changed files
  # do not wait for it.
  #interval: 15m
  # How often the tags of a repository are listed of which a wishlist wishes a pattern.
  #tags: 1h
  # Where the status site, webhooks and metrics are.
  #listen: 127.0.0.1:8080
  # Archives and SIF files that are put into this folder are published, under the name they have
  # inside or by where they lie: DROP/REGISTRY/REPOSITORY/TAG.tar
  #drop: drop
  # Images that wait together and are published in one revision.
  #batch: 16
  # Attempts without success after which an image is left alone until it changes.
  #quarantine_after: 5
  # How many images of an owner have their turn when others have one.
  #weights: {someone@example.org: 2}

# What `watch` keeps.
retention:
  # How long an image stays that no name leads to any more.
  #keep_replaced: 30d
  # Unpublish names that no wishlist wishes any more, once lists were read without them for a day.
  #remove_unlisted: false
  # Percent of all names that may be unpublished so in an hour.
  #max_share: 5
  # How often garbage is collected, or off.
  #gc: 1d
  # Predecessors of the published revision to keep, however old.
  #keep_revisions: 1
# The status site of `serve` and `watch --listen`.
web:
  # A file with a token and nothing else, mode 0400: whoever has the token may have images published
  # there.  Without it the pages only show.  `openssl rand -hex 32` makes a good one.
  #token_file: web.token
  # What browsers call this place, where a proxy stands in between.
  #url: https://images.example.org
  # Sites whose commands the pages of images show; by default those of sandbox.sites.
  #sites: []

# Where the lists of wanted images are: files, folders of lists, http(s) URLs, or
# git+https://HOST/REPOSITORY.git//PATH@BRANCH.
#wishlists:
  #- images.yaml
  # With what its wishes do not say themselves.  `format`, own, ducc or osg, is found out otherwise.
  #- from: https://example.org/docker_images.txt
    #format: osg
    # Who is told of problems: an address of e-mail, or a name.
    #owner: someone@example.org
    # How long replaced images stay.
    #keep_replaced: 30d
    # From -9 to 9; the higher, the earlier.
    #priority: 0

# Registries and pipelines that tell of pushes, at /hooks/SOURCE.
#webhooks:
  # The secret of all who send, 16 characters or more, mode 0400.
  #secret_file: hook.secret
  # Who may send: distribution, harbor, gitlab, github, generic; by default all of them.
  #sources:
    #gitlab:
      # Whose images are meant where a webhook names no registry.
      #registry: registry.example.org
      # Registries as webhooks name them, and as wishlists name them.
      #hosts: {"registry:5000": registry.example.org}

# Who is told of what happens: a file that grows, a URL, people, a program.
#notify:
  #- file: events.jsonl
  #- webhook: https://example.org/hook
    # A file with the secret that signs what is sent, mode 0400.
    #secret_file: out.secret
    # Only events of these kinds, and about wishes of these owners; by default of all.
    #kinds: ["image-*"]
    #owners: [someone@example.org]
  # `owner` is the owner of the wish that an event is about.
  #- email: [owner, admin@example.org]
    #from: publisher@example.org
    #server: localhost:25
    #starttls: true
    #username: publisher
    # A file with the password, mode 0400.
    #password_file: mail.password
  # The program gets events as JSON on its stdin.
  #- program: [/usr/local/bin/tell, --now]
    #timeout: 30s

# Replicas (Stratum 1) of this repository: `replicas` and `watch` look how far they are, and
# `publish --wait-replicas N` waits for them.
#replicas:
  #- http://s1.example.org/cvmfs/$name
  # Through the proxy that clients use, and once more past caches: an outdated cache is told.
  #- url: http://s1.example.net/cvmfs/$name
    #proxy: http://squid.example.net:3128
    #compare: true

# When the name of a new image leads there.
#naming:
  # When so many of the replicas have the image; 0: at once.
  #after_replicas: 0
  # How long `publish` waits for them.
  #timeout: 10m
""")
