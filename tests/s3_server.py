"""Run moto's S3 server, as `python -m tests.s3_server PORT`; a helper of `tests.s3`.

moto looks whether a condition is met and then writes, in as many threads as there are requests.  A
store promises that nothing happens in between, so one request is let in at a time.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class OneAtATime:
    """A WSGI application that answers one request at a time."""

    def __init__(self, application: Any) -> None:  # noqa: ANN401 - any WSGI application
        self._application = application
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Any) -> Iterable[bytes]:  # noqa: ANN401
        with self._lock:
            return list(self._application(environ, start))


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    run_simple(
        "127.0.0.1",
        int(sys.argv[1]),
        OneAtATime(create_backend_app("s3")),  # without asking anew which service is meant
        threaded=True,
        request_handler=MotoRequestHandler,
    )
