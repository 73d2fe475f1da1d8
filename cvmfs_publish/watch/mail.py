"""Tell people of events by e-mail: one message for each person and batch, never one per event."""

from __future__ import annotations

import os
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid

from cvmfs_publish.config import Owner
from cvmfs_publish.watch.events import Event
from cvmfs_publish.watch.notify import NotifyError
from cvmfs_publish.watch.wish import shown

OWNER = "owner"  # the word that stands for the owner of what an event is about
MAX_LINES = 100  # events told in one message; the rest is counted


@dataclass(frozen=True, slots=True)
class MailServer:
    """Who takes the messages."""

    host: str
    port: int
    timeout: timedelta
    starttls: bool = False
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(slots=True)
class MailSink:
    """Sends to fixed addresses what there is, and to owners what concerns them.

    An address that the server refuses for good is left out; one message that fails otherwise makes
    the batch fail, and when it is tried again those who have got theirs get it no second time.
    """

    server: MailServer
    sender: str
    recipients: tuple[str, ...]  # addresses, and OWNER
    repository: str
    _told: dict[str, int] = field(default_factory=dict)  # the last event, while a batch fails

    @property
    def name(self) -> str:
        return f"email:{self.server.host}:{','.join(self.recipients)}"

    def send(self, events: Sequence[Event], now: datetime) -> None:
        letters = self.plan(events)
        if letters:
            self._deliver(letters, now)
        self._told.clear()

    def plan(self, events: Sequence[Event]) -> dict[str, list[Event]]:
        """Return who is told what."""
        letters: dict[str, list[Event]] = {}
        for event in events:
            fixed = [recipient for recipient in self.recipients if recipient != OWNER]
            owners = [event.owner] if OWNER in self.recipients else []
            for address in dict.fromkeys((*fixed, *filter(_is_address, owners))):
                if event.number > self._told.get(address, -1):
                    letters.setdefault(address, []).append(event)
        return letters

    def compose(self, address: str, events: Sequence[Event], now: datetime) -> EmailMessage:
        """Return the message for one person.  Nothing of an event can add a header."""
        message = EmailMessage(policy=SMTP)
        first = shown(events[0].message)[:100]
        rest = f" (and {len(events) - 1} more)" if len(events) > 1 else ""
        message["Subject"] = f"{self.repository}: {first}{rest}"
        message["From"] = self.sender
        message["To"] = address
        message["Date"] = format_datetime(now)
        message["Message-ID"] = make_msgid(domain=self.sender.rpartition("@")[2])
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's absence answers
        lines = [line for event in events[:MAX_LINES] for line in _lines(event)]
        if len(events) > MAX_LINES:
            lines.append(f"and {len(events) - MAX_LINES} more")
        message.set_content("\n".join(lines) + "\n")
        return message

    def _deliver(self, letters: Mapping[str, Sequence[Event]], now: datetime) -> None:
        server = self.server
        seconds = server.timeout.total_seconds()
        own_name = os.uname().nodename  # smtplib would ask the DNS, and wait for it
        try:
            with smtplib.SMTP(server.host, server.port, own_name, timeout=seconds) as smtp:
                if server.starttls:
                    smtp.starttls(context=ssl.create_default_context())
                if server.username:
                    smtp.login(server.username, server.password)
                for address, events in letters.items():
                    self._send_one(smtp, address, events, now)
                    self._told[address] = events[-1].number
        except (smtplib.SMTPException, OSError, ValueError) as exc:
            raise NotifyError(f"e-mail by {server.host}:{server.port}: {shown(str(exc))}") from exc

    def _send_one(
        self, smtp: smtplib.SMTP, address: str, events: Sequence[Event], now: datetime
    ) -> None:
        try:
            smtp.send_message(self.compose(address, events, now), self.sender, [address])
        except smtplib.SMTPRecipientsRefused as exc:
            if any(code < 500 for code, _ in exc.recipients.values()):
                raise
            with suppress(smtplib.SMTPException):
                smtp.rset()


def _is_address(owner: str) -> bool:
    return Owner(owner).is_address


def _lines(event: Event) -> list[str]:
    subject = f"  {shown(event.subject)}" if event.subject else ""
    head = f"{event.at:%Y-%m-%d %H:%M} UTC  {shown(event.kind)}{subject}"
    told = [head, f"    {shown(event.message)}"]
    hint = event.details.get("hint")
    return [*told, f"    hint: {shown(str(hint))}", ""] if hint else [*told, ""]
