"""What happened, as it is told to people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.  What is in `details` can be written as JSON."""

    at: datetime  # aware, UTC
    kind: str  # two or three words with hyphens: "image-published"
    subject: str  # what it happened to: an image as in the repository, FILE:LINE of a wishlist
    message: str  # one sentence for people
    details: Mapping[str, Any] = field(default_factory=dict)
    owner: str = ""  # of the wish it is about; "" if nobody is named
    number: int = 0  # grows from event to event; by it a receiver knows what is sent again
    repository: str = ""  # that it is about, where one service serves several

    def document(self) -> dict[str, Any]:
        """Return the event as programs are told it."""
        return {
            "number": self.number,
            **({"repository": self.repository} if self.repository else {}),
            "at": self.at.isoformat(),
            "kind": self.kind,
            "subject": self.subject,
            "message": self.message,
            "owner": self.owner,
            "details": dict(self.details),
        }
