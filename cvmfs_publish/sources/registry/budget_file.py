"""Keep what was asked of registries in a file, so that one run knows of the runs before it.

One JSON object, `{"docker.io": {"pull": {"29412345": 2}, …}}`: how many in which minute since 1970.
It may be deleted; a file that is not of this form counts as empty, for the same reason.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from cvmfs_publish.errors import InputError
from cvmfs_publish.sources.registry.budget import KINDS, Kind, Spent, recent


def read_spent(path: Path, now: datetime) -> dict[str, Spent]:
    """Return what was taken of each registry in the last hour."""
    try:
        return _parse(path.read_bytes(), now)
    except FileNotFoundError:
        return {}
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc


def add_spent(path: Path, taken: Mapping[str, Spent], now: datetime) -> None:
    """Add what was taken to what the file says, also if others do so at the same time."""
    if not any(minutes for spent in taken.values() for minutes in spent.values()):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            total = _add(read_spent(path, now), taken)
            fresh = path.with_suffix(".new")
            fresh.write_text(json.dumps(total, sort_keys=True) + "\n", "utf-8")
            os.replace(fresh, path)  # noqa: PTH105 - as everywhere here
    except OSError as exc:
        raise InputError(
            f"{path}: what registries were asked cannot be kept: {exc.strerror}",
            hint="make the `state` directory writable",
        ) from exc


def _add(
    known: Mapping[str, Spent], taken: Mapping[str, Spent]
) -> dict[str, dict[Kind, dict[int, int]]]:
    return {
        host: {
            kind: dict(
                Counter(known.get(host, {}).get(kind, {}))
                + Counter(taken.get(host, {}).get(kind, {}))
            )
            for kind in KINDS
        }
        for host in sorted({*known, *taken})
    }


def _parse(text: bytes, now: datetime) -> dict[str, Spent]:
    try:
        return {
            str(host): {
                kind: recent({int(k): int(v) for k, v in spent.get(kind, {}).items()}, now)
                for kind in KINDS
            }
            for host, spent in json.loads(text).items()
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
