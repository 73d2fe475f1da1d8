"""What the watcher lets others do, and what they say on the way.

Work on the repository happens in a process of its own: an image that kills it, or takes all its
memory, does not take the service along.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from cvmfs_publish.state.model import Facts, Failure, LayerProgress, Progress


@dataclass(frozen=True, slots=True)
class Item:
    """One image to publish."""

    reference: str  # what is fetched
    name: str  # what it is published as


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish images in one transaction."""

    items: tuple[Item, ...]
    platform: str
    policy: str = ""  # how sandboxes differ from what is configured, as JSON


@dataclass(frozen=True, slots=True)
class Unpublish:
    """Remove names in one transaction."""

    names: tuple[str, ...]
    platform: str


@dataclass(frozen=True, slots=True)
class Switch:
    """Point names at what they wait for, in one transaction."""

    # reference, platform and manifest digest of each: another image of that name is not meant
    names: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Collect:
    """Remove what nothing names any more."""

    grace_seconds: int
    keep_revisions: int
    # grace of what some names led to, where it is another one
    graces: Mapping[str, int] = field(default_factory=dict)


Order = Publish | Unpublish | Switch | Collect


@dataclass(frozen=True, slots=True)
class ItemEnd:
    """What became of one image: either facts or a failure."""

    name: str
    status: Literal["published", "staged", "unchanged", "unpublished", "failed"]
    facts: Facts | None = None
    failure: Failure | None = None
    exit_code: int = 0  # of the failure's family


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How an order ended."""

    items: tuple[ItemEnd, ...] = ()
    failure: Failure | None = None  # nothing of it was done, or nobody knows
    exit_code: int = 0  # of the failure's family
    crash: str = ""  # how the process died, if it did not end by itself
    removed_bytes: int = 0  # by `Collect`
    phases: Mapping[str, float] = field(default_factory=dict)  # seconds


class Run(Protocol):
    """An order that is carried out."""

    def end(self) -> RunEnd | None:
        """Return how it ended; None while it goes on."""

    def stop(self) -> None:
        """Ask it to end; it leaves the repository as it was.  Idempotent."""

    def kill(self) -> None:
        """End it at once; the repository is as it was, or as it was to be."""


class Runner(Protocol):
    """Carries out orders, one at a time."""

    def start(
        self,
        order: Order,
        report: Callable[[str, Progress], None],
        wake: Callable[[], None],
    ) -> Run:
        """Begin; `report` is told of names and how far they are, from some thread, quickly.

        `wake` is called when the run has ended.  Raises `RepositoryError` if nothing can be begun.
        """


@dataclass(slots=True)
class Tracker:
    """Puts what a publish reports together to how far each image is.  For one thread."""

    phases: dict[str, str] = field(default_factory=dict)
    layers: dict[str, dict[str, LayerProgress]] = field(default_factory=dict)

    def phase(self, name: str, phase: str) -> Progress:
        self.phases[name] = phase
        return self.progress(name)

    def layer(self, name: str, digest: str, done: int, total: int) -> Progress:
        self.layers.setdefault(name, {})[digest] = LayerProgress(digest, done, total)
        return self.progress(name)

    def progress(self, name: str) -> Progress:
        layers = tuple(self.layers.get(name, {}).values())
        return Progress(self.phases.get(name, "fetching"), layers)
