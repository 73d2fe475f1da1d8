"""The publisher's configuration: what `cvmfs-publish.yaml` may say, and what each key means.

Keys that interface documents promise but no code reads yet are refused: whoever writes
`trust:` believes that signatures are checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import ClassVar, Literal

from cvmfs_publish import settings
from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import about

FILE_NAME = "cvmfs-publish.yaml"
SYSTEM_FILE = Path("/etc/cvmfs-publish") / FILE_NAME
CONFIG_VARIABLE = "CVMFS_PUBLISH_CONFIG"

MAX_NAME = 60  # characters of a repository name; facts/cvmfs-format.md section 9.1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# host ::= name or IPv4 or [IPv6], port optional; docker's reference grammar, "domain"
_HOST = re.compile(r"([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")
_DOCKER_HUB = frozenset({"index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_SIZE = re.compile(r"([0-9]+(?:_[0-9]+)*)\s*([kMGT]i?B|KiB|B)?")
_POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4}
_PLAIN = re.compile(r"[A-Za-z0-9./_][A-Za-z0-9./_-]*")  # needs no quotes in YAML
_SITE = re.compile(r"[a-z0-9][a-z0-9_-]*")
MAX_SECRET_BYTES = 64 * 1024  # a registry token; the longest in use are a few kilobytes


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


class ByteSize(int):
    """A number of bytes; in a file also `20GiB` or `500 MB`."""

    WANTED = "a size such as 20GiB or 500000000"

    @classmethod
    def parse(cls, text: str) -> ByteSize:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise InputError(f"{text[:100]!r} is not a size", hint=f"write {cls.WANTED[2:]}")
        unit = match[2] or "B"
        factor = 1 if unit == "B" else (1024 if "i" in unit else 1000) ** _POWERS[unit[0]]
        size = int(match[1]) * factor
        if not 0 < size < 2**63:
            raise InputError(f"{text[:100]!r} is not a possible size")
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
            raise InputError(f"{text[:100]!r} is not the name of a site")
        return cls(text)


@dataclass(frozen=True)
class RepositoryConfig:
    """Where the repository is and how it is written."""

    name: RepositoryName = field(metadata=about("the repository's full name, as under /cvmfs"))
    backend: Literal["native"] = field(
        default="native",
        metadata=about(
            "who writes the repository: `native` needs no CernVM-FS software here",
            later="cvmfs_server|directory",
        ),
    )
    storage: Path = field(
        default=Path("repository"),
        metadata=about(
            "the folder that holds the repository and that a web server serves",
            later="(s3|swift)://.*",
        ),
    )
    keys: Path = field(
        default=Path("keys"),
        metadata=about(
            "the folder of NAME.pub, NAME.crt, NAME.key and NAME.masterkey;"
            " the master key may be kept elsewhere and offline"
        ),
    )
    layout: Literal["unpacked"] = field(
        default="unpacked",
        metadata=about(
            "how images are named in the repository: `unpacked` as on unpacked.cern.ch", later="osg"
        ),
    )
    hash: Literal["sha1", "shake128", "rmd160"] = field(
        default="sha1",
        metadata=about("the content hash of new objects; every client understands sha1"),
    )


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

    UNAVAILABLE: ClassVar[frozenset[str]] = frozenset({"mirrors", "pulls_per_hour"})

    username: str | None = field(default=None, metadata=about("the account to log in with"))
    password: str | None = field(
        default=None,
        repr=False,
        metadata=about("its password or token; better kept in `password_file`"),
    )
    password_file: Path | None = field(
        default=None, metadata=about("a file that holds the password or token and nothing else")
    )
    plain_http: bool = field(
        default=False,
        metadata=about(
            "speak HTTP instead of HTTPS; only for a registry on this machine or a trusted network"
        ),
    )

    def __post_init__(self) -> None:
        if self.password is not None and self.password_file is not None:
            raise InputError("password and password_file are both given", hint="remove one of them")
        has_password = self.password is not None or self.password_file is not None
        if has_password != (self.username is not None):
            missing = "username" if has_password else "password_file"
            raise InputError(f"{missing} is missing: a login needs an account and a password")

    def read_password(self) -> str | None:
        """Return the password, from its file if that is where it is; None without a login."""
        if self.password_file is None:
            return self.password
        try:
            with self.password_file.open("rb") as file:
                data = file.read(MAX_SECRET_BYTES + 1)
        except OSError as exc:
            raise InputError(
                f"password file {self.password_file}: cannot be read: {exc.strerror or exc}"
            ) from exc
        text = data.decode("utf-8", "replace").strip()
        if not text or len(data) > MAX_SECRET_BYTES or not text.isprintable():
            raise InputError(
                f"password file {self.password_file}: does not hold one line with a password"
            )
        return text


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
    compression_ratio: int = field(
        default=200, metadata=about("unpacked bytes per byte of a layer; real layers stay below 20")
    )

    def __post_init__(self) -> None:
        for name in ("entries", "path_bytes", "compression_ratio"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: wants a number above zero, found {getattr(self, name)}")


@dataclass(frozen=True)
class NestingConfig:
    """How the repository's index is divided into catalogs, which clients download one by one."""

    max_entries: int = field(
        default=200_000,
        metadata=about(
            "entries of one catalog, above which a large image gets further ones;"
            " CernVM-FS advises 1,000 to 200,000"
        ),
    )

    def __post_init__(self) -> None:
        if self.max_entries < 1000:
            raise InputError(
                f"max_entries: {self.max_entries} would make thousands of catalogs",
                hint="write 1000 or more",
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


@dataclass(frozen=True)
class Config:
    """Everything `cvmfs-publish.yaml` says."""

    UNAVAILABLE: ClassVar[frozenset[str]] = frozenset(
        {"trust", "wishlists", "watch", "webhooks", "retention", "replicas", "notify"}
    )

    repository: RepositoryConfig = field(
        metadata=about("where the repository is and how it is written")
    )
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
        metadata=about("logins by host; where this is silent, Docker's config.json is asked"),
    )
    limits: LimitsConfig = field(
        default_factory=LimitsConfig, metadata=about("what an image may cost")
    )
    nesting: NestingConfig = field(
        default_factory=NestingConfig, metadata=about("how the index is divided")
    )
    history: HistoryConfig = field(
        default_factory=HistoryConfig, metadata=about("which revisions get a name of their own")
    )


