"""A real S3 server for the tests, and a look at what is in it that is none of our code."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store as Client

from cvmfs_publish.content.s3_client import S3Settings

CHECKOUT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0
ACCESS_KEY, SECRET_KEY = "AKIATEST", "secret-of-the-tests"
_numbers = itertools.count()


@dataclass(frozen=True)
class S3Server:
    """A running server on loopback."""

    port: int
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def new_bucket(self) -> S3Bucket:
        """Make a bucket that no other test uses."""
        bucket = S3Bucket(self, f"bucket-{next(_numbers)}")
        self.request("PUT", f"/{bucket.name}")
        return bucket

    def request(self, method: str, path: str, body: bytes = b"") -> None:
        """Ask for something without a signature, which this server does not miss."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)) as client:
            client.request(method, path, body)
            answer = client.getresponse()
            text = answer.read()
        assert answer.status < 300, text


@dataclass(frozen=True)
class S3Bucket:
    """A bucket with one repository."""

    server: S3Server
    name: str
    prefix: str = "cvmfs/test.example.org"

    @property
    def settings(self) -> S3Settings:
        """As a publisher on this machine uses it, but less patient."""
        return S3Settings(
            self.name,
            self.prefix,
            self.server.access_key,
            self.server.secret_key,
            endpoint=self.server.url,
            connections=8,
            timeout=20.0,
            patience=5.0,
        )

    def by(self, url: str, **changes: Any) -> S3Settings:  # noqa: ANN401 - fields of S3Settings
        """Return the settings of one who reaches it at another address."""
        return replace(self.settings, endpoint=url, **changes)

    @property
    def url(self) -> str:
        return f"{self.server.url}/{self.name}/{self.prefix}"

    @cached_property
    def client(self) -> Client:
        """A client that leads to the same prefix."""
        return Client(
            self.name,
            prefix=self.prefix,
            config={
                "endpoint": self.server.url,
                "region": "us-east-1",
                "access_key_id": self.server.access_key,
                "secret_access_key": self.server.secret_key,
                "skip_signature": False,
            },
            client_options={"allow_http": True},
        )

    def names(self) -> set[str]:
        """Return all files below the prefix."""
        return set(self._versions())

    def _versions(self) -> dict[str, str | None]:
        return {
            found["path"]: found["e_tag"] for batch in obstore.list(self.client) for found in batch
        }

    def get(self, name: str) -> bytes:
        return bytes(obstore.get(self.client, name).bytes())

    def headers(self, name: str) -> dict[str, str]:
        """Return what readers are told about a file beside its bytes."""
        return dict(obstore.get(self.client, name).attributes)

    def put(self, name: str, data: bytes) -> None:
        obstore.put(self.client, name, data)

    def delete(self, name: str) -> None:
        obstore.delete(self.client, name)

    def mirror(self, directory: Path) -> Path:
        """Make a directory a copy of the repository; what has not changed since is left."""
        before, after = self._mirrored.get(directory, {}), self._versions()
        for shard in range(256 if not before else 0):
            (directory / "data" / f"{shard:02x}").mkdir(parents=True, exist_ok=True)
        for name, version in after.items():
            if version is None or version != before.get(name):
                path = directory / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.get(name))
        for name in before.keys() - after.keys():
            (directory / name).unlink()
        self._mirrored[directory] = after
        return directory

    @cached_property
    def _mirrored(self) -> dict[Path, dict[str, str | None]]:
        """Versions of the files in the directories made."""
        return {}

    def publish_to_everybody(self) -> None:
        """Let everybody read, as docs/publishing.md says; moto wants the word for HEAD as well."""
        statement = {
            "Effect": "Allow",
            "Principal": "*",
            "Action": ["s3:GetObject", "s3:HeadObject"],
            "Resource": f"arn:aws:s3:::{self.name}/*",
        }
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        self.server.request("PUT", f"/{self.name}?policy", policy.encode())


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Run the server on a free port until the end of the block."""
    server = S3Server(free_port())
    with running([sys.executable, "-m", "tests.s3_server", str(server.port)], server):
        yield server


@contextmanager
def running(command: list[str], server: S3Server) -> Iterator[None]:
    """Keep a program running that answers for `server`."""
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.DEVNULL) as process:
        try:
            _wait_until_it_answers(server, process)
            yield
        finally:
            process.kill()


def _wait_until_it_answers(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with (
            suppress(OSError),
            closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)) as client,
        ):
            client.request("GET", "/")
            client.getresponse().read()
            return
        time.sleep(0.05)
    raise RuntimeError("the S3 server does not start")
