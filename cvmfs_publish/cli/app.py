"""Turn a command line into one command's run, and its end into words and an exit code.

Exit codes: 0 done; otherwise the family of the error (`errors.py`), 2 for wrong usage, 6 if some
images of several failed, 130 if interrupted.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TextIO

import typer
from typer.main import get_command

from cvmfs_publish import __version__
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.lazy import Lazy, LazyGroup, command_app, load
from cvmfs_publish.cli.output import PROGRAM, Output
from cvmfs_publish.errors import InputError, PublishError

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_TERMINATED = 143  # 128 + SIGTERM
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE: `cvmfs-publish list | head -1`
# Trees of a hundred thousand entries hold no cycles; looking for some costs a fifth of a run.
GC_THRESHOLDS = (2_000_000, 20, 100)
COMPLETION_VARIABLE = "_CVMFS_PUBLISH_COMPLETE"  # set by the shell's completion script

# typer exports only this leaf of its (or click's) usage errors; its base covers all of them
UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_IMAGES = "cvmfs_publish.cli.images"
_NAMES = "cvmfs_publish.cli.names"
_REPOSITORY = "cvmfs_publish.cli.repository"


class Commands(LazyGroup):
    """All commands, in the order in which a person meets them."""

    shared = frozenset({"--config", "--json", "--repository", "--verbose", "--quiet"})

    table: ClassVar[Mapping[str, Lazy]] = {
        "init": Lazy(_REPOSITORY, "Create a repository and write cvmfs-publish.yaml."),
        "publish": Lazy(
            "cvmfs_publish.cli.publishing", "Publish images from registries, files and stores."
        ),
        "unpublish": Lazy(_NAMES, "Remove the names of images."),
        "rollback": Lazy(_NAMES, "Point a name back to what it led to before."),
        "pin": Lazy(_NAMES, "Protect a name and its sandbox from removal."),
        "unpin": Lazy(_NAMES, "End the protection by `pin`."),
        "list": Lazy(_IMAGES, "List the published images."),
        "show": Lazy(_IMAGES, "Show one published image in full."),
        "history": Lazy(_NAMES, "Show what a name led to and when."),
        "export": Lazy(_IMAGES, "Write a published image as an ordinary folder."),
        "verify": Lazy(
            "cvmfs_publish.cli.verifying",
            "Compare a published image with where it came from.",
        ),
        "check": Lazy(_REPOSITORY, "Verify the whole repository."),
        "gc": Lazy("cvmfs_publish.cli.collecting", "Remove what nothing names."),
        "info": Lazy(_REPOSITORY, "Show the repository's facts, sizes and expiry dates."),
        "tag": Lazy("cvmfs_publish.cli.tags", "Name a revision, or list the names."),
        "resign": Lazy("cvmfs_publish.cli.resigning", "Renew the whitelist before it expires."),
        "replicas": Lazy("cvmfs_publish.cli.replicas", "Show how far every configured replica is."),
        "switch": Lazy(
            "cvmfs_publish.cli.staging",
            "Let names lead to new images that enough replicas have.",
        ),
        "watch": Lazy("cvmfs_publish.cli.watching", "Publish what wishlists wish, for ever."),
        "serve": Lazy(
            "cvmfs_publish.cli.serving", "Serve the repository and its status site over HTTP."
        ),
        "wishlist": Lazy(
            "cvmfs_publish.cli.wishlists",
            "Check wishlists, show their images, convert other lists.",
            True,
        ),
        "doctor": Lazy(
            "cvmfs_publish.cli.doctor", "Show what this machine lacks, with the remedy for each."
        ),
        "bench": Lazy("cvmfs_publish.cli.bench", "Measure how long a job takes to start here."),
        "site": Lazy(
            "cvmfs_publish.cli.sites", "Show, check and render site configurations.", True
        ),
    }


def _set_config(context: typer.Context, value: Path | None) -> None:
    if value is not None:
        session_of(context).config_path = value


def _set_repositories(context: typer.Context, value: list[str]) -> None:
    session_of(context).repositories += value or []


def _set_json(context: typer.Context, value: bool) -> None:
    if value:
        session_of(context).out.as_json = True


def _set_verbosity(context: typer.Context, value: int) -> None:
    out = session_of(context).out
    out.verbosity += value
    _set_log_level(out)


def _set_quiet(context: typer.Context, value: bool) -> None:
    if value:
        out = session_of(context).out
        out.quiet = True
        _set_log_level(out)


def _set_log_level(out: Output) -> None:
    level = logging.ERROR if out.quiet else logging.WARNING
    if out.verbosity:
        level = logging.INFO if out.verbosity == 1 else logging.DEBUG
    logging.getLogger().setLevel(level)
    # requests' own library logs every request; that is for -vv only
    logging.getLogger("urllib3").setLevel(logging.DEBUG if out.verbosity > 1 else logging.ERROR)


def _show_version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        out = session_of(context).out
        out.result({"version": __version__}, f"{PROGRAM} {__version__}")
        raise typer.Exit


app = command_app(cls=Commands, invoke_without_command=True, add_completion=True)


@app.callback()
def start(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            callback=_set_config,
            expose_value=False,
            help="Configuration file; else $CVMFS_PUBLISH_CONFIG, ./cvmfs-publish.yaml,"
            " /etc/cvmfs-publish/cvmfs-publish.yaml.",
        ),
    ] = None,
    repository: Annotated[
        list[str] | None,
        typer.Option(
            "-r",
            "--repository",
            metavar="NAME",
            callback=_set_repositories,
            expose_value=False,
            help="One of several configured repositories; may be repeated; else all of them.",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            callback=_set_json,
            expose_value=False,
            help="Print exactly one JSON document, also for errors.",
        ),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "-v",
            "--verbose",
            count=True,
            show_default=False,
            callback=_set_verbosity,
            expose_value=False,
            help="Say more; twice: say everything.",
        ),
    ] = 0,
    quiet: Annotated[
        bool,
        typer.Option(
            "-q",
            "--quiet",
            callback=_set_quiet,
            expose_value=False,
            help="Say nothing but results and errors.",
        ),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            # eager: answers before the other options cost their conversion, 50 ms
            is_eager=True,
            callback=_show_version,
            expose_value=False,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Publish container images into CernVM-FS as ready-to-run sandboxes.

    Start with `cvmfs-publish init containers.example.org`, then
    `cvmfs-publish publish docker.io/library/debian:12`.
    """
    if context.invoked_subcommand is None:
        raise InputError("no command given", hint=f"`{PROGRAM} --help` lists the commands")


