"""The counters of the state that are figures for operators: their names, and how durations count.

A duration counts in every bucket it fits into, as histograms of Prometheus do, so that what is
stored only grows and needs no arithmetic to be shown.
"""

from __future__ import annotations

from collections.abc import Mapping

Amounts = dict[tuple[str, str], float]

PUBLISH_SECONDS = "publish_seconds"  # histogram by phase
IMAGES = "images"  # by how the publish of each ended
FETCHED_BYTES = "fetched_bytes"  # compressed, from registries
CONTENT_BYTES = "content_bytes"  # of published images, uncompressed
STORED_BYTES = "stored_bytes"  # of the objects of the layers of published images
LAYERS = "layers"  # of published images
LAYERS_REUSED = "layers_reused"  # that were known already
COLLECTED_BYTES = "collected_bytes"  # removed by the collection of garbage
POLLS = "polls"  # questions to registries, by "REGISTRY STATUS"
WEBHOOKS = "webhooks"  # deliveries, by "SOURCE RESULT"

# seconds; from a known image (milliseconds) to one of a hundred gigabytes
BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
COUNT = "_count"


def observe(name: str, label: str, seconds: float) -> Amounts:
    """Return what `State.count` is to add for one duration."""
    amounts = {(name, label): seconds, (name + COUNT, label): 1.0}
    amounts |= {(bucket(name, bound), label): 1.0 for bound in BUCKETS if seconds <= bound}
    return amounts


def add(total: Amounts, more: Amounts) -> None:
    """Add amounts to others."""
    for key, amount in more.items():
        total[key] = total.get(key, 0.0) + amount


def bucket(name: str, bound: float) -> str:
    return f"{name}_le_{bound:g}"


def by_label(counters: Mapping[tuple[str, str], float], name: str) -> dict[str, float]:
    """Return the values of one counter by its label."""
    return {label: value for (each, label), value in counters.items() if each == name}
