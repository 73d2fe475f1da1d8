"""Do in several repositories what a command does in one, and tell it together.

Of one repository a command's result is what it always was.  Of several it is
`{"repositories": [the result of each, …]}`, or one text below the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cvmfs_publish.cli.context import Session
from cvmfs_publish.cli.expiry import warn_of_expiry
from cvmfs_publish.cli.output import Output, error_document
from cvmfs_publish.config import Config
from cvmfs_publish.errors import EXIT_PARTIAL, PublishError


class _Part(Output):
    """Where one repository's words go: results are collected, or stand below its name."""

    def __init__(self, whole: Output, name: str) -> None:
        super().__init__(**{**vars(whole), "_answered": False})
        self.document: Mapping[str, Any] = {}
        self._name = name
        self._is_headed = False

    def result(self, document: Mapping[str, Any], text: str) -> None:
        self.document = document
        if self.as_json:
            return
        if text and not self._is_headed:
            self._is_headed = True
            text = f"{self._name}:\n{text}"
        super().result(document, text)

    def error(self, kind: str, message: str, hint: str = "") -> None:
        """As of `Output`; in JSON, errors of a repository stand in its own document."""
        self.failed_with = kind
        if not self.as_json:
            subject = "" if self._name in message else f"{self._name}: "
            super().error(kind, subject + message, hint)


@dataclass
class Several:
    """What is done in several repositories, one after the other."""

    session: Session
    codes: list[int] = field(default_factory=list)
    documents: list[Mapping[str, Any]] = field(default_factory=list)

    def do(self, config: Config, command: Callable[[Session], int | None]) -> None:
        """Do something in one of them; a failure is told, and the others go on."""
        name = config.repository.name
        out = _Part(self.session.out, name)
        one = self.session.of(config, out)
        try:
            code = command(one) or 0
        except PublishError as error:
            code = error.exit_code
            out.error(error.kind, str(error), error.hint)
            out.document = {"error": error_document(error)}
        warn_of_expiry(one, code)
        self.codes.append(code)
        self.documents.append({"repository": name, **out.document})

    def tell(self) -> int:
        """Print the result; return the exit code: 6 if it failed in some, but not in all."""
        document = {"repositories": self.documents} if self.session.out.as_json else {}
        self.session.out.result(document, "")
        failed = [code for code in self.codes if code]
        if len(failed) < len(self.codes):
            return EXIT_PARTIAL if failed else 0
        return failed[0]


def in_each(
    session: Session,
    command: Callable[[Session], int | None],
    *,
    is_elsewhere: bool = False,
    concerns: Callable[[Config], bool] = lambda _: True,
) -> int:
    """Do something in each repository that was chosen, and return the exit code.

    Args:
        session: says which were chosen.
        command: does it in one.
        is_elsewhere: --from or --key is given, so that no configured repository is meant.
        concerns: whether a repository is one of those that have what this is about; if none has,
            each says so.
    """
    if is_elsewhere or len(session.configs) == 1:
        return command(session) or 0
    several = Several(session)
    for config in [each for each in session.configs if concerns(each)] or session.configs:
        several.do(config, command)
    return several.tell()
