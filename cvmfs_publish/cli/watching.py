"""`watch`: the service that looks for new images and publishes them."""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

import typer

from cvmfs_publish.cli.assembly import open_repository
from cvmfs_publish.cli.context import Session, session_of
from cvmfs_publish.cli.expiry import warn_of_expiry
from cvmfs_publish.cli.lazy import command_app
from cvmfs_publish.cli.publishing import open_source, publish_settings
from cvmfs_publish.cli.registries import Registries
from cvmfs_publish.cli.replicas import open_observer
from cvmfs_publish.cli.showing import open_service
from cvmfs_publish.cli.staging import wanted_of
from cvmfs_publish.config import Config, complete, find_config, load_config
from cvmfs_publish.errors import EXIT_PARTIAL, InputError
from cvmfs_publish.reference import Reference
from cvmfs_publish.repository.records import iter_publications
from cvmfs_publish.state.model import Facts, ImageKey
from cvmfs_publish.state.state import State, WatchLock
from cvmfs_publish.watch.child import ChildRunner
from cvmfs_publish.watch.daemon import Parts, SystemClock, Watcher
from cvmfs_publish.watch.feed import StoredFeed
from cvmfs_publish.watch.files import DropFolder, FileEvents
from cvmfs_publish.watch.lists import WishlistLoader, configured_places
from cvmfs_publish.watch.notify import Notifier
from cvmfs_publish.watch.outbound import Outbound
from cvmfs_publish.watch.poller import Poller
from cvmfs_publish.watch.queue import QueueSettings
from cvmfs_publish.watch.replication import Replication
from cvmfs_publish.watch.retention import RetentionSettings
from cvmfs_publish.watch.sinks import open_subscriptions
from cvmfs_publish.watch.systemd import notify
from cvmfs_publish.watch.wanted import Wanted
from cvmfs_publish.watch.webhooks import HookSettings
from cvmfs_publish.watch.work import facts_of
from cvmfs_publish.web.app import create_app
from cvmfs_publish.web.hooks import Hooks, count_label, open_hooks
from cvmfs_publish.web.server import bind, create_server

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
    with (
        WatchLock(session.config.state),
        State.open(session.config.state) as state,
        _Service(session, state) as service,
    ):
        if once:
            return service.run_once()
        service.run(listen or session.config.watch.listen)
    return 0


def _retry(session: Session, images: Sequence[str]) -> int:
    names = [Reference.parse(image).name for image in images]
    with State.open(session.config.state) as state:
        keys: list[ImageKey] = []
        for name in names:
            found = [image.key for image in state.platforms(name) if image.is_wished]
            if not found:
                raise InputError(
                    f"nobody wishes {name}",
                    hint="`cvmfs-publish publish` publishes what is on no wishlist",
                )
            keys += found
        state.enqueue(keys, datetime.now(UTC), "command")
    document = {"images": [{"name": key.name, "platform": key.platform} for key in keys]}
    session.out.result(document, "\n".join(f"queued  {key}" for key in keys))
    return 0


class _Service:
    """The watcher and what is around it, in this process."""

    def __init__(self, session: Session, state: State) -> None:
        self._session = session
        self._state = state
        self._stack = ExitStack()  # of the parts in use
        self._former = ExitStack()  # of those before a reload
        address = session.environ.get("NOTIFY_SOCKET", "")
        self._watcher = Watcher(
            state,
            self._open_parts(session.config, self._stack),
            clock=SystemClock(),
            jitter=random.random,
            alive=lambda message: notify(address, message),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._former.close()
        self._stack.close()

    def run_once(self) -> int:
        with _handling({signal.SIGTERM: self._watcher.stop}):
            is_fine = self._watcher.run_once()
        self._tell_counts()
        return 0 if is_fine else EXIT_PARTIAL

    def run(self, listen: str | None) -> None:
        with ExitStack() as stack:
            url = stack.enter_context(self._serving(listen)) if listen is not None else None
            name = self._session.config.repository.name
            document = {"repository": name, "url": url}
            text = f"watching for {name}" + (f", status at {url}" if url is not None else "")
            self._session.out.result(document, text)
            self._session.out.stdout.flush()  # whoever started the service waits for this line
            warn_of_expiry(self._session)  # nobody looks at what it says when it ends
            stop = self._watcher.stop
            stack.enter_context(
                _handling(
                    {
                        signal.SIGTERM: stop,
                        signal.SIGINT: stop,
                        signal.SIGHUP: self._watcher.reload_soon,
                    }
                )
            )
            self._watcher.run(self._load_parts)

    def _tell_counts(self) -> None:
        counts = self._state.counts()
        text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        self._session.out.result({"images": counts}, text or "no wishlist wishes anything")
        if not self._session.out.as_json:
            for problem in self._state.problems():
                failure, place = problem.failure, f"{problem.list}:{problem.line}"
                if problem.line and failure.kind != "warning":
                    self._session.out.error(
                        failure.kind, f"{place}: {failure.message}", failure.hint
                    )
                elif failure.kind != "warning":
                    self._session.out.error(failure.kind, failure.message, failure.hint)
            for image in self._state.troubled():
                if image.failure is not None:
                    failure = image.failure
                    self._session.out.error(failure.kind, failure.message, failure.hint)

    # what the configuration says

    def _load_parts(self) -> Parts:
        """Read the configuration again; what was in use stays if it is wrong."""
        session = self._session
        path = find_config(session.config_path, session.environ, session.cwd)
        config = complete(load_config(path), session.environ)
        if config.state != session.config.state:
            raise InputError("`state` cannot change while the service runs", hint="restart it")
        with ExitStack() as stack:
            parts = self._open_parts(config, stack)
            self._former.close()  # what is in use now may be in the middle of something
            self._former, self._stack = self._stack, stack.pop_all()
        vars(session)["config"] = config
        return parts

    def _open_parts(self, config: Config, stack: ExitStack) -> Parts:
        session, watch = self._session, config.watch
        registries = stack.enter_context(Registries(config, session.environ))
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
        path = find_config(session.config_path, session.environ, session.cwd)
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
                [sys.executable, "-P", "-m", "cvmfs_publish.cli.publish_run", str(path.absolute())]
            ),
            wanted=Wanted(self._state, lists, registries, watch.tags),
            poller=poller,
            drop=drop,
            notifier=Notifier(open_subscriptions(config), StoredFeed(self._state)),
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

    def _open_hooks(self, config: Config) -> Hooks | None:
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
            self._watcher.submit,
            lambda source, outcome: self._state.count({count_label(source, outcome): 1}),
        )

    @contextmanager
    def _serving(self, listen: str) -> Iterator[str]:
        """Serve what people and registries ask, in a thread; yield the URL."""
        config = self._session.config
        service = open_service(
            config,
            control=_Control(self._state, self._watcher),
            probe=lambda: self._state.mark("probed", datetime.now(UTC)),
            expects_watcher=True,
        )
        storage = config.repository.storage
        application = create_app(
            service,
            storage=storage if isinstance(storage, Path) else None,
            hooks=self._open_hooks(config),
        )
        service.warm()
        with bind(listen) as listener:
            host, port = listener.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            server = create_server(application, log_requests=self._session.out.verbosity > 0)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web")
            thread.start()
            try:
                yield f"http://{shown}:{port}"
            finally:
                server.should_exit = True
                thread.join()


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


class _Control:
    """What a person may have done by way of the status site (`web.service.Control`)."""

    def __init__(self, state: State, watcher: Watcher) -> None:
        self._state = state
        self._watcher = watcher

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
