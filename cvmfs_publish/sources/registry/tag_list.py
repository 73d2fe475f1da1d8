"""Turn one page of a registry's list of tags into tags and the query of the next page.  Pure.

Sources: OCI distribution-spec, "Listing Tags"; RFC 8288 (Link headers); RFC 9110 (ETag).
Registries differ in how they write the link to the next page: relative, absolute, with the scheme
and port they have behind a proxy, without quotes, below another path.  What all of them keep is
that the place in the list is in the link's query, so only that is used, and the registry asked is
always the one named.
"""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from cvmfs_publish.errors import RemoteError
from cvmfs_publish.reference import is_tag
from cvmfs_publish.sources.registry.answers import host_of, is_same_host
from cvmfs_publish.sources.registry.manifest import check_not_a_web_page

# The most that Docker distribution, GitLab and Amazon's ECR give at once; those that give fewer,
# like Docker Hub and Quay with 100, say so with a link
PAGE_SIZE = 1000
PAGE_LIMIT = 4 << 20  # bytes; 1000 tags of 128 characters have 0.13 MB, but some ignore `n`
MAX_TAGS = 200_000  # of one repository; the largest known in the field has some 4,000
MAX_PAGES = 5000
_MAX_QUERY = 4000  # characters; cursors of cloud registries have some hundred
# link-value ::= "<" URI-Reference ">" *( ";" link-param ), RFC 8288 section 3; a comma ends it
_LINK = re.compile(r'[\s,]*<([^<>]*)>((?:[^",]|"[^"]*"?)*)')
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,200}"')  # RFC 9110, section 8.8.3
_REL = re.compile(r';\s*rel\s*=\s*"?([^";]*)', re.IGNORECASE)


def parse_etag(header: str) -> str:
    """Return the `ETag` of a page as it is sent back; "" if there is none, or none of use."""
    return header if _ETAG.fullmatch(header) else ""


def first_query() -> str:
    return urlencode({"n": PAGE_SIZE})


def parse_tags(body: bytes, content_type: str, subject: str) -> list[str]:
    """Return the tags of a page, without what is no tag; raise `RemoteError` if it is no page.

    Not an `IntegrityError`: nothing was promised of these bytes, and asking again may help.
    """
    check_not_a_web_page(content_type, subject)
    try:
        document = json.loads(body.decode())
    except (ValueError, RecursionError) as exc:
        raise RemoteError(f"{subject}: the list of tags is not JSON") from exc
    tags = document.get("tags", "") if isinstance(document, dict) else ""
    if tags is None:  # how Go writes an empty list
        return []
    if not isinstance(tags, list):
        raise RemoteError(f"{subject}: the registry's answer holds no list of tags")
    return [tag for tag in tags if isinstance(tag, str) and is_tag(tag)]


def parse_next(link: str, url: str, subject: str) -> str | None:
    """Return the query of the page after the one at `url`, None after the last.

    Raises `RemoteError` for a link that leads to another host or says no place in the list.
    """
    target = _find_next(link, subject)
    if target is None:
        return None
    shown = ascii(target.partition("?")[0][:200])
    try:
        parts = urlsplit(target)
        is_here = not parts.netloc or is_same_host(target, url)
    except ValueError:
        raise RemoteError(f"{subject}: the next tags are at {shown}, which is no address") from None
    if not is_here:
        raise RemoteError(
            f"{subject}: the next tags are said to be at {shown}, not at {host_of(url)}",
            hint="the registry does not know its own name, or a proxy before it changes it;"
            " its administrator can set the host that it writes into links",
        )
    # Some append where they are to where they were: the last of equal names is the newest
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    if query.get("n") == "0":  # ghcr.io once wrote so where it was not asked for a number
        query["n"] = str(PAGE_SIZE)
    text = urlencode(query)
    if not text or len(text) > _MAX_QUERY:
        raise RemoteError(f"{subject}: the link to the next tags says no usable place in the list")
    return text


def _find_next(link: str, subject: str) -> str | None:
    """Return the target of the first link that is, or may be, the one to the next page."""
    position = 0
    while position < len(link.rstrip(" ,")):
        match = _LINK.match(link, position)
        if match is None:
            raise RemoteError(f"{subject}: the header Link {link[:200]!a} cannot be understood")
        relation = _REL.search(match[2])
        if relation is None or "next" in relation[1].lower().split():
            return match[1].strip()
        position = match.end()
    return None
