"""What every command is given: the output, the environment, and the configuration on demand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import typer

from cvmfs_publish.cli.output import Output
from cvmfs_publish.config import (
    ChoiceError,
    Config,
    choose_configs,
    complete,
    find_config,
    load_configs,
)


@dataclass
class Session:
    """One invocation of the program.  The environment is read once, by `main`."""

    out: Output
    environ: Mapping[str, str]
    cwd: Path
    config_path: Path | None = None  # what --config says
    expiry_told: bool = False  # that of the whitelist
    repositories: list[str] = field(default_factory=list)  # what --repository says

    @property
    def has_config(self) -> bool:
        """Whether the command has read the configuration of its repository."""
        return "config" in vars(self)

    @property
    def found_config(self) -> Path:
        """The file of the configuration; `InputError` if there is none."""
        return find_config(self.config_path, self.environ, self.cwd)

    def read_configs(self) -> tuple[Config, ...]:
        """Read what is configured of each repository that was chosen; of all, if none was."""
        path = self.found_config
        found = choose_configs(load_configs(path), self.repositories, path)
        return tuple(complete(config, self.environ) for config in found)

    @cached_property
    def configs(self) -> tuple[Config, ...]:
        """What is configured of each repository that was chosen; of all, if none was."""
        return self.read_configs()

    @cached_property
    def config(self) -> Config:
        """What is configured of the one repository; `InputError` if several are meant."""
        if len(self.configs) > 1:
            raise ChoiceError(self.found_config, self.configs)
        return self.configs[0]

    def of(self, config: Config, out: Output) -> Session:
        """Return the session of a command that deals with one of the repositories."""
        one = Session(out, self.environ, self.cwd, self.config_path)
        one.repositories = [config.repository.name] if config.is_one_of_several else []
        vars(one)["config"] = config
        return one


def session_of(context: typer.Context) -> Session:
    """Return the session that `main` handed to the command line parser."""
    session = context.find_object(Session)
    if session is None:
        raise TypeError("the command was started without a session")
    return session
