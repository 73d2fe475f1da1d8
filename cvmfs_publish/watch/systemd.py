"""Tell systemd how the service is.  Source: sd_notify(3)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


def notify(address: str, message: str) -> None:
    """Send a message to the socket `$NOTIFY_SOCKET` names; where there is none, to nobody.

    An address that begins with `@` is an abstract one.
    """
    if not address:
        return
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(message.encode(), name)


class Together:
    """Tells of several services as of one: what each of them says is told when all have said it."""

    def __init__(self, count: int, tell: Callable[[str], None]) -> None:
        self._count = count
        self._tell = tell
        self._lock = threading.Lock()
        self._said: dict[str, set[int]] = {}

    def of(self, number: int) -> Callable[[str], None]:
        """Return what one of the services tells."""
        return lambda message: self._hear(number, message)

    def _hear(self, number: int, message: str) -> None:
        word = message.partition("=")[0]
        with self._lock:
            said = self._said.setdefault(word, set())
            if word in ("RELOADING", "STOPPING"):  # the first that does is the whole that does
                is_time = not said
                said.add(number)
                if word == "RELOADING":
                    self._said.get("READY", set()).discard(number)
            else:
                said.add(number)
                is_time = len(said) == self._count
                if is_time and word == "WATCHDOG":
                    said.clear()
                elif is_time:
                    self._said.pop("RELOADING", None)
            if is_time:
                self._tell(message)
