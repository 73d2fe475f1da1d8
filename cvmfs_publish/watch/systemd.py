"""Tell systemd how the service is.  Source: sd_notify(3)."""

from __future__ import annotations

import socket
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
