"""Tell, whatever the command is, that the whitelist expires soon: then everything stops."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cvmfs_publish.cli.assembly import open_native
from cvmfs_publish.cli.context import Session
from cvmfs_publish.cli.output import format_minute, plural
from cvmfs_publish.errors import PublishError, RepositoryError
from cvmfs_publish.repository.native.trust import TrustError
from cvmfs_publish.repository.native.whitelist import ExpiredError, Whitelist

WARN_BEFORE = timedelta(days=7)
_TOLD = (TrustError.kind, ExpiredError.kind)  # errors that are about the whitelist themselves


def warn_of_expiry(session: Session, code: int = 0) -> None:
    """Tell on stderr, once a run, that the configured repository's whitelist expires soon.

    Costs reading one small file.  Whatever is wrong with that file is for others to tell.  `code`
    is how the command ended.
    """
    out = session.out
    if session.expiry_told or out.quiet or not session.has_config:
        return
    session.expiry_told = True
    is_local = isinstance(session.config.repository.storage, Path)
    if out.failed_with in _TOLD or (code == RepositoryError.exit_code and not is_local):
        return  # who has just waited in vain for a distant store waits no second time
    try:
        repository = open_native(session.config, "a whitelist is")
        try:
            found = repository.trust.whitelist()
        finally:
            repository.store.close()
    except (PublishError, OSError):
        return
    text = expiry_warning(found, datetime.now(UTC))
    if text:
        out.warn(text, "`cvmfs-publish resign`, where the master key is, renews it")


def expiry_warning(whitelist: Whitelist, now: datetime) -> str:
    """Return what to tell about a whitelist; "" more than `WARN_BEFORE` before it expires."""
    left = whitelist.ends_at - now
    if left > WARN_BEFORE:
        return ""
    when = format_minute(whitelist.ends_at)
    if left <= timedelta():
        return (
            f"the whitelist of {whitelist.name} expired {_span(-left)} ago, {when}: clients refuse "
            "new revisions, and nothing can be published"
        )
    return (
        f"the whitelist of {whitelist.name} expires in {_span(left)}, {when}: from then on clients "
        "refuse new revisions, and nothing can be published"
    )


def _span(span: timedelta) -> str:
    hours = span // timedelta(hours=1)
    if hours >= 48:
        return plural(span.days, "day")
    return plural(hours, "hour") if hours else "less than an hour"
