"""Put an application behind a real socket for the length of a test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.applications import Starlette

from cvmfs_publish.web.server import create_server


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serve it on loopback; yield its URL without a slash at the end."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = create_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        host, port = listener.getsockname()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join()
