"""Turn values into HTML pages: Jinja with everything escaped, and the few files pages refer to.

Like `sites/pages.py`, but for browsers: a template says at its top which variables it gets, and a
variable that is missing is an error, never an empty place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urlencode

import jinja2

from cvmfs_publish.errors import PublishError
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.words import format_bytes, format_minute, format_time, plural

ASSETS = {
    "site.css": "text/css; charset=utf-8",
    "site.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
DEFAULT_PLATFORM = str(Platform.default())
SHOWN_DIGITS = 12  # of a digest, as Docker shows them


@dataclass(frozen=True, slots=True)
class Asset:
    """A file beside the pages."""

    content: bytes
    media_type: str
    tag: str  # of its content, part of its URL: browsers may keep it for ever


class HtmlPages:
    """The templates of one folder."""

    def __init__(self, folder: Path) -> None:
        """Read the assets; templates are compiled when they are used first."""
        self.environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(folder),
            undefined=jinja2.StrictUndefined,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.environment.filters |= {
            "bytes": format_bytes,
            "count": format_count,
            "digits": short_digest,
            "moment": format_moment,
            "plural": plural,
            "time": format_time,
        }
        self.assets = {name: _read_asset(folder / name, kind) for name, kind in ASSETS.items()}
        self.environment.globals |= {
            "assets": asset_urls(self.assets),
            "image_path": image_path,
        }

    def render(self, name: str, /, **values: object) -> str:
        """Return the text of a page; `PublishError` if the template asks for what is not given."""
        try:
            return self.environment.get_template(name).render(values)
        except jinja2.TemplateError as exc:
            raise PublishError(f"template {name}: {type(exc).__name__}: {exc}") from exc


def asset_urls(assets: Mapping[str, Asset]) -> dict[str, str]:
    """Return the URL of each asset by its name without ending, as templates write it."""
    return {
        name.partition(".")[0] + "_" + name.rpartition(".")[2]: f"/assets/{asset.tag}/{name}"
        for name, asset in assets.items()
    }


def image_path(name: str, platform: str = DEFAULT_PLATFORM) -> str:
    """Return where the page of an image is; `:` and `@` may stand in a path (RFC 3986)."""
    query = "" if platform == DEFAULT_PLATFORM else "?" + urlencode({"platform": platform})
    return f"/images/{quote(name, safe='/:@')}{query}"


def _read_asset(path: Path, media_type: str) -> Asset:
    content = path.read_bytes()
    return Asset(content, media_type, hashlib.sha256(content).hexdigest()[:16])


def format_count(number: int) -> str:
    return f"{number:,}"


def short_digest(digest: str) -> str:
    """Return the first hexadecimal digits of a digest."""
    return digest.rpartition(":")[2][:SHOWN_DIGITS]


def format_moment(at: datetime | str) -> str:
    """Return a time for people, in UTC as the pages say; what is no time stands as it is."""
    try:
        moment = datetime.fromisoformat(at) if isinstance(at, str) else at
    except ValueError:
        return str(at)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return format_minute(aware).removesuffix(" UTC")
