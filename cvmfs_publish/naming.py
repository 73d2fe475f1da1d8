"""Turn what replicas have into names that lead to new images: the second phase of a publish.

What waits is in the repository (`repository/staging.py`); nothing is kept here, so that whoever is
killed, interrupted or out of time is continued by whoever comes next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cvmfs_publish.errors import LockedError
from cvmfs_publish.replicas import WAIT_SECONDS, LaggingError, Survey, reasons
from cvmfs_publish.repository.base import Repository, persist
from cvmfs_publish.repository.records import Publication, Staged, iter_staged
from cvmfs_publish.repository.staging import StagedName, hindrance, switch_names
from cvmfs_publish.sources.compliance import NO_RULES, Compliance
from cvmfs_publish.words import plural


@dataclass(frozen=True, slots=True)
class Wanted:
    """How many replicas are to have an image before its name leads there, and which image may."""

    most: int = 0  # at present, for those that were staged when more were wanted; 0: as then
    compliance: Compliance = NO_RULES

    def of(self, staged: Staged) -> int:
        return min(staged.replicas, self.most) if self.most else staged.replicas

    def is_ready(self, staged: Staged, survey: Survey) -> bool:
        """Whether a name may lead to its new image, by what all replicas said in one look."""
        return survey.having(staged.revision) >= self.of(staged)


def read_all_staged(
    repository: Repository, compliance: Compliance = NO_RULES
) -> tuple[Staged, ...]:
    """Return all that waits for replicas in the published revision, and for nothing else."""
    with repository.open() as view:
        return tuple(
            staged for staged in iter_staged(view) if hindrance(view, staged, compliance) is None
        )


def switch_ready(
    repository: Repository,
    survey: Survey,
    wanted: Wanted,
    now: datetime,
    *,
    among: Iterable[StagedName] | None = None,
) -> list[Publication]:
    """Point all names whose images have arrived, or those of them, there; return their records.

    Costs no revision if there are none.

    Raises:
        LockedError, RepositoryError: nothing was changed.
    """
    meant = None if among is None else set(among)
    ready = [
        StagedName.of(staged)
        for staged in read_all_staged(repository, wanted.compliance)
        if wanted.is_ready(staged, survey) and (meant is None or StagedName.of(staged) in meant)
    ]
    if not ready:
        return []
    return switch_now(repository, ready, now, compliance=wanted.compliance)


def switch_now(
    repository: Repository,
    names: Sequence[StagedName],
    now: datetime,
    step: Callable[[str], None] = lambda _: None,
    compliance: Compliance = NO_RULES,
) -> list[Publication]:
    """Point names at what they wait for, whatever replicas have; return their records.

    Those that the rules keep out are left alone.  `step` is told the name of every stage of the
    transaction.
    """

    def work() -> list[Publication]:
        with repository.transaction(int(now.timestamp()), step) as transaction:
            return switch_names(transaction, names, now, compliance)

    return persist(work)


@dataclass(frozen=True, slots=True)
class Waited:
    """What came of waiting."""

    survey: Survey  # the last look
    switched: tuple[Publication, ...]
    waiting: tuple[Staged, ...]  # of those that were waited for


class Switching:
    """Looks again and again until names lead to what they wait for."""

    def __init__(
        self,
        repository: Repository,
        look: Callable[[], Survey],
        wanted: Wanted,
        *,
        now: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing happens yet; `tell` gets a line whenever something has changed."""
        self._repository = repository
        self._look = look
        self._wanted = wanted
        self._now = now
        self._monotonic = monotonic
        self._sleep = sleep
        self._tell = tell

    def wait(self, names: Iterable[StagedName], timeout: timedelta) -> Waited:
        """Return when none of these waits any more, or the time is over.

        Whatever else waits and has arrived is switched along.

        Raises:
            LockedError: another writer is active when the time is over.
            RepositoryError, IntegrityError: the repository cannot be read or written.
        """
        meant = set(names)
        end = self._monotonic() + timeout.total_seconds()
        switched: list[Publication] = []
        told: list[str] = []
        while True:
            survey = self._look()
            left = end - self._monotonic()
            try:
                switched += switch_ready(self._repository, survey, self._wanted, self._now())
            except LockedError:  # somebody publishes, which will not be long
                if left <= 0:
                    raise
            waiting = [
                staged
                for staged in read_all_staged(self._repository, self._wanted.compliance)
                if StagedName.of(staged) in meant
            ]
            if not waiting or left <= 0:
                return Waited(survey, tuple(switched), tuple(waiting))
            lines = [describe(staged, survey, self._wanted) for staged in waiting]
            for line in lines:
                if line not in told:
                    self._tell(line)
            told = lines
            self._sleep(min(WAIT_SECONDS, left))


def describe(staged: Staged, survey: Survey, wanted: Wanted) -> str:
    """Say how far the replicas are of which a name waits."""
    return (
        f"{staged.publication.reference} waits: {survey.having(staged.revision)} of"
        f" {plural(len(survey.replicas), 'replica')} have revision {staged.revision},"
        f" {wanted.of(staged)} are wanted"
    )


def still_waiting(waited: Waited, wanted: Wanted, timeout: timedelta) -> LaggingError:
    """Return the error that says which names still wait, and for whom."""
    newest = max(staged.revision for staged in waited.waiting)
    names = "; ".join(describe(staged, waited.survey, wanted) for staged in waited.waiting)
    after = f"after {timeout.total_seconds():.0f} seconds " if timeout else ""
    return LaggingError(
        f"{after}{names}; missing: {reasons(waited.survey, newest)}",
        hint="the images are published; `cvmfs-publish switch`, or the next publish, goes on",
    )
