"""Read what `cvmfs-run --dry-run` prints: the command line of the runtime, and its variables."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass

_DESCRIPTOR = re.compile(r"[0-9]<")  # `exec 7<…` opens a file


@dataclass(frozen=True, slots=True)
class RuntimeCommand:
    """What the launcher becomes; `variables` are those it exports before."""

    argv: tuple[str, ...]
    variables: dict[str, str]


def runtime_command(printed: str) -> RuntimeCommand | None:
    """Return the command in the output of `--dry-run`; None if there is none."""
    variables = {}
    words = shlex.split(printed.strip()[1:-1])  # without the parentheses of the subshell
    for number, (word, following) in enumerate(itertools.pairwise(words)):
        if word == "export":
            name, _, variables[name] = following.partition("=")
        if word == "exec" and not _DESCRIPTOR.match(following):
            return RuntimeCommand(tuple(words[number + 1 :]), variables)
    return None
