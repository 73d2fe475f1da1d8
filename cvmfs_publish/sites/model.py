"""What a site configuration can say, as the dataclasses `settings.load` fills.

Every key is used by a rendered file; a key that nothing reads must not exist.  `example.yaml`
explains each for people, with unit and default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias

from cvmfs_publish.config import RegistryHost, RepositoryName, SiteName
from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import about
from cvmfs_publish.sites.runtimes import RuntimeProgram
from cvmfs_publish.sites.services import Client, Mirror, Squid
from cvmfs_publish.sites.values import (
    STANDARD,
    HostPath,
    ImageName,
    Line,
    RootEntry,
    ScratchPlace,
    Url,
    VariableName,
    Word,
)

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
# What a job needs of the batch system, MPI, GPUs and credentials in mode clean; * is a wildcard.
KEPT_VARIABLES = (
    "HOME",
    "USER",
    "LOGNAME",
    "TERM",
    "LANG",
    "LC_*",
    "TZ",
    "TMPDIR",
    "OMP_*",
    "SLURM_*",
    "PMI_*",
    "PMIX_*",
    "OMPI_*",
    "_CONDOR_*",
    "PBS_*",
    "LSB_*",
    "LSF_*",
    "SGE_*",
    "JOB_*",
    "NSLOTS",
    "PE_HOSTFILE",
    "CUDA_*",
    "NVIDIA_*",
    "ROCR_*",
    "HIP_*",
    "X509_*",
    "BEARER_TOKEN*",
    "KRB5CCNAME",
    "XRD_*",
    "CVMFS_RUN_*",
)
DEFAULT_RUNTIMES = ("apptainer", "singularity", "ch-run", "podman")
BatchSystem: TypeAlias = Literal["slurm", "htcondor", "gridengine", "pbs", "lsf", "kubernetes"]


class VariablePattern(str):
    """The name of an environment variable, or the beginning of names before a `*`."""

    __slots__ = ()
    WANTED = "the name of a variable, or its beginning and *, as SLURM_*"

    @classmethod
    def parse(cls, text: str) -> VariablePattern:
        return cls(VariableName.parse(text.removesuffix("*")) + "*" * text.endswith("*"))


@dataclass(frozen=True, slots=True)
class RepositoryEntry:
    """One repository that image names are looked up in."""

    name: RepositoryName = field(metadata=about("fully qualified name; mounted at cvmfs/NAME"))
    layout: Literal["unpacked", "osg"] = field(
        default="unpacked",
        metadata=about("unpacked: REGISTRY/REPOSITORY:TAG; osg: REPOSITORY:TAG"),
    )
    min_revision: int = field(
        default=0,
        metadata=about("a node that shows an older revision ends the job (75); 0: any will do"),
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

    mode: Literal["inherit", "clean"] = field(
        default="inherit",
        metadata=about("inherit: all but `drop`; clean: only `keep`, and what `set` says"),
    )
    keep: tuple[VariablePattern, ...] = field(
        default=tuple(map(VariablePattern, KEPT_VARIABLES)),
        metadata=about("variables of the host a job keeps in mode clean; NAME* for a family"),
    )
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
class Mpi:
    """What ranks of an MPI job get in addition; a rank is recognised by its environment."""

    binds: tuple[Bind, ...] = field(
        default=(), metadata=about("mounts of ranks only: the host's MPI or fabric libraries")
    )
    environment: Mapping[VariableName, Line] = field(
        default_factory=dict, metadata=about("variables set for ranks only")
    )


@dataclass(frozen=True, slots=True)
class Hooks:
    """Programs of the node run around the job, outside the container; they imply supervise."""

    before: HostPath | None = field(
        default=None,
        metadata=about("run before the container starts; a status other than 0 ends the job (71)"),
    )
    after: HostPath | None = field(
        default=None,
        metadata=about("run after the job, with its status in CVMFS_RUN_STATUS; changes nothing"),
    )


@dataclass(frozen=True, slots=True)
class Fallback:
    """What to do on a node where CernVM-FS cannot serve the image (66, 69, 75)."""

    chain: tuple[Literal["cache", "mirror", "registry", "host"], ...] = field(
        default=(),
        metadata=about(
            "tried in order; cache: what is downloaded already; mirror: download; "
            "registry: pull and convert; host: no container"
        ),
    )
    cache_dir: ScratchPlace = field(
        default=ScratchPlace("/var/cache/cvmfs-run"),
        metadata=about("where downloads are kept, on a local disk"),
    )
    shared: bool = field(
        default=False,
        metadata=about(
            "true: one cache that root fills (prolog) and users read; false: one for each user"
        ),
    )
    cache_mb: int = field(default=50_000, metadata=about("size of the cache, MB; oldest go first"))
    image_mb: int = field(default=20_000, metadata=about("larger images are not downloaded, MB"))
    mirrors: tuple[Url, ...] = field(
        default=(),
        metadata=about(
            "addresses of what `publish --fallback` wrote, tried in order; the file's name is "
            "appended, or put in place of @file@"
        ),
    )
    lock_wait: timedelta = field(
        default=timedelta(minutes=10),
        metadata=about("how long to wait for another job's download of the same image"),
    )
    download_timeout: timedelta = field(
        default=timedelta(minutes=30), metadata=about("how long one download may take")
    )
    jitter: timedelta = field(
        default=timedelta(seconds=10),
        metadata=about("a download begins at a random time within this; spreads nodes"),
    )
    retry_after: timedelta = field(
        default=timedelta(seconds=60),
        metadata=about("after a failed download others fail at once for so long"),
    )

    def __post_init__(self) -> None:
        if "mirror" in self.chain and not self.mirrors:
            raise InputError("chain has mirror, and mirrors is empty")
        if len(set(self.chain)) != len(self.chain) or "host" in self.chain[:-1]:
            raise InputError("chain names each way once, and host last")


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The pod of a job."""

    namespace: Word = field(default=Word("default"), metadata=about("namespace of the pod"))
    image: ImageName = field(
        default=ImageName("quay.io/apptainer/apptainer:latest"),
        metadata=about("image of the pod itself, with a runtime in it"),
    )
    storage_class: Word = field(
        default=Word("cvmfs"), metadata=about("storage class of the CVMFS CSI driver")
    )


