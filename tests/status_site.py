"""A repository with images and a watcher's state beside it, for tests of what is shown of them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from starlette.applications import Starlette

from cvmfs_publish.content.local import LocalStore
from cvmfs_publish.digest import Digest
from cvmfs_publish.layers.record import RecordStore
from cvmfs_publish.publish import Publisher, PublishSettings
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.native.repository import NativeRepository
from cvmfs_publish.sites.data import load_site, templates_dir
from cvmfs_publish.sites.pages import Pages
from cvmfs_publish.sources.base import LayerDescriptor, Platform, ResolvedImage
from cvmfs_publish.state import figures
from cvmfs_publish.state.model import (
    Budget,
    Event,
    Facts,
    Failure,
    ImageKey,
    LayerProgress,
    ListProblem,
    ListState,
    Polled,
    Progress,
    Replica,
    Result,
    Wish,
)
from cvmfs_publish.state.state import State
from cvmfs_publish.web.access import Access
from cvmfs_publish.web.app import create_app
from cvmfs_publish.web.hooks import Hooks
from cvmfs_publish.web.library import Library
from cvmfs_publish.web.pages import HtmlPages
from cvmfs_publish.web.service import Control, Service, Watch
from tests.asgi import Browser
from tests.support import NAME, Site

TOKEN = "correct-horse-battery-staple"
AMD64 = "linux/amd64"
DEBIAN = "docker.io/library/debian:12"
ROOT = "ghcr.io/physics/root:6.34"  # published twice: it has a past
TRAIN = "registry.example.org/lab/ml-train:2.1"  # published by hand: no list names it
ANALYSIS = "ghcr.io/physics/analysis:24.2.1"  # is being fetched
BROKEN = "docker.io/library/broken:1"  # is in quarantine
FAILED = "quay.io/tools/fit:3"  # failed, and is tried again
QUEUED = "docker.io/atlas/analysisbase:25.2"
LIST = "wishlists/analysis.yaml"
URL_LIST = "https://lists.example.org/docker_images.txt"
HOSTILE = "<script>alert(1)</script>"
OWNER = "anna@example.org"
S1 = "http://s1.example.org/cvmfs/test.example.org"


class Images:
    """A source of small images made in memory; see `sources.base.ImageSource`."""

    def __init__(self) -> None:
        self.version = "1"

    def head(self, reference: Reference) -> Digest:
        return _digest(self._manifest(reference))

    def resolve(
        self, reference: Reference, platform: Platform, digest: Digest | None = None
    ) -> ResolvedImage:
        del digest
        manifest, config = self._manifest(reference), self._config(reference)
        return ResolvedImage(
            reference=reference,
            digest=_digest(manifest),
            manifest_digest=_digest(manifest),
            manifest=manifest,
            config_digest=_digest(config),
            config=config,
            layers=tuple(
                LayerDescriptor(_digest(data), len(data), "application/tar", _digest(data))
                for data in self._layers(reference)
            ),
            platform=platform,
        )

    def open_layer(self, reference: Reference, layer: LayerDescriptor) -> _Memory:
        found = {_digest(data): data for data in self._layers(reference)}
        return _Memory(found[layer.digest])

    def _layers(self, reference: Reference) -> list[bytes]:
        base = _tar({"usr/lib/libc.so": 40_000, "usr/bin/su": 9_000, "etc/os-release": 200})
        if "debian" in str(reference):
            return [base]
        own = {"opt/root/libCore.so": 30_000, "opt/conda/big": 20_000, "home/data/x": 5_000}
        return [base, _tar(own, f"{reference} {self.version}")]

    def _config(self, reference: Reference) -> bytes:
        layers = [str(_digest(data)) for data in self._layers(reference)]
        return json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": layers},
            }
        ).encode()

    def _manifest(self, reference: Reference) -> bytes:
        layers = [
            {"digest": str(_digest(data)), "size": len(data)} for data in self._layers(reference)
        ]
        config = str(_digest(self._config(reference)))
        return json.dumps({"config": config, "layers": layers}).encode()


class _Memory:
    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def read(self, size: int) -> bytes:
        return self._stream.read(size)


def _tar(files: dict[str, int], salt: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, size in files.items():
            data = (f"{salt}{name}\n".encode() * size)[:size]
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o4755 if name.endswith("su") else 0o644
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _digest(data: bytes) -> Digest:
    return Digest("sha256", hashlib.sha256(data).hexdigest())


def make_repository(base: Path) -> Path:
    """Publish three images, one of them twice."""
    site = Site(base).create()
    _publish_images(site, "1", DEBIAN, ROOT, TRAIN)
    _publish_images(site, "2", ROOT)
    return base


def stage_newer(base: Path) -> None:
    """Publish a newer image by hand; its name waits for two replicas."""
    _publish_images(Site(base), "3", TRAIN, after_replicas=2)


def _publish_images(site: Site, version: str, *names: str, after_replicas: int = 0) -> None:
    source = Images()
    source.version = version
    records = RecordStore(site.state / "layers", site.algorithm)
    publisher = Publisher(site.repository, source, records, PublishSettings())
    result = publisher.publish(names, now=datetime.now(UTC), after_replicas=after_replicas)
    assert result.exit_code == 0


def fill_state(folder: Path, now: datetime) -> None:
    """Write what a watcher would know after three days, one image in each condition."""
    begun = now - timedelta(days=3)
    wishes = [
        Wish(ImageKey(name, AMD64), name, LIST, 3 + 2 * number, OWNER)
        for number, name in enumerate((DEBIAN, ROOT, ANALYSIS, BROKEN, FAILED, QUEUED))
    ]
    with State.open(folder) as state:
        state.replace_wishes(wishes, begun)
        seen = {wish.key.name: str(_digest(wish.key.name.encode())) for wish in wishes}
        later = now + timedelta(minutes=10)
        state.record_polls([Polled(w.key, later, seen[w.key.name]) for w in wishes], begun)
        _publish(state, begun + timedelta(minutes=5), now)
        _describe_surroundings(state, now)
        state.mark("alive", now)


def _publish(state: State, begun: datetime, now: datetime) -> None:
    jobs = {job.key.name: job for job in state.due_jobs(now)}
    done = [jobs[DEBIAN], jobs[ROOT]]
    run = state.begin_run(done, {}, begun)
    results = [
        Result(job.key, "published", Facts(job.digest, "", 2, 9, 90, 50, 4, 3, 3092, 2.1))
        for job in done
    ]
    state.finish_run(run, results, begun + timedelta(seconds=2))
    ends = {
        BROKEN: ("quarantined", "integrity", f"layer {HOSTILE}: 12 bytes, promised 13", None),
        FAILED: ("failed", "remote", "quay.io answered 503", now + timedelta(minutes=7)),
    }
    for name, (status, kind, message, again) in ends.items():
        run = state.begin_run([jobs[name]], {}, now - timedelta(minutes=3))
        failure = Failure(kind, message, "push it again")
        result = Result(jobs[name].key, status, None, failure, again)  # type: ignore[arg-type]
        state.finish_run(run, [result], now - timedelta(minutes=2))
    state.begin_run([jobs[ANALYSIS]], {}, now - timedelta(seconds=20))
    set_progress(state, 310_000_000)


def set_progress(state: State, done: int) -> None:
    """Let so many bytes of the second layer have arrived."""
    layers = (
        LayerProgress(f"sha256:{'ab' * 32}", 52_000_000, 52_000_000),
        LayerProgress(f"sha256:{'cd' * 32}", done, 763_000_000),
    )
    key = ImageKey(ANALYSIS, AMD64)
    state.set_progress({key: Progress("fetching", layers)})


def _describe_surroundings(state: State, now: datetime) -> None:
    timed_out = Failure("remote", f"{URL_LIST}: timed out", "what was read before stays")
    wrong = Failure("input", "'Physics/Analysis' is not a repository", "use small letters")
    state.set_lists(
        [
            ListState(LIST, 6, 6, now, now),
            ListState(URL_LIST, 0, 0, now - timedelta(days=1), now, timed_out),
        ],
        [
            ListProblem(LIST, 6, "ghcr.io/Physics/Analysis", wrong, OWNER),
            ListProblem(LIST, 8, HOSTILE, Failure("input", f"{HOSTILE} is no image")),
        ],
        now,
    )
    state.set_budgets(
        [
            Budget("docker.io", 100, 37, now + timedelta(hours=1), None, 412, 0),
            Budget("quay.io", None, None, None, now + timedelta(minutes=5), 51, 2),
        ],
        now,
    )
    state.log(
        Event(0, now - timedelta(minutes=9 - number), kind, message, name, AMD64 if name else "")
        for number, (kind, message, name) in enumerate(
            [
                ("image-published", f"{DEBIAN} was published in revision 2", DEBIAN),
                ("problem-new", f"{LIST}:8: {HOSTILE} is no image", ""),
                ("image-quarantined", f"{BROKEN}: its layer is damaged", BROKEN),
            ]
        )
    )
    amounts = figures.observe(figures.PUBLISH_SECONDS, "fetching", 12.5)
    amounts |= {
        (figures.IMAGES, "published"): 2,
        (figures.FETCHED_BYTES, ""): 6184,
        (figures.LAYERS, ""): 8,
        (figures.LAYERS_REUSED, ""): 6,
        (figures.POLLS, "ghcr.io found"): 88,
        (figures.WEBHOOKS, "distribution accepted"): 3,
    }
    state.count(amounts)
    state.record_replica(Replica(S1, 1, now), [S1], now)


@dataclass
class Orders:
    """Takes down what was ordered; see `web.service.Control`."""

    wished: bool = True
    given: list[tuple[str, ImageKey]] = field(default_factory=list)

    def publish(self, key: ImageKey) -> bool:
        self.given.append(("publish", key))
        return self.wished

    def look(self, key: ImageKey) -> bool:
        self.given.append(("look", key))
        return self.wished


@dataclass
class StatusSite:
    """A service over one repository and state."""

    base: Path
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def state_folder(self) -> Path:
        return self.base / "state"

    def service(
        self,
        *,
        control: Control | None = None,
        token: str | None = None,
        sites: Sequence[str] = ("in2p3", "osg"),
        clock: Callable[[], datetime] | None = None,
        expects_watcher: bool = True,
        probe: Callable[[], None] | None = None,
        url: str | None = None,
    ) -> Service:
        templates = templates_dir()
        tells = clock or (lambda: self.now)
        return Service(
            library=Library(
                NativeRepository(NAME, LocalStore(self.base / "repository"), self.base / "keys")
            ),
            watch=Watch(self.state_folder),
            html=HtmlPages(templates / "web"),
            access=Access(token, tells, url=url),
            clock=tells,
            sites=tuple(map(load_site, sites)),
            site_pages=Pages(templates),
            control=control,
            probe=probe,
            expects_watcher=expects_watcher,
            replicas=(S1,),
            url=url,
        )

    def app(self, service: Service | None = None, hooks: Hooks | None = None) -> Starlette:
        service = service or self.service()
        return create_app(service, storage=self.base / "repository", hooks=hooks)

    def browser(self, service: Service | None = None, hooks: Hooks | None = None) -> Browser:
        return Browser(self.app(service, hooks))
