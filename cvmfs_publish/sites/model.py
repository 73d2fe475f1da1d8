"""What a site configuration can say, as the dataclasses `settings.load` fills.

Every key is used by a rendered file; a key that nothing reads must not exist.  `example.yaml`
explains each for people, with unit and default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from cvmfs_publish.config import RegistryHost, RepositoryName, SiteName
from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import about
from cvmfs_publish.sites.runtimes import RuntimeProgram

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DOMAIN = re.compile(r"[a-z0-9][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)+")
_KEY_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.pub")
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]*")
_PEM = re.compile(r"\s*-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+\n-----END PUBLIC KEY-----\s*")
MAX_SECONDS = 3600  # of a probe or a delay: longer ones only waste slots

# Of the host, where they name libraries and modules that do not fit the image (b.6 of the
# launcher facts): 66 and 12.
DROPPED_VARIABLES = (
    "LD_PRELOAD",
    "LD_LIBRARY_PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "PERL5LIB",
)
DEFAULT_RUNTIMES = ("apptainer", "singularity", "ch-run")
STANDARD = "standard"  # the word in `roots` that stands for the built-in list


class HostPath(str):
    """An absolute path on worker nodes; blanks, commas, colons and quotes are possible."""

    __slots__ = ()
    WANTED = "an absolute path such as /nfs/data"

    @classmethod
    def parse(cls, text: str) -> HostPath:
        """Raise `InputError` unless the path is absolute, normalised and printable."""
        if text[:1] != "/" or not text.isprintable():
            raise InputError(f"{text[:200]!r} is not an absolute path", hint=f"write {cls.WANTED}")
        if text == "/" or {"", ".", ".."} & set(text.split("/")[1:]):
            raise InputError(
                f"{text[:200]!r} is not a normalised path",
                hint="without //, ., .. and without a slash at the end",
            )
        return cls(text)


class RootEntry(HostPath):
    """One of `roots`: a path, or the word `standard` for the built-in list."""

    __slots__ = ()
    WANTED = "an absolute path, or the word standard"

    @classmethod
    def parse(cls, text: str) -> RootEntry:
        return cls(text if text == STANDARD else HostPath.parse(text))


class VariableName(str):
    """The name of an environment variable."""

    __slots__ = ()
    WANTED = "the name of an environment variable"

    @classmethod
    def parse(cls, text: str) -> VariableName:
        if not _VARIABLE.fullmatch(text) or text.startswith(("cr_", "cvmfs_site_")):
            raise InputError(f"{text[:100]!r} cannot be used as the name of a variable")
        return cls(text)


class ScratchPlace(str):
    """Where a job's private directory may be made: `/scratch`, or `$SLURM_TMPDIR`."""

    __slots__ = ()
    WANTED = "an absolute path, or $NAME for the value of an environment variable"

    @classmethod
    def parse(cls, text: str) -> ScratchPlace:
        if text.startswith("$"):
            return cls("$" + VariableName.parse(text[1:]))
        return cls(HostPath.parse(text))


class ImageName(str):
    """An image as users of the launcher name it: a published name or an absolute path."""

    __slots__ = ()
    WANTED = "an image such as ghcr.io/a/b:1, or an absolute path"

    @classmethod
    def parse(cls, text: str) -> ImageName:
        if text.startswith("/"):
            return cls(HostPath.parse(text))
        if not _IMAGE_NAME.fullmatch(text) or "//" in text or ".." in text.split("/"):
            raise InputError(f"{text[:200]!r} is not an image name", hint=f"write {cls.WANTED}")
        return cls(text)


class DomainName(str):
    """The domain of repositories, `example.org` for `containers.example.org`."""

    __slots__ = ()
    WANTED = "a domain such as example.org"

    @classmethod
    def parse(cls, text: str) -> DomainName:
        if not _DOMAIN.fullmatch(text):
            raise InputError(f"{text[:100]!r} is not a domain", hint=f"write {cls.WANTED}")
        return cls(text)


class Line(str):
    """Text without control characters: it becomes part of one line of a rendered file."""

    __slots__ = ()
    WANTED = "one line of text"

    @classmethod
    def parse(cls, text: str) -> Line:
        if not text.isprintable():
            raise InputError(f"{text[:200]!r} has a line break or another control character")
        return cls(text)


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """One repository that image names are looked up in."""

    name: RepositoryName = field(metadata=about("fully qualified name; mounted at cvmfs/NAME"))
    layout: Literal["unpacked", "osg"] = field(
        default="unpacked",
        metadata=about("unpacked: REGISTRY/REPOSITORY:TAG; osg: REPOSITORY:TAG"),
    )


