"""Turn the section `notify` of the configuration into sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cvmfs_publish.config import NOTIFY_KINDS, Config, NotifyConfig
from cvmfs_publish.watch.mail import MailServer, MailSink
from cvmfs_publish.watch.notify import (
    FileSink,
    Interest,
    ProgramSink,
    Sink,
    Subscription,
    WebhookSink,
)
from cvmfs_publish.watch.outbound import Outbound
from cvmfs_publish.watch.patterns import Pattern

SMTP_PORT = 25


def open_file(config: NotifyConfig, repository: str) -> Sink:
    return FileSink(config.file or Path())


def open_webhook(config: NotifyConfig, repository: str) -> Sink:
    outbound = Outbound(read_timeout=config.timeout, total_timeout=config.timeout)
    return WebhookSink(config.webhook or "", config.read_secret(), outbound)


def open_email(config: NotifyConfig, repository: str) -> Sink:
    host, _, port = (
        config.server.rpartition(":") if ":" in config.server else (config.server, "", "")
    )
    server = MailServer(
        host.strip("[]"),
        int(port or SMTP_PORT),
        config.timeout,
        config.starttls,
        config.username or "",
        config.read_password() or "",
    )
    return MailSink(server, config.sender or "", config.email or (), repository)


def open_program(config: NotifyConfig, repository: str) -> Sink:
    return ProgramSink(config.program or (), config.timeout)


SINKS: dict[str, Callable[[NotifyConfig, str], Sink]] = {
    "file": open_file,
    "webhook": open_webhook,
    "email": open_email,
    "program": open_program,
}


def open_subscriptions(config: Config) -> Sequence[Subscription]:
    """Return all who want to be told.  Nothing is sent yet.

    Raises `InputError` for a secret that cannot be read.
    """
    return [_subscribe(each, config.repository.name) for each in config.notify]


def _subscribe(config: NotifyConfig, repository: str) -> Subscription:
    kind = next(name for name in NOTIFY_KINDS if getattr(config, name) is not None)
    interest = Interest(tuple(map(Pattern.glob, config.kinds)), config.owners)
    return Subscription(SINKS[kind](config, repository), interest)
