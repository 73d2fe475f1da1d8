"""`watch`: the service that looks for new images and publishes them."""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self, TypeVar

import typer

from cvmfs_publish.cli.assembly import open_repository
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.expiry import warn_of_expiry
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.output import error_document
from cvmfs_publish.cli.publishing import open_source, publish_settings, shared_blobs
from cvmfs_publish.cli.registries import Registries
from cvmfs_publish.cli.replicas import open_observer
from cvmfs_publish.cli.showing import open_service
from cvmfs_publish.cli.staging import wanted_of
from cvmfs_publish.config import Config
from cvmfs_publish.errors import EXIT_PARTIAL, InputError, PublishError
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.sources.base import Platform
from cvmfs_publish.sources.compliance import Compliance, ComplianceError
from cvmfs_publish.sources.shared import KEPT_SECONDS, SharedBlobs
from cvmfs_publish.state.model import Facts, Failure, ImageKey, Push
from cvmfs_publish.state.state import State, WatchLock
from cvmfs_publish.watch.child import ChildRunner
from cvmfs_publish.watch.daemon import Parts, SystemClock, Watcher
from cvmfs_publish.watch.feed import StoredFeed
from cvmfs_publish.watch.files import DropFolder, FileEvents
from cvmfs_publish.watch.lists import WishlistLoader, configured_places
from cvmfs_publish.watch.memory import AnswerMemory
from cvmfs_publish.watch.notify import Notifier
from cvmfs_publish.watch.outbound import Outbound
from cvmfs_publish.watch.poller import Poller
from cvmfs_publish.watch.queue import QueueSettings
from cvmfs_publish.watch.replication import Replication
from cvmfs_publish.watch.retention import RetentionSettings
from cvmfs_publish.watch.sinks import open_subscriptions
from cvmfs_publish.watch.systemd import Together, notify
from cvmfs_publish.watch.wanted import Refusal, Wanted
from cvmfs_publish.watch.webhooks import HookSettings
from cvmfs_publish.watch.work import facts_of
from cvmfs_publish.web.app import create_app
from cvmfs_publish.web.front import Member, create_front
from cvmfs_publish.web.hooks import Hooks, Outcome, count_label, open_hooks
from cvmfs_publish.web.server import serving
from cvmfs_publish.web.service import Service, Watch, Watching

LISTEN_EVERY = 1.0  # seconds between two looks for signals
SWEEP_EVERY = 600.0  # seconds between two looks for layers that nobody needs any more

T = TypeVar("T")

app = command_app()


@app.command()
def watch(
    context: typer.Context,
    once: Annotated[
        bool,
        typer.Option("--once", help="Look at everything once, publish what is due, and end."),
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Where the status site, webhooks and metrics are; else as `watch.listen` says.",
        ),
    ] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGE",
            help="Let the running watcher try this again, if it is in quarantine too, and end.",
        ),
    ] = None,
) -> int:
    """Publish what wishlists wish, for ever.

    Looks at every image of the `wishlists`, takes webhooks (--listen), notices wishlists that
    change and files in the `watch.drop` folder, and publishes what is new.  `retention` says what
    becomes of the old.  SIGTERM ends it in order, SIGHUP makes it read its configuration again.
    --once is for cron; exit code 6 says that some images could not be published,
    or some wishes not be read.

    Example: cvmfs-publish watch --listen 127.0.0.1:8080
    """
    session = session_of(context)
    if retry:
        return _retry(session, retry)
    logging.getLogger("cvmfs_publish.watch").setLevel(logging.INFO)
    fleet = _Fleet(session)
    with fleet:
        if once:
            return fleet.run_once()
        fleet.run(listen)
    return 0


