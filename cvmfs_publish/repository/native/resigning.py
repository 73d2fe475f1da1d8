"""Renew a whitelist, with the master key here or elsewhere, and exchange the key that signs.

An exchange goes step by step, so that readers can verify the repository at every moment and the
next run goes on where one was killed: a new key is made; the whitelist trusts both certificates;
the files are exchanged; the published revision is signed with the new key; the whitelist forgets
the old certificate when it is renewed more than a week later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cvmfs_publish.repository.native.commit import ignore_step
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.repository.native.request import Request
from cvmfs_publish.repository.native.signing import (
    Keys,
    is_trusted,
    public_fingerprint,
)
from cvmfs_publish.repository.native.trust import Plan, TrustError
from cvmfs_publish.repository.native.whitelist import Whitelist

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Resigned:
    """What became of a whitelist."""

    whitelist: Whitelist  # published now
    plan: Plan | None = None  # how it came about; None: it was signed elsewhere, or not renewed
    exchanged: bool = False  # our key was exchanged too


def resign(
    repository: NativeRepository,
    now: datetime,
    days: int,
    *,
    only: bool = False,
    step: Step = ignore_step,
) -> Resigned:
    """Renew the whitelist; needs the master key.

    Args:
        repository: must exist.
        now: when the whitelist begins.
        days: how long it is valid.
        only: trust our certificate and no other.
        step: is told what is about to be done.

    Raises:
        TrustError: the master key is not here.
        LockedError: another writer is active.
        RepositoryError: keys or storage cannot be used.
    """
    trust, manifest = repository.trust, repository.manifest()
    keys = trust.keys()
    if keys.master_key is None:
        raise trust.no_master_key()
    published, expires = datetime.fromtimestamp(manifest.timestamp, UTC), now + timedelta(days=days)
    if expires <= published:
        raise TrustError(
            f"the new whitelist of {repository.name} would expire at {expires:%Y-%m-%d %H:%M} UTC, "
            f"before revision {manifest.revision} was published, {published:%Y-%m-%d %H:%M} UTC",
            hint="set the clock of this host (NTP)",
        )
    if only and not _is_signed_by_us(repository, keys):
        # First ours is trusted too, then it signs; after that nobody misses the others.
        with repository.writer(keys) as writer:
            repository.check_signable(writer, now)
            step("whitelist")
            trust.renew(keys, trust.plan(keys, manifest, now), now, days)
        sign_again(repository, now, step)
    with repository.writer(keys):
        plan = trust.plan(keys, manifest, now, only=only)
        step("whitelist")
        return Resigned(trust.renew(keys, plan, now, days), plan)


def sign_again(repository: NativeRepository, now: datetime, step: Step = ignore_step) -> None:
    """Sign the published revision with our present key, unless it is.

    Raises: as `NativeRepository.transaction`.
    """
    with repository.maintenance(int(now.timestamp()), step) as work:
        if repository.trust.certificate(work.manifest) != work.writer.keys.certificate:
            work.publish(again=True)


def _is_signed_by_us(repository: NativeRepository, keys: Keys) -> bool:
    return repository.signer() == keys.certificate


def rotate(
    repository: NativeRepository,
    now: datetime,
    days: int,
    *,
    bits: int | None = None,
    step: Step = ignore_step,
) -> Resigned:
    """Exchange our key and certificate for new ones, or finish an exchange that was killed.

    Args:
        repository: must exist.
        now: when the whitelist begins, if it has to be renewed.
        days: how long it is valid then.
        bits: of the new key; None: as many as the present one has.
        step: is told what is about to be done.

    Raises:
        TrustError: the master key is needed and not here.
        LockedError: another writer is active.
        RepositoryError: keys or storage cannot be used.
    """
    trust, manifest = repository.trust, repository.manifest()
    with repository.writer(trust.keys()) as writer:
        repository.check_signable(writer, now)
        keys = trust.keys()  # nobody else exchanges them now
        following = trust.files.following()
        plan = None
        if following is None or not trust.accepts(keys, [keys.certificate, following], now):
            if keys.master_key is None:
                raise trust.no_master_key()
            step("new key")
            following = trust.files.prepare(now, bits or keys.private_key.key_size)
            plan = trust.plan(keys, manifest, now, following=following)
            step("whitelist")
            trust.renew(keys, plan, now, days)
        _exchange_files(repository, now, step)
    return _finish(repository, now, plan, step)


def make_request(
    repository: NativeRepository,
    now: datetime,
    *,
    only: bool = False,
    new_key: bool = False,
    bits: int | None = None,
) -> Request:
    """Return what the holder of the master key is asked to sign.

    Args:
        repository: must exist.
        now: the time.
        only: trust our certificate and no other.
        new_key: make a new key too, which is used as soon as the whitelist is installed.
        bits: of the new key; None: as many as the present one has.

    Raises:
        RepositoryError: keys cannot be read or written.
    """
    trust, manifest = repository.trust, repository.manifest()
    keys = trust.keys(with_master=False)
    if new_key:
        with repository.writer(keys):
            trust.files.prepare(now, bits or keys.private_key.key_size)
    following = trust.files.following()
    plan = trust.plan(keys, manifest, now, only=only, following=following)
    remarks = []
    for value in plan.fingerprints:
        remark = "of somebody else, on the present whitelist"
        if is_trusted(keys.certificate, [value]):
            remark = "of this publisher, in use"
        elif following is not None and is_trusted(following, [value]):
            remark = "of this publisher, new"
        elif any(is_trusted(old.certificate, [value]) for old in trust.files.retired()):
            remark = "of this publisher, replaced"
        remarks.append((value, remark))
    return Request(repository.name, public_fingerprint(keys.public_key), tuple(remarks))


def install(
    repository: NativeRepository,
    data: bytes,
    now: datetime,
    *,
    allow_older: bool = False,
    step: Step = ignore_step,
) -> Resigned:
    """Put a whitelist in place that was signed elsewhere, and use a new key that waits for it.

    Args:
        repository: must exist.
        data: the file.
        now: must be before it expires.
        allow_older: it may have been made before the published one.
        step: is told what is about to be done.

    Raises:
        TrustError: clients would not accept it, or it does not trust us; nothing is changed.
        LockedError: another writer is active.
        RepositoryError: keys or storage cannot be used.
    """
    trust = repository.trust
    keys = trust.keys(with_master=False)
    new = trust.check_new(data, keys, now, allow_older=allow_older)
    if not new.trusts(repository.signer()):
        sign_again(repository, now, step)
    with repository.writer(keys) as writer:
        following = trust.files.following()
        is_exchange = following is not None and new.trusts(following)
        if is_exchange:
            repository.check_signable(writer, now)
        step("whitelist")
        trust.write(data)
        if not is_exchange:
            return Resigned(new)
        _exchange_files(repository, now, step)
    return _finish(repository, now, None, step)


def _exchange_files(repository: NativeRepository, now: datetime, step: Step) -> None:
    files = repository.trust.files
    step("keep old key")
    files.retire(now)
    step("install key")
    files.install_key()
    step("install certificate")
    files.install_certificate()


def _finish(repository: NativeRepository, now: datetime, plan: Plan | None, step: Step) -> Resigned:
    """Sign with the new key; until then the old certificate is trusted too."""
    sign_again(repository, now, step)
    step("forget")
    repository.trust.files.finish()
    return Resigned(repository.trust.whitelist(), plan, exchanged=True)
