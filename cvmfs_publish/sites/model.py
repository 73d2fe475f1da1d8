"""What a site configuration can say, as the dataclasses `settings.load` fills.

Every key is used by a rendered file; a key that nothing reads must not exist.  `example.yaml`
explains each for people, with unit and default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal, TypeAlias

from cvmfs_publish.config import RegistryHost, RepositoryName, SiteName
from cvmfs_publish.settings import RefusedKeyError, about
from cvmfs_publish.sites.runtimes import RuntimeProgram
from cvmfs_publish.sites.services import MAX_MB, Client, Mirror, Squid
from cvmfs_publish.sites.values import (
    STANDARD,
    HostPath,
    ImageName,
    Line,
    ObjectName,
    PlainPath,
    RootEntry,
    ScratchPlace,
    Url,
    VariableName,
    Word,
    check_duration,
    check_number,
)

MAX_SECONDS = 3600  # of a probe or a delay: longer ones only waste slots
MAX_WAIT_SECONDS = 24 * 3600  # of a download and those who wait for it
MAX_REVISION = 2**53  # a revision is a number of JSON, too

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
# Ranks in containers of their own are in different user namespaces: they cannot read one another's
# memory by process number, and Open MPI 4.1 hangs over large messages instead of doing without.
# PMIx: the default store is a folder of the batch system's spool, which images do not show.
RANK_VARIABLES = {
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "UCX_POSIX_USE_PROC_LINK": "n",
    "PMIX_MCA_gds": "hash",
}
DEFAULT_RUNTIMES = ("apptainer", "singularity", "ch-run", "podman")
# Batch systems whose directives are options of their submit commands, with an example of each.
DASHED = {
    "slurm": "--partition=short",
    "gridengine": "-l h_rt=3600",
    "pbs": "-l walltime=1:00:00",
    "lsf": "-W 1:00",
}
# What a container of a pod may ask for, and how much; Kubernetes' own words for both.
_RESOURCE = re.compile(
    r"(cpu|memory|ephemeral-storage|hugepages-[A-Za-z0-9]+|[a-z0-9.-]+/[A-Za-z0-9_.-]+)"
    r"=[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?"
)
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

    def __post_init__(self) -> None:
        check_number("min_revision", self.min_revision, 0, MAX_REVISION)


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
    directory: bool = field(
        default=False,
        metadata=about(
            "true: source is a directory, which publishers add to images as a mount point"
        ),
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
        lists = {
            "bind_paths": self.bind_paths,
            "limit_container_paths": self.limit_container_paths,
        }
        for key, paths in lists.items():
            for at, path in enumerate(paths):
                if "," in path or ":" in path or path != path.strip():
                    raise RefusedKeyError(
                        (key, at),
                        f"{path!r}: Apptainer's configuration cannot express commas, colons and"
                        " blanks at an end",
                        hint="put the mount into `binds`, where the launcher makes it",
                    )
        if self.session_dir_mib is not None:
            check_number("session_dir_mib", self.session_dir_mib, 1, 1 << 20, "MiB")


def _check_unique(key: str, names: Sequence[str]) -> None:
    for at, name in enumerate(names):
        if name in names[:at]:
            raise RefusedKeyError((key, at), f"{name} is given twice", hint="remove one")


def _check_destinations(lists: Mapping[str, Sequence[Bind]]) -> None:
    """Raise `RefusedKeyError` where two mounts are made at one place."""
    seen: dict[str, Bind] = {}
    for key, binds in lists.items():
        for at, bind in enumerate(binds):
            other = seen.setdefault(bind.destination, bind)
            if other is not bind:
                raise RefusedKeyError(
                    (key, at),
                    f"{other.source} and {bind.source} are both mounted at {bind.destination}",
                    hint="remove one, or give one of them another `target`",
                )


@dataclass(frozen=True, slots=True)
class Mpi:
    """What ranks of an MPI job get in addition; a rank is recognised by its environment."""

    binds: tuple[Bind, ...] = field(
        default=(), metadata=about("mounts of ranks only: the host's MPI or fabric libraries")
    )
    environment: Mapping[VariableName, Line] = field(
        default_factory=lambda: {
            VariableName(name): Line(text) for name, text in RANK_VARIABLES.items()
        },
        metadata=about("variables set for ranks only; the default lets them pass large messages"),
    )

    def __post_init__(self) -> None:
        _check_destinations({"binds": self.binds})


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
        default=timedelta(minutes=40),
        metadata=about(
            "how long to wait for another job's download of the same image; below download_timeout "
            "jobs give up while the image arrives"
        ),
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
            raise RefusedKeyError(
                ("chain",),
                "chain has mirror, and mirrors is empty",
                hint="give the addresses of what `publish --fallback` wrote under `mirrors`",
            )
        if len(set(self.chain)) != len(self.chain) or "host" in self.chain[:-1]:
            what = "names a way twice, or host before another way"
            raise RefusedKeyError(("chain",), what, hint="write each way once, and host last")
        check_number("cache_mb", self.cache_mb, 1, MAX_MB, "MB")
        check_number("image_mb", self.image_mb, 1, MAX_MB, "MB")
        if self.image_mb > self.cache_mb:
            what = f"an image of {self.image_mb} MB does not fit the cache of {self.cache_mb} MB"
            raise RefusedKeyError(("image_mb",), what, hint="raise cache_mb or lower image_mb")
        check_duration("lock_wait", self.lock_wait, 1, MAX_WAIT_SECONDS)
        check_duration("download_timeout", self.download_timeout, 1, MAX_WAIT_SECONDS)
        check_duration("retry_after", self.retry_after, 0, MAX_WAIT_SECONDS)
        if self.jitter > self.lock_wait:
            raise RefusedKeyError(
                ("jitter",),
                f"{self.jitter.total_seconds():.0f} s is longer than lock_wait,"
                f" {self.lock_wait.total_seconds():.0f} s: who waits would give up before"
                " the download begins",
                hint="lower jitter or raise lock_wait",
            )


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """The pod of a job."""

    namespace: ObjectName = field(
        default=ObjectName("default"), metadata=about("namespace of the pod")
    )
    image: ImageName = field(
        default=ImageName("ghcr.io/apptainer/apptainer:1.3.3"),
        metadata=about("image of the pod itself, with a runtime in it"),
    )
    storage_class: ObjectName = field(
        default=ObjectName("cvmfs"), metadata=about("storage class of the CVMFS CSI driver")
    )

    def __post_init__(self) -> None:
        if self.image.startswith("/"):
            what = f"{self.image!r} is a path; the pod's image is pulled from a registry"
            hint = "write its name, as registry.example.org/jobs:1"
            raise RefusedKeyError(("image",), what, hint=hint)
        if "." in self.namespace:
            what = f"{self.namespace!r}: a namespace has no dots"
            raise RefusedKeyError(("namespace",), what, hint="use letters, digits and -")


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
        for system, lines in self.options.items():
            if system not in self.systems:
                what = f"options are given for {system}, which is not in systems"
                hint = f"add {system} to batch.systems, or remove its options"
                raise RefusedKeyError(("options", system), what, hint=hint)
            for at, line in enumerate(lines):
                if system in DASHED and not line.startswith("-"):
                    what = f"{line!r} is not an option of {system}: it does not begin with -"
                    hint = f"write what its submit command takes, as {DASHED[system]}"
                    raise RefusedKeyError(("options", system, at), what, hint=hint)
                if system == "htcondor" and "=" not in line:
                    what = f"{line!r} is not a line of a submit file"
                    hint = "write KEY = VALUE, as +Flavour = short"
                    raise RefusedKeyError(("options", system, at), what, hint=hint)
                if system == "kubernetes" and not _RESOURCE.fullmatch(line):
                    what = f"{line!r} is not the quantity of a resource"
                    hint = "write NAME=QUANTITY, as cpu=4, memory=8Gi or nvidia.com/gpu=2"
                    raise RefusedKeyError(("options", system, at), what, hint=hint)
        if len(set(self.systems)) != len(self.systems):
            what = "names a batch system twice"
            raise RefusedKeyError(("systems",), what, hint="write each once")


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
            what = f"{self.name}/{self.version} offers no commands"
            hint = "name the programs that users call, as commands: [samtools]"
            raise RefusedKeyError(("commands",), what, hint=hint)
        if len(set(self.commands)) != len(self.commands):
            what = f"{self.name}: names a command twice"
            raise RefusedKeyError(("commands",), what, hint="write each once")


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
    processes: Literal["host", "own"] = field(
        default="host",
        metadata=about("process numbers and shared memory: those of the node, or of the job alone"),
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
    install_dir: PlainPath = field(
        default=PlainPath("/opt/cvmfs-run"),
        metadata=about("where the rendered folder lies on nodes; batch files lead there"),
    )
    batch: Batch = field(default=Batch(), metadata=about("the batch systems of the site"))
    software: tuple[Software, ...] = field(
        default=(), metadata=about("images offered as modules and commands")
    )

    def __post_init__(self) -> None:
        check_duration("probe_timeout", self.probe_timeout, 1, MAX_SECONDS)
        check_duration("fail_delay", self.fail_delay, 0, MAX_SECONDS)
        if not self.runtimes:
            what = "is empty: no job could start"
            hint = "leave the key out for the usual ones, or name one"
            raise RefusedKeyError(("runtimes",), what, hint=hint)
        _check_destinations({"binds": self.binds, "config_mounts": self.config_mounts})
        _check_unique("repositories", [entry.name for entry in self.repositories])
        _check_unique("required_repositories", self.required_repositories)
        modules = [f"{entry.name}/{entry.version}" for entry in self.software]
        _check_unique("software", modules)