def run(arguments: Sequence[str], session: Session) -> int:
    """Run one command line and return its exit code; nothing is raised, nothing exits."""
    out = session.out
    # a usage error may come before the parser has reached the option
    out.as_json = "--json" in _before_dashes(arguments)
    logging.basicConfig(stream=out.stderr, format=f"{PROGRAM}: %(message)s", force=True)
    try:
        code = _attempt(arguments, session)
        out.stdout.flush()
        if session.has_config and code not in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            load("cvmfs_publish.cli.expiry").warn_of_expiry(session, code)
    except BrokenPipeError:
        _discard(out.stdout)
        code = EXIT_PIPE_CLOSED
    except OSError as exc:
        _discard(out.stdout)
        out.as_json = False
        out.error("system", f"the result cannot be written: {exc.strerror or exc}")
        code = EXIT_BUG
    return code


def _attempt(arguments: Sequence[str], session: Session) -> int:
    """Run the command; every failure becomes words and a code, but for a reader that went away."""
    out = session.out
    try:
        return _invoke(arguments, session)
    except PublishError as exc:
        out.error(exc.kind, str(exc), exc.hint)
        _trace(out, from_verbosity=2)
        return exc.exit_code
    except UsageError as exc:
        out.error("usage", _usage_message(exc), _usage_hint(exc))
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        out.error("interrupted", "interrupted")
        return EXIT_INTERRUPTED
    except Terminated:
        out.error("terminated", "terminated")
        return EXIT_TERMINATED
    except BrokenPipeError:
        raise
    except OSError as exc:
        subject = f"{exc.filename}: " if exc.filename else ""
        out.error("system", f"{subject}{exc.strerror or exc}", "" if out.verbosity else _MORE)
        _trace(out, from_verbosity=1)
    except Exception as exc:  # noqa: BLE001 - the program's edge: the last word on any bug
        out.error("bug", f"{type(exc).__name__}: {exc}", "" if out.verbosity else _MORE)
        _trace(out, from_verbosity=1)
    return EXIT_BUG


_MORE = "run the command again with -v to see where this happened"


def _invoke(arguments: Sequence[str], session: Session) -> int:
    command = get_command(app)
    if session.environ.get(COMPLETION_VARIABLE):  # asked by a shell, not by a person
        command.main(list(arguments), PROGRAM, COMPLETION_VARIABLE, obj=session)
    try:
        with command.make_context(PROGRAM, list(arguments), obj=session) as context:
            code = command.invoke(context)
    except typer.Exit as exc:
        return exc.exit_code
    return code if isinstance(code, int) else 0


def _before_dashes(arguments: Sequence[str]) -> Sequence[str]:
    return arguments[: arguments.index("--")] if "--" in arguments else arguments


def _usage_message(error: Exception) -> str:
    text = str(error.format_message()) if hasattr(error, "format_message") else str(error)
    text = text.replace("Value error, ", "", 1)  # pydantic's words inside typer's
    return (text[:1].lower() + text[1:]).rstrip(".")


def _usage_hint(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    return f"`{path} --help` explains what is possible"


def _trace(out: Output, *, from_verbosity: int) -> None:
    """Say where the error that is being handled came from."""
    if out.verbosity >= from_verbosity:
        print(traceback.format_exc(), end="", file=out.stderr)


def _discard(stream: TextIO) -> None:
    """Send what is still buffered nowhere, or the interpreter complains about it at its exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


class Terminated(BaseException):
    """SIGTERM arrived: stop as after Ctrl-C, and leave nothing behind."""


def _terminate(*_: object) -> None:
    raise Terminated


def main() -> None:
    """Run the program: the one place that reads the command line and the environment."""
    signal.signal(signal.SIGTERM, _terminate)
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started the program
        sys.exit(EXIT_USAGE)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that is not UTF-8 is shown, not fatal
            stream.reconfigure(errors="backslashreplace")

    gc.set_threshold(*GC_THRESHOLDS)
    out = Output(sys.stdout, sys.stderr, os.environ)
    try:
        cwd = Path.cwd()
    except OSError as exc:
        out.error("system", f"the current folder cannot be used: {exc.strerror}", "cd elsewhere")
        sys.exit(EXIT_USAGE)
    sys.exit(run(sys.argv[1:], Session(out, os.environ, cwd)))
