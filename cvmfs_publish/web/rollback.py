"""Say which command points a name back to each of its earlier versions.  Pure."""

from __future__ import annotations

from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.layouts import DEFAULT_PLATFORM
from cvmfs_publish.repository.names import History
from cvmfs_publish.sites.pages import quote_sh


def plan_rollbacks(history: History) -> dict[str, str]:
    """Return the command for each manifest digest that the name can go back to."""
    present = history.current.manifest_digest if history.current is not None else ""
    platform = history.platform
    option = f" --platform {quote_sh(platform)}" if platform != str(DEFAULT_PLATFORM) else ""
    name = Reference.parse(history.reference).name
    return {
        version.event.manifest_digest: f"cvmfs-publish rollback {quote_sh(name)}"
        f" --to {version.event.digest}{option}"
        for version in history.versions
        if version.is_kept and version.event.manifest_digest != present
    }