def _retry(session: Session, images: Sequence[str]) -> int:
    names = [Reference.parse(image).name for image in images]
    documents: list[dict[str, object]] = []
    lines: list[str] = []
    wished: set[str] = set()
    for config in session.configs:
        with State.open(config.state) as state:
            keys = [
                image.key for name in names for image in state.platforms(name) if image.is_wished
            ]
            state.enqueue(keys, datetime.now(UTC), "command")
        wished |= {key.name for key in keys}
        documents.append(
            {
                "repository": config.repository.name,
                "images": [{"name": key.name, "platform": key.platform} for key in keys],
            }
        )
        lines += [f"queued  {key}" for key in keys]
    for name in names:
        if name not in wished:
            raise InputError(
                f"nobody wishes {name}",
                hint="`cvmfs-publish publish` publishes what is on no wishlist",
            )
    document = (
        {"repositories": documents} if len(documents) > 1 else {"images": documents[0]["images"]}
    )
    session.out.result(document, "\n".join(dict.fromkeys(lines)))
    return 0


class _Fleet:
    """The watchers of all repositories that were chosen, in this process; most often it is one."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stack = ExitStack()
        self._memory = AnswerMemory() if len(session.configs) > 1 else None
        self._services: list[_Service] = []

    def __enter__(self) -> Self:
        session = self._session
        address = session.environ.get("NOTIFY_SOCKET", "")
        signs = Together(len(session.configs), lambda message: notify(address, message))
        with ExitStack() as stack:
            for number, config in enumerate(session.configs):
                stack.enter_context(WatchLock(config.state))
                state = stack.enter_context(State.open(config.state))
                service = _Service(session, config, state, self._memory, signs.of(number))
                self._services.append(stack.enter_context(service))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run_once(self) -> int:
        with _handling({signal.SIGTERM: self._stop}):
            fine = self._in_all(self._run_one)
        self._sweep(KEPT_SECONDS)
        self._tell_counts()
        self._warn_of_expiry()
        failures = [service.failure for service in self._services]
        if failures[0] is not None and all(failures):
            return failures[0].exit_code
        return 0 if all(fine) else EXIT_PARTIAL

    def _run_one(self, service: _Service) -> bool:
        """Look at everything once; of several, one that fails holds back no other."""
        try:
            return service.run_once()
        except PublishError as error:
            if len(self._services) == 1:
                raise
            service.failure = error
            return False

    def run(self, listen: str | None) -> None:
        """Work until told to stop; the main thread waits for signals."""
        with ExitStack() as stack:
            front = None
            if len(self._services) == 1:
                urls = [stack.enter_context(self._services[0].serving(listen, self._submit))]
            else:
                urls = [stack.enter_context(service.serving(None)) for service in self._services]
                address = listen or self._session.configs[0].common_listen
                if address is not None:
                    front = stack.enter_context(self._front(address, urls))
            self._tell_start(urls, front)
            handlers = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop}
            handlers[signal.SIGHUP] = self._reload
            stack.enter_context(_handling(handlers))
            self._in_all(lambda service: service.run())

    @contextmanager
    def _front(self, address: str, urls: Sequence[str | None]) -> Iterator[str]:
        """Serve what all repositories share."""
        members = [
            Member(config.repository.name, service.open_watching(), url)
            for config, service, url in zip(
                self._session.configs, self._services, urls, strict=True
            )
        ]
        config = self._session.configs[0]
        hooks = open_own_hooks(config, self._submit, self._count)
        with serving(
            create_front(members, hooks),
            address,
            log_requests=self._session.out.verbosity > 0,
        ) as url:
            yield url

    def _submit(self, pushes: Sequence[Push]) -> int:
        """Take in what registries told, for all repositories; return how many are new."""
        if self._memory is not None:
            self._memory.forget()  # what was answered before the push
        return max(service.watcher.submit(pushes) for service in self._services)

    def _count(self, source: str, outcome: Outcome) -> None:
        for service in self._services:
            service.state.count({count_label(source, outcome): 1})

    def _in_all(self, work: Callable[[_Service], T]) -> list[T]:
        """Do something in all services at once; if it fails in one, all are stopped."""
        if len(self._services) == 1:
            return [work(self._services[0])]
        with ThreadPoolExecutor(len(self._services), thread_name_prefix="watch") as pool:
            futures = [pool.submit(work, service) for service in self._services]
            try:
                swept_at = time.monotonic()
                # a signal that another thread was given is acted upon when this one wakes up
                while wait(futures, LISTEN_EVERY, FIRST_EXCEPTION).not_done:
                    if any(future.done() and future.exception() for future in futures):
                        break
                    if time.monotonic() - swept_at >= SWEEP_EVERY:
                        swept_at = time.monotonic()
                        self._sweep()
            finally:
                if any(not future.done() or future.exception() for future in futures):
                    self._stop()
        return [future.result() for future in futures]

    def _sweep(self, ahead: float = 0) -> None:
        """Remove layers that no repository will ask for any more."""
        if len(self._services) > 1:
            folder = shared_blobs(self._session.configs[0])
            SharedBlobs(folder).sweep(datetime.now(UTC).timestamp() + ahead)

    def _stop(self) -> None:
        for service in self._services:
            service.watcher.stop()

    def _reload(self) -> None:
        for service in self._services:
            service.watcher.reload_soon()

    def _tell_start(self, urls: Sequence[str | None], front: str | None) -> None:
        out = self._session.out
        names = [config.repository.name for config in self._session.configs]
        documents = [
            {"repository": name, "url": url} for name, url in zip(names, urls, strict=True)
        ]
        lines = [
            f"watching for {name}" + (f", status at {url}" if url is not None else "")
            for name, url in zip(names, urls, strict=True)
        ]
        if front is not None:
            lines.append(f"webhooks, health and figures of all at {front}")
        one = len(documents) == 1
        document = documents[0] if one else {"repositories": documents, "url": front}
        out.result(document, "\n".join(lines))
        out.stdout.flush()  # whoever started the service waits for this line
        self._warn_of_expiry()  # nobody looks at what it says when it ends

    def _warn_of_expiry(self) -> None:
        for config in self._session.configs:
            warn_of_expiry(self._session.of(config, self._session.out))

    def _tell_counts(self) -> None:
        counts = [service.state.counts() for service in self._services]
        names = [config.repository.name for config in self._session.configs]
        documents = [
            {"repository": name, "images": found}
            | ({"error": error_document(each.failure)} if each.failure is not None else {})
            for name, found, each in zip(names, counts, self._services, strict=True)
        ]
        one = len(documents) == 1
        document = {"images": counts[0]} if one else {"repositories": documents}
        lines = [
            ("" if one else f"{name}: ")
            + (
                ", ".join(f"{count} {status}" for status, count in sorted(found.items()))
                or "no wishlist wishes anything"
            )
            for name, found in zip(names, counts, strict=True)
        ]
        self._session.out.result(document, "\n".join(lines))
        if not self._session.out.as_json:
            told: set[str] = set()  # lists are common, and so is most that is wrong with them
            for name, service in zip(names, self._services, strict=True):
                if (error := service.failure) is not None:
                    subject = "" if name in str(error) else f"{name}: "
                    self._session.out.error(error.kind, f"{subject}{error}", error.hint)
                service.tell_troubles(told)


class _Service:
    """The watcher of one repository and what is around it."""

    def __init__(
        self,
        whole: Session,
        config: Config,
        state: State,
        memory: AnswerMemory | None,
        alive: Callable[[str], None],
    ) -> None:
        self._whole = whole
        self._session = whole.of(config, whole.out)
        self.state = self._state = state
        self._memory = memory
        self._stack = ExitStack()  # of the parts in use
        self._former = ExitStack()  # of those before a reload
        self.failure: PublishError | None = None  # of looking at everything once
        self.watcher = self._watcher = Watcher(
            state,
            self._open_parts(config, whole.configs, self._stack),
            clock=SystemClock(),
            jitter=random.random,
            alive=alive,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._former.close()
        self._stack.close()

    def run_once(self) -> bool:
        return self._watcher.run_once()

    def run(self) -> None:
        self._watcher.run(self._load_parts)

    @contextmanager
    def serving(
        self, listen: str | None, submit: Callable[[Sequence[Push]], int] | None = None
    ) -> Iterator[str | None]:
        """Serve the status site, if it is to be served, in a thread; yield the URL.

        `submit` takes in what webhooks tell; without it they are for others to take in.
        """
        config = self._session.config
        address = listen or config.watch.listen
        if address is None:
            yield None
            return
        service = self._open_service()
        storage = config.repository.storage
        hooks = None
        if submit is not None:
            hooks = open_own_hooks(
                config,
                submit,
                lambda source, outcome: self._state.count({count_label(source, outcome): 1}),
            )
        application = create_app(
            service, storage=storage if isinstance(storage, Path) else None, hooks=hooks
        )
        service.warm()
        with serving(application, address, log_requests=self._session.out.verbosity > 0) as url:
            yield url

    def open_watching(self) -> Watching:
        """Return what is known of this watcher and, if it can be shown, of the repository."""
        if self._session.config.repository.backend == "native":
            return self._open_service()
        return Watching(
            watch=Watch(self._session.config.state),
            clock=lambda: datetime.now(UTC),
            probe=self._probe,
            expects_watcher=True,
        )

    def _open_service(self) -> Service:
        return open_service(
            self._session.config,
            control=_Control(self._state, self._watcher, self._memory),
            probe=self._probe,
            expects_watcher=True,
        )

    def _probe(self) -> None:
        self._state.mark("probed", datetime.now(UTC))

    def tell_troubles(self, told: set[str]) -> None:
        """Tell what is wrong with lists and images, unless it was `told` before."""
        for problem in self._state.problems():
            failure, place = problem.failure, f"{problem.list}:{problem.line}"
            if failure.kind == "warning":
                continue
            self._tell_failure(failure, f"{place}: " if problem.line else "", told)
        for image in self._state.troubled():
            if image.failure is not None:
                self._tell_failure(image.failure, "", told)

    def _tell_failure(self, failure: Failure, place: str, told: set[str]) -> None:
        message = f"{place}{failure.message}"
        if message not in told:
            told.add(message)
            self._session.out.error(failure.kind, message, failure.hint)

    # what the configuration says

    def _load_parts(self) -> Parts:
        """Read the configuration again; what was in use stays if it is wrong."""
        session = self._session
        configs = self._whole.read_configs()
        names = [config.repository.name for config in configs]
        if names != [config.repository.name for config in self._whole.configs]:
            raise InputError(
                "repositories cannot come, go or be renamed while the service runs",
                hint="restart it",
            )
        config = configs[names.index(session.config.repository.name)]
        if config.state != session.config.state:
            raise InputError("`state` cannot change while the service runs", hint="restart it")
        with ExitStack() as stack:
            parts = self._open_parts(config, configs, stack)
            self._former.close()  # what is in use now may be in the middle of something
            self._former, self._stack = self._stack, stack.pop_all()
        vars(session)["config"] = config
        return parts

    def _open_parts(self, config: Config, all_: Sequence[Config], stack: ExitStack) -> Parts:
        session, watch = self._session, config.watch
        registries = stack.enter_context(Registries(config, session.environ, self._memory))
        settings = publish_settings(config)
        drop = None
        if watch.drop is not None:
            sources = stack.enter_context(open_source(config, session.environ, [], session.cwd))
            try:
                watch.drop.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"watch.drop {watch.drop}: {error.strerror}") from error
            drop = DropFolder(watch.drop.absolute(), self._state, sources)
        poller = Poller(self._state, registries, watch.interval, random.random)
        stack.callback(poller.close)
        program = [sys.executable, "-P", "-m", "cvmfs_publish.cli.publish_run"]
        stack.enter_context(
            FileEvents(
                _watched_files(config),
                self._see_change,
                drop,
                lambda: self._watcher.look_at_files_soon(),
            )
        )
        retention = config.retention
        if not config.replicas:
            self._state.forget_replicas(())
        lists = self._open_lists(config, stack)
        return Parts(
            interval=watch.interval,
            queue=QueueSettings(
                batch=watch.batch,
                quarantine_after=watch.quarantine_after,
                weights=watch.weights,
            ),
            retention=RetentionSettings(
                keep_replaced=retention.keep_replaced,
                remove_unlisted=retention.remove_unlisted,
                max_share=retention.max_share,
                every=None if retention.gc == "off" else retention.gc,
                keep_revisions=retention.keep_revisions,
            ),
            runner=ChildRunner(
                [*program, str(session.found_config.absolute()), *session.repositories]
            ),
            wanted=Wanted(self._state, lists, registries, watch.tags, _refusal_of(config, all_)),
            poller=poller,
            drop=drop,
            notifier=Notifier(
                open_subscriptions(config), StoredFeed(self._state, *session.repositories)
            ),
            replication=Replication(
                self._state, open_observer(config), open_repository(config), wanted_of(config)
            )
            if config.replicas
            else None,
            find_published=lambda: _find_published(config),
            recipe_of=lambda policy: settings.with_policy(json.loads(policy or "{}")).recipe(),
        )

    def _see_change(self, path: Path) -> None:
        """A list is read again at once; a site may change how everything is made."""
        if path in [site.absolute() for site in _site_files(self._session.config)]:
            self._watcher.reload_soon()
        else:
            self._watcher.read_lists_soon()

    def _open_lists(self, config: Config, stack: ExitStack) -> WishlistLoader:
        outbound = stack.enter_context(Outbound())
        folder = config.state / "wishlists"
        return WishlistLoader(configured_places(config), folder, outbound, self._session.environ)


def open_own_hooks(
    config: Config,
    submit: Callable[[Sequence[Push]], int],
    count: Callable[[str, Outcome], None],
) -> Hooks | None:
    """Return what takes webhooks in, as configured; None if nothing does."""
    if config.webhooks is None:
        return None
    return open_hooks(
        config.webhooks.read_secret(),
        {
            name: HookSettings(
                found.registry or "", {str(host): to for host, to in found.hosts.items()}
            )
            for name, found in config.webhooks.sources.items()
        },
        submit,
        count,
    )


@contextmanager
def _handling(handlers: Mapping[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Let signals do other things for a while."""

    def handle(number: int, _: object) -> None:
        handlers[signal.Signals(number)]()

    before = {number: signal.signal(number, handle) for number in handlers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refusal_of(
    config: Config, all_: Sequence[Config]
) -> Callable[[Reference, Platform], Refusal | None]:
    """Return what says of an image why its rules keep it out of a repository."""
    own, every = Compliance.of(config), [Compliance.of(each) for each in all_]

    def find(reference: Reference, platform: Platform) -> Refusal | None:
        try:
            own.admit(reference, platform)
        except ComplianceError as error:
            failure = Failure("warning", str(error), error.hint)
            return Refusal(failure, not any(each.admits(reference, platform) for each in every))
        return None

    return find


class _Control:
    """What a person may have done by way of the status site (`web.service.Control`)."""

    def __init__(self, state: State, watcher: Watcher, memory: AnswerMemory | None) -> None:
        self._state = state
        self._watcher = watcher
        self._memory = memory

    def publish(self, key: ImageKey) -> bool:
        image = self._state.image(key)
        if image is None or not image.is_wished:
            return False
        self._state.enqueue([key], datetime.now(UTC), "command")
        self._watcher.wake()
        return True

    def look(self, key: ImageKey) -> bool:
        image = self._state.image(key)
        if image is None or not image.is_wished:
            return False
        self._state.poll_soon([key], datetime.now(UTC))
        if self._memory is not None:
            self._memory.forget()
        self._watcher.ask_soon()
        return True


def _watched_files(config: Config) -> list[Path]:
    """Return the files whose change is noticed at once: lists, and the sites of `sandbox.sites`."""
    places = [place.where for place in configured_places(config)]
    return [*(place for place in places if isinstance(place, Path)), *_site_files(config)]


def _site_files(config: Config) -> list[Path]:
    return [site for site in config.sandbox.sites if isinstance(site, Path)]


def _find_published(config: Config) -> Iterator[tuple[ImageKey, Facts, datetime]]:
    with open_repository(config).open() as view:
        for record in iter_publications(view):
            key = ImageKey(Reference.parse(record.reference).name, record.platform)
            yield key, facts_of(record), datetime.fromisoformat(record.published_at)