def load_config(path: Path) -> Config:
    """Read the file at `path`; relative paths in it become relative to its folder."""
    return settings.load(Config, path)


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
    storage: str = "repository",
    keys: str = "keys",
    hash_algorithm: str = "sha1",
) -> str:
    """Return the text of a commented configuration file for a new repository."""
    return _DEFAULT_FILE.substitute(
        name=_scalar(name),
        storage=_scalar(storage),
        keys=_scalar(keys),
        hash=_scalar(hash_algorithm),
    )


def _scalar(text: str) -> str:
    """JSON's quoted text is YAML's; `null` and its like never match a plain name with a dot."""
    plain = _PLAIN.fullmatch(text) and text.lower() not in ("null", "")
    return text if plain else json.dumps(text)


_DEFAULT_FILE = Template("""\
# Configuration of cvmfs-publish.  A key behind a `#` shows its default; remove the `#` to
# change it.  Relative paths are relative to this file.  Unknown keys are errors.

repository:
  # The full name, as below /cvmfs on every client.
  name: $name
  # Who writes the repository.  `native` needs no CernVM-FS software on this machine.
  #backend: native
  # The folder that holds the repository.  A web server serves it as /cvmfs/NAME;
  # `cvmfs-publish serve` does so for a try.
  storage: $storage
  # The folder of NAME.pub, NAME.crt, NAME.key and NAME.masterkey.  Keep it private.  The master
  # key is needed only to renew the whitelist and may be kept offline.
  keys: $keys
  # How images are named: `unpacked`, as on unpacked.cern.ch: /REGISTRY/REPOSITORY:TAG.
  #layout: unpacked
  # The content hash of new objects: sha1 (understood by every client), shake128, rmd160.
  hash: $hash

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

# Logins by registry.  For other registries Docker's config.json and its helpers are asked.
registries:
  #ghcr.io:
    #username: bot
    # A file with the password or token and nothing else; or `password:` right here.
    #password_file: token
    # HTTP without TLS; only for a registry on this machine or a trusted network.
    #plain_http: false

# What an image may cost before it is refused.  Sizes are bytes, or 20GiB, 500MB.
limits:
  # Unpacked bytes of one image, and of one of its layers.
  #image_bytes: 256GiB
  #layer_bytes: 256GiB
  # Files, folders and links of one image.  The largest seen in the field has 226,831.
  #entries: 500000
  # Length of a path inside an image.  Linux opens none longer than 4095 bytes.
  #path_bytes: 4095
  # Unpacked bytes per byte of a layer.  Real layers stay below 20, a bomb has 1000.
  #compression_ratio: 200

nesting:
  # Entries of one catalog, the unit in which clients download the index.  Larger images are
  # divided further.  CernVM-FS advises 1,000 to 200,000.
  #max_entries: 200000

history:
  # Every new revision gets the tag `generic-TIME`, which clients can mount and which keeps it from
  # being collected: off, forever, or for how long, such as 30d or 12h.
  #automatic_tags: off
""")
