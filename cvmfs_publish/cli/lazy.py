"""Import a command's module when the command is used, and not before.

Most of a short run's time is imports: the HTTP server, the templates and the signatures together
take longer than publishing an unchanged image.  So the command line knows every command's name and
one line of help, and this module alone imports by name.  Everywhere else imports stand at the top.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from cvmfs_publish.errors import InputError
from cvmfs_publish.settings import nearest


def command_app(
    *,
    cls: type[TyperGroup] | None = None,
    invoke_without_command: bool = False,
    add_completion: bool = False,
) -> typer.Typer:
    """Return an empty app that looks and fails like all the others.

    Markup is off: `[/VARIANT]` in a help text is meant as it stands, and plain text starts faster.
    """
    return typer.Typer(
        cls=cls or CommandGroup,
        invoke_without_command=invoke_without_command,
        add_completion=add_completion,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def load(module: str) -> Any:  # noqa: ANN401 - a module whose contents the caller knows
    """Return a module of this package that is not needed by every run."""
    return importlib.import_module(module)


@dataclass(frozen=True)
class Lazy:
    """A command and where it is: the module has a `typer.Typer` named `app`."""

    module: str
    help: str  # one line, for the list of commands
    is_group: bool = False  # the whole app is the command, `site`, and not one command of it


class CommandGroup(TyperGroup):
    """A group that answers a mistyped command with the nearest one."""

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override] # noqa: ANN401 - typer's own type is private
        if args and args[0] not in self.commands and not ctx.resilient_parsing:
            meant = nearest(args[0], self.commands)
            raise InputError(
                f"no such command: {args[0]}" + (f"; did you mean {meant!r}?" if meant else ""),
                hint=f"`{ctx.command_path} --help` lists the commands",
            )
        return super().resolve_command(ctx, args)


class LazyGroup(CommandGroup):
    """The top group: knows its commands by `table`, loads the one that is used.

    Its options named in `shared` are understood by every command below as well, so that
    `publish --json IMAGE` and `--json publish IMAGE` are the same.
    """

    shared: ClassVar[frozenset[str]] = frozenset()

    table: ClassVar[Mapping[str, Lazy]] = {}

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - typer's own
        super().__init__(**attributes)
        for name, lazy in self.table.items():
            self.add_command(TyperCommand(name, help=lazy.help), name)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override] # noqa: ANN401
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            command = self._load(name)
        return name, command, rest

    def _load(self, name: str) -> Any:  # noqa: ANN401
        lazy = self.table[name]
        loaded: Any = get_command(load(lazy.module).app)
        if not lazy.is_group:
            loaded = getattr(loaded, "commands", {name: loaded})[name]
        self._share_options(loaded)
        return loaded

    def _share_options(self, command: Any) -> None:  # noqa: ANN401
        for parameter in self.params:
            if self.shared & set(parameter.opts):
                command.params.append(parameter)
        for below in getattr(command, "commands", {}).values():
            self._share_options(below)
