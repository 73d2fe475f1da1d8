"""OpenStack Swift with its s3api, as `tools/install-parts` brings it."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from botocore.auth import S3SigV4Auth  # type: ignore[import-untyped]
from botocore.awsrequest import AWSRequest  # type: ignore[import-untyped]
from botocore.credentials import Credentials  # type: ignore[import-untyped]

from tests import parts
from tests.s3 import S3Bucket, S3Server, free_port, running

PYTHON = parts.PARTS / "swift" / "bin" / "python"


@contextmanager
def swift_server(folder: Path) -> Iterator[S3Server]:
    """Run the server, its files below `folder`, until the end of the block."""
    if not PYTHON.exists():
        parts.missing("OpenStack Swift")
    server = S3Server(free_port(), "test:tester", "testing")
    program = str(Path(__file__).with_name("swift_server.py"))
    with running([str(PYTHON), "-W", "ignore", program, str(folder), str(server.port)], server):
        yield server


def new_bucket(server: S3Server, name: str) -> S3Bucket:
    """Make a bucket; unlike moto, Swift wants to know who asks."""
    request = AWSRequest("PUT", f"{server.url}/{name}", data=b"")
    S3SigV4Auth(Credentials(server.access_key, server.secret_key), "s3", "us-east-1").add_auth(
        request
    )
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)) as client:
        client.request("PUT", f"/{name}", b"", dict(request.headers))
        answer = client.getresponse()
        text = answer.read()
    assert answer.status == 200, text
    return S3Bucket(server, name)
