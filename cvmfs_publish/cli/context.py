"""What every command is given: the output, the environment, and the configuration on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import typer

from cvmfs_publish.cli.output import Output
from cvmfs_publish.config import Config, complete, find_config, load_config


@dataclass
class Session:
    """One invocation of the program.  The environment is read once, by `main`."""

    out: Output
    environ: Mapping[str, str]
    cwd: Path
    config_path: Path | None = None  # what --config says
    expiry_told: bool = False  # that of the whitelist

    @property
    def has_config(self) -> bool:
        """Whether the command has read the configuration."""
        return "config" in vars(self)

    @cached_property
    def config(self) -> Config:
        """Read the configuration; `InputError` if there is none or it is wrong."""
        found = load_config(find_config(self.config_path, self.environ, self.cwd))
        return complete(found, self.environ)


def session_of(context: typer.Context) -> Session:
    """Return the session that `main` handed to the command line parser."""
    session = context.find_object(Session)
    if session is None:
        raise TypeError("the command was started without a session")
    return session
