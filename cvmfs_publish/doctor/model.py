"""Say what was found of a thing that publishing needs: there, doubtful, missing, not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from cvmfs_publish.errors import LockedError, PublishError, RemoteError


class Outcome(StrEnum):
    """What becomes of a run that needs the thing."""

    OK = "ok"
    WARNING = "warning"  # it works now, or works less well than it could
    MISSING = "missing"  # it fails
    UNUSED = "not applicable"  # no run needs it


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of what `doctor` tells.  No secret is in it."""

    subject: str
    outcome: Outcome
    message: str
    remedy: str = ""  # "" if there is nothing to do


Check = Callable[[], Iterable[Finding]]


def good(subject: str, message: str) -> Finding:
    return Finding(subject, Outcome.OK, message)


def warn(subject: str, message: str, remedy: str) -> Finding:
    return Finding(subject, Outcome.WARNING, message, remedy)


def missing(subject: str, message: str, remedy: str) -> Finding:
    return Finding(subject, Outcome.MISSING, message, remedy)


def unused(subject: str, message: str) -> Finding:
    return Finding(subject, Outcome.UNUSED, message)


def is_fit(found: Iterable[Finding]) -> bool:
    """Whether nothing is missing."""
    return all(each.outcome is not Outcome.MISSING for each in found)


def of_error(subject: str, error: PublishError) -> Finding:
    """Return what an error means that a run would have ended with.

    What another publisher does, or a remote that is down, is over some time; the rest stays.
    """
    passing = isinstance(error, LockedError | RemoteError)
    outcome = Outcome.WARNING if isinstance(error, LockedError) else Outcome.MISSING
    hint = error.hint or ("try again later" if passing else "correct what the message names")
    return Finding(subject, outcome, str(error), hint)


def examine(subject: str, check: Check) -> Iterator[Finding]:
    """Yield what a check finds; an error that ends it is a finding, too."""
    try:
        yield from check()
    except PublishError as error:
        yield of_error(subject, error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        yield missing(
            subject, f"{where}{error.strerror or error}", "make it readable and writable for us"
        )
