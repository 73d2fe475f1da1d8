"""Say honestly whether this service does its work: every check by name, with what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from cvmfs_publish.errors import PublishError
from cvmfs_publish.web.service import Service, Watching
from cvmfs_publish.web.views import ago, days_left
from cvmfs_publish.words import format_minute, plural

PATIENCE = timedelta(minutes=5)  # another program may publish for so long


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be right."""

    name: str
    ok: bool
    text: str  # what was found


def check_health(service: Watching, now: datetime) -> list[Check]:
    """Return all checks; the service is healthy if every one is ok."""
    checks: list[tuple[str, Callable[[], tuple[bool, str]]]] = []
    if isinstance(service, Service):
        checks += [
            ("repository", partial(_check_repository, service, now)),
            ("whitelist", partial(_check_whitelist, service, now)),
        ]
    checks += [
        ("state", partial(_check_state, service, now)),
        ("watcher", partial(_check_watcher, service, now)),
        ("publishing", partial(_check_publishing, service, now)),
    ]
    return [_run(name, check) for name, check in checks]


def _run(name: str, check: Callable[[], tuple[bool, str]]) -> Check:
    try:
        ok, text = check()
    except PublishError as error:
        return Check(name, False, str(error))
    except OSError as error:
        return Check(name, False, f"{error.filename or ''}: {error.strerror or error}")
    return Check(name, ok, text)


def _check_repository(service: Service, now: datetime) -> tuple[bool, str]:
    del now
    shelf = service.library.shelf()
    images = plural(len(shelf.images), "image")
    return True, f"{shelf.manifest.name} revision {shelf.manifest.revision}, {images}"


def _check_whitelist(service: Service, now: datetime) -> tuple[bool, str]:
    whitelist = service.library.info(now).whitelist
    when = format_minute(whitelist.ends_at)
    if whitelist.is_expired(now):
        return False, f"expired {when}: clients refuse new revisions"
    return True, f"valid until {when}, {plural(int(days_left(whitelist.ends_at, now)), 'day')}"


def _check_state(service: Watching, now: datetime) -> tuple[bool, str]:
    del now
    reader = service.watch.reader()
    if reader is None:
        return not service.expects_watcher, "there is none yet: no watcher has run here"
    jobs = plural(reader.queue_length(), "job")
    if service.probe is None:
        return True, f"readable, {jobs} in the queue"
    service.probe()
    return True, f"readable and writable, {jobs} in the queue"


def _check_watcher(service: Watching, now: datetime) -> tuple[bool, str]:
    alive = service.last_alive()
    if alive is None:
        return not service.expects_watcher, "has not run here yet"
    text = f"was last seen {ago(alive, now)}"
    is_late = now - alive > service.alive_within
    return not is_late or not service.expects_watcher, text


def _check_publishing(service: Watching, now: datetime) -> tuple[bool, str]:
    reader = service.watch.reader()
    since = reader.moment("refused") if reader is not None else None
    if since is None or not service.expects_watcher:
        return True, "nothing stands in its way"
    text = f"nothing can be published since {format_minute(since)}; the events say why"
    return now - since < PATIENCE, text
