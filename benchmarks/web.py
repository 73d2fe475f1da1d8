"""Ask the status site for pages over 10,000 images: how long does an answer take?

    python -m benchmarks.web [--images 10000] [--rounds 20]

The repository holds so many records and names, written by the publisher's own code, and the state
as many images that a watcher knows; their sandboxes are missing, as no page over all images looks
into one.  Requests go over a socket to a server in this process, one after the other.  "cold" is
the first request of all; "after a publish" the first after one more image.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.names import publish_name
from cvmfs_publish.repository.records import Publication
from cvmfs_publish.state.model import Facts, ImageKey, Polled, Wish
from cvmfs_publish.state.state import State
from tests.served import serving
from tests.status_site import AMD64, OWNER, StatusSite
from tests.support import Site

TEAMS = 40  # namespaces the images are spread over, as on unpacked.cern.ch
BATCH = 1000  # images per transaction
LIMIT_MS = 300  # what a page over 10,000 images may take
PAGES = {
    "overview": "/",
    "all images": "/images",
    "a page in the middle": "/images?page=100",
    "searched": "/images?q=team07+image7",
    "filtered and sorted": "/images?registry=registry.example.org&sort=changed",
    "nothing found": "/images?q=no+such+image",
    "API, 100 images": "/api/v1/images",
    "metrics": "/metrics",
}


class Measured(NamedTuple):
    """One row of the table."""

    what: str
    median_ms: float
    worst_ms: float
    kilobytes: float


def name_of(number: int) -> str:
    return f"registry.example.org/team{number % TEAMS:02}/image{number}:1"


def add_images(site: Site, numbers: range) -> None:
    """Write records and names of images, many in one transaction."""
    for start in range(numbers.start, numbers.stop, BATCH):
        with site.repository.transaction(int(time.time())) as transaction:
            for number in range(start, min(numbers.stop, start + BATCH)):
                reference = Reference.parse(name_of(number))
                publish_name(transaction, reference, _record(number, transaction.revision), b"{}")


def _record(number: int, revision: int) -> Publication:
    name, digest = name_of(number), _digest(f"image {number}")
    return Publication(
        reference=name,
        digest=digest,
        manifest_digest=digest,
        image_id=digest,
        platform=AMD64,
        path=f"/{name}",
        sandbox=f"/.flat/{digest[7:9]}/{digest[7:]}",
        published_at=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=revision,
        entries=7000 + number,
        content_bytes=10**8 + number,
        stored_bytes=5 * 10**7,
        tree_digest=digest,
        recipe=_digest("recipe"),
        layers=(_digest("base"), _digest(f"layer {number}")),
        roots_added=("/nfs", "/gpfs"),
        findings=(),
        publisher="benchmark",
    )


def _digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def fill_state(folder: Path, count: int, now: datetime) -> None:
    """Let a watcher know as many images, one in a hundred of them queued."""
    wishes = [
        Wish(ImageKey(name_of(number), AMD64), name_of(number), "list.yaml", number, OWNER)
        for number in range(count)
    ]
    with State.open(folder) as state:
        state.replace_wishes(wishes, now)
        later = now + timedelta(hours=1)
        state.adopt(
            [
                (wish.key, Facts(_digest(f"image {number}"), revision=1), now)
                for number, wish in enumerate(wishes)
                if number % 100
            ],
            now,
        )
        state.record_polls([Polled(wish.key, later, _digest("new")) for wish in wishes[::100]], now)
        state.mark("alive", now)


def measure(what: str, ask: Callable[[], bytes], rounds: int) -> Measured:
    times, size = [], 0
    for _ in range(rounds):
        started = time.perf_counter()
        size = len(ask())
        times.append(1000 * (time.perf_counter() - started))
    return Measured(what, statistics.median(times), max(times), size / 1000)


def run(base: Path, count: int, rounds: int) -> list[Measured]:
    site = Site(base).create()
    add_images(site, range(count))
    shown = StatusSite(base)
    fill_state(shown.state_folder, count, shown.now)
    with serving(shown.app(shown.service(expects_watcher=False))) as url:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

        def ask(path: str) -> bytes:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            return body

        rows = [measure("cold", lambda: ask("/images"), 1)]
        rows += [measure(what, partial(ask, path), rounds) for what, path in PAGES.items()]
        add_images(site, range(count, count + 1))
        rows.append(measure("after a publish", lambda: ask("/images"), 1))
        with _busy(url, 4):
            rows.append(measure("with four others", lambda: ask("/images?q=image7"), rounds))
        connection.close()
    return rows


@contextmanager
def _busy(url: str, others: int) -> Iterator[None]:
    """Let others ask for pages all the time."""
    parts = urlsplit(url)
    is_over = threading.Event()

    def ask() -> None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
        while not is_over.is_set():
            connection.request("GET", "/images?q=team1")
            connection.getresponse().read()
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(others)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="benchmark-web-") as folder:
        rows = run(Path(folder), arguments.images, arguments.rounds)
    print(f"{arguments.images:,} images\n")
    print("| asked | median ms | worst ms | kB |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row.what} | {row.median_ms:.0f} | {row.worst_ms:.0f} | {row.kilobytes:.0f} |")
    slow = [row.what for row in rows if row.median_ms > LIMIT_MS and row.what != "cold"]
    if slow:
        print(f"\nslower than {LIMIT_MS} ms: {', '.join(slow)}", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
