"""What a site configuration says about the services around worker nodes.

The CernVM-FS client, the site's proxy (squid), and the server of fallback images (nginx).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cvmfs_publish.config import RepositoryName
from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import RefusedKeyError, about
from cvmfs_publish.sites.values import (
    DomainName,
    HostName,
    Line,
    Network,
    PlainPath,
    VariableName,
    check_number,
)

_KEY_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.pub")
_SERVER = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/[A-Za-z0-9._~@%/-]*")
_PROXY = re.compile(
    r"DIRECT|auto|https?://([A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9a-fA-F:]+\])(:[0-9]+)?/?"
)
OWN_KEYS = {
    "CVMFS_REPOSITORIES": "repositories",
    "CVMFS_HTTP_PROXY": "client.http_proxy",
    "CVMFS_QUOTA_LIMIT": "client.quota_mb",
    "CVMFS_CACHE_BASE": "client.cache_base",
}
MAX_PORT = 65_535
MAX_MB = 10**9  # a thousand terabytes
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
            raise InputError(
                "a domain needs at least one server and one public key",
                hint="give both, or remove the domain if the stock client knows it",
            )
        for at, server in enumerate(self.servers):
            hint = "as in http://stratum1.example.org/cvmfs/@fqrn@"
            if not _SERVER.fullmatch(server):
                what = f"{server!r} is not the address of a Stratum 1"
                raise RefusedKeyError(("servers", at), what, hint=hint)
            if "@fqrn@" not in server:
                what = f"{server!r} does not contain @fqrn@"
                raise RefusedKeyError(("servers", at), what, hint=hint)
        for name, key in self.public_keys.items():
            if not _KEY_FILE.fullmatch(name):
                what = f"{name!r} is not a file name of the form NAME.pub"
                hint = "name it like the repository or its domain, as example.org.pub"
                raise RefusedKeyError(("public_keys", name), what, hint=hint)
            if not _PEM.fullmatch(key):
                raise RefusedKeyError(
                    ("public_keys", name),
                    "not a public key in PEM form",
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
        metadata=about(
            "CVMFS_QUOTA_LIMIT, MB; the partition needs about a quarter more; "
            "-1: no limit, for an alien cache"
        ),
    )
    cache_base: PlainPath | None = field(
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
        unlimited = self.quota_mb == -1 and "CVMFS_ALIEN_CACHE" in self.parameters
        if self.quota_mb is not None and not unlimited and not 1000 <= self.quota_mb <= MAX_MB:
            raise RefusedKeyError(
                ("quota_mb",),
                f"{self.quota_mb} is not a possible size; the client needs at least 1000",
                hint="the unit is megabytes; 25000 is a usual value for a farm node",
            )
        if self.partition_mb is not None:
            check_number("partition_mb", self.partition_mb, 1000, MAX_MB, "MB")
        if self.http_proxy is not None:
            _check_proxy(self.http_proxy)
        _check_parameters(("parameters",), self.parameters)
        for name in self.parameters:
            if name in OWN_KEYS:
                what = f"has a key of its own: {OWN_KEYS[name]}"
                raise RefusedKeyError(("parameters", name), what, hint="write it there")
        for repository, parameters in self.repositories.items():
            _check_parameters(("repositories", repository), parameters)


def _check_proxy(value: str) -> None:
    for proxy in re.split("[|;]", value):
        if not _PROXY.fullmatch(proxy):
            raise RefusedKeyError(
                ("http_proxy",),
                f"{proxy!r} is not a proxy",
                hint="as in http://squid1.example.org:3128|http://squid2.example.org:3128;DIRECT",
            )


def _check_parameters(key: Sequence[str], parameters: Mapping[VariableName, Line]) -> None:
    for name in parameters:
        if not name.startswith("CVMFS_"):
            what = f"{name} does not start with CVMFS_"
            raise RefusedKeyError((*key, name), what, hint="name a parameter of the client")


@dataclass(frozen=True, slots=True)
class Squid:
    """The site's caching proxy; `proxy/squid.conf` is rendered only when this is given."""

    clients: tuple[Network, ...] = field(metadata=about("networks of the nodes that may use it"))
    port: int = field(default=3128, metadata=about("TCP port"))
    cache_dir: PlainPath = field(
        default=PlainPath("/var/spool/squid"), metadata=about("directory of the cache on disk")
    )
    cache_mb: int = field(default=100_000, metadata=about("size of the cache on disk, MB"))
    memory_mb: int = field(default=4096, metadata=about("size of the cache in memory, MB"))
    servers: tuple[HostName, ...] = field(
        default=(),
        metadata=about("host names it may fetch from, besides those in client.domains"),
    )

    def __post_init__(self) -> None:
        if not self.clients:
            what = "is empty: nobody could use the proxy"
            raise RefusedKeyError(("clients",), what, hint="name the networks of the nodes")
        check_number("port", self.port, 1, MAX_PORT)
        check_number("cache_mb", self.cache_mb, 100, MAX_MB, "MB")
        check_number("memory_mb", self.memory_mb, 8, MAX_MB, "MB")


@dataclass(frozen=True, slots=True)
class Mirror:
    """The server of fallback images; `mirror/nginx.conf` is rendered only when this is given."""

    server_name: HostName = field(metadata=about("host name under which nodes reach it"))
    root: PlainPath = field(
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
        check_number("port", self.port, 1, MAX_PORT)
        check_number("connections", self.connections, 1, 100_000)
