"""What `list`, `show`, `history` and `switch` say of names that wait for replicas."""

from __future__ import annotations

from typing import Any

from cvmfs_publish.repository.records import Staged


def staged_document(staged: Staged | None) -> dict[str, Any] | None:
    """Return what JSON results say of an image that a name does not lead to yet."""
    if staged is None:
        return None
    record = staged.publication
    return {
        "reference": record.reference,
        "platform": record.platform,
        "digest": record.digest,
        "manifest_digest": record.manifest_digest,
        "image_id": record.image_id,
        "sandbox": record.sandbox,
        "staged_at": record.published_at,
        "revision": staged.revision,
        "replicas": staged.replicas,
    }


def staged_line(staged: Staged) -> str:
    """Return what lists for people say of a name that waits."""
    return (
        f"{staged.publication.reference} waits to lead to {staged.publication.digest} until"
        f" {staged.replicas} of the replicas have revision {staged.revision}"
    )