@dataclass(frozen=True, slots=True)
class Images:
    """Which images jobs use."""

    cpu: ImageName | None = field(
        default=None, metadata=about("image of a job that names none (`cvmfs-run -- COMMAND`)")
    )
    gpu: ImageName | None = field(
        default=None, metadata=about("the same for a job that uses a GPU; without it `cpu`")
    )
    allowed: tuple[HostPath, ...] = field(
        default=(),
        metadata=about("images must lie below one of these paths; empty: everywhere"),
    )


@dataclass(frozen=True, slots=True)
class Bind:
    """A path of the node mounted into every container."""

    source: HostPath = field(metadata=about("path on the node"))
    target: HostPath | None = field(
        default=None, metadata=about("path in the container; without it the same as `source`")
    )
    read_only: bool = field(
        default=False, metadata=about("mount read-only; ch-run cannot and refuses the entry")
    )
    required: bool = field(
        default=False,
        metadata=about("true: a job without this mount is not started (72); false: left out"),
    )

    @property
    def destination(self) -> HostPath:
        return self.target or self.source


@dataclass(frozen=True, slots=True)
class ConfigMount(Bind):
    """A configuration file or directory, with the variables that point to it."""

    environment: Mapping[VariableName, Line] = field(
        default_factory=dict,
        metadata=about("variables set for the job when the mount is made"),
    )


@dataclass(frozen=True, slots=True)
class Environment:
    """Changes to the environment a job inherits."""

    drop: tuple[VariableName, ...] = field(
        default=tuple(map(VariableName, DROPPED_VARIABLES)),
        metadata=about("variables of the host that are removed"),
    )
    set: Mapping[VariableName, Line] = field(
        default_factory=dict, metadata=about("variables that are set for every job")
    )


@dataclass(frozen=True, slots=True)
class RuntimeConf:
    """Settings of Apptainer and Singularity themselves; the launcher needs none of them."""

    bind_paths: tuple[HostPath, ...] = field(
        default=(),
        metadata=about("mounted into every container; must exist on every node, else none starts"),
    )
    session_dir_mib: int | None = field(
        default=None,
        metadata=about("size of the in-memory file system behind --contain, MiB"),
    )
    always_use_nv: bool = field(
        default=False, metadata=about("NVIDIA libraries in every container; for GPU nodes only")
    )
    limit_container_paths: tuple[HostPath, ...] = field(
        default=(),
        metadata=about("only images below these paths (setuid installations); must exist"),
    )

    def __post_init__(self) -> None:
        for path in (*self.bind_paths, *self.limit_container_paths):
            if "," in path or ":" in path:
                raise InputError(
                    f"{path!r}: Apptainer's configuration cannot express commas and colons",
                    hint="put the mount into `binds`, where the launcher makes it",
                )
        if self.session_dir_mib is not None and not 0 < self.session_dir_mib < 1 << 20:
            raise InputError(f"session_dir_mib is {self.session_dir_mib}, not a possible size")


@dataclass(frozen=True, slots=True)
class Domain:
    """Servers and keys of the repositories of one domain."""

    servers: tuple[Line, ...] = field(
        metadata=about("Stratum 1 addresses, nearest first; @fqrn@ stands for the repository")
    )
    public_keys: Mapping[str, str] = field(
        metadata=about("file name (NAME.pub): public key as PEM text")
    )

    def __post_init__(self) -> None:
        if not self.servers or not self.public_keys:
            raise InputError("a domain needs at least one server and one public key")
        for server in self.servers:
            if not server.startswith(("http://", "https://")) or set(server) & set(" ;|\"'`$\\"):
                raise InputError(f"{server!r} is not the address of a Stratum 1")
            if "@fqrn@" not in server:
                raise InputError(
                    f"{server!r} does not contain @fqrn@",
                    hint="as in http://stratum1.example.org/cvmfs/@fqrn@",
                )
        for name, key in self.public_keys.items():
            if not _KEY_FILE.fullmatch(name):
                raise InputError(f"{name!r} is not a file name of the form NAME.pub")
            if not _PEM.fullmatch(key):
                raise InputError(
                    f"{name}: not a public key in PEM form",
                    hint="paste the content of the .pub file, from -----BEGIN PUBLIC KEY----- on",
                )


