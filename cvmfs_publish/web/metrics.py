"""Figures for Prometheus, read when they are asked for; `FAMILIES` says what each means.

A page of the documentation lists them and a test compares.  What cannot be read is left out, and
`cvmfs_publish_up` says so: a figure that is made up would end the alarm that it should raise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from cvmfs_publish import __version__
from cvmfs_publish.errors import PublishError
from cvmfs_publish.state import figures
from cvmfs_publish.state.model import STATUSES
from cvmfs_publish.state.reading import Reader
from cvmfs_publish.web.service import Service, Watching
from cvmfs_publish.web.views import days_left, plan_lags

PREFIX = "cvmfs_publish_"
Kind: TypeAlias = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Family:
    """One figure, or one for each value of its labels."""

    kind: Kind
    about: str
    labels: tuple[str, ...] = ()


# Names without the prefix; those of counters get `_total` at their end.
FAMILIES: dict[str, Family] = {
    "info": Family("gauge", "always 1; says which program and repository", ("version", "name")),
    "up": Family("gauge", "1 if the part could be read, else 0", ("part",)),
    "revision": Family("gauge", "number of the published revision"),
    "published_timestamp_seconds": Family("gauge", "when the revision was published, Unix time"),
    "published_images": Family("gauge", "names that lead to an image in the published revision"),
    "sandboxes": Family("gauge", "different images that names lead to"),
    "repository_bytes": Family("gauge", "bytes of all files of the repository, uncompressed"),
    "layer_reuse_ratio": Family("gauge", "share of the layers of images that others have as well"),
    "damaged_records": Family("gauge", "records of images that cannot be read"),
    "whitelist_days_left": Family("gauge", "days until clients refuse new revisions"),
    "images": Family("gauge", "images the watcher knows, by what became of them", ("status",)),
    "queue_jobs": Family("gauge", "jobs in the queue, by whether they run", ("state",)),
    "oldest_wish_seconds": Family(
        "gauge", "how long the image that was never published waits; 0 if none does"
    ),
    "wishlist_problems": Family("gauge", "lines that cannot be used", ("list",)),
    "wishlist_failed": Family("gauge", "1 if it could not be read at the last look", ("list",)),
    "registry_budget_remaining": Family(
        "gauge", "requests that a registry still allows in its window", ("registry",)
    ),
    "registry_blocked_seconds": Family(
        "gauge", "for how long a registry is left alone from now on", ("registry",)
    ),
    "registry_requests": Family(
        "counter", "questions to a registry since the watcher runs", ("registry",)
    ),
    "polls": Family(
        "counter", "questions to registries, by how they ended", ("registry", "status")
    ),
    "webhooks": Family("counter", "webhooks, by what became of them", ("source", "result")),
    "publish_seconds": Family("histogram", "time a publish spent in each phase", ("phase",)),
    "publish_images": Family("counter", "images whose publish ended, by how", ("status",)),
    "fetched_bytes": Family("counter", "compressed bytes fetched from registries"),
    "content_bytes": Family("counter", "uncompressed bytes of published images"),
    "stored_bytes": Family("counter", "bytes of the objects of layers of published images"),
    "layers": Family("counter", "layers of published images"),
    "layers_reused": Family("counter", "of these, those that were known already"),
    "collected_bytes": Family("counter", "bytes the collection of garbage removed"),
    "replica_revision": Family("gauge", "revision of a replica", ("replica",)),
    "replica_healthy": Family("gauge", "1 if clients can mount it there, else 0", ("replica",)),
    "replica_lag_revisions": Family("gauge", "revisions a replica is behind", ("replica",)),
    "watcher_alive_timestamp_seconds": Family("gauge", "when the watcher showed that it lives"),
    "last_poll_timestamp_seconds": Family("gauge", "when registries were asked last"),
    "last_publish_timestamp_seconds": Family("gauge", "when a publish ended last"),
}


class Metrics:
    """All figures of a service, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(service))

    def text(self) -> bytes:
        """Return the figures of this moment, in the text format of Prometheus."""
        data: bytes = generate_latest(self._registry)
        return data


