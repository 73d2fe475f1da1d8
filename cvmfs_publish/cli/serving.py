"""`serve`: the repository over HTTP, and what is in it for people, until somebody stops it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.cli.context import session_of
from cvmfs_publish.cli.expiry import warn_of_expiry
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.showing import open_service
from cvmfs_publish.errors import InputError
from cvmfs_publish.web.app import create_app
from cvmfs_publish.web.server import bind, create_server
from cvmfs_publish.web.static import read_manifest

DEFAULT_LISTEN = "127.0.0.1:8080"

app = command_app()


@app.command()
def serve(
    context: typer.Context,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 chooses a free one.")
    ] = DEFAULT_LISTEN,
) -> None:
    """Serve the repository and its status site over HTTP.

    The repository is at /cvmfs/NAME, as any web server serves it.  Beside it are pages about all
    images, /api, /metrics and /healthz.  Nothing can be changed here.

    Example: cvmfs-publish serve --listen 0.0.0.0:8000
    """
    session = session_of(context)
    repository = session.config.repository
    storage = repository.storage
    if repository.backend != "native":
        open_native(session.config, "`serve` is")
    if not isinstance(storage, Path):
        raise InputError(
            f"serve reads a local folder; the repository is in {storage}",
            hint="clients read it from the object store itself, once everybody may: see"
            " docs/publishing.md, S3 storage",
        )
    manifest = read_manifest(repository.name, storage)
    service = open_service(session.config)
    service.warm()
    with bind(listen) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}/cvmfs/{repository.name}"
        session.out.result(
            {"url": url, "repository": repository.name, "revision": manifest.revision}, url
        )
        session.out.stdout.flush()  # whoever started the service waits for this line
        session.out.note("serving until stopped with Ctrl-C or SIGTERM")
        warn_of_expiry(session)  # nobody looks at what it says when it ends
        application = create_app(service, storage=storage)
        server = create_server(application, log_requests=session.out.verbosity > 0)
        # uvicorn finishes what is under way, then raises the signal again for the handler before
        # it; to be stopped is no failure of a service
        signal.signal(signal.SIGTERM, lambda *_: None)
        server.run(sockets=[listener])
