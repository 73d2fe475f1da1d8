"""Run docker-registry on a loopback port and count what it is asked.

The counts come from its access log (Common Log Format, one line per answered request).
"""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 30.0
SETTLE_SECONDS = 0.25  # a request is logged after its answer, which the client may see first

_ACCESS = re.compile(r'"(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" (?P<status>\d{3}) ')
_CONFIGURATION = """version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: '{root}'}}
http:
  addr: {host}
  secret: benchmark
"""


class RegistryError(Exception):
    """The registry is not installed or does not start; the message says which."""


@dataclass(frozen=True)
class Registry:
    """A running registry; `root` is where it keeps its files."""

    host: str
    root: Path
    log: Path

    def mark(self) -> int:
        """Return the position in the log from which a later `requests` counts."""
        time.sleep(SETTLE_SECONDS)
        return self.log.stat().st_size

    def requests(self, mark: int, layers: frozenset[str]) -> Counter[str]:
        """Count the requests since `mark`; `layers` tells layer blobs from others by digest."""
        time.sleep(SETTLE_SECONDS)
        with self.log.open("rb") as file:
            file.seek(mark)
            return count_requests(file.read().decode("utf-8", "replace"), layers)


def count_requests(log: str, layers: frozenset[str]) -> Counter[str]:
    """Count requests as `HEAD manifest`, `GET layer`, `GET config`, `GET ping` and so on."""
    return Counter(
        f"{found['method']} {_describe_path(found['path'], layers)}"
        for found in _ACCESS.finditer(log)
    )


def _describe_path(path: str, layers: frozenset[str]) -> str:
    path = path.partition("?")[0]
    if path.rstrip("/") == "/v2":
        return "ping"
    if "/manifests/" in path:
        return "manifest"
    if "/blobs/uploads" in path:
        return "upload"
    if "/blobs/" in path:
        return "layer" if path.rpartition("/")[2] in layers else "config"
    return "other"


@contextmanager
def run_registry(directory: Path) -> Iterator[Registry]:
    """Run a registry that keeps everything below `directory`.  Raises `RegistryError`."""
    program = shutil.which("docker-registry")
    if program is None:
        raise RegistryError("docker-registry is not installed (Debian package docker-registry)")
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    registry = Registry(host, directory / "files", directory / "log")
    registry.root.mkdir(parents=True)
    configuration = directory / "config.yml"
    configuration.write_text(_CONFIGURATION.format(root=registry.root, host=host))
    with (
        registry.log.open("wb") as log,
        subprocess.Popen(
            [program, "serve", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            _wait_for_answer(registry, process)
            yield registry
        finally:
            process.terminate()


def _wait_for_answer(registry: Registry, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with closing(http.client.HTTPConnection(registry.host, timeout=5)) as client:
            try:
                client.request("GET", "/v2/")
                if client.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.05)
    raise RegistryError(f"docker-registry does not answer: {registry.log.read_text()[-2000:]}")