class _Collector(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> Iterable[Metric]:
        return []  # or it would be asked for everything when it is registered

    def collect(self) -> Iterator[Metric]:
        return collect(self._service, self._service.library.name)


def collect(service: Watching, repository: str) -> Iterator[Metric]:
    """Yield the figures of this moment; of what cannot be read, that it cannot."""
    now = service.clock()
    found: list[Metric] = [_gauge("info", [((__version__, repository), 1)])]
    up = []
    for part, read in (("repository", _read_repository), ("state", _read_state)):
        try:
            found += list(read(service, now))
            up.append(((part,), 1.0))
        except PublishError:
            up.append(((part,), 0.0))
    yield from found
    yield _gauge("up", up)


Sample: TypeAlias = tuple[tuple[str, ...], float]


def _read_repository(service: Watching, now: datetime) -> Iterator[Metric]:
    if not isinstance(service, Service):
        return
    shelf = service.library.shelf()
    info = service.library.info(now)
    for name, value in (
        ("revision", float(shelf.manifest.revision)),
        ("published_timestamp_seconds", float(shelf.manifest.timestamp)),
        ("published_images", float(len(shelf.images))),
        ("sandboxes", float(shelf.sandboxes)),
        ("repository_bytes", float(info.counters["file_size"])),
        ("layer_reuse_ratio", shelf.reuse),
        ("damaged_records", float(len(shelf.damaged))),
        ("whitelist_days_left", days_left(info.whitelist.ends_at, now)),
    ):
        yield _gauge(name, [((), value)])


def _read_state(service: Watching, now: datetime) -> Iterator[Metric]:
    reader = service.watch.reader()
    if reader is None:
        return
    yield from _read_queue(reader, now)
    yield from _read_lists(reader)
    yield from _read_registries(reader, now)
    yield from _read_counters(reader.counters())
    replicas = reader.replicas()
    yield _gauge(
        "replica_revision", [((replica.url,), float(replica.revision)) for replica in replicas]
    )
    yield _gauge(
        "replica_healthy",
        [((replica.url,), float(replica.failure is None)) for replica in replicas],
    )
    if replicas and isinstance(service, Service):
        lags = plan_lags(replicas, service.library.shelf().manifest.revision)
        yield _gauge(
            "replica_lag_revisions", [((lag.replica.url,), float(lag.behind)) for lag in lags]
        )
    for name, moment in (
        ("watcher_alive_timestamp_seconds", "alive"),
        ("last_poll_timestamp_seconds", "polled"),
        ("last_publish_timestamp_seconds", "published"),
    ):
        at = reader.moment(moment)
        yield _gauge(name, [((), at.timestamp())] if at is not None else [])


def _read_queue(reader: Reader, now: datetime) -> Iterator[Metric]:
    counts = reader.counts()
    yield _gauge("images", [((status,), float(counts.get(status, 0))) for status in STATUSES])
    running, total = counts.get("publishing", 0), reader.queue_length()
    yield _gauge(
        "queue_jobs",
        [(("running",), float(running)), (("waiting",), float(max(0, total - running)))],
    )
    oldest = reader.oldest_wish()
    age = max(0.0, (now - oldest).total_seconds()) if oldest is not None else 0.0
    yield _gauge("oldest_wish_seconds", [((), age)])


def _read_lists(reader: Reader) -> Iterator[Metric]:
    lists, problems = reader.lists(), reader.problems()
    yield _gauge(
        "wishlist_problems",
        [((each.name,), float(sum(p.list == each.name for p in problems))) for each in lists],
    )
    yield _gauge(
        "wishlist_failed", [((each.name,), float(each.failure is not None)) for each in lists]
    )


def _read_registries(reader: Reader, now: datetime) -> Iterator[Metric]:
    budgets = reader.budgets()
    yield _gauge(
        "registry_budget_remaining",
        [((b.registry,), float(b.remaining)) for b in budgets if b.remaining is not None],
    )
    yield _gauge(
        "registry_blocked_seconds",
        [
            (
                (budget.registry,),
                max(0.0, (budget.blocked_until - now).total_seconds())
                if budget.blocked_until is not None
                else 0.0,
            )
            for budget in budgets
        ],
    )
    yield _counter("registry_requests", [((b.registry,), float(b.requests)) for b in budgets])


def _read_counters(counters: dict[tuple[str, str], float]) -> Iterator[Metric]:
    for name, source in (("polls", figures.POLLS), ("webhooks", figures.WEBHOOKS)):
        found = figures.by_label(counters, source)
        yield _counter(name, [(_two(label), value) for label, value in found.items()])
    ends = figures.by_label(counters, figures.IMAGES)
    yield _counter("publish_images", [((status,), value) for status, value in ends.items()])
    for name, source in (
        ("fetched_bytes", figures.FETCHED_BYTES),
        ("content_bytes", figures.CONTENT_BYTES),
        ("stored_bytes", figures.STORED_BYTES),
        ("layers", figures.LAYERS),
        ("layers_reused", figures.LAYERS_REUSED),
        ("collected_bytes", figures.COLLECTED_BYTES),
    ):
        total = sum(figures.by_label(counters, source).values())
        yield _counter(name, [((), total)])
    yield _histogram("publish_seconds", counters, figures.PUBLISH_SECONDS)


def _two(label: str) -> tuple[str, str]:
    first, _, second = label.rpartition(" ")
    return first, second


def _gauge(name: str, samples: Iterable[Sample]) -> GaugeMetricFamily:
    family = FAMILIES[name]
    metric = GaugeMetricFamily(PREFIX + name, family.about, labels=family.labels)
    for labels, value in samples:
        metric.add_metric(labels, value)
    return metric


def _counter(name: str, samples: Iterable[Sample]) -> CounterMetricFamily:
    family = FAMILIES[name]
    metric = CounterMetricFamily(PREFIX + name, family.about, labels=family.labels)
    for labels, value in samples:
        metric.add_metric(labels, value)
    return metric


def _histogram(
    name: str, counters: dict[tuple[str, str], float], source: str
) -> HistogramMetricFamily:
    family = FAMILIES[name]
    metric = HistogramMetricFamily(PREFIX + name, family.about, labels=family.labels)
    counts = figures.by_label(counters, source + figures.COUNT)
    for label, total in figures.by_label(counters, source).items():
        count = counts.get(label, 0.0)
        buckets = [
            (str(bound), counters.get((figures.bucket(source, bound), label), 0.0))
            for bound in figures.BUCKETS
        ]
        metric.add_metric([label], [*buckets, ("+Inf", count)], total)
    return metric
