"""Decide what is published next, together with what, and when again after a failure.  Pure.

Owners take turns: whoever has wished for a thousand images waits longer for the last of them, not
everybody else.  An owner who was idle has saved nothing up, and one who comes anew owes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cvmfs_publish.errors import InputError, IntegrityError, RemoteError
from cvmfs_publish.sources.trust import UnsignedError
from cvmfs_publish.state.model import REASONS, Failure, ImageKey, Job, Result

CRASHED = "crashed"  # the kind of the failure of a publish that died without a word
MAX_DOUBLINGS = 30  # of a wait; enough for any


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """How images share the publisher."""

    batch: int = 16  # images of one transaction
    quarantine_after: int = 5  # attempts in a row without success
    first_wait: timedelta = timedelta(minutes=1)  # before the second attempt
    longest_wait: timedelta = timedelta(hours=6)
    weights: Mapping[str, int] = field(default_factory=dict)  # of owners, 1 for the others

    def weight(self, owner: str) -> int:
        return max(1, self.weights.get(owner, 1))


@dataclass(frozen=True, slots=True)
class Batch:
    """What is published in one transaction, and what each owner has been given then."""

    jobs: tuple[Job, ...]
    shares: Mapping[str, float]


def choose_batch(
    due: Sequence[Job], shares: Mapping[str, float], settings: QueueSettings
) -> Batch | None:
    """Return which of the due jobs run now; None if there are none.

    Who asked by hand goes first.  Then owners take turns by their weights, each with the most
    urgent of their own.  What runs together has one platform and one policy, and is nothing that
    may have killed a publish before: such a job runs by itself.
    """
    if not due:
        return None
    waiting: dict[str, list[Job]] = {}
    for job in sorted(due, key=_urgency):
        waiting.setdefault(job.owner, []).append(job)
    known = [shares[owner] for owner in waiting if owner in shares]
    floor = min(known, default=0.0)
    used = {owner: shares.get(owner, floor) for owner in waiting}
    chosen: list[Job] = []
    while len(chosen) < settings.batch and waiting:
        owner = min(waiting, key=lambda each: _turn(waiting[each][0], used[each]))
        job = waiting[owner].pop(0)
        if not waiting[owner]:
            del waiting[owner]
        if chosen and not _fits(job, chosen[0]):
            continue
        chosen.append(job)
        used[owner] += 1 / settings.weight(owner)
        if job.is_alone:
            break
    return Batch(tuple(chosen), used)


def _urgency(job: Job) -> tuple[int, int, datetime, int]:
    return -job.priority, REASONS.index(job.reason), job.enqueued_at, job.id


def _turn(job: Job, used: float) -> tuple[bool, float, tuple[int, int, datetime, int]]:
    return job.reason != "command", used, _urgency(job)


def _fits(job: Job, first: Job) -> bool:
    alike = (job.key.platform, job.policy) == (first.key.platform, first.policy)
    return alike and not job.is_alone


def judge(
    key: ImageKey,
    failure: Failure,
    exit_code: int,
    attempts: int,
    now: datetime,
    settings: QueueSettings,
    jitter: float,
) -> Result:
    """Return what becomes of an image whose publish failed.

    Args:
        key: the image.
        failure: why.
        exit_code: of the failure's family.
        attempts: in a row without success, this one included.
        now: when.
        settings: of the queue.
        jitter: 0 to 1, so that those that failed together do not come back together.

    A registry in trouble is asked again for ever, and so is one for a signature: images are
    pushed first and signed then.  An image that is damaged, or is none, stays what it is until
    it is another; and so does, after some attempts, one that nobody expected to fail.
    """
    patient = exit_code == RemoteError.exit_code or failure.kind == UnsignedError.kind
    hopeless = not patient and exit_code in (IntegrityError.exit_code, InputError.exit_code)
    if hopeless or (attempts >= settings.quarantine_after and not patient):
        return Result(key, "quarantined", failure=failure)
    wait = plan_wait(attempts, settings, jitter)
    return Result(key, "failed", failure=failure, next_attempt_at=now + wait)


def plan_wait(attempts: int, settings: QueueSettings, jitter: float) -> timedelta:
    """Return how long to wait after so many attempts: doubling, and up to half as much less."""
    doubled = settings.first_wait * float(2 ** min(attempts - 1, MAX_DOUBLINGS))
    return min(doubled, settings.longest_wait) * (0.5 + jitter / 2)


def crash_failure(signal: str) -> Failure:
    """Return what is said of an image whose publish was killed or died."""
    return Failure(
        CRASHED,
        f"the publish ended without a result: {signal}",
        "if the machine ran out of memory, look at the image's size and at `limits`;"
        " `cvmfs-publish watch --retry IMAGE` tries again",
    )
