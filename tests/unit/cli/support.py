"""Run the program as a shell would: in this process for speed, or as one of its own."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvmfs_publish.cli.app import run
from cvmfs_publish.cli.context import Session
from cvmfs_publish.cli.output import Output

LIMIT_SECONDS = 60  # a program that hangs ends, and its test fails
PROGRAM = [sys.executable, "-m", "cvmfs_publish"]


@dataclass(frozen=True)
class Ran:
    """What a run left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:  # noqa: ANN401 - JSON
        """The one JSON document on stdout."""
        return json.loads(self.out)


class Shell:
    """A folder to run commands in."""

    def __init__(self, cwd: Path, environ: Mapping[str, str] | None = None) -> None:
        self.cwd = cwd
        self.environ = {"HOME": str(cwd), **(environ or {})}

    def run(self, *arguments: str) -> Ran:
        out, err = io.StringIO(), io.StringIO()
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        root.handlers = []
        try:
            # help is printed by the parser, which knows nothing of our streams
            with redirect_stdout(out), redirect_stderr(err):
                output = Output(out, err, self.environ)
                code = run(arguments, Session(output, self.environ, self.cwd))
        finally:
            root.handlers, root.level = handlers, level
        return Ran(code, out.getvalue(), err.getvalue())

    def json(self, *arguments: str, code: int = 0) -> Any:  # noqa: ANN401 - JSON
        """Run with --json; return the document, having checked that nothing else was said."""
        ran = self.run("--json", *arguments)
        assert (ran.code, ran.err) == (code, ""), ran
        return ran.document

    @contextmanager
    def spawn(self, *arguments: str, **options: Any) -> Iterator[subprocess.Popen[str]]:  # noqa: ANN401
        """Start the program; whatever happens, it does not outlive the block."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=self.cwd,
            env={**os.environ, **self.environ},
            **{**pipes, **options},
        ) as process:
            watchdog = threading.Timer(LIMIT_SECONDS, process.kill)
            watchdog.start()
            try:
                yield process
            finally:
                watchdog.cancel()
                if process.poll() is None:
                    process.kill()

    def process(self, *arguments: str) -> Ran:
        with self.spawn(*arguments) as process:
            out, err = process.communicate(timeout=LIMIT_SECONDS)
        return Ran(process.returncode, out, err)


def repository(shell: Shell, name: str = "test.example.org") -> Shell:
    """Make a repository in the shell's folder."""
    ran = shell.run("init", name, "--quiet")
    assert ran.code == 0, ran.err
    return shell
