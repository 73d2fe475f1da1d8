"""Fixtures of all tests; and nothing a test does in this process reaches beyond this machine."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import parts, s3

# How fast a machine is proves nothing: neither an example nor making one may be "too slow".
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def _is_local(host: object) -> bool:
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    return text in (None, "", "localhost", "::1", "0.0.0.0", "::") or str(text).startswith("127.")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Make every other host unreachable, as on a machine without network.

    Programs that tests start are not held back: `mmdebstrap` has to fetch its packages.
    """
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def connect_locally(self: socket.socket, address: Any) -> None:  # noqa: ANN401
        if self.family != socket.AF_UNIX and not _is_local(address[0]):
            raise OSError(errno.ENETUNREACH, f"tests reach no other host, asked for {address}")
        connect(self, address)

    def resolve_locally(host: bytes | str | None, *rest: Any, **options: Any) -> object:  # noqa: ANN401
        if not _is_local(host):
            raise socket.gaierror(socket.EAI_NONAME, f"tests resolve no name, asked for {host!r}")
        return getaddrinfo(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        patch.setattr(socket, "getaddrinfo", resolve_locally)
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """Let programs that tests start have the signals a shell in the background or nohup ignores.

    No shell can trap what was ignored when it started.  Here they still do nothing.
    """
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def _no_surprises_from_the_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide proxies, credentials and configuration of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.upper().endswith("_PROXY") or name.startswith(
                ("AWS_", "CVMFS", "APPTAINER", "SINGULARITY", "DOCKER_", "REGISTRY_AUTH_FILE")
            ):
                patch.delenv(name)
        # With it, each error of Sequoia costs a second of looking up names of functions.
        patch.setenv("RUST_BACKTRACE", "0")
        patch.setenv("DOCKER_CONFIG", str(tmp_path_factory.mktemp("no-docker-config")))
        yield


@pytest.fixture(scope="session")
def test_user() -> parts.User:
    """The unprivileged user jobs of the tests run as."""
    return parts.test_user()


@pytest.fixture
def shared_tmp() -> Iterator[Path]:
    """A temporary directory the test user can reach and read; only its owner writes to it.

    pytest's own `tmp_path` lies below a directory that no other user can enter.
    """
    directory = Path(tempfile.mkdtemp(prefix="cvmfs-publish-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[parts.RegistryServer]:
    """One real registry for the whole run; tests choose repository names of their own."""
    with parts.docker_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="session")
def registry_with_password(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[parts.RegistryServer]:
    """A real registry that answers nobody without its user name and password."""
    with parts.docker_registry(tmp_path_factory.mktemp("registry"), htpasswd=True) as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.S3Server]:
    """One real S3 server for the whole run; tests make buckets of their own."""
    with s3.moto_server() as server:
        yield server


@pytest.fixture
def bucket(s3_server: s3.S3Server) -> s3.S3Bucket:
    """A bucket of this test."""
    return s3_server.new_bucket()


# Folders whose tests start whole programs or make large images.
SLOW_FOLDERS = {"e2e", "killed", "hostile", "benchmarks"}

# Where single tests take longest.  They come first: at the end, a core would wait for the other.
LONG = {
    *("killed", "property", "test_api_description.py", "test_operations.py"),
    *("test_compare_umoci.py", "test_status_site.py"),
}


def pytest_xdist_auto_num_workers() -> int:
    """Return what `--numprocesses auto` means: half of their time tests wait for programs."""
    return max(2, len(os.sched_getaffinity(0)) * 3 // 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that are slow by where they are; `make test-pure` leaves them out."""
    for item in items:
        if SLOW_FOLDERS & set(item.path.parts):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: LONG.isdisjoint(item.path.parts))
