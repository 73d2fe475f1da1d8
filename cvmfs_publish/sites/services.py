"""What a site configuration says about the services around worker nodes.

The CernVM-FS client, the site's proxy (squid), and the server of fallback images (nginx).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cvmfs_publish.config import RepositoryName
from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import about
from cvmfs_publish.sites.values import DomainName, HostPath, Line, Network, VariableName, Word

_KEY_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.pub")
# What neither squid nor nginx needs quoted: squid cannot quote, nginx reads $ as a variable.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._+@=,-]+")
_PEM = re.compile(r"\s*-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+\n-----END PUBLIC KEY-----\s*")


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
    partition_mb: int | None = field(
        default=None,
        metadata=about("size of the partition of the cache, MB; the quota is checked against it"),
    )
    parameters: Mapping[VariableName, Line] = field(
        default_factory=dict, metadata=about("further CVMFS_… parameters, written as they are")
    )
    repositories: Mapping[RepositoryName, Mapping[VariableName, Line]] = field(
        default_factory=dict,
        metadata=about("parameters of single repositories, for config.d/NAME.local"),
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
        for repository, parameters in self.repositories.items():
            for name in parameters:
                if not name.startswith("CVMFS_"):
                    raise InputError(
                        f"repositories: {repository}: {name} does not start with CVMFS_"
                    )


@dataclass(frozen=True, slots=True)
class Squid:
    """The site's caching proxy; `proxy/squid.conf` is rendered only when this is given."""

    clients: tuple[Network, ...] = field(metadata=about("networks of the nodes that may use it"))
    port: int = field(default=3128, metadata=about("TCP port"))
    cache_dir: HostPath = field(
        default=HostPath("/var/spool/squid"), metadata=about("directory of the cache on disk")
    )
    cache_mb: int = field(default=100_000, metadata=about("size of the cache on disk, MB"))
    memory_mb: int = field(default=4096, metadata=about("size of the cache in memory, MB"))
    servers: tuple[Word, ...] = field(
        default=(),
        metadata=about("host names it may fetch from, besides those in client.domains"),
    )

    def __post_init__(self) -> None:
        if not self.clients:
            raise InputError("clients is empty: nobody could use the proxy")
        _check_port(self.port)
        _check_plain("cache_dir", self.cache_dir)
        _check_positive(cache_mb=self.cache_mb, memory_mb=self.memory_mb)


@dataclass(frozen=True, slots=True)
class Mirror:
    """The server of fallback images; `mirror/nginx.conf` is rendered only when this is given."""

    server_name: Word = field(metadata=about("host name under which nodes reach it"))
    root: HostPath = field(
        metadata=about("directory of the images that `publish --fallback` writes")
    )
    port: int = field(default=80, metadata=about("TCP port"))
    clients: tuple[Network, ...] = field(
        default=(), metadata=about("networks that may fetch; empty: everybody")
    )
    connections: int = field(
        default=64, metadata=about("downloads at a time; others are told to come back (503)")
    )

    def __post_init__(self) -> None:
        _check_port(self.port)
        _check_plain("root", self.root)
        _check_positive(connections=self.connections)


def _check_port(port: int) -> None:
    if not 0 < port < 1 << 16:
        raise InputError(f"port is {port}, not between 1 and 65535")


def _check_plain(key: str, path: str) -> None:
    if not _PLAIN_PATH.fullmatch(path):
        raise InputError(
            f"{key} is {path!r}, which the server's configuration cannot express",
            hint="use letters, digits and / . _ + @ = , - only",
        )


def _check_positive(**numbers: int) -> None:
    for key, number in numbers.items():
        if number < 1:
            raise InputError(f"{key} is {number}, and must be at least 1")
