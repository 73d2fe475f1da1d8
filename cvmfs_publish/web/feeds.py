"""Turn events into feeds: Atom (RFC 4287) and JSON Feed 1.1.  Pure."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

from cvmfs_publish.state.model import Event
from cvmfs_publish.web.pages import DEFAULT_PLATFORM, image_path
from cvmfs_publish.words import format_time

ATOM = "http://www.w3.org/2005/Atom"
EPOCH = "1970-01-01T00:00:00Z"  # of a feed in which nothing has happened yet
# XML 1.0 section 2.2 has no way to write these, escaped or not
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def format_atom(events: Sequence[Event], repository: str, url: str) -> bytes:
    """Return the feed; `url` is where the pages are, without a slash at its end."""
    ET.register_namespace("", ATOM)
    feed = ET.Element(f"{{{ATOM}}}feed")
    _add(feed, "id", f"{url}/feeds/events.atom")
    _add(feed, "title", f"Events of {repository}")
    _add(feed, "updated", format_time(events[0].at) if events else EPOCH)
    _link(feed, f"{url}/feeds/events.atom", "self")
    _link(feed, f"{url}/events", "alternate")
    _add(_add(feed, "author"), "name", repository)
    for event in events:
        entry = _add(feed, "entry")
        _add(entry, "id", _identity(repository, event))
        _add(entry, "title", event.message)
        _add(entry, "updated", format_time(event.at))
        _link(entry, f"{url}{_page(event)}", "alternate")
        _add(entry, "category").set("term", _clean(event.kind))
        _add(entry, "summary", _summary(event))
    data: bytes = ET.tostring(feed, "utf-8", xml_declaration=True)
    return data


def format_json_feed(events: Sequence[Event], repository: str, url: str) -> dict[str, Any]:
    return {
        "version": "https://jsonfeed.org/version/1.1",
        "title": f"Events of {repository}",
        "home_page_url": f"{url}/events",
        "feed_url": f"{url}/feeds/events.json",
        "items": [
            {
                "id": _identity(repository, event),
                "url": f"{url}{_page(event)}",
                "title": event.message,
                "content_text": _summary(event),
                "date_published": format_time(event.at),
                "tags": [event.kind],
            }
            for event in events
        ],
    }


def _identity(repository: str, event: Event) -> str:
    """Return what stays the same wherever the feed is read from (RFC 4151)."""
    return f"tag:{repository},{event.at.year}:event-{event.id}"


def _page(event: Event) -> str:
    """Return the path of what tells most about an event."""
    if not event.name:
        return f"/events?before={event.id + 1}"
    return image_path(event.name, event.platform or DEFAULT_PLATFORM)


def _summary(event: Event) -> str:
    parts = [event.message]
    parts += [f"Image: {event.name} ({event.platform})"] if event.name else []
    parts += [f"Wishlist: {event.list}"] if event.list else []
    parts += [f"Owner: {event.owner}"] if event.owner else []
    return "\n".join(parts)


def _add(parent: ET.Element, name: str, text: str = "") -> ET.Element:
    child = ET.SubElement(parent, f"{{{ATOM}}}{name}")
    if text:
        child.text = _clean(text)
    return child


def _link(parent: ET.Element, target: str, relation: str) -> None:
    link = _add(parent, "link")
    link.set("href", _clean(target))
    link.set("rel", relation)


def _clean(text: str) -> str:
    return _NO_XML.sub("\ufffd", text)
