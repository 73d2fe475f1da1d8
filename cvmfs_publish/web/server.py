"""Put an ASGI application behind a listening socket."""

from __future__ import annotations

import errno
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette

from cvmfs_publish.errors import InputError

STOP_SECONDS = 10  # grace for answers under way when the service is stopped
BACKLOG = 2048  # connections waiting to be accepted; what uvicorn itself asks for
# host ":" port; an IPv6 address stands in brackets
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:]+)):([0-9]{1,5})")


def create_server(app: Starlette, *, log_requests: bool = False) -> uvicorn.Server:
    """Return a server for `run(sockets=[listener])`; it logs through `logging` as configured."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=log_requests,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )


def bind(listen: str) -> socket.socket:
    """Return a listening socket; `InputError` if the address is malformed, taken or not ours."""
    match = _ADDRESS.fullmatch(listen)
    if match is None or int(match[3]) > 65535:
        raise InputError(
            f"{listen!r} is not an address to listen on",
            hint="write HOST:PORT, as in 127.0.0.1:8080",
        )
    host, port = match[1] or match[2], int(match[3])
    family = socket.AF_INET6 if match[1] else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # a service that is restarted need not wait until old connections are forgotten
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        hint = "choose another HOST:PORT"
        if exc.errno == errno.EADDRINUSE:
            raise InputError(f"{listen} is already in use by another program", hint=hint) from exc
        if exc.errno == errno.EACCES:
            raise InputError(f"{listen}: only root may use ports below 1024", hint=hint) from exc
        raise InputError(f"cannot listen on {listen}: {exc.strerror or exc}", hint=hint) from exc
    return listener


@contextmanager
def serving(application: Starlette, listen: str, *, log_requests: bool) -> Iterator[str]:
    """Serve in a thread; yield the URL."""
    with bind(listen) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server = create_server(application, log_requests=log_requests)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web")
        thread.start()
        try:
            yield f"http://{shown}:{port}"
        finally:
            server.should_exit = True
            thread.join()