@dataclass(frozen=True, slots=True)
class Client:
    """The CernVM-FS client of worker nodes; `client/` is rendered only when this is given."""

    http_proxy: Line | None = field(
        default=None,
        metadata=about("CVMFS_HTTP_PROXY: | balances, ; fails over, DIRECT is no proxy"),
    )
    quota_mb: int | None = field(
        default=None,
        metadata=about("CVMFS_QUOTA_LIMIT, MB; the partition needs about a quarter more"),
    )
    cache_base: HostPath | None = field(
        default=None, metadata=about("CVMFS_CACHE_BASE, a directory on a local disk")
    )
    parameters: Mapping[VariableName, Line] = field(
        default_factory=dict, metadata=about("further CVMFS_… parameters, written as they are")
    )
    domains: Mapping[DomainName, Domain] = field(
        default_factory=dict, metadata=about("repositories' domains that are configured here")
    )

    def __post_init__(self) -> None:
        if self.quota_mb is not None and self.quota_mb < 1000:
            raise InputError(
                f"quota_mb is {self.quota_mb}; the client needs at least 1000",
                hint="the unit is megabytes; 25000 is a usual value for a farm node",
            )
        for name in self.parameters:
            if not name.startswith("CVMFS_"):
                raise InputError(f"parameters: {name} does not start with CVMFS_")
            if name in ("CVMFS_HTTP_PROXY", "CVMFS_QUOTA_LIMIT", "CVMFS_CACHE_BASE"):
                raise InputError(f"parameters: {name} has a key of its own in `client`")


@dataclass(frozen=True, slots=True)
class Site:
    """A site: everything its worker nodes have in common."""

    name: SiteName = field(metadata=about("name of the site, in messages and metrics"))
    description: Line = field(default=Line(""), metadata=about("one line for people"))
    cvmfs: HostPath = field(
        default=HostPath("/cvmfs"),
        metadata=about("where CernVM-FS is mounted on nodes; always /cvmfs in containers"),
    )
    repositories: tuple[RepositoryEntry, ...] = field(
        default=(), metadata=about("where image names are looked up, in this order")
    )
    default_registry: RegistryHost = field(
        default=RegistryHost("docker.io"),
        metadata=about("registry of image names that do not say one"),
    )
    images: Images = field(default=Images(), metadata=about("default and permitted images"))
    runtimes: tuple[RuntimeProgram, ...] = field(
        default=tuple(map(RuntimeProgram, DEFAULT_RUNTIMES)),
        metadata=about("container runtimes; the first that is installed is used"),
    )
    roots: tuple[RootEntry, ...] = field(
        default=(RootEntry(STANDARD),),
        metadata=about("directories mounted at the same path where they exist"),
    )
    binds: tuple[Bind, ...] = field(
        default=(), metadata=about("further mounts, of any source at any target")
    )
    config_mounts: tuple[ConfigMount, ...] = field(
        default=(), metadata=about("configuration files mounted in, with their variables")
    )
    home: Literal["host", "scratch", "none"] = field(
        default="host", metadata=about("the job's home: the user's, an empty one, or none")
    )
    scratch: tuple[ScratchPlace, ...] = field(
        default=(),
        metadata=about("where a job's private directory is made, if it needs one; tried in order"),
    )
    gpu: Literal["auto", "nv", "rocm", "none"] = field(
        default="auto",
        metadata=about("auto: what the batch system allocated; nv, rocm: always; none: never"),
    )
    environment: Environment = field(
        default=Environment(), metadata=about("changes to the environment of jobs")
    )
    probe_timeout: timedelta = field(
        default=timedelta(seconds=5),
        metadata=about("how long a repository may take to answer before the job is given up (75)"),
    )
    nested: Literal["run", "direct", "refuse"] = field(
        default="run",
        metadata=about("inside a container: start another, run the command as it is, or refuse"),
    )
    mode: Literal["exec", "supervise"] = field(
        default="exec", metadata=about("become the runtime, or stay beside it and clean up")
    )
    fallback: tuple[Literal["host"], ...] = field(
        default=(),
        metadata=about(
            "what to do when the node cannot run the image (69, 75); host: no container"
        ),
    )
    fail_delay: timedelta = field(
        default=timedelta(0),
        metadata=about("how long a batch job waits before it ends with 69, 71 or 75"),
    )
    metrics_dir: HostPath | None = field(
        default=None,
        metadata=about("directory, writable for users, that gets one line for every start"),
    )
    runtime_conf: RuntimeConf = field(
        default=RuntimeConf(), metadata=about("settings for apptainer.conf and singularity.conf")
    )
    client: Client | None = field(default=None, metadata=about("the CernVM-FS client of the nodes"))

    def __post_init__(self) -> None:
        seconds = self.probe_timeout.total_seconds()
        if not 1 <= seconds <= MAX_SECONDS:
            raise InputError(f"probe_timeout is {seconds:.0f} s, not between 1 s and 1 h")
        if self.fail_delay.total_seconds() > MAX_SECONDS:
            raise InputError("fail_delay is longer than 1 h")
        if not self.runtimes:
            raise InputError("runtimes is empty: no job could start")
        seen: dict[str, Bind] = {}
        for bind in (*self.binds, *self.config_mounts):
            other = seen.setdefault(bind.destination, bind)
            if other is not bind:
                raise InputError(
                    f"{other.source} and {bind.source} are both mounted at {bind.destination}"
                )