@dataclass(frozen=True, slots=True)
class Batch:
    """The batch systems files are rendered for."""

    systems: tuple[BatchSystem, ...] = field(
        default=(), metadata=about("each gets a folder of its own name")
    )
    options: Mapping[BatchSystem, tuple[Line, ...]] = field(
        default_factory=dict,
        metadata=about("lines of the submit templates, as --partition=short or +Flavour = short"),
    )
    kubernetes: Kubernetes = field(
        default=Kubernetes(), metadata=about("the pod of a job on Kubernetes")
    )

    def __post_init__(self) -> None:
        for system in self.options:
            if system not in self.systems:
                raise InputError(f"options are given for {system}, which is not in systems")


@dataclass(frozen=True, slots=True)
class Software:
    """An image that offers commands: a module and one wrapper for each command."""

    name: Word = field(metadata=about("name of the module"))
    version: Word = field(metadata=about("version of the module"))
    image: ImageName = field(metadata=about("the image the commands are in"))
    commands: tuple[Word, ...] = field(metadata=about("commands of the image users call by name"))
    description: Line = field(default=Line(""), metadata=about("one line for `module whatis`"))
    url: Line = field(default=Line(""), metadata=about("where to read more, for `module help`"))
    environment: Mapping[VariableName, Line] = field(
        default_factory=dict, metadata=about("variables the module sets")
    )

    def __post_init__(self) -> None:
        if not self.commands:
            raise InputError(f"{self.name}/{self.version} offers no commands")


@dataclass(frozen=True, slots=True)
class Site:
    """A site: everything its worker nodes have in common."""

    name: SiteName = field(metadata=about("name of the site, in messages and metrics"))
    inherits: tuple[Line, ...] = field(
        default=(),
        metadata=about("sites (names, or ./files) whose values hold where this one says nothing"),
    )
    description: Line = field(default=Line(""), metadata=about("one line for people"))
    cvmfs: HostPath = field(
        default=HostPath("/cvmfs"),
        metadata=about("where CernVM-FS is mounted on nodes; always /cvmfs in containers"),
    )
    repositories: tuple[RepositoryEntry, ...] = field(
        default=(), metadata=about("where image names are looked up, in this order")
    )
    required_repositories: tuple[RepositoryName, ...] = field(
        default=(),
        metadata=about(
            "mounted before every job, whatever its image; without one it ends (69, 75)"
        ),
    )
    pin: bool = field(
        default=True,
        metadata=about("hold the repositories of a job open, so that automount keeps them"),
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
    mpi: Mpi = field(default=Mpi(), metadata=about("what ranks of MPI jobs get in addition"))
    environment: Environment = field(
        default=Environment(), metadata=about("changes to the environment of jobs")
    )
    hooks: Hooks = field(default=Hooks(), metadata=about("programs of the node around the job"))
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
    fallback: Fallback = field(
        default=Fallback(), metadata=about("what to do where CernVM-FS cannot serve the image")
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
    squid: Squid | None = field(default=None, metadata=about("the site's caching proxy"))
    mirror: Mirror | None = field(default=None, metadata=about("the server of fallback images"))
    install_dir: HostPath = field(
        default=HostPath("/opt/cvmfs-run"),
        metadata=about("where the rendered folder lies on nodes; batch files lead there"),
    )
    batch: Batch = field(default=Batch(), metadata=about("the batch systems of the site"))
    software: tuple[Software, ...] = field(
        default=(), metadata=about("images offered as modules and commands")
    )

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
