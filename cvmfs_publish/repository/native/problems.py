"""What a check of a repository found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

MAX_PROBLEMS = 10_000  # kept in a report; a systematic fault would otherwise fill the memory


class Severity(StrEnum):
    """How bad a problem is."""

    ERROR = "error"  # a client, a replica or another writer will, or may, fail or show wrong data
    WARNING = "warning"  # against conventions, soon to be a problem, or could not be verified


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be."""

    place: str  # "/path/of/an/entry" (undecodable bytes as surrogates) or a file of the repository
    severity: Severity
    text: str


@dataclass(slots=True)
class Report:
    """The result of a check.  `counts` says how much was looked at, by kind."""

    name: str = ""
    revision: int = 0
    root_hash: str = ""
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: int = 0  # problems beyond MAX_PROBLEMS, counted only

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity is Severity.ERROR]

    @property
    def warnings(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity is Severity.WARNING]

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    def error(self, place: str, text: str) -> None:
        self.add(Problem(place, Severity.ERROR, text))

    def warning(self, place: str, text: str) -> None:
        self.add(Problem(place, Severity.WARNING, text))

    def add(self, problem: Problem) -> None:
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
            return
        self.dropped += 1
        if problem.severity is Severity.ERROR and self.problems[0].severity is Severity.WARNING:
            self.problems[0] = (
                problem  # warnings must not crowd out the fact that there is an error
            )
